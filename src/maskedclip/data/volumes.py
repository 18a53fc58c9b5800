"""Volumes: NIfTI files and DICOM series as arrays whose axes point to the patient's right, front and head (RAS).

A volume is opened by its header alone; its voxels are read when they are first asked for, in the type in which they are
stored, and never more than `MAX_VOXELS` of them.  Files give voxels, their place and a patient's number; nothing else
is taken from them.

X, Y, Z: voxels from left to right, from back to front, from foot to head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from maskedclip.data.pixels import (
    PERCENTILES,
    UndecodableImage,
    Window,
    WindowFunction,
    apply_window,
)

MAX_VOXELS = 1 << 29  # 1 GiB at 16 bits: a CT of 512 x 512 x 2,048
MAX_VOLUME_BYTES = 2 << 30
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
VOLUME_SUFFIXES = (".nii", ".nii.gz")
_SAMPLE = 4_000_000  # voxels that stand for all where percentiles are taken

Shown = Callable[[np.ndarray], np.ndarray]  # values to 8 bits


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume whose header was read.

    Attributes:
        name: what it is called, for a person.
        shape: (X, Y, Z).
        spacing: mm between voxels along X, Y, Z; None where the file does not say.
        affine: (4, 4), voxel to RAS mm; None where the file gives no orientation: its axes are then taken as stored.
        load: reads the stored voxels, (X, Y, Z).
        slope, intercept: value = stored * slope + intercept.
        window: the file's own window and its function; None without.
        inverted: low values are shown bright (MONOCHROME1).
        patient: the file's number of the patient; None without.
        modality: the file's, as DICOM writes it (CT, MR, ...); None without.
        notes: one-line remarks on what was assumed.
    """

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    affine: np.ndarray | None
    load: Callable[[], np.ndarray]
    slope: float = 1.0
    intercept: float = 0.0
    window: tuple[Window, WindowFunction] | None = None
    inverted: bool = False
    patient: str | None = None
    modality: str | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def stored(self) -> np.ndarray:
        """The voxels as they are stored, (X, Y, Z); UndecodableImage if they cannot be read, or none is finite."""
        voxels = self.load()
        assert voxels.shape == self.shape, "the header's shape"
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).any():
            raise UndecodableImage("has no finite voxel")
        return voxels

    def values(self, axis: int, index: int) -> np.ndarray:
        """A slice in the file's units, float32: (Y, Z), (X, Z) or (X, Y) for axis 0, 1, 2."""
        return self.stored[(slice(None),) * axis + (index,)].astype(np.float32) * self.slope + self.intercept

    def shown(self, window: Window | None = None) -> Shown:
        """The mapping of values to 8 bits: by the window asked for, the file's, or percentiles of the whole volume."""
        chosen: tuple[Window, WindowFunction] | None = self.window
        if window is not None:
            chosen = window, "linear_exact" if self.window is None else self.window[1]
        if chosen is None:
            chosen = self._percentile_window(), "linear_exact"
        given, function = chosen

        def shown(values: np.ndarray) -> np.ndarray:
            grey = apply_window(values, given, function)
            return 255 - grey if self.inverted else grey

        return shown

    def _percentile_window(self) -> Window:
        """From the 0.05 to the 99.95 percentile of an even sample of the finite voxels."""
        step = max(1, round((self.stored.size / _SAMPLE) ** (1 / 3)))
        sample = self.stored[::step, ::step, ::step].astype(np.float32) * self.slope + self.intercept
        finite = sample[np.isfinite(sample)]
        if not finite.size:  # the sample missed the few voxels that are
            finite = self.stored[np.isfinite(self.stored)].astype(np.float32) * self.slope + self.intercept
        low, high = (float(value) for value in np.percentile(finite, PERCENTILES))
        if not high > low:
            low, high = float(finite.min()), float(finite.max())
        width = high - low
        return Window(centre=(low + high) / 2, width=width) if width > 0 else Window(centre=low + 0.5, width=1.0)


def open_volume(path: Path, *, time: int = 0) -> Volume:
    """A NIfTI file, or a DICOM file or a folder of one DICOM series, as a volume.

    Args:
        path: the file or folder.
        time: which volume of a NIfTI series, from 0.

    Raises:
        UndecodableImage: a clause that says why it is none.
    """
    from maskedclip.data.volume_nifti import open_nifti
    from maskedclip.data.volume_series import find_series, open_series

    if path.is_dir():
        found = find_series(path)
        if len(found) != 1:
            raise UndecodableImage(f"holds {len(found)} DICOM series where one volume is wanted")
        return open_series(found[0])
    if path.name.lower().endswith(VOLUME_SUFFIXES):
        return open_nifti(path, time=time)
    found = find_series(path)
    if not found:
        raise UndecodableImage("is neither a NIfTI file (.nii, .nii.gz) nor DICOM")
    return open_series(found[0])


def check_shape(shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse a volume without voxels, or above the limit, before anything is read."""
    if len(shape) != 3 or min(shape) < 1:
        raise UndecodableImage(f"has no voxels (its shape is {' x '.join(map(str, shape)) or 'empty'})")
    count = int(np.prod(np.asarray(shape, dtype=object)))
    if count > MAX_VOXELS or count * itemsize > MAX_VOLUME_BYTES:
        raise UndecodableImage(f"has more voxels than the limit of {MAX_VOXELS:,}")


def good_spacing(spacing: np.ndarray) -> tuple[float, float, float] | None:
    """Spacing in mm if it can be one, else None."""
    x, y, z = (float(value) for value in spacing)
    return (x, y, z) if all(1e-4 < value < 1e3 for value in (x, y, z)) else None
