import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from maskedclip.evaluation import metrics
from maskedclip.evaluation.statistics import cluster_weights

# Few distinct scores: most examples have ties, within and across the classes.
BINARY = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=30)
CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def _columns(rows: list) -> tuple[NDArray, NDArray]:
    first, second = zip(*rows, strict=True)
    return np.array(first), np.array(second) / 3


@settings(deadline=None)  # a busy machine is no fault
@given(BINARY)
def test_auroc__equals_scikit_learn_with_ties(rows: list) -> None:
    truth, score = _columns(rows)
    assume(0 < truth.sum() < len(truth))
    assert metrics.auroc(truth, score)[0] == pytest.approx(reference.roc_auc_score(truth, score))


@settings(deadline=None)  # a busy machine is no fault
@given(BINARY)
def test_average_precision__equals_scikit_learn_with_ties(rows: list) -> None:
    truth, score = _columns(rows)
    assume(0 < truth.sum() < len(truth))
    assert metrics.average_precision(truth, score)[0] == pytest.approx(reference.average_precision_score(truth, score))


@settings(deadline=None)  # a busy machine is no fault
@given(BINARY, st.integers(0, 100))
def test_ranking_metrics__equal_scikit_learn_on_replicates(rows: list, seed: int) -> None:
    truth, score = _columns(rows)
    weights = cluster_weights([None] * len(rows), replicates=4, seed=seed)
    areas, precisions = metrics.auroc(truth, score, weights), metrics.average_precision(truth, score, weights)
    for weight, area, precision in zip(weights, areas, precisions, strict=True):
        if 0 < weight[truth].sum() < weight.sum():
            assert area == pytest.approx(reference.roc_auc_score(truth, score, sample_weight=weight))
            assert precision == pytest.approx(reference.average_precision_score(truth, score, sample_weight=weight))
        else:
            assert np.isnan([area, precision]).all()


@settings(deadline=None)  # a busy machine is no fault
@given(BINARY, st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 1.0]), st.integers(0, 100))
def test_sensitivity_at_specificity__equals_scikit_learn_on_replicates(rows: list, at: float, seed: int) -> None:
    truth, score = _columns(rows)
    weights = cluster_weights([None] * len(rows), replicates=4, seed=seed)
    weights[0] = 1
    found = metrics.sensitivity_at_specificity(truth, score, weights, at)
    for weight, value in zip(weights, found, strict=True):
        if 0 < weight[truth].sum() < weight.sum():
            false, true, _ = reference.roc_curve(truth, score, sample_weight=weight, drop_intermediate=False)
            assert value == pytest.approx(true[1 - false >= at - 1e-9].max())
        else:
            assert np.isnan(value)


def test_sensitivity_at_specificity__counts_that_meet_the_specificity_exactly() -> None:
    # 3 of 30 negatives may lie at or above the threshold, and 27 / 30 is no exact 0.9 in binary.
    score = np.concatenate([np.arange(30), [27.5, 26.5, 5.0]])
    truth = np.repeat([0, 1], [30, 3])
    assert metrics.sensitivity_at_specificity(truth, score, None, 0.9)[0] == pytest.approx(2 / 3)
    assert metrics.sensitivity_at_specificity(truth, score, None, 0.95)[0] == pytest.approx(0)
    assert metrics.sensitivity_at_specificity(truth, score, None, 0.0)[0] == 1


def test_sensitivity_at_specificity__slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.Generator(np.random.Philox(3))
    truth, score = generator.random(50) < 0.3, generator.normal(size=50)
    weights = cluster_weights([None] * 50, replicates=21)
    whole = metrics.sensitivity_at_specificity(truth, score, weights, 0.9)
    monkeypatch.setattr(metrics, "_CHUNK", 4 * 50)
    assert (metrics.sensitivity_at_specificity(truth, score, weights, 0.9) == whole).all()


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=30), st.integers(0, 100))
def test_brier__equals_scikit_learn_on_replicates(rows: list, seed: int) -> None:
    truth, probability = (np.array(column) for column in zip(*rows, strict=True))
    weights = cluster_weights([None] * len(rows), replicates=3, seed=seed)
    for weight, value in zip(weights, metrics.brier(truth, probability / 8, weights), strict=True):
        expected = reference.brier_score_loss(truth, probability / 8, sample_weight=weight, pos_label=True)
        assert value == pytest.approx(expected)


def test_brier__several_classes() -> None:
    generator = np.random.Generator(np.random.Philox(9))
    truth, probability = generator.integers(0, 3, 50), generator.dirichlet(np.ones(3), 50)
    summed = [((probability[row] - np.eye(3)[truth[row]]) ** 2).sum() for row in range(50)]
    assert metrics.brier(truth, probability)[0] == pytest.approx(np.mean(summed) / 2)
    two = np.stack([1 - probability[:, 0], probability[:, 0]], axis=1)
    assert metrics.brier(truth == 0, two)[0] == pytest.approx(metrics.brier(truth == 0, probability[:, 0])[0])
    unknown = np.array([[0.6, 0.4, np.nan]])
    assert metrics.brier([2], unknown)[0] == pytest.approx((0.36 + 0.16 + 1) / 2)  # it gave the truth no chance


def test_brier__without_rows_is_undefined() -> None:
    assert np.isnan(metrics.brier([], np.zeros(0)))
    assert metrics.brier([0, 0], np.array([0.5, 0.1]))[0] == pytest.approx(0.13)


