import numpy as np
import pytest
from sklearn import metrics as reference

from maskedclip.evaluation.scoring import auroc_distribution, label_metrics, score_labels
from maskedclip.evaluation.statistics import cluster_weights
from maskedclip.evaluation.tasks import Prediction, Task

M = 90
GENERATOR = np.random.Generator(np.random.Philox(6))
WEIGHTS = cluster_weights([str(row // 2) for row in range(M)], replicates=100)


def _binary(name: str, truth: np.ndarray) -> Task:
    return Task(name=name, kind="binary", classes=(0, 1), truth=truth.astype(np.int64))


def _answer(truth: np.ndarray) -> Prediction:
    scores = truth + GENERATOR.normal(size=M)
    return Prediction(scores=scores, predicted=(scores > 0.5).astype(np.int64))


def test_score_labels__figures_of_each_label_and_their_mean() -> None:
    a, b = GENERATOR.integers(0, 2, M), GENERATOR.integers(0, 2, M)
    b[:30] = -1
    answers = {"a": _answer(a), "b": _answer(b)}
    scored = score_labels({"a": _binary("a", a), "b": _binary("b", b)}, answers, WEIGHTS)
    known = b >= 0
    area = reference.roc_auc_score(b[known], answers["b"].scores[known])
    entry = scored["per_label"]["b"]["auroc"]
    assert entry["value"] == pytest.approx(area)
    assert entry["n"] == 60
    assert entry["low"] < area < entry["high"]
    assert scored["per_label"]["b"]["auprc"]["value"] == pytest.approx(
        reference.average_precision_score(b[known], answers["b"].scores[known])
    )
    assert scored["per_label"]["b"]["balanced_accuracy"]["value"] == pytest.approx(
        reference.balanced_accuracy_score(b[known], answers["b"].predicted[known])
    )
    for metric, macro in scored["macro"].items():
        parts = [scored["per_label"][name][metric]["value"] for name in ("a", "b")]
        assert macro["value"] == pytest.approx(np.mean(parts))
        assert macro["note"] == "mean of 2 labels"
        assert macro["n"] == M


def test_score_labels__undefined_labels_are_named_and_left_out() -> None:  # P11
    a = GENERATOR.integers(0, 2, M)
    tasks = {"a": _binary("a", a), "none": _binary("none", np.zeros(M)), "unlearnt": _binary("unlearnt", a)}
    answers = {"a": _answer(a), "none": _answer(a), "unlearnt": "the training split has one class only"}
    scored = score_labels(tasks, answers, WEIGHTS)
    assert scored["per_label"]["none"]["auroc"]["value"] is None
    assert scored["per_label"]["none"]["auroc"]["note"] == f"undefined (n={M}, one class only)"
    assert scored["per_label"]["unlearnt"]["auprc"]["note"].endswith("the training split has one class only)")
    assert scored["macro"]["auroc"]["note"] == "mean of 1 of 3 labels; undefined: none, unlearnt"
    assert scored["macro"]["auroc"]["value"] == scored["per_label"]["a"]["auroc"]["value"]
    nothing = score_labels({"unlearnt": tasks["unlearnt"]}, {"unlearnt": answers["unlearnt"]}, WEIGHTS)
    assert nothing["macro"]["auroc"]["note"] == f"undefined (n={M}, no label is defined)"
    only = score_labels({"none": tasks["none"]}, {"none": answers["none"]}, WEIGHTS)
    assert only["macro"]["auroc"] | {"note": ""} == {"value": None, "low": None, "high": None, "n": M, "note": ""}


def test_score_labels__label_of_several_classes_counts_as_one() -> None:
    grade, a = GENERATOR.integers(0, 3, M), GENERATOR.integers(0, 2, M)
    scores = GENERATOR.dirichlet(np.ones(3), M) + np.eye(3)[grade]
    scores /= scores.sum(axis=1, keepdims=True)
    tasks = {
        "grade": Task(name="grade", kind="ordinal", classes=(0, 1, 2), truth=grade),
        "a": _binary("a", a),
    }
    predicted = GENERATOR.integers(0, 3, M)
    scored = score_labels(tasks, {"grade": Prediction(scores=scores, predicted=predicted), "a": _answer(a)}, WEIGHTS)
    entry = {metric: value["value"] for metric, value in scored["per_label"]["grade"].items()}
    likeliest = scores.argmax(axis=1)
    assert entry == pytest.approx(
        {
            "auroc": reference.roc_auc_score(grade, scores, multi_class="ovr", average="macro"),
            "auprc": reference.average_precision_score(np.eye(3)[grade], scores, average="macro"),
            "balanced_accuracy": reference.balanced_accuracy_score(grade, predicted),
            "accuracy": reference.accuracy_score(grade, likeliest),
            "quadratic_kappa": reference.cohen_kappa_score(grade, likeliest, weights="quadratic"),
        }
    )
    parts = [scored["per_label"][name]["auroc"]["value"] for name in ("grade", "a")]
    assert scored["macro"]["auroc"]["value"] == pytest.approx(np.mean(parts))


def test_score_labels__rare_class_missing_from_many_replicates_is_said() -> None:
    truth = np.zeros(M)
    truth[:2] = 1  # one patient: about 37 % of the replicates do without
    scored = score_labels({"rare": _binary("rare", truth)}, {"rare": _answer(truth)}, WEIGHTS)
    assert "of the replicates lack a class" in scored["per_label"]["rare"]["auroc"]["note"]


def test_score_labels__binary_labels_have_sensitivity_and_where_probabilities_their_errors() -> None:
    a = GENERATOR.integers(0, 2, M)
    scores = np.clip(0.5 * a + GENERATOR.random(M) / 2, 0, 1)
    answer = Prediction(scores=scores, predicted=a, probabilities=True)
    entry = score_labels({"a": _binary("a", a)}, {"a": answer}, WEIGHTS)["per_label"]["a"]
    false, true, _ = reference.roc_curve(a, scores, drop_intermediate=False)
    assert entry["sensitivity_at_90_specificity"]["value"] == pytest.approx(true[1 - false >= 0.9].max())
    assert entry["sensitivity_at_95_specificity"]["value"] == pytest.approx(true[1 - false >= 0.95].max())
    assert entry["brier"]["value"] == pytest.approx(reference.brier_score_loss(a, scores))
    for metric in ("brier", "calibration_error", "sensitivity_at_90_specificity"):
        assert 0 <= entry[metric]["low"] <= entry[metric]["value"] <= entry[metric]["high"] <= 1
    assert "brier" not in score_labels({"a": _binary("a", a)}, {"a": _answer(a)}, WEIGHTS)["per_label"]["a"]


def test_score_labels__macro_of_the_probabilities_only_where_all_are() -> None:
    a, b = GENERATOR.integers(0, 2, M), GENERATOR.integers(0, 2, M)
    tasks = {"a": _binary("a", a), "b": _binary("b", b), "unlearnt": _binary("unlearnt", a)}
    likely = {name: Prediction(scores=GENERATOR.random(M), predicted=a, probabilities=True) for name in ("a", "b")}
    refused = {"unlearnt": "the training split has one class only"}
    scored = score_labels(tasks, likely | refused, WEIGHTS)
    parts = [scored["per_label"][name]["brier"]["value"] for name in ("a", "b")]
    assert scored["macro"]["brier"]["value"] == pytest.approx(np.mean(parts))
    assert scored["macro"]["calibration_error"]["note"] == "mean of 2 of 3 labels; undefined: unlearnt"
    mixed = score_labels(tasks, likely | {"b": _answer(b)} | refused, WEIGHTS)
    assert (
        set(mixed["macro"])
        == set(score_labels(tasks, refused, WEIGHTS)["macro"])
        == set(scored["macro"])
        - {
            "brier",
            "calibration_error",
        }
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_score_labels__missing_scores_are_said_not_scored(value: float) -> None:  # P11
    a, b = GENERATOR.integers(0, 2, M), GENERATOR.integers(0, 2, M)
    tasks = {"a": _binary("a", a), "b": _binary("b", b)}
    broken = _answer(b)
    broken.scores[[3, 7]] = value
    scored = score_labels(tasks, {"a": _answer(a), "b": broken}, WEIGHTS)
    for entry in scored["per_label"]["b"].values():
        assert (entry["value"], entry["low"]) == (None, None)
        assert entry["note"] == f"undefined (n={M}, 2 of {M} scores are not finite)"
    assert set(scored["per_label"]["b"]) == set(scored["per_label"]["a"])
    assert scored["macro"]["auroc"]["note"] == "mean of 1 of 2 labels; undefined: b"
    unknown = b.copy()
    unknown[[3, 7]] = -1  # a row that is not scored needs no score
    fine = score_labels({"b": _binary("b", unknown)}, {"b": broken}, WEIGHTS)
    assert fine["per_label"]["b"]["auroc"]["value"] is not None


def test_score_labels__missing_scores_of_several_classes() -> None:  # P11
    grade = GENERATOR.integers(0, 3, M)
    task = Task(name="grade", kind="ordinal", classes=(0, 1, 2), truth=grade)
    scores = GENERATOR.dirichlet(np.ones(3), M)
    holes, column, nothing = scores.copy(), scores.copy(), np.full((M, 3), np.nan)
    holes[5] = np.nan
    column[:, 1] = np.nan
    for table, note in ((holes, f"1 of {M} scores are not finite"), (nothing, "no class has a score")):
        answer = Prediction(scores=table, predicted=grade, probabilities=True)
        found = label_metrics(task, answer, WEIGHTS)
        assert {part.estimate().note for part in found.values()} == {f"undefined (n={M}, {note})"}
        assert {"quadratic_kappa", "brier"} < set(found)
    learnt = label_metrics(task, Prediction(scores=column, predicted=grade, probabilities=True), WEIGHTS)
    assert np.isfinite([part.value for part in learnt.values()]).all()


def test_score_labels__no_known_value() -> None:
    task = _binary("a", np.full(M, -1))
    answer = Prediction(scores=np.full(M, 0.5), predicted=np.zeros(M, np.int64), probabilities=True)
    scored = score_labels({"a": task}, {"a": answer}, WEIGHTS)
    assert {entry["note"] for entry in scored["per_label"]["a"].values()} == {
        "undefined (n=0, no row with a known value)"
    }
    assert scored["macro"]["auroc"]["value"] is None


def test_label_metrics__few_patients_and_perfect_scores_have_wide_intervals() -> None:
    a = np.zeros(M, np.int64)
    a[:8] = 1  # four patients
    answer = Prediction(scores=a.astype(float), predicted=a)
    found = {name: part.estimate() for name, part in label_metrics(_binary("a", a), answer, WEIGHTS).items()}
    for name in ("auroc", "auprc", "balanced_accuracy", "sensitivity_at_95_specificity"):
        assert found[name].value == found[name].high == 1
        assert 0.1 < found[name].low < 0.6


def test_label_metrics__of_several_classes_at_their_bound_have_intervals_too() -> None:
    grade = np.repeat(np.arange(3), 4)
    task = Task(name="g", kind="ordinal", classes=(0, 1, 2), truth=grade)
    answer = Prediction(scores=np.eye(3)[grade] * 0.8 + 0.05, predicted=grade, probabilities=True)
    weights = cluster_weights([str(row) for row in range(12)], replicates=100)
    found = {name: part.estimate() for name, part in label_metrics(task, answer, weights).items()}
    for name in ("accuracy", "quadratic_kappa"):
        assert found[name].value == found[name].high == 1
        assert found[name].low < 0.8


def test_label_metrics__one_patient_has_no_interval() -> None:
    a = np.array([0, 1, 0, 1, 1])
    answer = Prediction(scores=np.array([0.1, 0.3, 0.5, 0.4, 0.9]), predicted=a)
    weights = cluster_weights(["same"] * 5, replicates=50)
    found = label_metrics(_binary("a", a), answer, weights)["auroc"].estimate()
    assert found.value == pytest.approx(2 / 3)
    assert np.isnan([found.low, found.high]).all()


def test_score_labels__a_mean_over_some_of_the_classes_says_so() -> None:
    truth = np.array([0, 1] * (M // 2))  # no test row of the third class
    task = Task(name="g", kind="nominal", classes=("a", "b", "c"), truth=truth)
    scores = GENERATOR.dirichlet(np.ones(3), M)
    answer = Prediction(scores=scores, predicted=scores.argmax(axis=1))
    scored = score_labels({"g": task}, {"g": answer}, WEIGHTS)
    for metric in ("auroc", "auprc"):
        assert scored["per_label"]["g"][metric]["note"] == "mean of 2 of 3 classes; undefined: c"
        assert scored["macro"][metric]["note"] == "mean of 1 labels; of some of their classes only: g"


def test_auroc_distribution__is_that_of_label_metrics() -> None:
    grade, a = GENERATOR.integers(-1, 3, M), GENERATOR.integers(-1, 2, M)
    tasks = {"a": _binary("a", a), "g": Task(name="g", kind="ordinal", classes=(0, 1, 2), truth=grade)}
    scores = {"a": GENERATOR.random(M), "g": GENERATOR.dirichlet(np.ones(3), M)}
    for name, task in tasks.items():
        answer = Prediction(scores=scores[name], predicted=np.zeros(M, np.int64))
        alone, among = auroc_distribution(task, answer, WEIGHTS), label_metrics(task, answer, WEIGHTS)["auroc"]
        assert alone.estimate() == among.estimate()
