import numpy as np
import pytest
from sklearn import metrics as reference

from maskedclip.evaluation.scoring import score_labels
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
