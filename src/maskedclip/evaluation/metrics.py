"""Metrics on bootstrap weights, all replicates at once.  n rows, R replicates, K classes.

Every function takes integer or real row weights (R, n) (None: every row once) and returns (R,) values, NaN where
the metric is undefined because a class is missing: never 0.5, never 0.  On unit weights and on each replicate the
values are scikit-learn's (`roc_auc_score`, `average_precision_score`, `balanced_accuracy_score`,
`cohen_kappa_score(weights="quadratic")`, `accuracy_score`, `roc_curve`, `brier_score_loss`, each with
`sample_weight`).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
Metric = Callable[[NDArray, NDArray, NDArray | None], Values]

_CHUNK = 4_000_000  # cells of an (n, R) table held at once


def auroc(truth: ArrayLike, score: ArrayLike, weights: NDArray | None = None) -> Values:
    """Area under the ROC curve: the chance that a positive row scores above a negative one, ties counted half.

    truth (n,) bool or 0/1; score (n,) finite; returns (R,), NaN where a class has no weight.
    """
    return _over_replicates(_auroc, truth, score, weights)


def average_precision(truth: ArrayLike, score: ArrayLike, weights: NDArray | None = None) -> Values:
    """Area under the precision-recall curve as average precision: sum over thresholds of recall gained x precision.

    truth (n,) bool or 0/1; score (n,) finite; returns (R,), NaN where a class has no weight.
    """
    return _over_replicates(_average_precision, truth, score, weights)


def sensitivity_at_specificity(
    truth: ArrayLike, score: ArrayLike, weights: NDArray | None = None, specificity: float = 0.9
) -> Values:
    """Highest sensitivity among the thresholds whose specificity is at least `specificity`, in 0 to 1.

    truth (n,) bool or 0/1; score (n,) finite, positive from a threshold on; returns (R,), NaN where a class has no
    weight.  Thresholds lie at scores that occur: nothing is interpolated between the points of the ROC curve.
    """
    assert 0 <= specificity <= 1, specificity
    return _over_replicates(partial(_sensitivity, specificity=specificity), truth, score, weights)


def brier(truth: ArrayLike, probability: NDArray, weights: NDArray | None = None) -> Values:
    """Brier score, 0 (best) to 1: the mean squared error of the probabilities.

    truth (n,) 0/1 with probability (n,) of 1; or truth (n,) class indices with probability (n, K), where half of the
    squared errors' sum over the classes counts, so that two classes give what a binary label gives.  NaN in (n, K)
    stands for a class that the model does not know, of probability 0.  Defined with one class too; NaN without rows.
    """
    truth, probability = np.asarray(truth), np.asarray(probability, dtype=np.float64)
    if probability.ndim == 1:
        errors = (probability - truth) ** 2
    else:
        actual = truth[:, None] == np.arange(probability.shape[1])
        errors = ((np.nan_to_num(probability, nan=0.0) - actual) ** 2).sum(axis=1) / 2
    return weighted_mean(errors, weights)


def weighted_mean(values: NDArray, weights: NDArray | None = None) -> Values:
    """Mean of `values` (n,) under each replicate's weights (R, n): (R,); NaN without weight."""
    weights = np.ones((1, len(values))) if weights is None else weights
    return _ratio(np.einsum("n,nr->r", values, weights.T), weights.sum(axis=1, dtype=np.float64))


def one_vs_rest(metric: Metric, truth: ArrayLike, scores: NDArray, weights: NDArray | None = None) -> Values:
    """Mean of a binary `metric` over the classes, each against all the others: (R,).

    truth (n,) class indices; scores (n, K).  A class whose column holds NaN (no model could be had for it) and, in
    a replicate, a class without rows there, are left out of the mean.
    """
    truth = np.asarray(truth)
    usable = [k for k in range(scores.shape[1]) if not np.isnan(scores[:, k]).any()]
    return macro([metric(truth == k, scores[:, k], weights) for k in usable], _replicates(weights))


def macro(parts: Sequence[Values], replicates: int = 1) -> Values:
    """Mean of the values (R,) that are defined, replicate by replicate: (R,); NaN where none is."""
    if not parts:
        return np.full(replicates, np.nan)
    table = np.stack(parts)
    defined = ~np.isnan(table)
    return _ratio(np.where(defined, table, 0).sum(axis=0), defined.sum(axis=0))


def confusion(truth: ArrayLike, predicted: ArrayLike, classes: int, weights: NDArray | None = None) -> Values:
    """Weighted counts, true class by predicted class: (R, K, K).  truth, predicted (n,) indices below `classes`."""
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    weights = np.ones((1, len(truth))) if weights is None else weights
    counts = np.zeros((classes * classes, weights.shape[0]))
    cells = truth * classes + predicted
    for cell in np.unique(cells):
        counts[cell] = weights.T[cells == cell].sum(axis=0, dtype=np.float64)
    return counts.T.reshape(-1, classes, classes)


def accuracy(table: Values) -> Values:
    """Share of the rows whose class is predicted: (R, K, K) confusion -> (R,)."""
    return _ratio(np.trace(table, axis1=1, axis2=2), table.sum(axis=(1, 2)))


