"""Parts of a report on their own, without a run."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from maskedclip.evaluation import report_quality, report_subject
from maskedclip.evaluation.calibration import calibration_section
from maskedclip.evaluation.report_figures import ROC_LINES, roc_chart
from maskedclip.evaluation.report_headline import headline
from maskedclip.evaluation.report_names import SCORED, few, row_name
from maskedclip.evaluation.report_quality import _probability_part, calibration, strengths, subgroups
from maskedclip.evaluation.report_roc import roc_curves
from maskedclip.evaluation.report_scores import LabelScores, label_scores, main_part
from maskedclip.evaluation.report_subject import Evaluation, Subject
from maskedclip.evaluation.statistics import Estimate, cluster_weights
from maskedclip.evaluation.tasks import Prediction, Task
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


def _predictions(rows: Sequence[tuple[str, str, str, str | None, int, float, float]]) -> pa.Table:
    """Of (protocol, feature, label, class, row, score, truth)."""
    names = ("protocol", "feature", "label", "class", "row", "score", "truth")
    table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    ids = [f"row-{row}" for row in table["row"].to_pylist()]
    return table.append_column("id", pa.array(ids)).append_column("patient", pa.array(ids))


def _subject(parts: dict[tuple[str, str], Any], table: pa.Table, about: dict[str, Any] | None = None) -> Any:
    """A report's matter with sections of results.json and predictions, nothing else."""
    results: dict[str, Any] = {}
    for (protocol, feature), part in parts.items():
        results.setdefault(protocol, {}).update(part if feature == "projected" else {feature: part})
    main = Evaluation(name="mine", folder=Path("mine"), results=results | {"about": about or {}})
    vars(main)["predictions"] = table
    return SimpleNamespace(main=main, others=(), faults={}, differences={}, store=None, model_fingerprint=None)


def _part(calibration_error: float | None = None) -> dict[str, Any]:
    entry = AREA if calibration_error is None else AREA | {"calibration_error": {"value": calibration_error, "n": 10}}
    return {"macro": AREA, "per_label": {"a": entry}}


def _finding(*parts: tuple[str, str]) -> pa.Table:
    return _predictions(
        [(*part, "a", None, row, (row * 7 % 10) / 10, float(row > 5)) for part in parts for row in range(10)]
    )


def _grades(learnt: tuple[str, ...], truths: list[str]) -> tuple[pa.Table, dict[str, Any]]:
    rows = [
        ("linear", "encoder", "grade", name, row, 0.7 if name == "0" else 0.3 / (len(learnt) - 1), float(truth == name))
        for name in learnt
        for row, truth in enumerate(truths)
    ]
    counts = {name: truths.count(name) for name in "01234"}
    return _predictions(rows), {"labels": {"grade": {"classes": [0, 1, 2, 3, 4], "test": counts}}}


def test_label_scores__keep_rows_of_classes_without_training_rows() -> None:
    table, about = _grades(("0", "1", "2", "3"), ["0", "4", "1", "4"])
    (scores,) = label_scores(_subject({}, table, about).main, ("linear", "encoder"))
    assert scores.truth.tolist() == [0, 4, 1, 4]
    assert scores.ids == scores.patients == [f"row-{row}" for row in range(4)]
    assert scores.unlearnt == ("4",)
    assert scores.truths == ("0", "1", "2", "3", "4")
    table, about = _grades(("0", "1"), ["0", "4", "1", "3"])
    (scores,) = label_scores(_subject({}, table, about).main, ("linear", "encoder"))
    assert scores.truth.tolist() == [0, 2, 1, 2]
    assert scores.unlearnt == ("3", "4")
    assert scores.truths == ("0", "1", "another class")
    table, about = _grades(("0", "1", "2", "3"), ["0", "1"])
    assert label_scores(_subject({}, table, about).main, ("linear", "encoder"))[0].truths == ("0", "1", "2", "3")


def test_strengths__count_images_of_a_class_without_training_images() -> None:
    table, about = _grades(("0", "1", "2", "3"), ["0"] * 5 + ["1"] + ["4"] * 4)
    part = {"macro": AREA, "per_label": {"grade": AREA}}
    shown = strengths(_subject({("linear", "encoder"): part}, table, about))
    assert "0: 5; 1: 1; 2: 0; 3: 0; 4: 4" in shown


def test_calibration__an_unlearnt_class_is_never_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    table, about = _grades(("0", "1", "2", "3"), ["0"] * 6 + ["4"] * 4)
    drawn: list[Any] = []
    monkeypatch.setattr(report_quality, "reliability_chart", lambda bins: drawn.append(bins) or b"")
    error = {"value": 0.1, "low": 0.02, "high": 0.08, "n": 10}
    part = {"macro": AREA, "per_label": {"grade": AREA | {"calibration_error": error}}}
    shown = calibration(_subject({("linear", "encoder"): part}, table, about))
    assert [(entry["observed"], entry["n"]) for entry in drawn[0]] == [(0.6, 10)]
    assert "calibration error 0.100 [0.020, 0.080]; n 10" in shown
    (scores,) = label_scores(_subject({}, table, about).main, ("linear", "encoder"))
    task = Task(name="grade", kind="nominal", classes=(0, 1, 2, 3), truth=scores.truth)
    answer = Prediction(scores=scores.score, predicted=np.zeros(10, np.int64), probabilities=True)
    section = calibration_section(task, answer, cluster_weights(scores.patients, replicates=20))
    assert section["bins"] == drawn[0]
    assert section["brier"]["value"] == pytest.approx((6 * (0.3**2 + 3 * 0.1**2) + 4 * (0.7**2 + 3 * 0.1**2)) / 20)


