"""The vessel tree of a phantom: four arcades leave the disc, arch around the macula, and branch twice.

Fundus coordinates (see phantom_canvas): unit the field's radius, x towards the nose.  All branches of a generation
grow together, as arrays: N points a branch, B branches; so a tree of a hundred branches costs a few milliseconds.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from maskedclip.data.phantom_patient import Patient

_TRUNK_WIDTH = 0.03  # a vein where it leaves the disc
_THINNEST = 0.005
_TRUNK_POINTS, _POINTS = 49, 17
_TWIG_REACH = 58.0  # length over width of the twigs that leave the disc on their own
_GENERATIONS = ((0.26, 62.0), (0.23, 46.0))  # distance between branches on their parent; length over width
_AVASCULAR = 0.13  # no vessel comes nearer to the fovea

# Control points of the arcades, from the disc outwards, for the upper half; per arcade and point:
# (share of the way disc -> fovea, height above the line between them).
_ARCADES = {
    "temporal": ((0.0, 0.02), (0.02, 0.2), (0.22, 0.43), (0.62, 0.55), (1.1, 0.56), (1.65, 0.42), (2.3, 0.28)),
    "nasal": ((0.0, 0.02), (-0.08, 0.2), (-0.22, 0.42), (-0.42, 0.66), (-0.62, 0.9)),
}


@dataclass(frozen=True, kw_only=True)
class _Generation:
    """Branches of both kinds: centre lines (N, B, 2), widths (N, B), points in use (B,), which are arteries (B,)."""

    track: np.ndarray
    width: np.ndarray
    length: np.ndarray
    artery: np.ndarray


def grow_vessels(
    rng: Generator, patient: Patient, disc: np.ndarray, fovea: np.ndarray, cup_ratio: float
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Arteries and veins of one eye, each a closed outline a branch, fundus points (2n, 2).

    disc, fovea: centres, (2,).  cup_ratio: in a wide cup the trunks bend over the nasal rim.
    """
    origin = disc + np.array([(0.1 + 0.55 * cup_ratio) * patient.disc_radius, 0.0])  # x is towards the nose
    generation = _trunks(rng, patient, origin, fovea)
    tree, extra = [generation], _twigs(rng, patient, origin)
    for spacing, reach in _GENERATIONS:
        heads = np.concatenate([extra, _spawn(rng, generation, disc, spacing, reach)])
        generation = _grow(rng, heads, disc, fovea, patient.tortuosity)
        tree.append(generation)
        extra = extra[:0]
    return _outlines(tree, artery=True), _outlines(tree, artery=False)


def _outlines(tree: list[_Generation], *, artery: bool) -> list[np.ndarray]:
    """The outlines of the branches of one kind; stumps of less than four points are left out."""
    outlines = []
    for generation in tree:
        half = _normals(generation.track) * generation.width[..., None] / 2
        left, right = generation.track + half, generation.track - half
        for i in np.flatnonzero((generation.artery == artery) & (generation.length >= 4)):
            n = generation.length[i]
            outlines.append(np.concatenate([left[:n, i], right[:n, i][::-1]]))
    return outlines


def _trunks(rng: Generator, patient: Patient, origin: np.ndarray, fovea: np.ndarray) -> _Generation:
    """An artery and a vein along each arcade, near a route that they share."""
    lines, widths, arteries = [], [], []
    upright = np.array([0.0, -1.0])  # rows grow downwards
    for arcade, points in _ARCADES.items():
        spread = np.linspace(0, 1, len(points))[:, None]
        for up in (-1, 1):
            route = np.array(points) * rng.normal(1, (0.08, 0.1)) + rng.normal(0, 0.045, (len(points), 2)) * spread
            for artery in (True, False):
                own = route + rng.normal(0, 0.045, route.shape) * np.minimum(1, 0.35 + 3 * spread)
                line = _spline(own[:, :1] * (fovea - origin) + up * own[:, 1:] * upright, _TRUNK_POINTS)
                lines.append(_wave(rng, line + origin, patient.tortuosity))
                start = _TRUNK_WIDTH * patient.vessel_width * (patient.artery_share if artery else 1.0)
                narrowing = np.linspace(1, rng.uniform(0.35, 0.5), _TRUNK_POINTS)
                widths.append(start * (1.0 if arcade == "temporal" else 0.75) * narrowing)
                arteries.append(artery)
    return _Generation(
        track=np.stack(lines, axis=1),
        width=np.stack(widths, axis=1),
        length=np.full(len(lines), _TRUNK_POINTS),
        artery=np.array(arteries),
    )


def _twigs(rng: Generator, patient: Patient, origin: np.ndarray) -> np.ndarray:
    """Thin vessels that leave the disc on their own, to the macula and to the nose; heads as `_spawn` returns them."""
    heads = []
    for artery in (True, False):
        macular, nasal = int(rng.integers(1, 3)), int(rng.integers(2, 4))
        heading = np.concatenate([np.pi + rng.uniform(-0.5, 0.5, macular), rng.uniform(-1.2, 1.2, nasal)])
        share = np.concatenate([rng.uniform(0.3, 0.42, macular), rng.uniform(0.4, 0.6, nasal)])
        width = share * _TRUNK_WIDTH * patient.vessel_width * (patient.artery_share if artery else 1.0)
        start = origin + rng.normal(0, 0.015, (len(heading), 2))
        heads.append(np.column_stack([start, heading, width, width * _TWIG_REACH, np.full(len(heading), artery)]))
    return np.concatenate(heads)