def recall(table: Values) -> Values:
    """Share of each class that is predicted as such: (R, K, K) confusion -> (R, K); NaN for a class without rows."""
    return _ratio(np.diagonal(table, axis1=1, axis2=2), table.sum(axis=2))


def balanced_accuracy(table: Values) -> Values:
    """Mean recall over the classes that have rows: (R, K, K) confusion -> (R,); NaN with fewer than two of them."""
    rows = table.sum(axis=2)
    values = macro(list(recall(table).T), len(table))
    return np.where((rows > 0).sum(axis=1) >= 2, values, np.nan)


def quadratic_kappa(table: Values, grades: ArrayLike | None = None) -> Values:
    """Cohen's kappa with quadratic weights: (R, K, K) confusion -> (R,); NaN where one class is all there is.

    grades (K,): the numbers that the classes stand for, their distance squared is the weight (default 0..K-1).
    """
    grades = np.arange(table.shape[1]) if grades is None else np.asarray(grades, dtype=np.float64)
    cost = (grades[:, None] - grades[None, :]) ** 2
    expected = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :]
    chance = _ratio((cost * expected).sum(axis=(1, 2)), table.sum(axis=(1, 2)))
    return 1 - _ratio((cost * table).sum(axis=(1, 2)), chance)


def _auroc(truth: NDArray[np.bool_], score: NDArray, weights: NDArray) -> Values:
    positive, negative, below = _split(truth, score, weights)
    left, right = (np.searchsorted(score[~truth][below], score[truth], side=side) for side in ("left", "right"))
    # A positive outranks the negatives below it, and half of those that tie with it.
    outranked = (negative[left] + negative[right]) / 2
    wins = np.einsum("pr,pr->r", positive, outranked)
    return _ratio(wins, positive.sum(axis=0, dtype=np.float64) * negative[-1])


def _average_precision(truth: NDArray[np.bool_], score: NDArray, weights: NDArray) -> Values:
    positive, negative, below = _split(truth, score, weights)
    order = np.argsort(score[truth], kind="stable")
    ranked = score[truth][order]
    positive = positive[order]
    total = _cumulated(positive)
    hits = total[-1] - total[np.searchsorted(ranked, ranked, side="left")]  # positives at or above each positive
    false = negative[-1] - negative[np.searchsorted(score[~truth][below], ranked, side="left")]
    summed = np.einsum("pr,pr->r", positive, _ratio(hits, hits + false, empty=0.0))
    return np.where(negative[-1] > 0, _ratio(summed, total[-1]), np.nan)


def _sensitivity(truth: NDArray[np.bool_], score: NDArray, weights: NDArray, specificity: float) -> Values:
    _, negative, below = _split(truth, score, weights)
    order = np.argsort(score[truth], kind="stable")
    total = _cumulated(weights[truth][order])  # positives below each one
    # The lowest threshold that leaves enough negatives below it is just above the last of them; a tie with it goes
    # below as well.  The tolerance makes 27 of 30 a specificity of 0.9.
    enough = specificity * negative[-1] * (1 - 1e-12)
    last = (negative < enough).sum(axis=0)  # (R,): negatives that must lie below
    missed = np.concatenate([[0], np.searchsorted(score[truth][order], score[~truth][below], side="right")])[last]
    found = total[-1] - total[missed, np.arange(total.shape[1])]
    return np.where(negative[-1] > 0, _ratio(found, total[-1]), np.nan)


def _split(truth: NDArray[np.bool_], score: NDArray, weights: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Weights of the positives (P, R), cumulated weights of the N sorted negatives (1 + N, R), and their order."""
    order = np.argsort(score[~truth], kind="stable")
    return weights[truth], _cumulated(weights[np.flatnonzero(~truth)[order]]), order


def _cumulated(weights: NDArray) -> NDArray:
    """Running sums (1 + m, R) of (m, R), starting at 0; integers stay integers, so that they are exact and fast."""
    kind = np.int64 if np.issubdtype(weights.dtype, np.integer) else np.float64
    sums = np.zeros((len(weights) + 1, weights.shape[1]), dtype=kind)
    np.cumsum(weights, axis=0, out=sums[1:])
    return sums


def _over_replicates(
    metric: Callable[[NDArray[np.bool_], NDArray, NDArray], Values],
    truth: ArrayLike,
    score: ArrayLike,
    weights: NDArray | None,
) -> Values:
    """`metric` on slices of the replicates that bound the memory; it sees weights as (n, r)."""
    truth, score = np.asarray(truth, dtype=bool), np.asarray(score)
    columns = np.ones((len(truth), 1)) if weights is None else weights.T
    step = max(1, _CHUNK // max(len(truth), 1))
    slices = [columns[:, start : start + step] for start in range(0, columns.shape[1], step)]
    return np.concatenate([metric(truth, score, part) for part in slices])


def _replicates(weights: NDArray | None) -> int:
    return 1 if weights is None else weights.shape[0]


def _ratio(numerator: NDArray, denominator: NDArray, empty: float = np.nan) -> Values:
    """Quotient with `empty` where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), empty, dtype=np.float64)
    return np.divide(numerator, denominator, out=result, where=np.asarray(denominator) > 0)
