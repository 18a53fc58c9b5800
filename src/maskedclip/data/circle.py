"""Circles and upright ellipses through noisy outlines: consensus of random samples, then least squares.

Random sample consensus: Fischler and Bolles, 1981.  The samples come from a fixed seed, so that each fit is a pure
function of its points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

SAMPLES = 128
LARGEST_RADIUS = 2.0  # of a shape, by the reach of its points: a huge circle comes near to everything
LARGEST_ASPECT = 1.8  # of an ellipse that was a circle before somebody resized the photograph


@dataclass(frozen=True, kw_only=True)
class Ellipse:
    """An upright ellipse: centre, and half its height (`tall`) and width (`wide`), px; a circle where these agree."""

    row: float
    column: float
    tall: float
    wide: float

    @property
    def radius(self) -> float:
        """The radius of the circle of the same area, px."""
        return float(np.sqrt(self.tall * self.wide))

    @property
    def tolerance(self) -> float:
        """How far a point may lie off and still count as on the ellipse, px."""
        return max(1.2, 0.012 * self.radius)

    def distance(self, points: np.ndarray) -> np.ndarray:
        """How far points (n, 2) lie off, along the ray from the centre and in units of the mean radius, px (n,)."""
        scaled = np.hypot((points[:, 0] - self.row) / self.tall, (points[:, 1] - self.column) / self.wide)
        return np.abs(scaled - 1) * self.radius


def fit_circle(points: np.ndarray) -> Ellipse | None:
    """The circle that most points (n, 2) agree on; None where the points define none."""
    return _consensus(points, "circle")


def fit_ellipse(points: np.ndarray) -> Ellipse | None:
    """The upright ellipse that most points (n, 2) agree on; None where the points define none."""
    return _consensus(points, "ellipse")


def _consensus(points: np.ndarray, kind: Literal["circle", "ellipse"]) -> Ellipse | None:
    middle, spread = points.mean(axis=0), float(points.std()) or 1.0
    local = (points - middle) / spread  # else squares of px make the systems below ill-conditioned
    columns = _system(local, kind)
    unknowns = columns.shape[1] - 1
    rng = np.random.Generator(np.random.Philox(0))
    drawn = columns[rng.integers(len(points), size=(SAMPLES, unknowns))]  # (S, u, u+1)
    usable = np.abs(np.linalg.det(drawn[:, :, :unknowns])) > 1e-9
    if not usable.any():
        return None
    solved = np.linalg.solve(drawn[usable, :, :unknowns], drawn[usable, :, unknowns:])[:, :, 0]
    shapes = _shapes(solved, kind)  # (S, 4): row, column, tall, wide
    likely = np.sqrt(shapes[:, 2] * shapes[:, 3]) < LARGEST_RADIUS * np.abs(local).max()  # False for NaN too
    shapes = shapes[likely]
    if not len(shapes):
        return None
    row, column, tall, wide = (shapes[:, index, None] for index in range(4))
    radius = np.sqrt(tall * wide)
    squares = ((local[:, 0] - row) / tall) ** 2 + ((local[:, 1] - column) / wide) ** 2  # (S, n); hypot takes five times
    away = np.abs(np.sqrt(squares) - 1) * radius
    best = shapes[int((away < np.maximum(1.2 / spread, 0.012 * radius)).sum(axis=1).argmax())]
    for _ in range(2):
        shape = _to_px(best, middle, spread)
        agreeing = columns[shape.distance(points) < shape.tolerance]
        if len(agreeing) < 3 * unknowns:
            return None
        solution, *_ = np.linalg.lstsq(agreeing[:, :unknowns], agreeing[:, unknowns], rcond=None)
        best = _shapes(solution[None], kind)[0]
        if not np.isfinite(best).all():
            return None
    return _to_px(best, middle, spread)


def _to_px(shape: np.ndarray, middle: np.ndarray, spread: float) -> Ellipse:
    row, column, tall, wide = (float(value) * spread for value in shape)
    return Ellipse(row=row + float(middle[0]), column=column + float(middle[1]), tall=tall, wide=wide)


def _system(points: np.ndarray, kind: Literal["circle", "ellipse"]) -> np.ndarray:
    """Linear equations of points y, x; unknowns first, right side last: (n, 4) for a circle, (n, 5) for an ellipse.

    Circle (Kasa, 1976): 2 a y + 2 b x + c = y^2 + x^2.  Ellipse: 2 a y + 2 b x + c - d y^2 = x^2.
    """
    y, x = points[:, 0], points[:, 1]
    if kind == "circle":
        return np.stack([2 * y, 2 * x, np.ones_like(y), y**2 + x**2], axis=1)
    return np.stack([2 * y, 2 * x, np.ones_like(y), -(y**2), x**2], axis=1)


def _shapes(solved: np.ndarray, kind: Literal["circle", "ellipse"]) -> np.ndarray:
    """Solutions (S, u) as row, column, tall, wide (S, 4); NaN where they are no circle or an unlikely ellipse."""
    a, b, c = solved[:, 0], solved[:, 1], solved[:, 2]
    d = np.ones_like(a) if kind == "circle" else solved[:, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        squared = c + b**2 + a**2 / d
        wide = np.sqrt(np.where((d > 0) & (squared > 0), squared, np.nan))
        tall = wide / np.sqrt(d)
        aspect = np.maximum(tall / wide, wide / tall)
        shapes = np.stack([a / d, b, tall, wide], axis=1)
    shapes[~(aspect < LARGEST_ASPECT)] = np.nan
    return shapes
