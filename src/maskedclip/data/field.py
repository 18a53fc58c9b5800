"""The circular field of a fundus photograph: found, cropped, and brought to one size, with masks alongside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage

from maskedclip.data.circle import Ellipse, fit_circle, fit_ellipse

Crop = Literal["fundus", "none"]

SEARCH_SIZE = 256  # px of the longer side on which the field is searched
LEAST_POINTS = 24  # of an outline, for a shape to be sought in it
TIGHT = 0.012  # a field this close to the frame (share of its side) is already cropped


@dataclass(frozen=True, kw_only=True)
class Field:
    """The bounding box of a fundus photograph's field in px, `bottom` and `right` exclusive; the frame if not found."""

    top: int
    left: int
    bottom: int
    right: int
    found: bool


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Where a picture goes: this box of the source is resized to (height, width) and put at (row, column) on black.

    Attributes:
        source: the size of the picture it was made for, (H, W).
        box: top, left, bottom, right in the source, px.
        placed: row, column, height, width in the result, px.
        size: side of the result, px.
    """

    source: tuple[int, int]
    box: tuple[int, int, int, int]
    placed: tuple[int, int, int, int]
    size: int

    @property
    def is_identity(self) -> bool:
        """Whether the result is the source itself."""
        return self.source == (self.size, self.size) and self.box == (0, 0, self.size, self.size)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """8-bit RGB (H, W, 3) to (size, size, 3), antialiased."""
        self._check(image)
        top, left, bottom, right = self.box
        row, column, height, width = self.placed
        result = np.zeros((self.size, self.size, 3), dtype=np.uint8)
        cropped = image[top:bottom, left:right]
        result[row : row + height, column : column + width] = resize(cropped, height, width)
        return result

    def apply_to_mask(self, mask: np.ndarray) -> np.ndarray:
        """One 8-bit channel (H, W) to (size, size), nearest neighbour: no value that was not there before."""
        self._check(mask)
        top, left, bottom, right = self.box
        row, column, height, width = self.placed
        rows = top + ((np.arange(height) + 0.5) * (bottom - top) / height).astype(np.int64)
        columns = left + ((np.arange(width) + 0.5) * (right - left) / width).astype(np.int64)
        result = np.zeros((self.size, self.size), dtype=np.uint8)
        result[row : row + height, column : column + width] = mask[rows[:, None], columns[None, :]]
        return result

    def _check(self, pixels: np.ndarray) -> None:
        if pixels.shape[:2] != self.source:
            (height, width), (rows, columns) = pixels.shape[:2], self.source
            raise ValueError(f"is {width} x {height} px, the image is {columns} x {rows} px")


@dataclass(frozen=True, kw_only=True)
class Standardised:
    """A picture as it is stored and as models see it: (size, size, 3), with the field and the way it came there."""

    image: np.ndarray
    field: Field
    transform: Transform


def standardise(image: np.ndarray, *, size: int, crop: Crop = "fundus") -> Standardised:
    """Crop to the field (`fundus`) or not (`none`), pad to a square with black, resize with antialiasing.

    A photograph that is already cropped tightly is not cropped again, so that doing it twice changes nothing (up to one
    px).  A pure function, used for curation and for inference alike.

    Args:
        image: 8-bit RGB, (H, W, 3).
        size: side of the result, px.
        crop: `fundus`, or `none` for other pictures.
    """
    height, width = image.shape[:2]
    frame = Field(top=0, left=0, bottom=height, right=width, found=False)
    field = find_field(image) if crop == "fundus" else frame
    transform = _transform(field, (height, width), size)
    return Standardised(
        image=image if transform.is_identity else transform.apply(image), field=field, transform=transform
    )


def _transform(field: Field, source: tuple[int, int], size: int) -> Transform:
    box = field.top, field.left, field.bottom, field.right
    rows, columns = box[2] - box[0], box[3] - box[1]
    side = max(rows, columns)
    if source[0] == source[1] and side >= source[0] * (1 - 2 * TIGHT):
        box, (rows, columns), side = (0, 0, *source), source, source[0]  # tight already; its padding is kept
    height, width = max(1, round(rows * size / side)), max(1, round(columns * size / side))
    return Transform(
        source=source, box=box, placed=((size - height) // 2, (size - width) // 2, height, width), size=size
    )


def resize(image: np.ndarray, height: int, width: int, *, mode: str = "bicubic") -> np.ndarray:
    """8-bit (H, W, 3) to (height, width, 3), antialiased.

    torch's 8-bit kernel: within one grey level of Pillow's, ten times faster on photographs of camera size.
    """
    if image.shape[:2] == (height, width):
        return image
    tensor = torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(tensor, size=(height, width), mode=mode, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def find_field(image: np.ndarray) -> Field:
    """Find the circular field of a fundus photograph.

    The frame's dark corners give the background; what is lighter, its largest connected part, is the candidate; a
    circle through its outline, robust to notches, dark sides and cuts at the frame, decides, or else an ellipse (a
    circle that somebody squashed into a square).  The box is the circle's, within the frame.  Where neither is
    convincing (a radiograph, a close-up that fills the frame, a montage) the frame is returned with `found=False`.

    image: 8-bit RGB, (H, W, 3).
    """
    height, width = image.shape[:2]
    scale = max(1.0, max(height, width) / SEARCH_SIZE)
    small = resize(image, max(1, round(height / scale)), max(1, round(width / scale)), mode="bilinear")
    light = np.maximum(np.maximum(small[:, :, 0], small[:, :, 1]), small[:, :, 2]).astype(np.float32)
    shape = _find_shape(ndimage.uniform_filter(light, 3, mode="nearest"))
    if shape is None:
        return Field(top=0, left=0, bottom=height, right=width, found=False)
    rows, columns = height / small.shape[0], width / small.shape[1]
    return _boxed(shape, rows, columns, height, width)


def _boxed(shape: Ellipse, rows: float, columns: float, height: int, width: int) -> Field:
    """The box of a shape of a picture (rows, columns) times smaller; sides that all but touch the frame are its own."""
    slack = max(1.0, TIGHT * max(height, width))
    top, bottom = (shape.row - shape.tall) * rows, (shape.row + shape.tall + 1) * rows
    left, right = (shape.column - shape.wide) * columns, (shape.column + shape.wide + 1) * columns
    return Field(
        top=0 if top <= slack else round(top),
        left=0 if left <= slack else round(left),
        bottom=height if bottom >= height - slack else round(bottom),
        right=width if right >= width - slack else round(right),
        found=True,
    )


def _find_shape(light: np.ndarray) -> Ellipse | None:
    """The field in a small grey picture (h, w), or None."""
    corner = max(2, min(light.shape) // 24)
    corners = (light[:corner, :corner], light[:corner, -corner:], light[-corner:, :corner], light[-corner:, -corner:])
    background = min(float(np.median(part)) for part in corners)
    bright = float(np.percentile(light[::4, ::4], 99))
    for share, least in ((0.08, 6.0), (0.03, 2.5), (0.2, 12.0)):  # usual, dark photographs, hazy backgrounds
        part = _largest_part(light > background + max(least, share * (bright - background)))
        points = _outline(part)
        if len(points) < LEAST_POINTS:
            continue
        for fit in (fit_circle, fit_ellipse):
            shape = fit(points)
            if shape is not None and _is_convincing(shape, points, part):
                return shape
    return None


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask, (h, w) bool: overlaid letters are not it."""
    labels = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax() if sizes.any() else np.zeros_like(mask)


