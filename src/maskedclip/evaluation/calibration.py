"""Are the probabilities true?  Calibration error, reliability curve, recalibration.  n rows, R replicates, K classes.

A binary label's probability is compared with how often the finding is there; of several classes, the probability of the
likeliest with how often it is the right one.  Zero-shot scores are no probabilities: `platt` makes them some, from
validation rows.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from scipy.stats import binomtest

from maskedclip.evaluation import metrics
from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.metrics import Values
from maskedclip.evaluation.statistics import Distribution, with_point
from maskedclip.evaluation.tasks import Prediction, Task

BINS = 10
# Probabilities of 0 and 1 (all neighbours agree) have no finite logit.
_CLIP = 1e-6
_NEWTON_STEPS = 40
_CHUNK = 4_000_000  # cells of an (n, R) table held at once


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Rows of like probability: their mean prediction, the share observed with its 95 % Wilson interval, and how many.

    Wilson's interval takes the rows as independent: where patients have several images it is somewhat narrow.
    """

    predicted: float
    observed: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Platt:
    """Probability of a score: 1 / (1 + exp(-(slope x score + intercept))), fitted on n validation rows."""

    slope: float
    intercept: float
    n: int

    def __call__(self, scores: ArrayLike) -> Values:
        """Probabilities of scores of any shape."""
        return expit(self.slope * np.asarray(scores, dtype=np.float64) + self.intercept)


def calibration_error(
    truth: ArrayLike, probability: NDArray, weights: NDArray | None = None, *, bins: int = BINS
) -> Values:
    """Expected calibration error, 0 (best) to 1: mean over bins of |mean prediction - share observed|: (R,).

    truth (n,) 0/1 with probability (n,), or class indices with (n, K); weights (R, n).  The bins hold equally many
    rows of the set itself (rows of equal probability stay together) and are the same in all replicates.  Naeini,
    Cooper & Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning" (2015).  It is above 0 for
    perfect probabilities too, the more so the fewer rows a bin has; NaN without rows.
    """
    predicted, observed = _confidence(truth, probability)
    weights = np.ones((1, len(predicted))) if weights is None else weights
    gaps = np.zeros(len(weights))
    codes = bin_codes(predicted, bins)
    for code in np.unique(codes):
        rows = codes == code
        gaps += np.abs(np.einsum("n,nr->r", observed[rows] - predicted[rows], weights.T[rows]))
    total = weights.sum(axis=1, dtype=np.float64)
    return np.divide(gaps, total, out=np.full(len(weights), np.nan), where=total > 0)


def calibration_distribution(
    truth: ArrayLike, probability: NDArray, rows: NDArray, *, bins: int = BINS
) -> Distribution:
    """The calibration error with replicates turned about its value; rows: `with_point` weights (1 + R, n).

    What chance adds to the error on a set, it adds once more in a replicate.  Percentiles of the replicates would lie
    too high, often above the value; turned about it (the basic bootstrap), they allow for what chance has added.
    """
    values = calibration_error(truth, probability, rows, bins=bins)
    return Distribution(value=float(values[0]), replicates=np.maximum(2 * values[0] - values[1:], 0), n=rows.shape[1])


def reliability_curve(truth: ArrayLike, probability: NDArray, *, bins: int = BINS) -> list[ReliabilityBin]:
    """The bins of `calibration_error`, by ascending probability; empty without rows."""
    predicted, observed = _confidence(truth, probability)
    codes = bin_codes(predicted, bins)
    curve = []
    for code in np.unique(codes):
        rows = codes == code
        hits, n = int(observed[rows].sum()), int(rows.sum())
        wilson = binomtest(hits, n).proportion_ci(0.95, method="wilson")
        mean = float(predicted[rows].mean())
        curve.append(ReliabilityBin(predicted=mean, observed=hits / n, low=wilson.low, high=wilson.high, n=n))
    return curve


def bin_codes(probability: NDArray, bins: int) -> NDArray[np.int64]:
    """Bin of each row, (n,), by the quantiles of `probability` (n,), like scikit-learn's `calibration_curve`."""
    assert bins > 0, bins
    if len(probability) == 0:
        return np.zeros(0, np.int64)
    return np.searchsorted(np.quantile(probability, np.arange(1, bins) / bins), probability)


