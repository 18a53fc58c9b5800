"""What all decoders share: why a file gives no picture, the size limit, the mapping of deep greys to 8 bits."""

from __future__ import annotations

import numpy as np

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 512 MiB of RGB
PERCENTILES = (0.05, 99.95)


class UndecodableImage(ValueError):
    """A file that gives no picture.  The message is a clause that follows the file's name: "is empty (0 bytes)"."""


def too_large() -> UndecodableImage:
    """The reason for a picture above the limit."""
    return UndecodableImage(f"has more than {MAX_PIXELS // 1_000_000} megapixels")


def first_line(error: Exception) -> str:
    """An error's message in few words."""
    return str(error).splitlines()[0][:100].rstrip(":") if str(error) else type(error).__name__


def stretch(values: np.ndarray) -> np.ndarray:
    """Grey of any depth to 8 bits: the 0.05 and 99.95 percentiles of the finite values become 0 and 255, (H, W)."""
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        raise UndecodableImage("has no finite pixel")
    low, high = (float(value) for value in np.percentile(values[finite], PERCENTILES))
    if high <= low:  # an even picture: the few pixels that deviate carry what contrast there is
        low, high = float(values[finite].min()), float(values[finite].max())
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = np.nan_to_num((values - low) / (high - low) * 255, nan=0, posinf=255, neginf=0)
    return scaled.clip(0, 255).round().astype(np.uint8)
