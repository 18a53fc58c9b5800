"""Drawing tools of the phantoms: coordinates of the fundus, smooth noise, and anti-aliased outlines.

Everything is placed in *fundus coordinates*: origin at the centre of the circular field, unit its radius, y down, and
x towards the nose, so that a left eye is a right eye mirrored.  H = W = the picture's side in pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from maskedclip.data.phantom_patient import Side

_DRAWN = 768  # side, in pixels, at which outlines are drawn before they are averaged down


@dataclass(frozen=True, kw_only=True)
class View:
    """Where the field lies in the picture.

    size: side in pixels.  centre, radius: of the field, as shares of the side.  tilt: rotation in radians.  cut: the
    field ends above -top and below +bottom (in radii).  side: a left eye is drawn mirrored.
    """

    size: int
    centre: tuple[float, float]
    radius: float
    tilt: float
    cut: tuple[float, float]
    side: Side

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Fundus coordinates x and y of each pixel's centre, each (H, W) float32."""
        steps = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        u = ((steps - self.centre[0]) / self.radius)[None, :] * self._mirror
        v = ((steps - self.centre[1]) / self.radius)[:, None]
        cos, sin = np.float32(np.cos(self.tilt)), np.float32(np.sin(self.tilt))
        return cos * u + sin * v, cos * v - sin * u

    @cached_property
    def coverage(self) -> np.ndarray:
        """How much of each pixel the field covers, (H, W) float32 in 0..1, one pixel of soft edge."""
        x, y = self.grid
        top, bottom = self.cut
        v = ((np.arange(self.size, dtype=np.float32) + 0.5) / self.size - self.centre[1])[:, None] / self.radius
        inside = np.minimum(1 - np.sqrt(x * x + y * y), np.minimum(top + v, bottom - v))
        return np.clip(inside * (self.radius * self.size) + 0.5, 0, 1)

    @property
    def _mirror(self) -> float:
        return 1.0 if self.side == "right" else -1.0

    def contains(self, points: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """Which fundus points (..., 2) lie inside the field by at least `margin`, (...) bool."""
        v = np.sin(self.tilt) * points[..., 0] + np.cos(self.tilt) * points[..., 1]
        inside_circle = np.hypot(points[..., 0], points[..., 1]) < 1 - margin
        return inside_circle & (v > margin - self.cut[0]) & (v < self.cut[1] - margin)

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Fundus points (..., 2) as shares of the picture's side, column first."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        x, y = points[..., 0], points[..., 1]
        column = self.centre[0] + self.radius * self._mirror * (cos * x - sin * y)
        row = self.centre[1] + self.radius * (sin * x + cos * y)
        return np.stack([column, row], axis=-1)


def fill_outlines(view: View, outlines: Iterable[np.ndarray], blur: float = 0.0) -> np.ndarray:
    """Share of each pixel that closed outlines cover, (H, W) float32 in 0..1.

    outlines: fundus points, (K, 2) each.  blur: standard deviation in radii of the field.
    """
    factor = max(2, round(_DRAWN / view.size))
    side = view.size * factor
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    outlines = list(outlines)
    if outlines:
        corners = view.to_picture(np.concatenate(outlines)) * side
        for outline in np.split(corners, np.cumsum([len(outline) for outline in outlines])[:-1]):
            draw.polygon(outline.ravel().tolist(), fill=255)
    small = canvas.reduce(factor)
    if blur > 0:
        small = small.filter(ImageFilter.GaussianBlur(blur * view.radius * view.size))
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def smooth_noise(rng: Generator, cells: int, size: int, wide: float = 1.0) -> np.ndarray:
    """Normal noise with about `cells` independent patches a side, (H, W) float32, unit variance at the nodes.

    wide: how many times longer the patches are along the rows than along the columns.
    """
    nodes = rng.standard_normal((cells + 3, max(4, round(cells / wide) + 3)), dtype=np.float32)
    return resize(nodes, size)


def resize(field: np.ndarray, size: int) -> np.ndarray:
    """Bicubic resize of a (h, w) float32 field to (size, size)."""
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BICUBIC))


def blobs(
    rng: Generator,
    centres: np.ndarray,
    radii: np.ndarray,
    *,
    raggedness: float = 0.2,
    stretch: np.ndarray | float = 1.0,
    heading: np.ndarray | float = 0.0,
    corners: int = 16,
) -> np.ndarray:
    """Irregular round outlines, (n, corners, 2).

    centres: (n, 2).  radii: (n,).  raggedness: relative amplitude of the edge's waves.  stretch: length over width
    along `heading` (radians), the area kept.
    """
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    waves = np.arange(2, 5)
    phase = rng.uniform(0, 2 * np.pi, (len(radii), len(waves), 1))
    size = rng.normal(0, raggedness / waves[:, None], (len(radii), len(waves), 1))
    edge = 1 + (size * np.cos(waves[:, None] * angle + phase)).sum(axis=1)  # (n, corners)
    reach = np.asarray(radii)[:, None] * np.clip(edge, 0.4, 1.8)
    root = np.sqrt(np.broadcast_to(stretch, radii.shape))[:, None]
    along, across = reach * np.cos(angle) * root, reach * np.sin(angle) / root
    turn = np.broadcast_to(heading, radii.shape)[:, None]
    x = np.cos(turn) * along - np.sin(turn) * across
    y = np.sin(turn) * along + np.cos(turn) * across
    return np.stack([x, y], axis=-1) + centres[:, None, :]


def blend(picture: np.ndarray, colour: np.ndarray, share: np.ndarray) -> None:
    """Paint `colour` (3,) over `picture` (3, H, W) in place, opaque where `share` (H, W) is 1."""
    for plane, value in zip(picture, colour, strict=True):
        plane += share * (np.float32(value) - plane)


def absorb(picture: np.ndarray, density: tuple[float, float, float], amount: np.ndarray) -> None:
    """Darken `picture` (3, H, W) in place as a layer of blood or pigment: times exp(-density x amount)."""
    for plane, value in zip(picture, density, strict=True):
        plane *= np.exp(amount * np.float32(-value))