def test_calibration__figures_are_those_of_results_json_and_say_of_what() -> None:
    linear, tuned, knn = ("linear", "encoder"), ("finetune", "encoder"), ("knn", "bridge")
    shown = calibration(_subject({linear: _part(0.123), tuned: _part()}, _finding(linear, tuned)))
    assert "Linear probe on f (encoder) (the scores of Fine-tuning on f (encoder), shown above, are no prob" in shown
    assert shown.count("calibration error 0.123 no interval; n 10") == 1
    assert "it may lie below the value" in shown
    assert "take the images as independent (Wilson&#x27;s interval), unlike the other intervals" in shown
    shown = calibration(_subject({knn: _part(0.123)}, _finding(knn)))
    assert "k-NN on g(f) (bridge). Test rows" in shown


@pytest.mark.parametrize("part", SCORED)
def test_sections__show_whatever_scored_the_labels(part: tuple[str, str]) -> None:
    subject = _subject({part: _part()}, _finding(part))
    assert main_part(subject.main) == part
    assert "0.800" in headline(subject)
    assert f"{SCORED[part]}  0.80 [0.70, 0.90]" in roc_curves(subject)
    assert f"{row_name(*part)}: AUROC by label" in strengths(subject)
    assert f"{row_name(*part)}, from the best label" in strengths(subject)
    subject.differences = {"other": {(*part, "macro"): Estimate(value=0.1, low=0.05, high=0.2, n=10)}}
    assert f"{row_name(*part)}: mine minus other <strong>+0.100 [+0.050, +0.200]" in headline(subject)


def test_subgroups__name_the_feature() -> None:
    group = {"n": 9, "patients": 5, "macro": AREA, "difference": {"macro": AREA}}
    subject = _subject({}, pa.table({}))
    subject.unit = "images"
    subject.main.results["subgroups"] = {protocol: {"sex": {"f": group}} for protocol in ("lora", "zero_shot")}
    shown = subgroups(subject)
    assert "LoRA fine-tuning on f (encoder) by sex" in shown
    assert "Zero-shot, text prompts by sex" in shown


def test_main_part__is_what_was_trained_most_and_has_an_auroc() -> None:
    undefined = {"macro": AREA, "per_label": {"a": {"auroc": {"value": None}}}}
    parts = dict.fromkeys(reversed(SCORED), _part())
    assert main_part(_subject(parts, pa.table({})).main) == ("finetune", "encoder")
    parts[("finetune", "encoder")] = undefined
    assert main_part(_subject(parts, pa.table({})).main) == ("lora", "encoder")
    assert main_part(_subject({("knn", "encoder"): undefined}, pa.table({})).main) == ("knn", "encoder")
    with pytest.raises(LeftOut, match="no protocol that scores labels"):
        main_part(_subject({}, pa.table({})).main)


def test_few__keeps_one_of_each_kind() -> None:
    assert [SCORED[part] for part in few(SCORED)] == ["fine-tuning", "LoRA", "probe on f", "zero-shot"]
    usual = [part for part in SCORED if part[0] in ("linear", "knn", "zero_shot")]
    assert [SCORED[part] for part in few(usual)] == ["probe on f", "probe on g(f)", "k-NN on f", "zero-shot"]
    assert few([("knn", "bridge")]) == [("knn", "bridge")]
    shown = roc_curves(_subject(dict.fromkeys(usual, _part()), _finding(*usual)))
    assert "k-NN on g(f)" not in shown.split('<div class="charts">')[1]
    assert "The tables have the figures of k-NN on g(f)" in shown


def test_roc_curves__classes_of_a_label_stand_together() -> None:
    linear, words = ("linear", "encoder"), ("zero_shot", "projected")
    given = [(linear, "grade", "0"), (linear, "b", None), (words, "grade", "0"), (words, "grade", "4")]
    rows = [(*part, label, value, row, row / 10, row % 2.0) for part, label, value in given for row in range(10)]
    shown = roc_curves(_subject({linear: _part(), words: _part()}, _predictions(rows)))
    assert re.findall(r"<h3>([^<]*)</h3>", shown) == ["grade = 0", "grade = 4", "b"]


def test_roc_chart__a_curve_has_the_same_line_whatever_else_is_drawn() -> None:
    assert set(ROC_LINES) == set(SCORED.values())
    for column in zip(*ROC_LINES.values(), strict=True):
        assert len(set(column)) == len(SCORED)
    scored = {"zero-shot": (np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.1, 0.9, 0.2, 0.3]))}
    chart = roc_chart(scored, {"zero-shot": "zero-shot  0.9"}).decode().lower()
    assert ROC_LINES["zero-shot"][0].lower() in chart
    assert ROC_LINES["probe on f"][0].lower() not in chart
