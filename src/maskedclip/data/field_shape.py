"""Where the field of a fundus photograph lies in a small picture: grounds, parts, outlines, and what convinces.

A ground is a guess of what surrounds the field: the dark of a camera's frame, one colour of any lightness, or a dark
frame inside a bright page or border.  What stands out from the ground, its largest connected part, is the candidate.
Straight sides of it are cuts; through the rest of its outline a circle is laid, or else an upright ellipse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from maskedclip.data.circle import Ellipse, fit_circle, fit_ellipse

Sides = tuple[float, float, float, float]  # top, left, bottom, right, px; the last two exclusive

LEAST_POINTS = 24  # of an outline, for a shape to be sought in it
DARK = 48.0  # grey levels: a ground up to here is a camera's own
ALIKE = 28.0  # grey levels, in any channel, within which two colours are one
BLUR = 1.0  # px by which smoothing and a low threshold widen a part at each side
GREY = 0.06  # of the light that the spread of the channels is, below which a picture is grey
LEAST_GREY = 96  # px of the shorter side of a grey picture, below which a head may pass for a circle
FLAT = 0.42  # of a part's width that its outermost two rows reach: of a whole circle of the least radius 0.4
SHARP = 0.35  # least sharpness of a field's edge
CUT_SHARP = 0.7  # the same of a straight cut: a shade that darkens one side is straight too, but soft
# Share of the picture's range and least grey levels above the ground, tried in turn: usual and dark photographs, then
# grounds with haze.
PASSES = ((0.08, 6.0), (0.03, 2.5), (0.2, 12.0), (0.4, 20.0))


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What stands out from a ground, px by px: `light`, smoothed (h, w) float32, beside the ground's own level."""

    light: np.ndarray
    level: float
    framed: bool  # whether something bright around the ground was taken away, whose rim may be left

    @cached_property
    def bright(self) -> float:
        """The light of the picture's brightest places, a hundredth of it."""
        return float(np.percentile(self.light[::4, ::4], 99))

    def part(self, share: float, least: float) -> np.ndarray:
        """The largest connected part that is lighter than the ground by a share of the picture's range, (h, w) bool."""
        mask = self.light > self.level + max(least, share * (self.bright - self.level))
        return _largest_part(ndimage.binary_opening(mask, iterations=2) if self.framed else mask)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A straight side of a part: how far from the frame, px, and whether the light ends there at once."""

    depth: int
    sharp: bool


Cuts = tuple[Cut | None, Cut | None, Cut | None, Cut | None]  # top, left, bottom, right; None where the part is round


def find_sides(small: np.ndarray) -> Sides | None:
    """The sides of the field in a picture of 8-bit RGB (h, w, 3), beyond the frame where it is cut there, or None.

    Slices of heads are nearly elliptical too: grey pictures must be circles, more exactly, and not very small.
    """
    sample = small[::8, ::8]
    grey = float(np.ptp(sample, axis=2).mean()) < GREY * float(sample.max(axis=2).mean())
    if grey and min(small.shape[:2]) < LEAST_GREY:
        return None
    for ground in _grounds(small):
        for share, least in PASSES:
            part = ground.part(share, least)
            rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
            cuts = _cuts(part, rows, columns, ground)
            points = _outline(part, rows, columns, cuts)
            if len(points) < LEAST_POINTS:
                continue
            for fit in (fit_circle,) if grey else (fit_circle, fit_ellipse):
                shape = fit(points)
                if (
                    shape is not None
                    and _is_convincing(shape, points, part, least_near=0.75 if grey else 0.5)
                    and _sharpness(shape, ground) >= SHARP
                ):
                    return _sides(shape, cuts, *part.shape)
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
    alike = (np.abs(colours - colour).max(axis=1) < ALIKE).sum() >= 3
    if alike and colour.max() > DARK / 2:
        yield Ground(light=_smooth(_distance(small, colour)), level=0.0, framed=False)
    ring = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
    around = [colour] if alike else []
    colour = np.median(ring, axis=0)
    if (np.abs(ring - colour).max(axis=1) < ALIKE).mean() > 0.7:
        around.append(colour)
    for colour in around:
        ground = _inside(small, light, colour) if colour.max() > DARK else None
        if ground is not None:
            yield ground


def _inside(small: np.ndarray, light: np.ndarray, colour: np.ndarray) -> Ground | None:
    """The dark ground inside a page or border of one colour, or None if it is not dark."""
    labels = np.empty(light.shape, dtype=np.int32)
    ndimage.label(_distance(small, colour) < ALIKE, output=labels)
    ring = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    outside = np.isin(labels, ring[ring > 0])
    rest = light[~outside]
    if rest.size < 0.1 * light.size:
        return None
    level = float(np.percentile(rest, 2))
    if level > DARK:
        return None
    return Ground(light=np.where(outside, np.float32(level), light), level=level, framed=True)


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


def _cuts(part: np.ndarray, rows: np.ndarray, columns: np.ndarray, ground: Ground) -> Cuts:
    """The cuts of a part that has px in these rows and columns; none at the frame."""
    if len(rows) < 12 or len(columns) < 12:
        return None, None, None, None
    (height, width), light = part.shape, ground.light
    flipped_rows, flipped_columns = height - 1 - int(rows[-1]), width - 1 - int(columns[-1])
    return (  # each time what is looked at is made the top
        _cut(part, light, int(rows[0]), len(columns), ground.level),
        _cut(part.T, light.T, int(columns[0]), len(rows), ground.level),
        _cut(part[::-1], light[::-1], flipped_rows, len(columns), ground.level),
        _cut(part.T[::-1], light.T[::-1], flipped_columns, len(rows), ground.level),
    )


def _cut(part: np.ndarray, light: np.ndarray, first: int, wide: int, level: float) -> Cut | None:
    """The cut at the top of a part that begins in row `first` and has px in `wide` columns."""
    if first < 2 or first + 6 >= len(part):
        return None
    reached = part[first] | part[first + 1]
    if np.count_nonzero(reached) < FLAT * wide:
        return None
    inner, outer = (float(light[row, reached].mean()) - level for row in (first + 4, first - 2))
    return Cut(depth=first, sharp=inner - outer > CUT_SHARP * inner)


def _outline(part: np.ndarray, rows: np.ndarray, columns: np.ndarray, cuts: Cuts) -> np.ndarray:
    """The first and last px of each row and column of a part, (n, 2), at most 320; not those at the frame or a cut."""
    height, width = part.shape
    points = np.concatenate(
        [
            np.stack([rows, part[rows].argmax(axis=1)], axis=1),
            np.stack([rows, width - 1 - part[rows, ::-1].argmax(axis=1)], axis=1),
            np.stack([part[:, columns].argmax(axis=0), columns], axis=1),
            np.stack([height - 1 - part[::-1, columns].argmax(axis=0), columns], axis=1),
        ]
    )
    least = [1 if cut is None else cut.depth + 1 for cut in cuts]
    free = (points > least[:2]).all(axis=1) & (points < np.array(part.shape) - 1 - least[2:]).all(axis=1)
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


def _sharpness(shape: Ellipse, ground: Ground) -> float:
    """The fall of light over the shape's edge as a share of the light beside it, 0 to 1.

    Near 1 at a diaphragm; a third at most at the rim of a soft spot or of haze.  Dark sides weigh nothing.
    """
    height, width = ground.light.shape
    reach = np.array([-8.0, -3.0, 2.0])[:, None]  # px from the edge
    rows = np.round(shape.row + (shape.tall + reach) * np.sin(_ANGLES)).astype(np.int64)
    columns = np.round(shape.column + (shape.wide + reach) * np.cos(_ANGLES)).astype(np.int64)
    within = ((rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)).all(axis=0)
    if not within.any():
        return 1.0
    beside, inner, outer = ground.light[rows[:, within], columns[:, within]] - ground.level
    return float((inner - outer).clip(0).sum() / max(1e-6, float(np.maximum(beside, inner).clip(0).sum())))


def _sides(shape: Ellipse, cuts: Cuts, height: int, width: int) -> Sides:
    """The box around a shape, in places px begin and end at, less what sharp cuts take from it."""
    tall, wide = shape.tall - BLUR, shape.wide - BLUR
    depths = [-np.inf if cut is None or not cut.sharp else cut.depth + BLUR for cut in cuts]
    return (
        max(shape.row - tall, depths[0]),
        max(shape.column - wide, depths[1]),
        min(shape.row + tall + 1, height - depths[2]),
        min(shape.column + wide + 1, width - depths[3]),
    )
