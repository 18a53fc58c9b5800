"""From predictions to figures: each label's metrics and their mean over the labels, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from maskedclip.evaluation import metrics
from maskedclip.evaluation.calibration import calibration_distribution, score_fault
from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.statistics import (
    Distribution,
    Estimate,
    class_supports,
    drawn_together,
    joint_support,
    undefined,
    with_point,
)
from maskedclip.evaluation.tasks import Prediction, Task

# Metrics that every kind of task has, so that their mean over the labels means something.
SHARED = ("auroc", "auprc", "balanced_accuracy")
# Metrics of scores that are probabilities; their mean is taken where every label has them.
PROBABILITIES = ("brier", "calibration_error")
SPECIFICITIES = {"sensitivity_at_90_specificity": 0.90, "sensitivity_at_95_specificity": 0.95}


def label_metrics(task: Task, prediction: Prediction, weights: NDArray) -> dict[str, Distribution]:
    """Metrics of one label on the m rows that `task` and `prediction` describe; unknown rows are left out.

    weights (R, m).  Binary: auroc, auprc, balanced_accuracy, sensitivity at 90 and 95 % specificity.  Other tasks: the
    mean over classes, one against the rest, of the first two; balanced_accuracy; accuracy of the likeliest class;
    ordinal ones also quadratic_kappa.  Probabilities: brier and calibration_error (of several classes: of the likeliest
    one).  Where a score is missing, every metric is undefined and says how many are.
    """
    known = task.known
    count, fault = int(known.sum()), score_fault(task, prediction)
    if fault:
        nothing = np.full(weights.shape[0], np.nan)
        missing = Distribution(value=np.nan, replicates=nothing, n=count, reason=fault)
        return dict.fromkeys(_names(task, prediction), missing)
    rows = with_point(weights[:, known])
    truth, scores, predicted = task.truth[known], prediction.scores[known], prediction.predicted[known]
    supports, patients = class_supports(truth, len(task.classes), rows), drawn_together(rows)
    table = metrics.confusion(truth, predicted, len(task.classes), rows)
    found = {
        "auroc": _ranking(metrics.auroc, task, truth, scores, rows, supports),
        "auprc": _ranking(metrics.average_precision, task, truth, scores, rows, supports),
        "balanced_accuracy": _balanced_accuracy(table, count, supports),
    }
    if task.kind == "binary":
        for name, specificity in SPECIFICITIES.items():
            values = metrics.sensitivity_at_specificity(truth, scores, rows, specificity)
            found[name] = Distribution.from_rows(values, count, bounds=SHARE, support=min(supports))
    else:
        likeliest = np.argmax(np.nan_to_num(scores, nan=-np.inf), axis=1)
        table = metrics.confusion(truth, likeliest, len(task.classes), rows)
        found["accuracy"] = Distribution.from_rows(metrics.accuracy(table), count, bounds=SHARE, support=patients)
    if task.kind == "ordinal":
        kappa = metrics.quadratic_kappa(table, np.array(task.classes, dtype=np.float64))
        found["quadratic_kappa"] = Distribution.from_rows(kappa, count, bounds=(-1.0, 1.0), support=patients)
    if prediction.probabilities:
        brier = metrics.brier(truth, scores, rows)
        found["brier"] = Distribution.from_rows(brier, count, bounds=SHARE, support=patients)
        found["calibration_error"] = calibration_distribution(truth, scores, rows)
    return found


def auroc_distribution(task: Task, prediction: Prediction, weights: NDArray) -> Distribution:
    """AUROC alone, as in `label_metrics`."""
    known = task.known
    count, fault = int(known.sum()), score_fault(task, prediction)
    if fault:
        return Distribution(value=np.nan, replicates=np.full(weights.shape[0], np.nan), n=count, reason=fault)
    truth, rows = task.truth[known], with_point(weights[:, known])
    supports = class_supports(truth, len(task.classes), rows)
    return _ranking(metrics.auroc, task, truth, prediction.scores[known], rows, supports)


def macro_estimate(parts: Mapping[str, Distribution | None], n: int) -> Estimate:
    """Mean of one metric over the labels for which it is defined, with how many of them in the note.

    parts: per label; None where there was nothing to score.  In a replicate that lacks a rare class, the mean is
    over the other labels.
    """
    mean, missing = macro_distribution(parts, n)
    if mean is None:
        return undefined(n, "no label is defined")
    defined = len(parts) - len(missing)
    note = f"mean of {defined} labels" if not missing else f"mean of {defined} of {len(parts)} labels"
    note += f"; undefined: {', '.join(missing)}" if missing else ""
    partly = [name for name, part in parts.items() if part is not None and part.note and name not in missing]
    return mean.estimate(note + (f"; of some of their classes only: {', '.join(partly)}" if partly else ""))


def macro_distribution(parts: Mapping[str, Distribution | None], n: int) -> tuple[Distribution | None, list[str]]:
    """The mean over the labels that are defined (None where none is), and the names of the others."""
    used = {name: part for name, part in parts.items() if part is not None and not np.isnan(part.value)}
    missing = [name for name in parts if name not in used]
    if not used:
        return None, missing
    return _mean(list(used.values()), n), missing


def score_labels(
    tasks: Mapping[str, Task], predictions: Mapping[str, Prediction | str], weights: NDArray
) -> dict[str, dict]:
    """{"macro": {metric: estimate}, "per_label": {name: {metric: estimate}}} as JSON, for m test rows.

    predictions: per label; a sentence where the label could not be learnt, which becomes the note of its entries.
    A label of several classes counts in the macro as one.  The macro has the SHARED metrics, and those of PROBABILITIES
    that every label has that could be learnt.  weights (R, m).
    """
    scored: dict[str, dict[str, Distribution]] = {}
    per_label: dict[str, dict] = {}
    for name, prediction in predictions.items():
        if isinstance(prediction, str):
            missing = undefined(int(tasks[name].known.sum()), prediction)
            per_label[name] = {metric: missing.to_json() for metric in SHARED}
            continue
        scored[name] = label_metrics(tasks[name], prediction, weights)
        per_label[name] = {metric: part.estimate().to_json() for metric, part in scored[name].items()}
    rows = np.zeros(weights.shape[1], dtype=bool)
    for name in scored or predictions:
        rows |= tasks[name].known
    common = [metric for metric in PROBABILITIES if scored and all(metric in found for found in scored.values())]
    means = {
        metric: macro_estimate({name: scored.get(name, {}).get(metric) for name in predictions}, int(rows.sum()))
        for metric in (*SHARED, *common)
    }
    return {"macro": {metric: mean.to_json() for metric, mean in means.items()}, "per_label": per_label}


def _names(task: Task, prediction: Prediction) -> list[str]:
    own = {"binary": [*SPECIFICITIES], "nominal": ["accuracy"], "ordinal": ["accuracy", "quadratic_kappa"]}
    return [*SHARED, *own[task.kind], *(PROBABILITIES if prediction.probabilities else ())]


def _ranking(
    metric: metrics.Metric, task: Task, truth: NDArray, scores: NDArray, rows: NDArray, supports: Sequence[float]
) -> Distribution:
    """A binary metric, or its mean over the classes that have scores, each against the rest; see `one_vs_rest`."""
    if task.kind == "binary":
        return Distribution.from_rows(metric(truth, scores, rows), len(truth), bounds=SHARE, support=min(supports))
    parts = {
        value: Distribution.from_rows(
            metric(truth == k, scores[:, k], rows), len(truth), bounds=SHARE, support=supports[k]
        )
        for k, value in enumerate(task.classes)
        if not np.isnan(scores[:, k]).any()
    }
    defined = {value: part for value, part in parts.items() if not np.isnan(part.value)}
    if defined:
        lacking = [str(value) for value in task.classes if value not in defined]
        mean = _mean(list(defined.values()), len(truth))
        note = f"mean of {len(defined)} of {len(task.classes)} classes; undefined: {', '.join(lacking)}"
        return replace(mean, note=note) if lacking else mean
    return Distribution(value=np.nan, replicates=np.full(rows.shape[0] - 1, np.nan), n=len(truth))


def _balanced_accuracy(table: NDArray, count: int, supports: Sequence[float]) -> Distribution:
    """The mean recall, which rests on as many patients as the recalls jointly do."""
    recalls = [
        Distribution.from_rows(metrics.recall(table)[:, k], count, support=supports[k]) for k in range(table.shape[1])
    ]
    values = metrics.balanced_accuracy(table)
    return Distribution.from_rows(values, count, bounds=SHARE, support=joint_support(recalls))


def _mean(parts: Sequence[Distribution], n: int) -> Distribution:
    """Mean of distributions that have a value, replicate by replicate over those defined in it."""
    bounds = {part.bounds for part in parts}
    return Distribution(
        value=float(np.mean([part.value for part in parts])),
        replicates=metrics.macro([part.replicates for part in parts]),
        n=n,
        bounds=bounds.pop() if len(bounds) == 1 else None,
        support=joint_support(parts),
    )
