"""From predictions to figures: each label's metrics and their mean over the labels, with intervals."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from maskedclip.evaluation import metrics
from maskedclip.evaluation.statistics import Distribution, Estimate, undefined, with_point
from maskedclip.evaluation.tasks import Prediction, Task

# Metrics that every kind of task has, so that their mean over the labels means something.
SHARED = ("auroc", "auprc", "balanced_accuracy")


def label_metrics(task: Task, prediction: Prediction, weights: NDArray) -> dict[str, Distribution]:
    """Metrics of one label on the m rows that `task` and `prediction` describe; unknown rows are left out.

    weights (R, m).  Binary: auroc, auprc, balanced_accuracy.  Other tasks: the mean over classes, one against the
    rest, of the first two; balanced_accuracy; accuracy of the likeliest class; ordinal ones also quadratic_kappa.
    """
    known = task.known
    rows = with_point(weights[:, known])
    truth, scores, count = task.truth[known], prediction.scores[known], int(known.sum())
    table = metrics.confusion(truth, prediction.predicted[known], len(task.classes), rows)
    values = {"balanced_accuracy": metrics.balanced_accuracy(table)}
    if task.kind == "binary":
        values |= {"auroc": metrics.auroc(truth, scores, rows), "auprc": metrics.average_precision(truth, scores, rows)}
    else:
        likeliest = np.argmax(np.nan_to_num(scores, nan=-np.inf), axis=1)
        table = metrics.confusion(truth, likeliest, len(task.classes), rows)
        values |= {
            "auroc": metrics.one_vs_rest(metrics.auroc, truth, scores, rows),
            "auprc": metrics.one_vs_rest(metrics.average_precision, truth, scores, rows),
            "accuracy": metrics.accuracy(table),
        }
        if task.kind == "ordinal":
            values["quadratic_kappa"] = metrics.quadratic_kappa(table, np.array(task.classes, dtype=np.float64))
    order = [*SHARED, *(name for name in values if name not in SHARED)]
    return {name: Distribution.from_rows(values[name], count) for name in order}


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
    return mean.estimate(note + (f"; undefined: {', '.join(missing)}" if missing else ""))


def macro_distribution(parts: Mapping[str, Distribution | None], n: int) -> tuple[Distribution | None, list[str]]:
    """The mean over the labels that are defined (None where none is), and the names of the others."""
    used = {name: part for name, part in parts.items() if part is not None and not np.isnan(part.value)}
    missing = [name for name in parts if name not in used]
    if not used:
        return None, missing
    value = float(np.mean([part.value for part in used.values()]))
    replicates = metrics.macro([part.replicates for part in used.values()])
    return Distribution(value=value, replicates=replicates, n=n), missing


def score_labels(
    tasks: Mapping[str, Task], predictions: Mapping[str, Prediction | str], weights: NDArray
) -> dict[str, dict]:
    """{"macro": {metric: estimate}, "per_label": {name: {metric: estimate}}} as JSON, for m test rows.

    predictions: per label; a sentence where the label could not be learnt, which becomes the note of its entries.
    A label of several classes counts in the macro as one.  weights (R, m).
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
    for name in scored:
        rows |= tasks[name].known
    means = {
        metric: macro_estimate({name: scored.get(name, {}).get(metric) for name in predictions}, int(rows.sum()))
        for metric in SHARED
    }
    return {"macro": {metric: mean.to_json() for metric, mean in means.items()}, "per_label": per_label}
