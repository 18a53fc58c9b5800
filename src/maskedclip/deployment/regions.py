"""Regions of a photograph, found without any class, and named by text.

Patch tokens are merged with their neighbours on the grid, the most alike first (Ward's method on centred unit tokens),
into a tree; the tree is cut at several numbers of regions.  So regions of two cuts are nested or apart, and a choice of
non-overlapping ones is a matter of order alone.

Who scores a region is exchangeable: `region_scores` compares the mean of its projected patch tokens with text; another
scorer, of masked crops for instance, hands the same table (R, T) to `named_regions`.

h x w patches, L = h w, D width of the tokens, E shared width, T labels, R regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch.nn import functional

COUNTS = (4, 8, 16, 32)
"""How many regions a photograph is cut into, one cut after the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """A named part of a photograph.

    mask: bool (h, w), on the patch grid.  label: the best one.  score: the label's, less that of the background.
    """

    mask: NDArray[np.bool_]
    label: str
    score: float

    @property
    def patches(self) -> int:
        """Its size."""
        return int(self.mask.sum())


def propose_regions(tokens: NDArray[np.float32], counts: Sequence[int] = COUNTS) -> list[NDArray[np.int64]]:
    """Cut a photograph into connected regions, coarse to fine.

    Args:
        tokens: patch tokens (h, w, D), of `dense_features`.
        counts: how many regions each cut has, fewer where there are fewer patches.

    Returns: for each cut, the region's number of every patch, from 0, (h, w).
    """
    from sklearn.cluster import ward_tree
    from sklearn.feature_extraction.image import grid_to_graph

    rows, columns = tokens.shape[:2]
    leaves = rows * columns
    flat = tokens.reshape(leaves, -1).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    if leaves == 1:
        return [np.zeros((1, 1), dtype=np.int64) for _ in counts]
    children = ward_tree(flat, connectivity=grid_to_graph(rows, columns))[0]
    return [_cut(children, leaves, min(count, leaves)).reshape(rows, columns) for count in counts]


def region_scores(
    masks: Sequence[NDArray[np.bool_]], embeddings: NDArray[np.float32], directions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Cosine of each region's mean embedding with each text, (R, T).

    masks: bool (h, w), none empty.  embeddings: (h, w, E), of `dense_features`.  directions: (T, E), of
    `text_directions`.
    """
    means = np.stack([embeddings[mask].mean(axis=0) for mask in masks])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12) @ directions.T


def masks_of(partition: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """Of a cut (h, w), the mask of each region in order."""
    return [partition == number for number in range(int(partition.max()) + 1)]


def region_maps(
    partitions: Sequence[NDArray[np.int64]], embeddings: NDArray[np.float32], directions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Scores of the regions painted into the picture, the mean over all cuts: (T, h, w)."""
    painted = [
        region_scores(masks_of(partition), embeddings, directions)[partition].transpose(2, 0, 1)
        for partition in partitions
    ]
    return np.stack(painted).mean(axis=0).astype(np.float32)


def named_regions(
    masks: Sequence[NDArray[np.bool_]],
    scores: NDArray[np.float32],
    background: NDArray[np.float32],
    labels: Sequence[str],
    *,
    least: float = 0.0,
    visible: NDArray[np.bool_] | None = None,
) -> list[Region]:
    """Non-overlapping regions with the label that fits best, best first.

    A region takes part where its best label beats the background by more than `least`.  Taken in order of that margin,
    the larger one of two equals first, a region is left out where it overlaps one that was taken before.

    Args:
        masks: R proposals (h, w), nested or apart or neither.
        scores: of the labels (R, T).
        background: of the background, a normal fundus for instance, (R,).
        labels: T names.
        least: margin from which on a region counts.
        visible: bool (h, w); a region that lies mostly outside is none.
    """
    margins = scores - background[:, None]
    best = margins.argmax(axis=1)
    margin = margins[np.arange(len(masks)), best]
    sizes = np.array([int(mask.sum()) for mask in masks])
    taken = np.zeros(masks[0].shape, dtype=bool)
    chosen = []
    for place in np.lexsort((-sizes, -margin)):
        mask = masks[place]
        outside = visible is not None and (mask & visible).sum() * 2 < sizes[place]
        if margin[place] <= least or outside or (mask & taken).any():
            continue
        taken |= mask
        chosen.append(Region(mask=mask, label=labels[int(best[place])], score=float(margin[place])))
    return chosen


def smooth_mask(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """A mask of the patch grid (h, w) at another size, its steps rounded: more than half of it, bilinearly."""
    table = torch.from_numpy(mask.astype(np.float32))[None, None]
    return functional.interpolate(table, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy() > 0.5


def pieces(mask: NDArray[np.bool_], values: NDArray[np.float32], least: int = 1) -> list[dict[str, float]]:
    """The connected pieces of a mask (H, W), the one with the highest value first.

    Returns: of each piece of at least `least` px its size `px`, the highest `score` in it, and its place: `row` and
        `column` of that highest value, and `top`, `left`, `bottom`, `right` of its box, the last two exclusive.
    """
    labelled: Any = ndimage.label(mask, structure=np.ones((3, 3)))
    numbers, count = labelled
    found = []
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        inside = numbers[box] == number
        size = int(inside.sum())
        if size < least:
            continue
        part = np.where(inside, values[box], -np.inf)
        row, column = np.unravel_index(int(part.argmax()), part.shape)
        top, left = box[0].start, box[1].start
        found.append(
            {
                "px": size,
                "score": float(part[row, column]),
                "row": int(row) + top,
                "column": int(column) + left,
                "top": top,
                "left": left,
                "bottom": box[0].stop,
                "right": box[1].stop,
            }
        )
    assert len(found) <= count
    return sorted(found, key=lambda piece: -piece["score"])


def _cut(children: NDArray[np.int64], leaves: int, count: int) -> NDArray[np.int64]:
    """The first merges of a tree, until `count` regions are left: of each leaf its region, from 0, (L,)."""
    parents = np.arange(leaves + len(children))
    for number, pair in enumerate(children[: leaves - count]):
        parents[pair] = leaves + number
    for node in range(len(parents) - 1, -1, -1):  # a parent's number is higher than its children's
        parents[node] = parents[parents[node]]
    return np.unique(parents[:leaves], return_inverse=True)[1].astype(np.int64)
