"""Parts of a report on their own, without a run."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskedclip.evaluation import report_quality, report_subject
from maskedclip.evaluation.report_quality import _probability_part
from maskedclip.evaluation.report_scores import LabelScores
from maskedclip.evaluation.report_subject import Evaluation, Subject
from maskedclip.html import LeftOut

AREA = {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 10}}


def _evaluated(name: str, **about: Any) -> Evaluation:
    return Evaluation(name=name, folder=Path(name), results={"about": about})


def test_calibration__is_of_scores_that_are_probabilities() -> None:
    sections = {
        ("finetune", "encoder"): {"per_label": {"a": AREA}},  # of smoothed labels
        ("linear", "encoder"): {"per_label": {"a": AREA | {"calibration_error": {"value": 0.1}}}},
    }
    subject: Any = SimpleNamespace(main=SimpleNamespace(section=lambda *key: sections.get(key)))
    assert _probability_part(subject) == ("linear", "encoder")
    del sections["linear", "encoder"]
    with pytest.raises(LeftOut, match="no protocol with probabilities"):
        _probability_part(subject)


def _scores(label: str, counts: list[int], classes: tuple[str, ...] = ()) -> LabelScores:
    truth = np.repeat(np.arange(len(counts)), counts)
    score = np.zeros((len(truth), len(classes)) if classes else len(truth))
    return LabelScores(label=label, classes=classes, ids=[], patients=[], truth=truth, score=score)


def test_strengths__two_images_are_too_few_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    per_label = {
        "sure": {"auroc": {"value": 0.95, "low": 0.91, "high": 0.97, "n": 36}},
        "rare": {"auroc": {"value": 1.0, "low": None, "high": None, "n": 36}},
        "grade": {"auroc": {"value": 0.75, "low": 0.71, "high": 0.8, "n": 36}},
    }
    scored = [
        _scores("sure", [20, 16]),
        _scores("rare", [34, 2]),
        _scores("grade", [30, 6], classes=("0", "1", "2")),
    ]
    main = SimpleNamespace(section=lambda protocol, feature: {"per_label": per_label})
    monkeypatch.setattr(report_quality, "label_scores", lambda *_: scored)
    shown = report_quality.strengths(SimpleNamespace(main=main))  # type: ignore[arg-type]
    rows = [re.sub(r"<[^>]*>", "|", row) for row in shown.split("<tr>")[2:]]
    assert [row.strip("|").split("|")[0] for row in rows] == ["sure", "grade", "rare"]
    assert "very good" in rows[0]
    assert "0: 30; 1: 6; 2: 0" in rows[1]
    assert "too few images to say" in rows[2]
    assert "|2|" in rows[2]


def test_differences__are_drawn_as_the_evaluations_were(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(report_subject, "compare_results", lambda *_, **given: asked.append(given) or {})
    nothing: Any = None
    subject = Subject(
        run=nothing,
        recipe=nothing,
        store=None,
        given=("mine", "other"),
        evaluations=(_evaluated("mine", replicates=50, seed=5), _evaluated("other")),
        faults={},
        seed=0,
    )
    assert subject.differences == {"other": {}}
    assert asked == [{"replicates": 50, "seed": 5}]