def _spawn(rng: Generator, parents: _Generation, disc: np.ndarray, spacing: float, reach: float) -> np.ndarray:
    """Where branches leave their parents, on alternating sides, (B, 6): x, y, heading, width, length, artery."""
    steps = parents.track[1:] - parents.track[:-1]
    along = np.zeros(parents.width.shape)
    np.cumsum(np.hypot(steps[..., 0], steps[..., 1]), axis=0, out=along[1:])
    count = parents.width.shape[1]
    total = along[parents.length - 1, np.arange(count)]
    most = int(total.max(initial=0.0) / spacing) + 1
    order = np.arange(most)[:, None]
    chance = rng.random((4, most, count))
    places = (order + 0.2 + 0.8 * chance[0]) * spacing
    index = np.minimum((along[:, None, :] < places).sum(axis=0), len(steps) - 1)
    column = np.broadcast_to(np.arange(count), index.shape)
    start, step = parents.track[index, column], steps[index, column]
    side = np.where((order + rng.integers(2, size=count)) % 2 == 0, 1, -1)
    heading = np.arctan2(step[..., 1], step[..., 0]) + side * (0.3 + 0.45 * chance[1])
    width = parents.width[index, column] * (0.38 + 0.32 * chance[2])
    length = width * reach * (0.7 + 0.7 * chance[3])
    heads = np.stack([start[..., 0], start[..., 1], heading, width, length, parents.artery[column]], axis=-1)
    clear_of_disc = np.hypot(start[..., 0] - disc[0], start[..., 1] - disc[1]) > 0.2
    inside = np.hypot(start[..., 0], start[..., 1]) < 1.0
    return heads[(places < total) & clear_of_disc & inside & (width > 0.8 * _THINNEST)]


def _grow(rng: Generator, heads: np.ndarray, disc: np.ndarray, fovea: np.ndarray, tortuosity: float) -> _Generation:
    """Grow branches from their heads.

    They turn slowly away from the disc; those that start towards the fovea go on to it, and end at the edge of the
    avascular zone.
    """
    count, steps = len(heads), _POINTS - 1
    x, y, heading, width = heads[:, 0], heads[:, 1], heads[:, 2], heads[:, 3]
    inner = (fovea[0] - x) * np.cos(heading) + (fovea[1] - y) * np.sin(heading) > 0
    pull = np.where(inner, 0.9, -0.5)
    step = np.clip(heads[:, 4], 0.08, 0.9) * np.where(inner, 0.7, 1.0) / steps
    wander = rng.normal(0, 0.03 + 0.1 * tortuosity, (steps, count)) + rng.normal(0, 0.5, count) * step
    track = np.empty((_POINTS, count, 2))
    track[0] = heads[:, :2]
    for i in range(steps):
        out_x, out_y, in_x, in_y = x - disc[0], y - disc[1], fovea[0] - x, fovea[1] - y
        out, far = 1 / np.hypot(out_x, out_y), pull / np.hypot(in_x, in_y)
        goal = np.arctan2(out_y * out + in_y * far, out_x * out + in_x * far)
        heading = heading + np.sin(goal - heading) * 2.0 * step + wander[i]
        x, y = x + step * np.cos(heading), y + step * np.sin(heading)
        track[i + 1, :, 0], track[i + 1, :, 1] = x, y
    away = track - fovea
    ended = (np.hypot(track[..., 0], track[..., 1]) > 1.05) | (np.hypot(away[..., 0], away[..., 1]) < _AVASCULAR)
    ended[-1] = True
    taper = np.linspace(1, 0.5, _POINTS)[:, None]
    return _Generation(
        track=track,
        width=np.maximum(width * taper, _THINNEST),
        length=np.argmax(ended, axis=0) + 1,
        artery=heads[:, 5] > 0,
    )


def _spline(points: np.ndarray, count: int) -> np.ndarray:
    """Catmull-Rom curve through (P, 2) points, sampled at `count` points; P - 1 must divide count - 1, (count, 2)."""
    ends = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    pieces = (count - 1) // (len(points) - 1)
    t = (np.arange(pieces) / pieces)[None, :, None]
    before, start, stop, after = (ends[i : len(ends) - 3 + i, None] for i in range(4))
    curve = (
        start
        + t * (stop - before) / 2
        + t**2 * (before - 2.5 * start + 2 * stop - after / 2)
        + t**3 * (1.5 * (start - stop) + (after - before) / 2)
    )
    return np.concatenate([curve.reshape(-1, 2), points[-1:]])


def _wave(rng: Generator, line: np.ndarray, tortuosity: float) -> np.ndarray:
    """Push a line sideways by two sines: the tortuosity of a vessel."""
    t = np.linspace(0, 1, len(line))
    waves = sum(
        amplitude * np.sin(2 * np.pi * (frequency * t + rng.random()))
        for amplitude, frequency in ((0.010, rng.uniform(2, 4)), (0.007, rng.uniform(5, 9)))
    )
    return line + _normals(line) * (waves * (0.25 + tortuosity) * np.minimum(1, 6 * t))[:, None]


def _normals(lines: np.ndarray) -> np.ndarray:
    """Unit vectors across lines of points, (n, ..., 2)."""
    tangent = np.empty_like(lines)
    tangent[1:-1] = lines[2:] - lines[:-2]
    tangent[0], tangent[-1] = lines[1] - lines[0], lines[-1] - lines[-2]
    tangent /= np.hypot(tangent[..., 0], tangent[..., 1])[..., None]
    return tangent[..., ::-1] * (-1, 1)
