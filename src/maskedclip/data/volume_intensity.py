"""Intensities of volumes as an encoder reads them: CT in Hounsfield units to 0..1, MRI standardised over its body.

Both maps are those of Disruptive Autoencoders (arXiv 2307.16896).
"""

from typing import Literal

import numpy as np

from maskedclip.data.pixels import UndecodableImage, Window

Intensity = Literal["auto", "ct", "mri", "range"]
HOUNSFIELD = (-1000.0, 1000.0)
_RANGE = (0.05, 99.95)
_MOST = 60_000.0  # float16 ends at 65,504
_CT_NAMES = {"ct", "cta", "cbct"}


def chosen_intensity(asked: Intensity, modality: str | None) -> Intensity:
    """Which map a volume takes: the one asked for, or by its modality: `ct` for CT, else `mri`."""
    if asked != "auto":
        return asked
    return "ct" if (modality or "").strip().lower() in _CT_NAMES else "mri"


def map_intensity(voxels: np.ndarray, intensity: Intensity, window: Window | None = None) -> tuple[np.ndarray, str]:
    """Values of a volume -> values for an encoder, and a remark where the map was not the one asked for.

    Args:
        voxels: in the file's units, float32 (X, Y, Z); what is not finite counts as the lowest.
        intensity: `ct` clips to -1000..1000 Hounsfield units and scales to 0..1; a CT that knows no value below 0 is
            none in Hounsfield units, and is scaled as by `range`.  `mri` takes the mean from the voxels that are not 0
            and divides by their deviation; the others stay 0.  `range` scales the 0.05 to 99.95 percentile to 0..1.
        window: values to be scaled to 0..1, before all of these.

    Returns: float16 (X, Y, Z); a remark, or "".

    Raises:
        UndecodableImage: all voxels have one value, so there is nothing to see.
    """
    finite = np.isfinite(voxels)
    if not finite.all():
        voxels = np.where(finite, voxels, voxels[finite].min() if finite.any() else 0.0)
    low, high = float(voxels.min()), float(voxels.max())
    if not high > low:
        raise UndecodableImage(f"has one value everywhere ({low:g})")
    note = ""
    if window is not None:
        return _scaled(voxels, window.centre - window.width / 2, window.centre + window.width / 2), note
    if intensity == "ct" and low >= 0:
        intensity, note = "range", "is called CT but has no value below 0: not Hounsfield units, scaled by percentiles"
    if intensity == "ct":
        return _scaled(voxels, *HOUNSFIELD), note
    if intensity == "mri":
        return _standardised(voxels), note
    ends = np.percentile(voxels, _RANGE)
    bottom, top = (float(ends[0]), float(ends[1])) if ends[1] > ends[0] else (low, high)
    return _scaled(voxels, bottom, top), note


def _scaled(voxels: np.ndarray, low: float, high: float) -> np.ndarray:
    return ((voxels - low) / (high - low)).clip(0, 1).astype(np.float16)


def _standardised(voxels: np.ndarray) -> np.ndarray:
    body = voxels != 0
    values = voxels[body].astype(np.float64)
    deviation = float(values.std())
    if deviation == 0:  # one value against zeros: a mask; the mean of all is then what tells them apart
        return _scaled(voxels, float(voxels.min()), float(voxels.max()))
    out = np.zeros(voxels.shape, np.float32)
    out[body] = (values - values.mean()) / deviation
    return out.clip(-_MOST, _MOST).astype(np.float16)


def resampled(voxels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Linear resampling to another number of voxels over the same extent, widened where it shrinks so that it averages.

    Args:
        voxels: (X, Y, Z).
        shape: wanted.

    Returns: float32.
    """
    out = voxels.astype(np.float32)
    for axis, side in enumerate(shape):
        if side != out.shape[axis]:
            weights = _triangles(out.shape[axis], side)
            out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(out)


def _triangles(old: int, new: int) -> np.ndarray:
    """Weights (new, old) of the old voxels in each new one."""
    step = old / new
    width = max(step, 1.0)
    centres = (np.arange(new) + 0.5) * step - 0.5
    weights = np.clip(1 - np.abs(np.arange(old)[None] - centres[:, None]) / width, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