def _outline(part: np.ndarray) -> np.ndarray:
    """The first and last px of each row and column of a part, those at the frame left out, (n, 2), at most 320."""
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
    free = (points > 1).all(axis=1) & (points[:, 0] < height - 2) & (points[:, 1] < width - 2)
    points = points[free].astype(np.float64)
    return points[:: 1 + len(points) // 320]


def _is_convincing(shape: Ellipse, points: np.ndarray, part: np.ndarray) -> bool:
    """Most of the outline lies on the shape, on opposite sides of it, and the part fills it and nothing else."""
    height, width = part.shape
    near = shape.distance(points) < shape.tolerance
    if near.mean() < 0.5 or not 0.2 * min(height, width) < shape.radius < 0.8 * max(height, width):
        return False
    angles = np.sort(np.arctan2(points[near, 0] - shape.row, points[near, 1] - shape.column))
    gap = np.diff(angles, append=angles[0] + 2 * np.pi).max()
    rows, columns = np.ogrid[:height, :width]
    grown = ((rows - shape.row) / (shape.tall + 2)) ** 2 + ((columns - shape.column) / (shape.wide + 2)) ** 2 <= 1
    shared = np.count_nonzero(part & grown)
    inside, filled = shared / max(1, np.count_nonzero(part)), shared / max(1, np.count_nonzero(grown))
    return bool(gap < 1.2 * np.pi and inside > 0.97 and filled > 0.45)
