"""What all decoders share: why a file gives no picture, the limits, windows, the mapping of deep greys to 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 512 MiB of RGB
MAX_BYTES = 1 << 30  # of a file: as much as the largest picture within the limit, at 16 bits a sample
PERCENTILES = (0.05, 99.95)
_SAMPLE = 16_000_000  # values of more than 16 bits above which percentiles are taken of an even sample
_ROWS = 256

WindowFunction = Literal["linear", "linear_exact", "sigmoid"]


class UndecodableImage(ValueError):
    """A file that gives no picture.  The message is a clause that follows the file's name: "is empty (0 bytes)"."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The range of grey values that is shown, in the file's units after its rescale (Hounsfield units in a CT).

    Attributes:
        centre: the value shown as mid-grey.
        width: the range from black to white; above 0.
    """

    centre: float
    width: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.centre) and np.isfinite(self.width)):
            raise ValueError("a window's centre and width are finite numbers")
        if self.width <= 0:
            raise ValueError(f"a window's width is above 0, not {self.width:g}")


def too_large() -> UndecodableImage:
    """The reason for a picture above the limit."""
    return UndecodableImage(f"has more than {MAX_PIXELS // 1_000_000} megapixels")


def too_many_bytes(size: int) -> UndecodableImage:
    """The reason for a file above the limit."""
    return UndecodableImage(
        f"is too large for one picture ({size / 1e9:.1f} GB, the limit is {MAX_BYTES / 1e9:.1f} GB)"
    )


def no_such_frame(frame: int, frames: int) -> UndecodableImage:
    """The reason where a frame or page is asked for that the file does not have; frames are counted from 1."""
    return UndecodableImage(f"has no frame {frame}, only {frames:,}" if frame else "has no frame 0: the first is 1")


def first_line(error: Exception) -> str:
    """An error's message in few words."""
    return str(error).splitlines()[0][:100].rstrip(":") if str(error) else type(error).__name__


def apply_window(values: np.ndarray, window: Window, function: WindowFunction = "linear_exact") -> np.ndarray:
    """Grey values through a window to 8 bits; what is no number is black, (H, W) -> (H, W).

    The functions are those of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, from 0 to 255; `linear` with a width of at most 1,
    for which it is not defined, is taken as `linear_exact`.
    """
    values = values.astype(np.float32)
    if function == "sigmoid":
        steep = np.clip(-4 * (values - window.centre) / window.width, -80, 80)  # beyond it float32 overflows
        shown = 1 / (1 + np.exp(steep))
    elif function == "linear_exact" or window.width <= 1:
        shown = (values - window.centre) / window.width + 0.5
    else:
        shown = (values - (window.centre - 0.5)) / (window.width - 1) + 0.5
    return (np.nan_to_num(shown, nan=0, posinf=1, neginf=0).clip(0, 1) * 255).round().astype(np.uint8)


def stretch(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Numbers of any depth to 8 bits: the 0.05 and 99.95 percentiles of the finite values become 0 and 255.

    Of more than 16 million values deeper than 16 bits an even sample stands for all.

    Args:
        values: greys (H, W), or colours that share one scale (H, W, C).
        valid: which values count for the percentiles, of the same shape; all, if not given.

    Raises:
        UndecodableImage: no value is finite.
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        return _stretch_by_table(values, valid)
    step = max(1, values.size // _SAMPLE)
    chosen = _finite(values.ravel()[::step], None if valid is None else valid.ravel()[::step])
    if not chosen.size and step > 1:  # the sample missed the few that are
        chosen = _finite(values, valid)
    if not chosen.size:
        raise UndecodableImage("has no finite pixel")
    low, high = (float(value) for value in np.percentile(chosen, PERCENTILES))
    if high <= low:  # an even picture: the few pixels that deviate carry what contrast there is
        low, high = float(chosen.min()), float(chosen.max())
    shown = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), _ROWS):  # floats of the whole would take four times the picture
        shown[start : start + _ROWS] = _scaled(values[start : start + _ROWS].astype(np.float32), low, high)
    return shown


def _finite(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    chosen = (values if valid is None else values[valid]).astype(np.float32)
    return chosen[np.isfinite(chosen)]


def _stretch_by_table(values: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """The same for up to 16 bits, by counting each value: far less memory and time for a large picture."""
    unsigned = np.dtype(f"u{values.dtype.itemsize}")
    lowest, levels = int(np.iinfo(values.dtype).min), 1 << 8 * unsigned.itemsize
    codes = values.astype(unsigned) + unsigned.type(-lowest)  # the lowest possible value is 0; the sum wraps
    chosen = codes.ravel() if valid is None else codes[valid]
    if not chosen.size:
        raise UndecodableImage("has no finite pixel")
    counts = np.zeros(levels, dtype=np.int64)
    for start in range(0, len(chosen), 1 << 20):  # bincount makes 8 bytes of each value
        counts += np.bincount(chosen[start : start + (1 << 20)], minlength=levels)
    reached = counts.cumsum()

    def percentile(percent: float) -> float:
        place = (len(chosen) - 1) * percent / 100
        below, above = (int(np.searchsorted(reached, np.floor(place) + step, side="right")) for step in (0, 1))
        return below if place == np.floor(place) else below + (above - below) * (place - np.floor(place))

    low, high = (percentile(percent) for percent in PERCENTILES)
    if high <= low:  # as above
        low, high = float(np.flatnonzero(counts)[0]), float(np.flatnonzero(counts)[-1])
    return _scaled(np.arange(levels, dtype=np.float32), low, high)[codes]


def grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """A grey picture repeated in three channels, (H, W) -> (H, W, 3)."""
    colour = np.empty((*grey.shape, 3), dtype=grey.dtype)
    colour[...] = grey[:, :, None]
    return colour


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.nan_to_num((values - low) / (high - low) * 255, nan=0, posinf=255, neginf=0)
    return scaled.clip(0, 255).round().astype(np.uint8)
