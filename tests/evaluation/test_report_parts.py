"""Parts of a report on their own, without a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maskedclip.evaluation import report_subject
from maskedclip.evaluation.report_quality import _probability_part
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
