"""The findings of a phantom as outlines with a look: where each kind lies, how many, how large, how visible.

Counts and sizes grow with the severity 1..3.  Sizes are in radii of the field; the smallest, microaneurysms, are
drawn somewhat larger than life, so that a small network at 128 px has a chance to see them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from maskedclip.data.phantom_canvas import View, blobs
from maskedclip.data.phantom_patient import Eye

LESIONS = (
    "microaneurysm",
    "haemorrhage",
    "hard_exudate",
    "cotton_wool_spot",
    "drusen",
    "myopic_crescent",
    "laser_scar",
)  # the findings that have an outline, in the order of the manifest's mask columns


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """Lesions of one kind and look.

    outlines: fundus points (K, 2) each.  paint: (RGB in 0..1) of pale ones, mixed in at `strength`; else None.
    density: of dark ones, absorbed in R, G, B, times `strength`.  softness: standard deviation of the edge's blur, in
    radii of the field.  deep: lies beneath the vessels.
    """

    kind: str
    outlines: list[np.ndarray]
    strength: float
    softness: float = 0.0
    paint: tuple[float, float, float] | None = None
    density: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deep: bool = False


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Where disc, cup and fovea lie.  centres: fundus points (2,); disc_axes, cup_axes: half axes (x, y)."""

    disc: np.ndarray
    disc_axes: np.ndarray
    cup: np.ndarray
    cup_axes: np.ndarray
    fovea: np.ndarray


_BLOOD = (0.5, 1.35, 1.1)


def draw_lesions(rng: Generator, eye: Eye, view: View, anatomy: Anatomy) -> list[Lesion]:
    """All lesions of an eye."""
    makers: dict[str, Callable[[Generator, int, Eye, View, Anatomy], list[Lesion]]] = {
        "microaneurysm": _microaneurysms,
        "haemorrhage": _haemorrhages,
        "hard_exudate": _hard_exudates,
        "cotton_wool_spot": _cotton_wool_spots,
        "drusen": _drusen,
        "myopic_crescent": _myopic_crescent,
        "laser_scar": _laser_scars,
    }
    lesions = []
    for kind, rng_of_kind in zip(LESIONS, rng.spawn(len(LESIONS)), strict=True):
        if severity := eye.findings[kind]:
            lesions += makers[kind](rng_of_kind, severity, eye, view, anatomy)
    return lesions


def _microaneurysms(rng: Generator, severity: int, eye: Eye, view: View, anatomy: Anatomy) -> list[Lesion]:
    count = int(rng.integers(*((4, 8), (10, 17), (20, 34))[severity - 1]))
    centres = _scatter(rng, count, view, anatomy, reach=0.7, clear_of_fovea=0.05)
    dots = blobs(rng, centres, rng.uniform(0.009, 0.0145, count), raggedness=0.1, corners=10)
    strength = rng.uniform(0.7, 0.95)
    return [Lesion(kind="microaneurysm", outlines=list(dots), strength=strength, density=(0.4, 1.25, 1.0))]


def _haemorrhages(rng: Generator, severity: int, eye: Eye, view: View, anatomy: Anatomy) -> list[Lesion]:
    count = int(rng.integers(*((2, 5), (6, 12), (15, 27))[severity - 1]))
    centres = _scatter(rng, count, view, anatomy, reach=0.8, clear_of_fovea=0.08)
    flame = rng.random(count) < 0.45  # in the fibre layer, drawn out along the nerve fibres; the others are blots
    from_disc = centres - anatomy.disc
    outlines = blobs(
        rng,
        centres,
        rng.uniform(0.02, 0.034 + 0.006 * severity, count),
        raggedness=0.35,
        stretch=np.where(flame, rng.uniform(2.2, 4.0, count), rng.uniform(1.0, 1.4, count)),
        heading=np.arctan2(from_disc[:, 1], from_disc[:, 0]) + rng.normal(0, 0.2, count),
    )
    look = {"strength": rng.uniform(0.65, 0.85), "softness": 0.009, "density": _BLOOD}
    found = [Lesion(kind="haemorrhage", outlines=list(outlines), **look)]
    if eye.wet:
        pool = blobs(rng, anatomy.fovea + rng.normal(0, 0.06, (2, 2)), rng.uniform(0.08, 0.15, 2), raggedness=0.35)
        found.append(Lesion(kind="haemorrhage", outlines=list(pool), strength=1.1, softness=0.008, density=_BLOOD))
    elif eye.diseases["diabetic_retinopathy"] == 4:
        found.append(_preretinal_pool(rng, view, anatomy))
    return found


