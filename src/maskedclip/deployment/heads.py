"""A head: one linear map from a feature to answers, with what turns its scores into probabilities and decisions.

Zero-shot labels, a linear probe and the last layer of a fine-tuned encoder are all of this form, so one class reads,
calibrates and saves them; a head that learnt from texts has a second, bent summand.
B photographs, D feature width, T labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from maskedclip.errors import UserError

Kind = Literal["exclusive", "independent"]
Method = Literal["zero_shot", "linear", "finetune", "lora", "privileged_text"]

STEPS = 101
"""Shares of abstention of which a head knows the threshold: 0, 0.01, ..., 1."""
_NORM_EPSILON = 1e-6
_SLOPE = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Abstention:
    """What confidence to ask for, and what that buys, as measured on validation rows.

    thresholds, coverages, accuracies: (A, 101), by the share that is left undecided; A is T for independent findings,
    each decided by itself, else 1.  Coverage is the share of the validation rows that is answered; it may be above
    1 - share where rows tie.  Accuracy is over these: of exclusive labels the plain one, of a finding the balanced one
    (mean of sensitivity and specificity), NaN where one class has no row left.
    """

    thresholds: NDArray[np.float64]
    coverages: NDArray[np.float64]
    accuracies: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """T labels from one feature of a model.

    labels: their names.  kind: `exclusive`, just one holds, or `independent`, each holds or not.  method: how it was
    made.  output: which of the model's features it reads.  weight (T, D), bias (T,): scores = features @ weight.T +
    bias.  unit: features are brought to unit length first.  norm: weight and bias (D,) of a LayerNorm that comes first.
    branch: U (H, D), u (H,), V (T, H) of a second summand, leaky(features @ U.T + u) @ V.T with slope 0.1: what a head
    that learnt from texts reads out of the text that it predicts (`objectives.privileged`).
    slopes, intercepts (T,): logits = slopes x scores + intercepts; a sigmoid makes them probabilities, or a softmax
    where labels exclude each other.  calibrated (T,): whether those were fitted on validation rows.  cuts (T,): score
    above which a finding is called present; NaN: present where no other is.  Unused where labels exclude each other.
    abstention: None where there were no validation rows to choose thresholds on.  abstain: share in use.  about: what a
    person wants to know of its making, plain values for JSON.
    """

    labels: tuple[str, ...]
    kind: Kind
    method: Method
    output: str
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    slopes: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    calibrated: NDArray[np.bool_]
    cuts: NDArray[np.float64]
    unit: bool = False
    norm: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    branch: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] | None = None
    abstention: Abstention | None = None
    abstain: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)

    def scores(self, features: NDArray) -> NDArray[np.float64]:
        """What ranks photographs by a label, before any calibration: features (B, D) -> (B, T)."""
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.weight.shape[1]:
            raise UserError(
                f"features: {x.shape} do not fit a head that reads '{self.output}' features (B, {self.weight.shape[1]})"
            )
        if self.unit:
            x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        if self.norm is not None:
            centred = x - x.mean(axis=1, keepdims=True)
            x = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + _NORM_EPSILON)
            x = x * self.norm[0] + self.norm[1]
        scores = x @ self.weight.T + self.bias
        if self.branch is not None:
            inner = x @ self.branch[0].T + self.branch[1]
            scores = scores + np.where(inner > 0, inner, _SLOPE * inner) @ self.branch[2].T
        return scores

    def probabilities(self, scores: NDArray) -> NDArray[np.float64]:
        """Of scores (B, T): (B, T); rows sum to 1 where labels exclude each other."""
        logits = self.slopes * scores + self.intercepts
        return softmax(logits, axis=1) if self.kind == "exclusive" else expit(logits)

    def found(self, scores: NDArray) -> NDArray[np.bool_]:
        """Which labels are called present, whatever the confidence, (B, T): just one where they exclude each other."""
        if self.kind == "exclusive":
            best = self.probabilities(scores).argmax(axis=1)
            return best[:, None] == np.arange(len(self.labels))
        rest = np.isnan(self.cuts)
        present = scores > np.where(rest, np.inf, self.cuts)
        return present | (rest & ~present.any(axis=1, keepdims=True))

    def confidence(self, scores: NDArray) -> NDArray[np.float64]:
        """How sure answers are: the highest probability (B, 1), or each finding's distance from its cut, logits (B, T).

        Findings have the distance, as a rare one is all but surely absent even where the head sees many signs of it.
        """
        if self.kind == "exclusive":
            return self.probabilities(scores).max(axis=1, keepdims=True)
        return np.abs(self.slopes * (scores - np.nan_to_num(self.cuts)))

    def certain(self, scores: NDArray) -> NDArray[np.bool_]:
        """Which answers are confident enough for the share of abstention in use: (B, T)."""
        if self.abstention is None or self.abstain == 0:
            return np.ones(scores.shape, bool)
        least = self.abstention.thresholds[:, self.step]
        return np.broadcast_to(self.confidence(scores) >= least, scores.shape)

    @property
    def step(self) -> int:
        """Column of the abstention table in use."""
        return round(self.abstain * (STEPS - 1))

    def abstaining(self, share: float) -> "Head":
        """The same head that leaves the least certain share of the photographs, as on the validation rows, undecided.

        Args:
            share: 0 (decides always) or more, below 1; in whole percent.

        Raises:
            UserError: the share is out of range, or no validation rows were seen.
        """
        share = round(share, 2)
        if not 0 <= share < 1:
            raise UserError(f"--abstain: {share:g} is outside [0, 1); 0.2 leaves the least certain fifth undecided")
        if share and self.abstention is None:
            raise UserError("--abstain: needs validation rows to choose a threshold on; add --calibrate STORE")
        return replace(self, abstain=share)


def abstention_curve(head: Head, scores: NDArray, truth: NDArray[np.int64]) -> Abstention:
    """Thresholds of confidence for each share of abstention, on validation rows.

    Args:
        head: calibrated, with its cuts.
        scores: (n, T).
        truth: (n, T) of 1, 0 and -1 for unknown; or, where labels exclude each other, the label's place, (n,).
    """
    confidence, found = head.confidence(scores), head.found(scores)
    if head.kind == "exclusive":
        right = (found.argmax(axis=1) == truth).astype(np.float64)
        return _stacked([_curve(confidence[:, 0], right, None)])
    parts = []
    for place in range(len(head.labels)):
        known = truth[:, place] >= 0
        present = truth[known, place] == 1
        right = (found[known, place] == present).astype(np.float64)
        parts.append(_curve(confidence[known, place], right, present))
    return _stacked(parts)


def _curve(
    confidence: NDArray, right: NDArray[np.float64], present: NDArray[np.bool_] | None
) -> tuple[NDArray, NDArray, NDArray]:
    """Threshold, coverage and accuracy (balanced over `present` where that is given) by share: (101,) each."""
    ordered = np.sort(confidence)
    undecided = np.floor(np.linspace(0, 1, STEPS) * len(ordered) + 1e-9).astype(int)
    thresholds = np.where(undecided < len(ordered), ordered[np.minimum(undecided, len(ordered) - 1)], np.inf)
    answered = confidence >= thresholds[:, None]  # (101, n)
    groups: Sequence[NDArray] = [np.ones(len(right), bool)] if present is None else [present, ~present]
    with np.errstate(invalid="ignore"):
        parts = [(answered[:, group] * right[group]).sum(axis=1) / answered[:, group].sum(axis=1) for group in groups]
    return thresholds, answered.mean(axis=1), np.mean(parts, axis=0)


def _stacked(parts: list[tuple[NDArray, NDArray, NDArray]]) -> Abstention:
    thresholds, coverages, accuracies = (np.stack(columns) for columns in zip(*parts, strict=True))
    return Abstention(thresholds=thresholds, coverages=coverages, accuracies=accuracies)