def calibration_line(truth: ArrayLike, probability: NDArray, weights: NDArray | None = None) -> tuple[Values, Values]:
    """Slope and intercept, (R,) each, of the logistic regression of the truth on the probability's logit.

    1 and 0 are perfect; a slope below 1 says that the probabilities are too extreme, an intercept below 0 that they
    are too high.  Cox, "Two further applications of a model for binary regression", Biometrika 45 (1958).  truth
    (n,) 0/1, probability (n,), cut to 1e-6 from 0 and 1; weights (R, n).  NaN where `logistic_line` is.
    """
    probability = np.clip(np.asarray(probability, dtype=np.float64), _CLIP, 1 - _CLIP)
    return logistic_line(logit(probability), np.asarray(truth, dtype=np.float64), weights)


def logistic_line(x: NDArray, target: NDArray, weights: NDArray | None = None) -> tuple[Values, Values]:
    """Slope and intercept, (R,) each, of greatest likelihood for target = 1 / (1 + exp(-(slope x + intercept))).

    x (n,) finite, target (n,) in 0 to 1, weights (R, n).  NaN where there is no greatest: one class only, x constant,
    or classes that a threshold on x separates.
    """
    weights = np.ones((1, len(x))) if weights is None else weights
    deviation = float(x.std()) if len(x) else 0.0
    if deviation <= 1e-9 * float(np.abs(x).max(initial=0)):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    z = (x - x.mean()) / deviation
    step = max(1, _CHUNK // len(x))
    parts = [_newton(z, target, weights[start : start + step]) for start in range(0, len(weights), step)]
    slope, intercept = np.concatenate(parts, axis=1)
    return slope / deviation, intercept - slope / deviation * x.mean()


def platt(scores: NDArray, truth: NDArray) -> Platt | str:
    """Platt scaling from validation rows, or a sentence that says why there is none.

    scores (n,), truth (n,) 0/1, -1 where unknown.  A slope and an intercept are fitted to the truths, softened to
    (P + 1) / (P + 2) and 1 / (N + 2) for P positives and N negatives, so that there is a fit for separated classes
    too: Platt, "Probabilistic outputs for support vector machines" (1999).
    """
    known = truth >= 0
    scores, truth = np.asarray(scores[known], dtype=np.float64), truth[known]
    broken, positives = int((~np.isfinite(scores)).sum()), int(truth.sum())
    negatives = len(truth) - positives
    if broken:
        return f"{broken} of {len(scores)} validation scores are not finite"
    if not positives or not negatives:
        what = "has one class only" if len(truth) else "has no known value"
        return f"the validation split {what} (n={len(truth)}); Platt scaling needs both classes"
    target = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    slope, intercept = (float(part[0]) for part in logistic_line(scores, target))
    if not slope > 0:
        return f"on the validation split (n={len(truth)}) a higher score is not a likelier finding: no probability"
    return Platt(slope=slope, intercept=intercept, n=len(truth))


def recalibrate(prediction: Prediction, task: Task, scores: NDArray, truth: NDArray) -> Prediction | str:
    """`prediction` of a binary task with probabilities in the place of its scores, or why there are none.

    scores, truth (n,): of the validation rows, never of those that are predicted.  The order of the scores, and what
    was decided for, stay.
    """
    if task.kind != "binary":
        return "Platt scaling is for labels of two classes"
    fit = platt(scores, truth)
    return fit if isinstance(fit, str) else replace(prediction, scores=fit(prediction.scores), probabilities=True)


def calibration_section(task: Task, prediction: Prediction, weights: NDArray, *, bins: int = BINS) -> dict:
    """{"bins": [...], "brier", "calibration_error"} and, for binary labels, "slope" and "intercept", as JSON.

    task and prediction describe m rows, weights (R, m).  A prediction that is no probability: {"skipped": why}.
    """
    known = task.known
    if not prediction.probabilities:
        return {"skipped": "the scores are no probabilities; fit Platt scaling on the validation split"}
    truth, probability = task.truth[known], prediction.scores[known]
    fault = score_fault(task, prediction)
    if fault:
        return {"skipped": fault}
    rows, n = with_point(weights[:, known]), int(known.sum())
    found = {
        "brier": Distribution.from_rows(metrics.brier(truth, probability, rows), n, bounds=SHARE),
        "calibration_error": calibration_distribution(truth, probability, rows, bins=bins),
    }
    if task.kind == "binary":
        why = "" if len(np.unique(truth)) < 2 else "the probabilities are all equal, or separate the classes"
        for name, values in zip(("slope", "intercept"), calibration_line(truth, probability, rows), strict=True):
            found[name] = replace(Distribution.from_rows(values, n), reason=why)
    curve = [asdict(entry) for entry in reliability_curve(truth, probability, bins=bins)]
    return {"bins": curve} | {name: part.estimate().to_json() for name, part in found.items()}


def score_fault(task: Task, prediction: Prediction) -> str:
    """What is wrong with the scores of the known rows, as a clause; '' where nothing is.

    A column of several classes that is NaN throughout is a class that could not be learnt, and no fault.
    """
    scores = prediction.scores[task.known]
    if len(scores) == 0:
        return ""
    if task.kind != "binary":
        learnt = ~np.isnan(scores).all(axis=0)
        if not learnt.any():
            return "no class has a score"
        scores = scores[:, learnt]
    broken = int((~np.isfinite(scores.reshape(len(scores), -1))).any(axis=1).sum())
    return f"{broken} of {len(scores)} scores are not finite" if broken else ""


def _confidence(truth: ArrayLike, probability: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is claimed of each row, and whether it holds (1 or 0): (n,), (n,)."""
    truth, probability = np.asarray(truth), np.asarray(probability, dtype=np.float64)
    if probability.ndim == 1:
        return probability, truth.astype(np.float64)
    known = np.nan_to_num(probability, nan=0.0)
    likeliest = known.argmax(axis=1)
    return np.take_along_axis(known, likeliest[:, None], axis=1)[:, 0], (likeliest == truth).astype(np.float64)


def _newton(z: NDArray, target: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Slope and intercept on the standardised z, all replicates at once: (2, r); NaN where it does not settle."""
    w = weights.T.astype(np.float64)
    z, target = z[:, None], target[:, None]
    line, change = np.zeros((2, w.shape[1])), np.full(w.shape[1], np.nan)
    active = np.flatnonzero(_overlap(z, target, w > 0))
    change[active] = np.inf
    w = w[:, active]
    for _ in range(_NEWTON_STEPS):
        p = expit(line[0, active] * z + line[1, active])
        residual, curvature = w * (target - p), w * p * (1 - p)
        gradient = np.stack([(z * residual).sum(axis=0), residual.sum(axis=0)])
        h0, h1, h2 = curvature.sum(axis=0), (z * curvature).sum(axis=0), (z**2 * curvature).sum(axis=0)
        # A curve that is flat to the last bit has no step: NaN, as for what does not settle.
        determinant = h0 * h2 - h1**2
        step = np.stack([h0 * gradient[0] - h1 * gradient[1], h2 * gradient[1] - h1 * gradient[0]])
        with np.errstate(over="ignore"):  # nearly none
            full = np.divide(step, determinant, out=np.full_like(step, np.nan), where=determinant != 0)
        change[active] = np.where(np.isfinite(full).all(axis=0), np.abs(full).max(axis=0), np.nan)
        # A Newton step is too long where the curve is flat.
        line[:, active] += full * np.minimum(1, 2 / np.maximum(change[active], 2))
        going = change[active] > 1e-8  # False for NaN
        active, w = active[going], w[:, going]
        if not len(active):
            break
    return np.where(change <= 1e-8, line, np.nan)


def _overlap(z: NDArray, target: NDArray, drawn: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which replicates have a greatest likelihood, (r,): those whose classes no threshold on z separates, ties apart.

    z, target (n, 1), drawn (n, r).  Albert and Anderson, "On the existence of maximum likelihood estimates in logistic
    regression models", Biometrika 71 (1984).  Newton alone may take a separated replicate for settled, where the
    probabilities have reached 0 and 1.
    """
    sides = [drawn & side for side in (target < 1, target > 0)]  # a softened row is on both
    low = [np.where(side, z, np.inf).min(axis=0) for side in sides]
    high = [np.where(side, z, -np.inf).max(axis=0) for side in sides]
    return (high[0] > low[1]) & (high[1] > low[0])
