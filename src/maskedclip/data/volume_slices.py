"""Slices of a volume as pictures, and a volume as a small cube.

Pictures follow the radiological convention: seen from the feet or the front, the patient's right is on the left; heads
are up, faces are up in axial and to the left in sagittal slices.  Pixels are square.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from maskedclip.data.pixels import MAX_PIXELS, UndecodableImage, Window, too_large
from maskedclip.data.volumes import AXES, Shown, Volume

BRIGHT = 25  # of 255: a tenth of the window; what is above it is body, not air
MAX_CUBE = 512


@dataclass(frozen=True, kw_only=True)
class SliceSettings:
    """Which slices are taken, and how they are shown.

    Attributes:
        axis: `axial`, `coronal` or `sagittal`.
        every: take each k-th slice.
        min_area: share of a slice's pixels that must be brighter than a tenth of the window, 0 to 1.
        window: range of values shown; None: the file's, or percentiles of the whole volume.
    """

    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    every: int = 1
    min_area: float = 0.05
    window: Window | None = None

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise ValueError(f"axis is '{self.axis}': give axial, coronal or sagittal")
        if self.every < 1:
            raise ValueError(f"every is {self.every}: give at least 1")
        if not 0 <= self.min_area < 1:
            raise ValueError(f"min_area is {self.min_area:g}: give a share from 0 to below 1")


def slices(volume: Volume, settings: SliceSettings) -> Iterator[tuple[int, np.ndarray]]:
    """The wanted slices from foot to head (back to front, left to right): index and picture, 8 bits, (H, W).

    Raises:
        UndecodableImage: the volume cannot be read.
    """
    axis = AXES[settings.axis]
    shown = volume.shown(settings.window)
    for index in range(settings.every // 2, volume.shape[axis], settings.every):
        picture = slice_picture(volume, axis, index, shown)
        if (picture > BRIGHT).mean() >= settings.min_area:
            yield index, picture


def slice_picture(volume: Volume, axis: int, index: int, shown: Shown) -> np.ndarray:
    """One slice, square pixels of the finer of its two spacings, 8 bits, (H, W)."""
    grey = _upright(shown(volume.values(axis, index)), axis)
    return np.asarray(Image.fromarray(grey).resize(_square(volume, axis), Image.Resampling.BICUBIC))


def slice_mask(mask: Volume, axis: int, index: int) -> np.ndarray:
    """The same slice of a volume of classes, values kept, 8 bits, (H, W); UndecodableImage for other values."""
    values = mask.values(axis, index)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise UndecodableImage("has values outside 0..255")
    flat = _upright(values.round().astype(np.uint8), axis)
    return np.asarray(Image.fromarray(flat).resize(_square(mask, axis), Image.Resampling.NEAREST))


def _upright(values: np.ndarray, axis: int) -> np.ndarray:
    """A slice of a RAS volume as it is hung: the second axis runs up, the first to the left."""
    return np.ascontiguousarray(values[::-1, ::-1].T)


def _square(volume: Volume, axis: int) -> tuple[int, int]:
    """Width and height of a slice at square pixels."""
    across, up = (side for place, side in enumerate(volume.shape) if place != axis)
    if volume.spacing is None:
        return across, up
    spacing = [value for place, value in enumerate(volume.spacing) if place != axis]
    finest = min(spacing)
    size = max(1, round(across * spacing[0] / finest)), max(1, round(up * spacing[1] / finest))
    if size[0] * size[1] > MAX_PIXELS:
        raise too_large()
    return size


def cube(
    volume: Volume,
    size: int,
    *,
    spacing: float | None = None,
    window: Window | None = None,
    values: Literal["uint8", "float16"] = "uint8",
) -> tuple[np.ndarray, dict[str, Any]]:
    """A volume at equal spacing in a cube, centred, black around it.

    Resampling is linear, widened where it shrinks so that it averages; first within slices, then across them, so
    that no more than a slice is ever held at full depth.

    Args:
        volume: any volume whose spacing is known.
        size: side of the cube, voxels.
        spacing: mm a voxel; what then lies outside the cube is cut.  None: the longest side just fits.
        window: range of values shown; None as for slices.
        values: `uint8`, 0 to 255; or `float16`, 0 to 1.

    Returns: the array (size, size, size), axes R, A, S; and what a reader must know: spacing, orientation, affine
        (voxel to RAS mm, null if the file gives none), dtype.  The spacing is equal but for rounding to whole voxels.

    Raises:
        ValueError: size or spacing cannot be.
        UndecodableImage: the volume cannot be read, or does not say its spacing.
    """
    if not 2 <= size <= MAX_CUBE:
        raise ValueError(f"cube is {size}: give 2 to {MAX_CUBE} voxels")
    if spacing is not None and not 0 < spacing < 1000:
        raise ValueError(f"spacing is {spacing:g}: give millimetres")
    if volume.spacing is None:
        raise UndecodableImage("does not say how far its voxels are apart (spacing), which a cube needs")
    extent = np.array(volume.shape) * np.array(volume.spacing)
    step = float(extent.max() / size) if spacing is None else spacing
    fitted = [max(1, round(side / step)) for side in extent]
    if max(fitted) > 4 * MAX_CUBE:
        raise UndecodableImage(f"is {extent.max():.0f} mm long: a spacing of {step:g} mm is too fine for a cube")
    shown = volume.shown(window)
    layers = np.empty((fitted[0], fitted[1], volume.shape[2]), dtype=np.float32)
    for index in range(volume.shape[2]):
        layer = Image.fromarray(shown(volume.values(2, index)).astype(np.float32))  # (X, Y) as rows and columns
        layers[:, :, index] = np.asarray(layer.resize((fitted[1], fitted[0]), Image.Resampling.BILINEAR))
    flat = Image.fromarray(layers.reshape(-1, volume.shape[2]))
    resized = np.asarray(flat.resize((fitted[2], flat.height), Image.Resampling.BILINEAR)).reshape(fitted)
    out = np.zeros((size, size, size), dtype=np.float32)
    starts = [(size - side) // 2 for side in fitted]  # negative where the cube is smaller
    inside = tuple(slice(max(start, 0), min(start + side, size)) for start, side in zip(starts, fitted, strict=True))
    taken = tuple(
        slice(max(-start, 0), max(-start, 0) + part.stop - part.start)
        for start, part in zip(starts, inside, strict=True)
    )
    out[inside] = resized[taken]
    array = out.clip(0, 255).round().astype(np.uint8) if values == "uint8" else (out / 255).astype(np.float16)
    return array, {
        "spacing": (extent / np.array(fitted)).tolist(),
        "orientation": "RAS" if volume.affine is not None else None,
        "affine": _cube_affine(volume, step, fitted, starts),
        "shape": [size] * 3,
        "dtype": values,
        "source_shape": list(volume.shape),
        "source_spacing": list(volume.spacing),
    }


def _cube_affine(volume: Volume, step: float, fitted: list[int], starts: list[int]) -> list[list[float]] | None:
    """Voxel of the cube to RAS mm: edges of the fitted volume lie on edges of the source."""
    if volume.affine is None:
        return None
    ratio = np.array(volume.shape) / np.array(fitted)  # source voxels a step, but for rounding step / spacing
    to_source = np.eye(4)
    to_source[:3, :3] = np.diag(ratio)
    to_source[:3, 3] = (0.5 - np.array(starts)) * ratio - 0.5
    return (volume.affine @ to_source).tolist()
