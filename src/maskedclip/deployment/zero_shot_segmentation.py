"""Zero-shot segmentation in two steps, after zsseg (arXiv 2112.14757): proposals first, then words for each of them.

Each proposal is cut out, filled with the mean colour outside its mask and read by the image tower as a picture of its
own; a head that knows some of the labels can be mixed in.  K labels, Q proposals, h x w cells, E shared width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor

from maskedclip.deployment.classifier import Classifier
from maskedclip.deployment.maps_dense import DenseFeatures
from maskedclip.deployment.model import Model
from maskedclip.deployment.proposals_crops import binary_masks, fill_colour, masked_crops
from maskedclip.errors import UserError

SCALE = 100.0
"""Of the cosines before the softmax [paper]."""
WEIGHT = 0.8
"""Of the opinion that knows better: the head's on seen labels, the image-text tower's on the others [paper]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation:
    """scores: of the labels (K, h, w), 0 or more.  background: of what is none of them (h, w).  probabilities: of each
    proposal (Q, K + 1), the background's last.  logits: of the proposals' masks (Q, h, w).
    """

    scores: NDArray[np.float32]
    background: NDArray[np.float32] | None
    probabilities: NDArray[np.float64]
    logits: NDArray[np.float32]


def text_probabilities(embeddings: NDArray, directions: NDArray, scale: float = SCALE) -> NDArray[np.float64]:
    """Softmax of scaled cosines: embeddings (Q, E) of unit length, directions (K, E) of unit length -> (Q, K)."""
    return softmax(scale * np.asarray(embeddings, np.float64) @ np.asarray(directions, np.float64).T, axis=1)


def ensemble(
    head: NDArray,
    clip: NDArray,
    *,
    seen: Sequence[bool] | NDArray[np.bool_] | None = None,
    weight: float = WEIGHT,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Geometric mean of two opinions on each proposal and label, (Q, K).

    On seen labels the head has the weight, head^w clip^(1 - w); on the others the image-text tower: head^(1 - w)
    clip^w.

    Args:
        head: of something that was trained on the seen labels, 0 to 1, (Q, K).
        clip: of the image-text tower, 0 to 1, (Q, K).
        seen: which labels the head was trained on, (K,); None: none of them.
        weight: w; 0 or less: the image-text tower alone.
        valid: which proposals have a crop, (Q,); the others have no opinion of the tower, which counts as 1.
    """
    clip = np.array(clip, np.float64)
    if valid is not None:
        clip[~valid] = 1.0
    if weight <= 0:
        return clip
    known = np.zeros(clip.shape[1], bool) if seen is None else np.asarray(seen, bool)
    of_head = np.where(known, weight, 1 - weight)
    return np.asarray(head, np.float64) ** of_head * clip ** (1 - of_head)


def aggregate(probabilities: NDArray, logits: NDArray) -> NDArray[np.float32]:
    """S[k] = sum over proposals of probability x sigmoid of the mask: (Q, K), (Q, h, w) -> (K, h, w)."""
    return np.einsum("qk,qhw->khw", probabilities, expit(np.asarray(logits, np.float64))).astype(np.float32)


def region_means(values: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of features in place (h, w, D) over each proposal's mask, (Q, D); over the whole where a mask is empty."""
    masks = logits > 0
    masks[~masks.any(axis=(1, 2))] = True
    return np.stack([values[mask].mean(axis=0) for mask in masks]) if len(masks) else values[:0, 0]


class ProposalSegmenter:
    """Names proposals with one model.

    labels: K names.  directions: of the labels (K, E), unit length.  background: of what is none of them (E,); None:
    each place is one of the labels.  head: a linear one of the same model, whose labels are the seen ones; of what it
    does not know its opinion is the likeness of the patches to the text.  weight: see `ensemble`.
    """

    def __init__(
        self,
        model: Model,
        labels: Sequence[str],
        directions: NDArray[np.float32],
        background: NDArray[np.float32] | None,
        *,
        head: Classifier | None = None,
        weight: float = WEIGHT,
    ) -> None:
        if not 0 <= weight <= 1:
            raise UserError(f"--ensemble-weight {weight:g}: is outside 0 (words alone) to 1")
        if head is not None:
            if head.model.fingerprint != model.fingerprint:
                raise UserError(
                    "--head: a fine-tuned head has an encoder of its own; give a linear one (probe --method linear), "
                    "and leave --size away"
                )
            if head.output not in ("encoder", "projected"):
                raise UserError(f"--head: reads {head.output} features; give one that reads encoder or projected ones")
        self.model, self.labels, self.head, self.weight = model, tuple(labels), head, weight
        self.has_background = background is not None
        self.directions = directions if background is None else np.concatenate([directions, background[None]])
        self.fill = fill_colour(model.preprocessing.mean)

    def segment(self, picture: Tensor, dense: DenseFeatures | None, logits: NDArray[np.float32]) -> Segmentation:
        """Scores of the labels in one photograph.

        Args:
            picture: uint8 (3, R, R), as sharp as there is.
            dense: features of the same photograph, of one picture (1, h, w, .); what a head reads, and needed by it.
            logits: of the proposals' masks (Q, h, w); without any, all scores are 0.
        """
        masks = binary_masks(logits, picture.shape[-1])
        crops, valid = masked_crops(picture, masks, self.fill, self.model.preprocessing.size)
        clip = np.ones((len(logits), len(self.directions)))
        if len(crops):
            embeddings = self.model.encode_images(crops)["projected"]
            clip[valid] = text_probabilities(embeddings, self.directions)
        if self.head is None or dense is None:
            assert self.head is None, "a head reads features in place"
            kept, probabilities = logits[valid], clip[valid]
        else:
            table, seen = self._head_table(dense, logits)
            kept, probabilities = logits, ensemble(table, clip, seen=seen, weight=self.weight, valid=valid)
        scores = aggregate(probabilities, kept)
        return Segmentation(
            scores=np.ascontiguousarray(scores[: len(self.labels)]),
            background=scores[-1] if self.has_background else None,
            probabilities=probabilities,
            logits=kept,
        )

    def _head_table(
        self, dense: DenseFeatures, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The head's opinion (Q, K + 1) and which labels it has seen (K + 1,)."""
        assert self.head is not None
        means = region_means(dense.embeddings[0], logits)
        means = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        table = text_probabilities(means, self.directions)
        seen = np.zeros(len(self.directions), bool)
        if len(logits):
            features = means if self.head.output == "projected" else region_means(dense.tokens[0], logits)
            answers = self.head.probabilities({self.head.output: features})
            for place, label in enumerate(self.labels):
                if label in self.head.labels:
                    seen[place] = True
                    table[:, place] = answers[:, self.head.labels.index(label)]
        return table, seen
