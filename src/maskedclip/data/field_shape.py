"""Where the field of a fundus photograph lies in a small picture: grounds, parts, outlines, and what convinces.

A ground is a guess of what surrounds the field: the dark of a camera's frame, one colour of any lightness, or a dark
frame inside a bright page or border.  What stands out from the ground, its largest connected part, is the candidate.
Straight sides of it are cuts; through the rest of its outline a circle is laid, or else an upright ellipse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from maskedclip.data.circle import Ellipse, fit_circle, fit_ellipse

Sides = tuple[float, float, float, float]  # top, left, bottom, right, px; the last two exclusive

LEAST_POINTS = 24  # of an outline, for a shape to be sought in it
DARK = 48.0  # grey levels: a ground up to here is a camera's own
ALIKE = 28.0  # grey levels, in any channel, within which two colours are one
BLUR = 1.0  # px by which smoothing and a low threshold widen a part at each side
FLAT = 0.42  # of a part's width that its outermost two rows reach: of a whole circle of the least radius 0.4
SHARP = 0.35  # least fall of light over the edge, as a share of the light beside it


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What stands out from a ground, px by px: `light`, smoothed (h, w) float32, beside the ground's own level."""

    light: np.ndarray
    level: float
    framed: bool  # whether something bright around the ground was taken away, whose rim may be left

    def part(self, share: float, least: float) -> np.ndarray:
        """The largest connected part that is lighter than the ground by a share of the picture's range, (h, w) bool."""
        bright = float(np.percentile(self.light[::4, ::4], 99))
        mask = self.light > self.level + max(least, share * (bright - self.level))
        return _largest_part(ndimage.binary_opening(mask, iterations=2) if self.framed else mask)


def find_sides(small: np.ndarray) -> Sides | None:
    """The sides of the field in a picture of 8-bit RGB (h, w, 3), beyond the frame where it is cut there, or None."""
    grey = float(np.ptp(small[::4, ::4], axis=2).mean()) < 4
    for ground in _grounds(small):
        for share, least in ((0.08, 6.0), (0.03, 2.5), (0.2, 12.0), (0.4, 20.0)):
            # usual, dark photographs, hazy grounds, very hazy ones
            part = ground.part(share, least)
            cuts = _cuts(part, ground)
            points = _outline(part, cuts)
            if len(points) < LEAST_POINTS:
                continue
            for fit in (fit_circle,) if grey else (fit_circle, fit_ellipse):
                shape = fit(points)
                if (
                    shape is not None
                    and _is_convincing(shape, points, part, least_near=0.75 if grey else 0.5)
                    and _is_sharp(shape, ground)
                ):
                    return _sides(shape, cuts)
    return None


