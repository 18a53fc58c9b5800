"""Calibration of a head on validation rows, and how well it is calibrated, ranks and abstains.  n rows, T labels.

A finding gets Platt's sigmoid.  Labels that exclude each other get one temperature and an offset each: Alexandari,
Kundaje & Shrikumar, "Maximum likelihood with bias-corrected calibration is hard-to-beat at label shift adaptation"
(2020).  A temperature alone leaves it to the words how frequent each label seems: zero-shot on ODIR it hardly changed
the error.

What is fitted on rows cannot be judged on them: the error after calibration is measured with five fits, each judged on
the patients that it has not seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, softmax

from maskedclip.deployment.heads import Head, abstention_curve
from maskedclip.errors import UserError
from maskedclip.evaluation.calibration import calibration_error, platt
from maskedclip.evaluation.scoring import auroc_distribution
from maskedclip.evaluation.selection import patient_folds
from maskedclip.evaluation.statistics import cluster_weights, json_number
from maskedclip.evaluation.tasks import Prediction, Task
from maskedclip.evaluation.zero_shot_calibration import temperature

FEWEST = 5
"""Validation rows of a class below which nothing is calibrated."""
SHAKY = 20
"""Validation rows of a class below which the calibration is called uncertain."""
REPLICATES = 1000
RIDGE = 1e-6
"""Pull of the offsets towards 0, which fixes their common part."""
SLOPES = (1e-3, 1e3)
"""Bounds of the slope, for logits of unit deviation."""


@dataclass(frozen=True)
class _Fit:
    """Logits are slope x scores + intercept, an intercept a label where labels exclude each other."""

    slope: float
    intercept: float | NDArray[np.float64]


def calibrate(
    head: Head,
    scores: NDArray,
    truth: NDArray[np.int64],
    patients: NDArray[np.object_],
    *,
    strict: bool,
    recut: bool,
    where: str,
    seed: int = 0,
) -> Head:
    """The head with calibrated probabilities and thresholds for abstention, and figures on the rows in `about`.

    Args:
        head: its own slopes and intercepts give the probabilities before.
        scores: of the validation rows, (n, T).
        truth: (n, T) of 1, 0 and -1; or (n,) places of labels that exclude each other.
        patients: of the rows, (n,).
        strict: a label that cannot be calibrated is an error; else it keeps its own probability, and `about` says why.
        recut: call a finding present above the share that it has among these rows, which makes the balanced accuracy
            greatest if probabilities are true; else the head's own cuts stay.
        where: the store's name, for errors.
        seed: of the folds and of the bootstrap.

    Raises:
        UserError: strict, and a label has too few rows.
    """
    single = head.kind == "exclusive"
    new, labels = (_temperature if single else _platt)(head, scores, truth, patients, seed)
    failed = {name: entry["note"] for name, entry in labels.items() if "error_after" not in entry}
    if strict and failed:
        raise UserError(
            f"{where}: " + "; ".join(f"{name}: {why}" for name, why in failed.items()) + "; leave "
            f"{'it' if len(failed) == 1 else 'them'} out of --labels, or calibrate on a store with more validation rows"
        )
    if recut and not single:
        share = np.array([np.mean(column[column >= 0] == 1) for column in truth.T])
        new = replace(new, cuts=(logit(share) - new.intercepts) / new.slopes)
    figures = {
        "method": "temperature and offsets" if single else "platt",
        "rows": len(truth),
        "labels": {name: entry | _ranking(new, name, scores, truth, patients, seed) for name, entry in labels.items()},
    }
    if len(truth):
        new = replace(new, abstention=abstention_curve(new, scores, truth))
    return replace(new, about=head.about | {"calibration": figures})


def _platt(
    head: Head, scores: NDArray, truth: NDArray[np.int64], patients: NDArray[np.object_], seed: int
) -> tuple[Head, dict[str, dict[str, Any]]]:
    slopes, intercepts, calibrated = head.slopes.copy(), head.intercepts.copy(), head.calibrated.copy()
    labels = {}
    for place, name in enumerate(head.labels):
        known = truth[:, place] >= 0
        own, target = scores[known, place], truth[known, place]
        positives = int(target.sum())
        before = expit(head.slopes[place] * own + head.intercepts[place])
        entry: dict[str, Any] = {"n": len(target), "positives": positives}
        entry |= {"error_before": _error(target, before)}
        fit = _platt_fit(own, target)
        if isinstance(fit, str):
            labels[name] = entry | {"note": fit}
            continue
        slopes[place], intercepts[place], calibrated[place] = fit.slope, float(fit.intercept), True
        after = _crossed(own, target, patients[known], _platt_fit, _sigmoid, seed)
        entry |= {"error_after": _error(target, after), **_shaky(min(positives, len(target) - positives))}
        labels[name] = entry
    return replace(head, slopes=slopes, intercepts=intercepts, calibrated=calibrated), labels


def _temperature(
    head: Head, scores: NDArray, truth: NDArray[np.int64], patients: NDArray[np.object_], seed: int
) -> tuple[Head, dict[str, dict[str, Any]]]:
    logits = head.slopes * scores + head.intercepts
    counts = np.bincount(truth, minlength=len(head.labels))
    entry: dict[str, Any] = {"n": len(truth), "of_each": counts.tolist()}
    entry |= {"error_before": _error(truth, softmax(logits, axis=1))}
    fit = _softmax_fit(logits, truth)
    name = " / ".join(head.labels)
    if isinstance(fit, str):
        return head, {name: entry | {"note": fit}}
    after = _crossed(logits, truth, patients, _softmax_fit, _softmax, seed)
    entry |= {"error_after": _error(truth, after), **_shaky(int(counts.min()))}
    if counts.min() < FEWEST:
        entry["note"] = f"{head.labels[int(counts.argmin())]}: {counts.min()} validation rows: one temperature for all"
    slopes, intercepts = head.slopes * fit.slope, head.intercepts * fit.slope + fit.intercept
    return replace(head, slopes=slopes, intercepts=intercepts, calibrated=np.ones(len(slopes), bool)), {name: entry}


def _sigmoid(fit: _Fit, scores: NDArray) -> NDArray[np.float64]:
    return expit(fit.slope * scores + fit.intercept)


def _softmax(fit: _Fit, logits: NDArray) -> NDArray[np.float64]:
    return softmax(fit.slope * logits + fit.intercept, axis=1)


def _platt_fit(scores: NDArray, truth: NDArray[np.int64]) -> _Fit | str:
    positives = int((truth == 1).sum())
    few = min(positives, len(truth) - positives)
    if few < FEWEST:
        return f"{positives} of {len(truth)} validation rows have it; calibration needs {FEWEST} with and without"
    fit = platt(scores, truth)
    return fit if isinstance(fit, str) else _Fit(fit.slope, fit.intercept)


def _softmax_fit(logits: NDArray, truth: NDArray[np.int64]) -> _Fit | str:
    """Temperature and offsets; where a label has too few rows for an offset, the temperature alone."""
    counts = np.bincount(truth, minlength=logits.shape[1])
    most = int(counts.max())
    if len(truth) - most < FEWEST:
        return (
            f"{len(truth)} validation rows, {most} of one label; calibration needs {FEWEST} of others, too"
            if len(truth)
            else "no validation row has just one of the labels"
        )
    slope = 1 / temperature(softmax(logits, axis=1), truth)
    return with_offsets(logits, truth, slope) if counts.min() >= FEWEST else _Fit(slope, 0.0)


def with_offsets(logits: NDArray, truth: NDArray[np.int64], slope: float) -> _Fit:
    """Slope and offsets of largest likelihood for softmax(slope x logits + offsets), from a slope to begin with.

    logits (n, T); truth (n,) places.  The offsets sum to 0.  The likelihood is concave, so the optimum is the only one;
    the slope stays positive and finite where labels are separated.
    """
    target = truth[:, None] == np.arange(logits.shape[1])
    width = float(logits.std()) or 1.0
    z = (logits - logits.mean(axis=1, keepdims=True)) / width

    def loss(parameters: NDArray) -> tuple[float, NDArray]:
        shifted = parameters[0] * z + parameters[1:]
        residual = softmax(shifted, axis=1) - target
        gradient = np.concatenate([[(residual * z).sum()], residual.sum(axis=0)]) / len(z)
        pull = RIDGE * parameters[1:]
        value = -float(log_softmax(shifted, axis=1)[target].sum()) / len(z) + float(pull @ parameters[1:]) / 2
        return value, gradient + np.concatenate([[0.0], pull])

    start = np.concatenate([[np.clip(slope * width, *SLOPES)], np.zeros(logits.shape[1])])
    bounds = [SLOPES, *[(None, None)] * logits.shape[1]]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-14})
    offsets = found.x[1:] - found.x[1:].mean()
    slope = float(found.x[0]) / width
    # What a row's mean logit adds to all its labels cancels in the softmax, so the offsets are those of the raw logits.
    return _Fit(slope, offsets)


def _crossed(
    x: NDArray,
    truth: NDArray[np.int64],
    patients: NDArray[np.object_],
    fit: Callable[[NDArray, NDArray[np.int64]], _Fit | str],
    apply: Callable[[_Fit, NDArray], NDArray],
    seed: int,
) -> NDArray[np.float64]:
    """Probabilities of each row from a fit on other patients; NaN where those are too few."""
    folds = patient_folds(patients, seed=seed)
    given = np.full(x.shape, np.nan)
    for fold in np.unique(folds):
        held = folds == fold
        found = fit(x[~held], truth[~held])
        if not isinstance(found, str):
            given[held] = apply(found, x[held])
    return given


def _error(truth: NDArray[np.int64], probability: NDArray) -> float | None:
    """Expected calibration error over the rows that have a probability."""
    if not len(truth):
        return None
    rows = np.isfinite(probability.reshape(len(probability), -1)).all(axis=1)
    return json_number(float(calibration_error(truth[rows], probability[rows])[0]))


def _shaky(few: int) -> dict[str, str]:
    return {"note": f"only {few} validation rows of one class: uncertain"} if few < SHAKY else {}


def _ranking(
    head: Head, name: str, scores: NDArray, truth: NDArray[np.int64], patients: NDArray[np.object_], seed: int
) -> dict[str, Any]:
    """AUROC on the validation rows, with its interval clustered by patient; of several labels, the mean over them."""
    if head.kind == "exclusive":
        task = Task(name=name, kind="nominal", classes=head.labels, truth=truth)
        given = head.probabilities(scores)
    else:
        place = head.labels.index(name)
        task = Task(name=name, kind="binary", classes=(0, 1), truth=truth[:, place])
        given = scores[:, place]
    prediction = Prediction(scores=given, predicted=np.zeros(len(truth), np.int64))
    weights = cluster_weights(patients, replicates=REPLICATES, seed=seed)
    return {"auroc": auroc_distribution(task, prediction, weights).estimate().to_json()}