def test_ranking_metrics__real_weights() -> None:
    generator = np.random.Generator(np.random.Philox(2))
    truth, score, weight = generator.random(40) < 0.5, generator.normal(size=40).round(1), generator.random(40)
    assert metrics.auroc(truth, score, weight[None])[0] == pytest.approx(
        reference.roc_auc_score(truth, score, sample_weight=weight)
    )
    assert metrics.average_precision(truth, score, weight[None])[0] == pytest.approx(
        reference.average_precision_score(truth, score, sample_weight=weight)
    )


@pytest.mark.parametrize("truth", [[], [1], [0, 0, 0], [1, 1]])
def test_ranking_metrics__one_class_is_undefined_not_a_half(truth: list[int]) -> None:  # P11
    score = np.zeros(len(truth))
    assert np.isnan(metrics.auroc(truth, score)).all()
    assert np.isnan(metrics.average_precision(truth, score)).all()
    assert np.isnan(metrics.sensitivity_at_specificity(truth, score, None, 0.9)).all()


def test_ranking_metrics__slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.Generator(np.random.Philox(3))
    truth, score = generator.random(50) < 0.3, generator.normal(size=50)
    weights = cluster_weights([None] * 50, replicates=21)
    whole = metrics.auroc(truth, score, weights)
    monkeypatch.setattr(metrics, "_CHUNK", 4 * 50)
    assert (metrics.auroc(truth, score, weights) == whole).all()


@settings(deadline=None)  # a busy machine is no fault
@given(CLASSES, st.integers(0, 100))
def test_confusion_metrics__equal_scikit_learn_on_replicates(rows: list, seed: int) -> None:
    truth, predicted = np.array(rows).T
    weights = cluster_weights([None] * len(rows), replicates=3, seed=seed)
    weights[0] = 1
    table = metrics.confusion(truth, predicted, 4, weights)
    balanced, kappa, share = metrics.balanced_accuracy(table), metrics.quadratic_kappa(table), metrics.accuracy(table)
    for row, weight in enumerate(weights):
        expected = reference.confusion_matrix(truth, predicted, labels=range(4), sample_weight=weight)
        assert (table[row] == expected).all()
        assert share[row] == pytest.approx(reference.accuracy_score(truth, predicted, sample_weight=weight))
        drawn, guessed, drawn_weight = truth[weight > 0], predicted[weight > 0], weight[weight > 0]
        if len(np.unique(drawn)) < 2:
            assert np.isnan(balanced[row])
        else:
            assert balanced[row] == pytest.approx(_recall(drawn, guessed, drawn_weight))
        if len(np.unique(np.concatenate([drawn, guessed]))) > 1:
            assert kappa[row] == pytest.approx(
                reference.cohen_kappa_score(
                    drawn, guessed, weights="quadratic", labels=list(range(4)), sample_weight=drawn_weight
                )
            )
        else:
            assert np.isnan(kappa[row])


def _recall(truth: NDArray, predicted: NDArray, weight: NDArray) -> float:
    """scikit-learn's balanced accuracy, without its warning for predicted classes that have no rows."""
    classes = np.unique(truth)
    return float(reference.recall_score(truth, predicted, labels=list(classes), average="macro", sample_weight=weight))


def test_balanced_accuracy__equals_scikit_learn() -> None:
    generator = np.random.Generator(np.random.Philox(4))
    truth, predicted = generator.integers(0, 3, 60), generator.integers(0, 3, 60)
    table = metrics.confusion(truth, predicted, 3)
    assert metrics.balanced_accuracy(table)[0] == pytest.approx(reference.balanced_accuracy_score(truth, predicted))


def test_quadratic_kappa__distances_are_those_of_the_grades() -> None:
    truth, predicted = np.array([0, 1, 2, 2, 0, 1]), np.array([0, 2, 2, 1, 1, 1])
    grades = np.array([0, 1, 4])
    weights = (np.arange(5)[:, None] - np.arange(5)) ** 2  # grades 2 and 3 exist but are not in the set
    observed = np.mean([weights[grades[t], grades[p]] for t, p in zip(truth, predicted, strict=True)])
    chance = np.mean([weights[grades[t], grades[p]] for t in truth for p in predicted])
    table = metrics.confusion(truth, predicted, 3)
    assert metrics.quadratic_kappa(table, grades)[0] == pytest.approx(1 - observed / chance)


def test_one_vs_rest__equals_scikit_learn_and_leaves_unlearnt_classes_out() -> None:
    generator = np.random.Generator(np.random.Philox(5))
    truth, scores = generator.integers(0, 4, 80), generator.dirichlet(np.ones(4), 80)
    value = metrics.one_vs_rest(metrics.auroc, truth, scores)[0]
    assert value == pytest.approx(reference.roc_auc_score(truth, scores, multi_class="ovr", average="macro"))
    without = scores.copy()
    without[:, 2] = np.nan
    parts = [reference.roc_auc_score(truth == k, scores[:, k]) for k in (0, 1, 3)]
    assert metrics.one_vs_rest(metrics.auroc, truth, without)[0] == pytest.approx(np.mean(parts))


def test_macro__mean_over_the_defined_only() -> None:
    parts = [np.array([1.0, np.nan, np.nan]), np.array([0.5, 0.25, np.nan])]
    assert metrics.macro(parts) == pytest.approx([0.75, 0.25, np.nan], nan_ok=True)
    assert np.isnan(metrics.macro([], 2)).tolist() == [True, True]