def _grounds(small: np.ndarray) -> Iterator[Ground]:
    """Guesses of the ground, the likeliest first; the later ones are made only if they are asked for."""
    height, width = small.shape[:2]
    size = max(2, min(height, width) // 24)
    corners = (small[:size, :size], small[:size, -size:], small[-size:, :size], small[-size:, -size:])
    light = _smooth(np.maximum(np.maximum(small[:, :, 0], small[:, :, 1]), small[:, :, 2]))
    levels = [float(np.median(corner.max(axis=2))) for corner in corners]
    if min(levels) <= DARK:
        yield Ground(light=light, level=min(levels), framed=False)
    colours = np.array([np.median(corner, axis=(0, 1)) for corner in corners])
    colour = np.median(colours, axis=0)
    if (np.abs(colours - colour).max(axis=1) < ALIKE).sum() >= 3 and colour.max() > DARK / 2:
        yield Ground(light=_smooth(_distance(small, colour)), level=0.0, framed=False)
    ring = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    colour = np.median(ring, axis=0)
    if colour.max() > DARK and (np.abs(ring - colour).max(axis=1) < ALIKE).mean() > 0.7:
        beside = _distance(small, colour) < ALIKE
        rest = light[~beside]
        if rest.size > 0.1 * light.size:
            level = float(np.percentile(rest, 2))
            if level <= DARK:
                yield Ground(light=np.where(beside, np.float32(level), light), level=level, framed=True)


def _smooth(grey: np.ndarray) -> np.ndarray:
    return ndimage.uniform_filter(grey.astype(np.float32), 3, mode="nearest")


def _distance(small: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """How far px are from a colour, in the channel where it is most, (h, w)."""
    return np.abs(small.astype(np.float32) - colour.astype(np.float32)).max(axis=2)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask, (h, w) bool: overlaid letters are not it."""
    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax() if sizes.any() else np.zeros_like(mask)


def _cuts(part: np.ndarray, ground: Ground) -> tuple[tuple[float, bool] | None, ...]:
    """For top, left, bottom, right: where the part ends in a straight line and whether sharply; None where round."""
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if len(rows) < 12 or len(columns) < 12:
        return (None,) * 4
    found = []
    for turned in range(4):  # each time what is looked at is the top
        across, along = (part, rows) if turned % 2 == 0 else (part.T, columns)
        light = ground.light if turned % 2 == 0 else ground.light.T
        if turned >= 2:
            across, light, along = across[::-1], light[::-1], across.shape[0] - 1 - along[::-1]
        found.append(_cut(across, light, int(along[0]), ground.level))
    for side in (2, 3):
        if found[side] is not None:
            found[side] = (part.shape[side % 2] - found[side][0], found[side][1])
    return tuple(found)


def _cut(part: np.ndarray, light: np.ndarray, first: int, level: float) -> tuple[float, bool] | None:
    """The cut at the top of a part whose first row is `first`, if there is one inside the frame."""
    if first < 2 or first + 6 >= part.shape[0]:
        return None
    reached = part[first : first + 2].any(axis=0)
    if reached.sum() < FLAT * np.count_nonzero(part.any(axis=0)):
        return None
    inner = float(light[first + 4, reached].mean()) - level
    outer = float(light[first - 2, reached].mean()) - level
    return float(first), inner - outer > 0.7 * inner


def _outline(part: np.ndarray, cuts: tuple[tuple[float, bool] | None, ...]) -> np.ndarray:
    """The first and last px of each row and column of a part, (n, 2), at most 320; not those at the frame or a cut."""
    height, width = part.shape
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    points = np.concatenate(
        [
            np.stack([rows, part[rows].argmax(axis=1)], axis=1),
            np.stack([rows, width - 1 - part[rows, ::-1].argmax(axis=1)], axis=1),
            np.stack([part[:, columns].argmax(axis=0), columns], axis=1),
            np.stack([height - 1 - part[::-1, columns].argmax(axis=0), columns], axis=1),
        ]
    )
    least = [1.0 if cut is None else cut[0] + 1 for cut in cuts[:2]]
    most = [side - 2.0 if cut is None else cut[0] - 2 for side, cut in zip((height, width), cuts[2:], strict=True)]
    free = (points > least).all(axis=1) & (points < most).all(axis=1)
    points = points[free].astype(np.float64)
    return points[:: 1 + len(points) // 320]


def _is_convincing(shape: Ellipse, points: np.ndarray, part: np.ndarray, *, least_near: float) -> bool:
    """Most of the outline lies on the shape, on opposite sides of it, and the part fills it and nothing else."""
    height, width = part.shape
    near = shape.distance(points) < shape.tolerance
    if near.mean() < least_near or not 0.2 * min(height, width) < shape.radius < 0.8 * max(height, width):
        return False
    angles = np.sort(np.arctan2(points[near, 0] - shape.row, points[near, 1] - shape.column))
    gap = np.diff(angles, append=angles[0] + 2 * np.pi).max()
    rows, columns = np.ogrid[:height, :width]
    grown = ((rows - shape.row) / (shape.tall + 2)) ** 2 + ((columns - shape.column) / (shape.wide + 2)) ** 2 <= 1
    shared = np.count_nonzero(part & grown)
    inside, filled = shared / max(1, np.count_nonzero(part)), shared / max(1, np.count_nonzero(grown))
    return bool(gap < 1.2 * np.pi and inside > 0.97 and filled > 0.45)


_ANGLES = np.linspace(0, 2 * np.pi, 96, endpoint=False)


def _is_sharp(shape: Ellipse, ground: Ground) -> bool:
    """The light falls over the shape's edge as at a diaphragm, not as at the rim of a spot or of haze."""
    return _sharpness(shape, ground) >= SHARP


def _sharpness(shape: Ellipse, ground: Ground) -> float:
    """The fall of light over the shape's edge as a share of the light beside it, weighted by that light, at most 1."""
    height, width = ground.light.shape
    reach = np.array([-8.0, -3.0, 2.0])[:, None]  # px from the edge
    rows = np.round(shape.row + (shape.tall + reach) * np.sin(_ANGLES)).astype(np.int64)
    columns = np.round(shape.column + (shape.wide + reach) * np.cos(_ANGLES)).astype(np.int64)
    within = ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)).all(axis=0)
    if not within.any():
        return 1.0
    beside, inner, outer = ground.light[rows[:, within], columns[:, within]] - ground.level
    return float((inner - outer).clip(0).sum() / max(1e-6, float(np.maximum(beside, inner).clip(0).sum())))


def _sides(shape: Ellipse, cuts: tuple[tuple[float, bool] | None, ...]) -> Sides:
    """The box around a shape, in places px begin and end at, less what sharp cuts take from it."""
    tall, wide = shape.tall - BLUR, shape.wide - BLUR
    sides = [shape.row - tall, shape.column - wide, shape.row + tall + 1, shape.column + wide + 1]
    for side, cut in enumerate(cuts):
        if cut is not None and cut[1]:
            sides[side] = max(sides[side], cut[0] + BLUR) if side < 2 else min(sides[side], cut[0] - BLUR)
    return sides[0], sides[1], sides[2], sides[3]
