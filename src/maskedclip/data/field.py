"""The circular field of a fundus photograph: found, cropped, and brought to one size, with masks alongside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from maskedclip.data.field_shape import find_sides

Crop = Literal["fundus", "none"]

SEARCH_SIZE = 256  # px of the longer side on which the field is searched
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

    Light or dark surroundings, letters, borders, a dark side and straight cuts are seen through; how is told in
    `maskedclip.data.field_shape`.  The box is that of the circle, or of the ellipse that somebody squashed it to, less
    what straight edges cut off, within the frame.  Where no shape is convincing (a radiograph, a close-up that fills
    the frame) the frame is returned with `found=False`.

    image: 8-bit RGB, (H, W, 3).
    """
    height, width = image.shape[:2]
    scale = max(1.0, max(height, width) / SEARCH_SIZE)
    small = resize(image, max(1, round(height / scale)), max(1, round(width / scale)), mode="bilinear")
    sides = find_sides(small)
    if sides is None:
        return Field(top=0, left=0, bottom=height, right=width, found=False)
    rows, columns = height / small.shape[0], width / small.shape[1]
    top, left, bottom, right = sides[0] * rows, sides[1] * columns, sides[2] * rows, sides[3] * columns
    slack = max(1.0, TIGHT * max(height, width))  # a side that all but touches the frame is the frame's
    return Field(
        top=0 if top <= slack else round(top),
        left=0 if left <= slack else round(left),
        bottom=height if bottom >= height - slack else round(bottom),
        right=width if right >= width - slack else round(right),
        found=True,
    )
