"""Proposals as pictures of their own: what lies outside a mask is filled with the mean colour, and the rest cut out.

The fill is the colour that normalising turns into 0, and it is set *before* normalising.  Q proposals, h x w cells of
their masks, R px on the side of the picture that is cut, S px that the model reads.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def binary_masks(logits: NDArray[np.float32], size: int) -> NDArray[np.bool_]:
    """Masks at the size of a picture, bool (Q, R, R): where the sigmoid of the logits (Q, h, w) is above 0.5."""
    if not len(logits):
        return np.zeros((0, size, size), bool)
    grown = functional.interpolate(torch.from_numpy(logits)[:, None], (size, size), mode="bilinear")
    return (grown[:, 0] > 0).numpy()


def fill_colour(mean: Sequence[float]) -> NDArray[np.uint8]:
    """The colour of a preprocessing's mean, RGB (3,)."""
    return np.rint(255 * np.asarray(mean)).astype(np.uint8)


def filled(image: Tensor, mask: NDArray[np.bool_], fill: NDArray[np.uint8]) -> Tensor:
    """A picture uint8 (3, R, R) with `fill` (3,) outside a mask (R, R), exactly."""
    return torch.where(torch.from_numpy(mask), image, torch.from_numpy(fill)[:, None, None])


def masked_crops(
    image: Tensor, masks: NDArray[np.bool_], fill: NDArray[np.uint8], size: int
) -> tuple[Tensor, NDArray[np.bool_]]:
    """The tight box of each mask, filled outside the mask, resized to a square (bicubic).

    Args:
        image: uint8 (3, R, R).
        masks: bool (Q, R, R).
        fill: RGB (3,).
        size: S.

    Returns: uint8 (V, 3, S, S) of the V masks that are not empty, and which those are, bool (Q,).
    """
    valid = np.array([mask.any() for mask in masks], bool)
    crops = [_crop(image, mask, fill, size) for mask in masks[valid]]
    return torch.stack(crops) if crops else torch.zeros((0, 3, size, size), dtype=torch.uint8), valid


def _crop(image: Tensor, mask: NDArray[np.bool_], fill: NDArray[np.uint8], size: int) -> Tensor:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    down, across = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part = filled(image[:, down, across], mask[down, across], fill)
    if part.shape[1:] == (size, size):
        return part
    grown = functional.interpolate(part[None].float(), (size, size), mode="bicubic", antialias=True)
    return grown[0].round().clamp(0, 255).to(torch.uint8)
