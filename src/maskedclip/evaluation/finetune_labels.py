"""Labels as targets of one network: its outputs, loss, class weights and answers.

n rows, of them m in training and B in a batch; T labels, O outputs, K classes.  All binary labels share one network,
an output each; a label of several classes has a network of its own, an output for each class that training rows have.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional

from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.evaluation.selection import decide, ranking_quality
from maskedclip.evaluation.tasks import UNKNOWN, Prediction, Task

_PROBE_C = 3e-3  # as strong a regularisation as validation chooses for a few hundred images


class Labels:
    """T binary labels, or one of several classes, on the rows to learn from.

    places (m,): rows, of the n that the tasks describe, with at least one known value.  targets (m, T): class index, or
    for several classes the place of the class among those present, -1 where unknown.  weights (m, T): of the loss, 0
    where unknown.  shares (m,): chance of each row to be drawn next, None where all are drawn in turn.
    """

    def __init__(self, tasks: Sequence[Task], train: NDArray[np.bool_], settings: FineTuneSettings) -> None:
        self.tasks, self.smoothing = list(tasks), settings.label_smoothing
        self.binary = self.tasks[0].kind == "binary"
        assert self.binary or len(self.tasks) == 1
        known = np.stack([task.known for task in self.tasks], axis=1)
        self.places = np.flatnonzero(train & known.any(axis=1))
        truth = np.stack([task.truth[self.places] for task in self.tasks], axis=1)
        self.present = np.unique(truth[truth != UNKNOWN])
        self.targets = truth
        if not self.binary:
            self.targets = np.where(truth == UNKNOWN, UNKNOWN, np.searchsorted(self.present, truth))
        balance = np.stack([balanced_weights(column) for column in truth.T], axis=1)
        self.weights = balance if settings.class_weighting == "balanced" else (truth != UNKNOWN).astype(np.float64)
        self.shares: NDArray[np.float64] | None = None
        if settings.class_weighting == "sampler":
            rows = balance.sum(axis=1) / (truth != UNKNOWN).sum(axis=1)  # mean over the row's known labels
            self.shares = rows / rows.sum()

    @property
    def names(self) -> str:
        """For a person."""
        return ", ".join(task.name for task in self.tasks)

    @property
    def outputs(self) -> int:
        """O."""
        return len(self.tasks) if self.binary else len(self.present)

    def loss(self, logits: Tensor, places: Tensor) -> Tensor:
        """Smoothed cross-entropy, the mean over the known values of a batch, ().

        logits: (B, O).  places: of the batch's rows among the m, int64 (B,).
        """
        targets = torch.from_numpy(self.targets)[places].to(logits.device)
        weights = torch.from_numpy(self.weights.astype(np.float32))[places].to(logits.device)
        return smoothed_loss(logits, targets, weights, self.smoothing, binary=self.binary)

    def probe(self, features: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights (O, D) and biases (O,) of a linear probe on features (m, D) of the training rows.

        Rows weigh as in the loss.  The features are standardised, and the standardisation becomes part of the weights.
        """
        x = features.astype(np.float64)
        mean, spread = x.mean(axis=0), x.std(axis=0)
        scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-7)
        drawn = np.ones(len(x)) if self.shares is None else self.shares * len(x)
        slopes, offsets = [], []
        for target, weight in zip(self.targets.T, self.weights.T, strict=True):
            known = target != UNKNOWN
            model = LogisticRegression(C=_PROBE_C, max_iter=1000)
            model.fit((x[known] - mean) * scale, target[known], sample_weight=(weight * drawn)[known])
            slopes.append(model.coef_ * scale)
            offsets.append(model.intercept_)
        weights, biases = np.concatenate(slopes), np.concatenate(offsets)
        if not self.binary and self.outputs == 2:  # scikit-learn gives two classes one row, their difference
            weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
        return weights, biases - weights @ mean

    def scores(self, logits: NDArray) -> list[NDArray[np.float64]]:
        """Probabilities for each task, of logits (q, O): (q,), or (q, K) with NaN for a class without training rows."""
        if self.binary:
            return list(expit(logits.astype(np.float64)).T)
        table = np.full((len(logits), len(self.tasks[0].classes)), np.nan)
        table[:, self.present] = softmax(logits.astype(np.float64), axis=1)
        return [table]

    def quality(self, logits: NDArray, rows: NDArray) -> float:
        """Mean AUROC of the labels that have one on these rows of the n; NaN where none has.  logits (q, O)."""
        parts = [
            ranking_quality(task.on(rows), scores) for task, scores in zip(self.tasks, self.scores(logits), strict=True)
        ]
        defined = [part for part in parts if np.isfinite(part)]
        return float(np.mean(defined)) if defined else float("nan")

    def predictions(self, logits: NDArray) -> dict[str, Prediction]:
        """The answers for logits (q, O).

        Scores are the network's probabilities: label smoothing shrinks them, class weighting shifts them, and neither
        is undone, as AUROC needs their order.  The class is decided after undoing both.
        """
        return {
            task.name: replace(decide(task, self._unsmoothed(scores), self._prior(place)), scores=scores)
            for place, (task, scores) in enumerate(zip(self.tasks, self.scores(logits), strict=True))
        }

    def cuts(self) -> list[float]:
        """Probability above which `predictions` calls each of the binary labels present."""
        assert self.binary
        return [
            float(self._prior(place)[1]) * (1 - self.smoothing) + self.smoothing / 2 for place in range(len(self.tasks))
        ]

    def _unsmoothed(self, scores: NDArray) -> NDArray[np.float64]:
        classes = 2 if self.binary else len(self.present)
        return np.clip((scores - self.smoothing / classes) / (1 - self.smoothing), 0, 1)

    def _prior(self, place: int) -> NDArray[np.float64]:
        """Shares of a task's classes as the training saw them, weighted and drawn: (K,)."""
        task = self.tasks[place]
        truth = task.truth[self.places]
        seen = self.weights[:, place] * (1 if self.shares is None else self.shares)
        known = truth != UNKNOWN
        counts = np.bincount(truth[known], weights=seen[known], minlength=len(task.classes))
        return counts / counts.sum()


def smoothed_loss(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float, *, binary: bool) -> Tensor:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7), over the known values, ().

    logits: (B, O).  targets: int64 (B, T), -1 where unknown.  weights: (B, T), 0 where unknown.  binary: T = O outputs,
    each a label of two classes; else T = 1 label of O classes.  The sum is divided by the number of known values, not
    by that of the weights: else a batch of one class would count no more than another.
    """
    known = targets != UNKNOWN
    classes = targets.clamp(min=0)
    if binary:
        smooth = classes * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    else:
        losses = functional.cross_entropy(logits, classes[:, 0], reduction="none", label_smoothing=smoothing)[:, None]
    return (losses * weights).sum() / known.sum().clamp(min=1)


def balanced_weights(truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight n / (K n_k) of each row by its class, over the known rows and the K classes they have: (m,); 0 for -1."""
    known = truth != UNKNOWN
    weights = np.zeros(len(truth))
    if known.any():
        classes, inverse = np.unique(truth[known], return_inverse=True)
        weights[known] = compute_class_weight("balanced", classes=classes, y=truth[known])[inverse]
    return weights