def _preretinal_pool(rng: Generator, view: View, anatomy: Anatomy) -> Lesion:
    """Blood before the retina settles with a level top, as in a boat."""
    centre = _scatter(rng, 1, view, anatomy, reach=0.6, clear_of_fovea=0.25)[0]
    radius, angle = rng.uniform(0.09, 0.16), np.linspace(0, np.pi, 24)
    boat = centre + radius * np.column_stack([1.3 * np.cos(angle), 0.75 * np.sin(angle)])
    return Lesion(kind="haemorrhage", outlines=[boat], strength=1.2, softness=0.005, density=_BLOOD)


def _hard_exudates(rng: Generator, severity: int, eye: Eye, view: View, anatomy: Anatomy) -> list[Lesion]:
    clusters = int(rng.integers(*((1, 3), (3, 5), (5, 9))[severity - 1]))
    middles = _scatter(rng, clusters, view, anatomy, reach=0.5, clear_of_fovea=0.1)
    spots = []
    for middle in middles:
        count = int(rng.integers(6, 12 + 5 * severity))
        angle = rng.uniform(0, 2 * np.pi) + rng.uniform(0, rng.uniform(2.5, 6.3), count)
        ring = rng.random() < 0.45  # lipid settles around a leaking point
        distance = rng.normal(0.1, 0.018, count) if ring else np.abs(rng.normal(0, 0.055, count))
        spots.append(middle + distance[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]))
    centres = np.concatenate(spots)
    centres = centres[_outside_disc(centres, anatomy, 1.15) & view.contains(centres, 0.04)]
    radii = rng.uniform(0.008, 0.014 + 0.003 * severity, len(centres))
    outlines = blobs(rng, centres, radii, raggedness=0.35, stretch=rng.uniform(1, 1.7, len(centres)))
    look = {"strength": rng.uniform(0.75, 0.95), "softness": 0.002, "paint": (1.0, 0.91, 0.55)}
    return [Lesion(kind="hard_exudate", outlines=list(outlines), **look)]


def _cotton_wool_spots(rng: Generator, severity: int, eye: Eye, view: View, anatomy: Anatomy) -> list[Lesion]:
    count = int(rng.integers(*((1, 3), (3, 6), (6, 11))[severity - 1]))
    centres = _scatter(rng, count, view, anatomy, reach=0.7, clear_of_fovea=0.25)
    radii = rng.uniform(0.034, 0.05 + 0.006 * severity, count)
    outlines = blobs(rng, centres, radii, raggedness=0.5, stretch=rng.uniform(1, 1.8, count), heading=rng.uniform(0, 3))
    look = {"strength": rng.uniform(0.55, 0.75), "softness": 0.017, "paint": (0.97, 0.92, 0.78)}
    return [Lesion(kind="cotton_wool_spot", outlines=list(outlines), **look)]


def _drusen(rng: Generator, severity: int, eye: Eye, view: View, anatomy: Anatomy) -> list[Lesion]:
    count = int(rng.integers(*((9, 17), (26, 42), (60, 100))[severity - 1]))
    spread = (0.17, 0.2, 0.23)[severity - 1]
    centres = anatomy.fovea + rng.normal(0, spread, (count, 2))
    centres = centres[_outside_disc(centres, anatomy, 1.2) & view.contains(centres, 0.04)]
    radii = rng.uniform(0.01, (0.018, 0.022, 0.028)[severity - 1], len(centres))
    outlines = blobs(rng, centres, radii, raggedness=0.15, corners=12)
    look = {"strength": rng.uniform(0.45, 0.65), "softness": 0.006, "paint": (1.0, 0.88, 0.5)}
    return [Lesion(kind="drusen", outlines=list(outlines), deep=True, **look)]


