"""Are two pictures the same one?  The correlation of their fine structure, whatever was done to light and size.

All fundus photographs have a bright disc on black, so plain correlation is near 1 for any two.  What differs is the
course of the vessels and the edges: the picture less its local mean, over its local spread.

B pairs, N the side of the small pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from maskedclip.data.audit.windows import SIDE

_BLUR = 2.5  # px of 64: vessels and the disc's rim are finer, the field's shading is not
_NOISE = 1.0  # grey levels: a spread below this is noise of the camera or of the encoder
_DARK = 12.0  # grey levels: the background of a fundus photograph, not a part of what is compared
_SHIFTS = (-1, 0, 1)  # px: windows and crops do not fall on the same grid
_MARGIN = 2  # px at the frame, which a shift would move out
_LEAST = 0.15  # share of the picture in which both must show something
ROUGH_SIDE = SIDE // 2
ROUGH_LIKENESS = 0.45
"""Pairs whose rough structures agree less are not looked at closer: measured, no copy is lost (docs/audit.md)."""
_EVEN = 0.1  # root mean square of a structure that is noise
_FLAT = 3.0  # grey levels by which two pictures without structure may differ


def likeness(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlation of the fine structure, at the best shift of at most one px: -1 to 1, float32 (B,).

    Where one of a pair has no structure (an even picture), 1 if its pixels are nearly equal to the other's, else 0.

    first, second: grey pictures, 0 to 255, float32 (B, N, N).
    """
    structure_1, seen_1 = fine_structure(first)
    structure_2, seen_2 = fine_structure(second)
    inner = slice(_MARGIN, SIDE - _MARGIN)
    best = np.full(len(first), -1, np.float32)
    fixed, there = structure_1[:, inner, inner], seen_1[:, inner, inner]
    for down in _SHIFTS:
        for right in _SHIFTS:
            rows, columns = (slice(_MARGIN + by, SIDE - _MARGIN + by) for by in (down, right))
            moved, both = structure_2[:, rows, columns], there & seen_2[:, rows, columns]
            best = np.maximum(best, _correlation(fixed, moved, both))
    flat = (seen_1 & (np.abs(structure_1) > 0.1)).mean(axis=(1, 2)) < _LEAST
    flat |= (seen_2 & (np.abs(structure_2) > 0.1)).mean(axis=(1, 2)) < _LEAST
    alike = np.abs(first - second).mean(axis=(1, 2)) <= _FLAT
    return np.where(flat, alike.astype(np.float32), best)


def fine_structure(small: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The picture less its local mean over its local spread, 0 in the dark; and what is not dark: (B, N, N) each."""
    smooth = small
    for axis in (1, 2):
        smooth = ndimage.uniform_filter1d(smooth, 3, axis=axis, mode="nearest")
    seen = smooth > smooth.min(axis=(1, 2), keepdims=True) + _DARK
    seen = np.asarray(ndimage.binary_erosion(seen, np.ones((1, 3, 3), bool), border_value=1), bool)
    weight = _blurred(seen.astype(np.float32)) + 1e-6
    difference = np.where(seen, small - _blurred(np.where(seen, small, 0)) / weight, 0).astype(np.float32)
    spread = np.sqrt(_blurred(difference**2) / weight + _NOISE**2)
    return (difference / spread).astype(np.float32), seen


def _blurred(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(ndimage.gaussian_filter(pictures, (0, _BLUR, _BLUR), mode="nearest", truncate=3), np.float32)


def _correlation(
    first: NDArray[np.float32], second: NDArray[np.float32], where: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Pearson's correlation of each pair over the places `where`, 0 for too few places: (B,)."""
    count = where.sum(axis=(1, 2)).astype(np.float32)
    enough = count > _LEAST * SIDE**2
    a, b = first * where, second * where
    size = np.maximum(count, 1)
    mean_a, mean_b = a.sum(axis=(1, 2)) / size, b.sum(axis=(1, 2)) / size
    cross = (a * b).sum(axis=(1, 2)) / size - mean_a * mean_b
    power = ((a**2).sum(axis=(1, 2)) / size - mean_a**2) * ((b**2).sum(axis=(1, 2)) / size - mean_b**2)
    return np.where(enough, cross / np.sqrt(power + 1e-12), 0).astype(np.float32)


def rough_structure(small: NDArray[np.float32]) -> NDArray[np.int8]:
    """The fine structure in steps of 1/32 at half the side, to be kept: float32 (B, N, N) -> int8 (B, N/2, N/2)."""
    structure, _ = fine_structure(small)
    half = structure.reshape(len(small), ROUGH_SIDE, 2, ROUGH_SIDE, 2).mean(axis=(2, 4))
    return (half * 32).round().clip(-127, 127).astype(np.int8)


def may_be_alike(
    first: NDArray[np.float32], second: NDArray[np.float32], least: float = ROUGH_LIKENESS
) -> NDArray[np.bool_]:
    """Whether two rough structures (B, N/2, N/2) agree, or one of them is too even to tell, (B,).

    A few multiplications decide nine candidates of ten, which `likeness` would take half a millisecond each for.
    """
    a, b = (part - part.mean(axis=(1, 2), keepdims=True) for part in (first, second))
    power_a, power_b, cross = (np.einsum("bij,bij->b", *pair) for pair in ((a, a), (b, b), (a, b)))
    even = np.minimum(power_a, power_b) < (32 * _EVEN) ** 2 * ROUGH_SIDE**2
    return even | (cross >= least * np.sqrt(power_a * power_b))


def residual(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a gain and an offset cannot explain: root mean square over the lit part, grey levels, float32 (B,).

    Of the two directions the larger; infinite where too little is lit.

    first, second: grey pictures, 0 to 255, float32 (B, N, N).
    """
    lit = (_lit(first) & _lit(second)).astype(np.float32)
    count = np.maximum(lit.sum(axis=(1, 2)), 1)
    a = (first - (_total(first * lit) / count)[:, None, None]) * lit
    b = (second - (_total(second * lit) / count)[:, None, None]) * lit
    power_a, power_b, cross = (_total(product) / count for product in (a * a, b * b, a * b))
    shared = cross.clip(0) ** 2 / (power_a * power_b + 1e-6)
    # A picture that is even but for noise agrees with any: its partner's own spread is then what is left.
    left = np.sqrt(np.maximum(power_a, power_b) * np.maximum(0, 1 - shared))
    return np.where(count > _LEAST * SIDE**2, left, np.inf).astype(np.float32)


def _lit(small: NDArray[np.float32]) -> NDArray[np.bool_]:
    return small > small.min(axis=(1, 2), keepdims=True) + _DARK


def _total(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    return pictures.sum(axis=(1, 2))
