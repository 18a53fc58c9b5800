"""Zero-shot scores as probabilities, by a map of one or two numbers that is fitted on validation rows.

A zero-shot score is a difference of cosines, or a softmax of cosines at a fixed scale: it ranks, but says nothing about
how likely the finding is.  A finding gets Platt's sigmoid of a s + b (`calibration.platt`); several classes get a
temperature, softmax(log p / T) (Guo et al., "On calibration of modern neural networks", 2017).  a > 0 and T > 0, so
that no ranking changes.  The test rows' labels are never seen.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from maskedclip.evaluation.calibration import platt
from maskedclip.evaluation.tasks import Prediction, Task

_TINY = 1e-12  # a probability's floor before its logarithm is taken
_LOG_TEMPERATURES = (-5.0, 5.0)


def calibrate_zero_shot(
    validation: Mapping[str, Task], validated: Mapping[str, Prediction], tested: Mapping[str, Prediction]
) -> dict[str, Prediction | str]:
    """The test predictions with calibrated probabilities for scores; a sentence where a label can't be calibrated.

    validation: the tasks on the validation rows; validated and tested: zero-shot predictions on the validation and on
    the test rows.  `chosen` is Platt's a, or the temperature; `predicted` stays.
    """
    return {name: _calibrated(validation[name], validated[name], prediction) for name, prediction in tested.items()}


def temperature(scores: NDArray, truth: NDArray[np.int64]) -> float:
    """The temperature T of largest likelihood for probabilities softmax(log p / T).

    scores p (m, K), rows that sum to 1; truth (m,) class indices.
    """
    logits = np.log(np.maximum(scores, _TINY))

    def loss(log_temperature: float) -> float:
        return -float(np.mean(log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(truth)), truth]))

    found: Any = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def _calibrated(task: Task, validated: Prediction, tested: Prediction) -> Prediction | str:
    if task.kind == "binary":
        fit = platt(validated.scores, task.truth)
        if isinstance(fit, str):
            return fit
        return replace(tested, scores=fit(tested.scores), chosen=fit.slope, probabilities=True)
    truth = task.truth[task.known]
    if len(np.unique(truth)) < 2:
        return f"the validation split has {'one class only' if len(truth) else 'no known value'} (n={len(truth)})"
    chosen = temperature(validated.scores[task.known], truth)
    scores = softmax(np.log(np.maximum(tested.scores, _TINY)) / chosen, axis=1)
    return replace(tested, scores=scores, chosen=chosen, probabilities=True)