def _myopic_crescent(rng: Generator, severity: int, eye: Eye, view: View, anatomy: Anatomy) -> list[Lesion]:
    """Bare sclera beside the disc: a temporal crescent, in high myopia a ring with patches of atrophy."""
    width = rng.uniform(*((0.35, 0.55), (0.65, 0.95), (1.05, 1.6))[severity - 1])
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    temporal = 0.5 * (1 - np.cos(angle))  # 0 at the nose, 1 towards the fovea
    grip = 1.2 if severity < 3 else 0.6  # the milder, the more it keeps to the temporal side
    edge = 1.0 + width * temporal**grip * (1 + rng.normal(0, 0.03, len(angle)))
    ring = anatomy.disc + edge[:, None] * anatomy.disc_axes * np.column_stack([np.cos(angle), np.sin(angle)])
    look = {"strength": rng.uniform(0.5, 0.72), "softness": 0.012, "paint": (1.0, 0.9, 0.62), "deep": True}
    found = [Lesion(kind="myopic_crescent", outlines=[ring], **look)]
    if severity == 3:
        count = int(rng.integers(2, 6))
        centres = _scatter(rng, count, view, anatomy, reach=0.6, clear_of_fovea=0.1)
        patches = blobs(rng, centres, rng.uniform(0.05, 0.11, count), raggedness=0.5)
        found.append(Lesion(kind="myopic_crescent", outlines=list(patches), **(look | {"strength": 0.4})))
    return found


def _laser_scars(rng: Generator, severity: int, eye: Eye, view: View, anatomy: Anatomy) -> list[Lesion]:
    """Burns in rows outside the arcades: pale rounds, many with a pigmented middle."""
    wanted = int(rng.integers(*((8, 14), (20, 32), (44, 66))[severity - 1]))
    pitch = rng.uniform(0.115, 0.14)
    lattice = np.mgrid[-9:10, -9:10].reshape(2, -1).T * pitch
    lattice[:, 0] += np.where(np.rint(lattice[:, 1] / pitch) % 2 == 0, pitch / 2, 0)
    centres = lattice + rng.normal(0, 0.02, lattice.shape)
    far = np.hypot(*((centres - anatomy.fovea) * (0.8, 1)).T) > 0.52
    free = far & _outside_disc(centres, anatomy, 2.0) & view.contains(centres, 0.06)
    centres = centres[free]
    towards = rng.uniform(0, 2 * np.pi)  # a mild one was treated in one sector only
    order = np.argsort(-centres @ (np.cos(towards), np.sin(towards)) + rng.normal(0, 0.15 * severity, len(centres)))
    centres = centres[order[:wanted]]
    radii = rng.uniform(0.028, 0.044, len(centres))
    scars = blobs(rng, centres, radii, raggedness=0.2)
    pigmented = rng.random(len(centres)) < rng.uniform(0.2, 0.8)
    cores = blobs(rng, centres[pigmented], radii[pigmented] * 0.55, raggedness=0.35)
    pale = {"strength": rng.uniform(0.4, 0.62), "softness": 0.006, "paint": (0.95, 0.85, 0.6), "deep": True}
    dark = {"strength": rng.uniform(0.5, 1.0), "softness": 0.006, "density": (0.8, 0.7, 0.5), "deep": True}
    return [
        Lesion(kind="laser_scar", outlines=list(scars), **pale),
        Lesion(kind="laser_scar", outlines=list(cores), **dark),
    ]


def _outside_disc(points: np.ndarray, anatomy: Anatomy, factor: float) -> np.ndarray:
    """Which points (n, 2) lie outside the disc grown by `factor`, (n,) bool."""
    return np.hypot(*((points - anatomy.disc) / anatomy.disc_axes).T) > factor


def _scatter(
    rng: Generator, count: int, view: View, anatomy: Anatomy, *, reach: float, clear_of_fovea: float
) -> np.ndarray:
    """`count` points of the posterior pole: evenly within `reach` of its middle, off the disc and the fovea, (n, 2)."""
    middle = 0.65 * anatomy.fovea + 0.35 * anatomy.disc
    tries = 12 * count + 60
    angle, distance = rng.uniform(0, 2 * np.pi, tries), reach * np.sqrt(rng.random(tries))
    points = middle + distance[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    good = _outside_disc(points, anatomy, 1.3) & view.contains(points, 0.06)
    good &= np.hypot(*(points - anatomy.fovea).T) > clear_of_fovea
    return points[good][:count]
