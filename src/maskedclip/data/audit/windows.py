"""What a copy may show of its original: the whole picture, a part of it, a shifted one, or any of these mirrored.

A hash is made of the lowest frequencies of the cosine transform, which is linear: the hash of a part of a picture
costs two small matrix products, so all windows of all pictures are hashed, and a cropped copy is found as an exact one.

B pictures, N their side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

SIDE = 64
"""Side of the small grey pictures that the audit compares, px."""
_LOW = 8  # frequencies a direction of the store's perceptual hash
_HIGH = 16  # ... and with those of the detail hash
_SAMPLES = 32  # side at which the store's perceptual hash looks
_STEPS = {1.0: (0.0, -0.025, 0.025), 0.95: (0.0, 0.025, 0.05), 0.9: (0.05, 0.025, 0.075)}


@dataclass(frozen=True)
class Window:
    """The part of a picture that a copy shows, in shares of the side; outside of the picture it is black.

    mirrored: left and right are exchanged.
    """

    top: float = 0.0
    left: float = 0.0
    side: float = 1.0
    mirrored: bool = False

    @property
    def whole(self) -> bool:
        """Whether nothing is cut off."""
        return (self.top, self.left, self.side) == (0.0, 0.0, 1.0)

    def describe(self) -> str:
        """For a reader: what was done to the one picture to get the other."""
        cut = "" if self.whole else "shifted" if self.side == 1.0 else f"cropped by about {1 - self.side:.0%}"
        return " and ".join(part for part in (cut, "mirrored" if self.mirrored else "") if part) or "the same view"


WINDOWS: tuple[Window, ...] = tuple(
    Window(top, left, side, mirrored)
    for side, starts in _STEPS.items()
    for top in starts
    for left in starts
    for mirrored in (False, True)
)
"""The first is the whole picture, the second its mirror image."""


def view(small: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """What the window shows, of pictures of any side: float32 (B, N, N) -> (B, N, N)."""
    side = small.shape[1]
    rows, columns = (_resampling(start, window.side, side, side) for start in (window.top, window.left))
    seen = small if window.whole else np.asarray(rows @ small @ columns.T, np.float32)
    return seen[:, :, ::-1] if window.mirrored else seen


def window_hashes(
    small: NDArray[np.float32], windows: tuple[Window, ...] = WINDOWS
) -> Iterator[tuple[Window, NDArray[np.uint64], NDArray[np.uint64]]]:
    """Hashes of what each window shows.

    small: grey pictures, float32 (B, N, N).

    Yields: the window; the perceptual hash as a store holds it (up to few bits, since it is made of a smaller picture),
        uint64 (B,); the detail hash, the signs of the next 192 frequencies, uint64 (B, 3).
    """
    signs = np.where(np.arange(_HIGH) % 2, -1, 1).astype(np.float32)  # mirroring turns the odd waves around
    mirrored = [window.mirrored for window in windows]
    for top, left, side in dict.fromkeys((window.top, window.left, window.side) for window in windows):
        waves = np.asarray(_waves(top, side) @ small @ _waves(left, side).T, np.float32)  # (B, 16, 16)
        for turned in dict.fromkeys(mirrored):
            window = Window(top, left, side, turned)
            if window in windows:
                low, detail = _signs(np.asarray(waves * signs, np.float32) if turned else waves)
                yield window, low, detail


def _signs(waves: NDArray[np.float32]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    low = waves[:, :_LOW, :_LOW].reshape(len(waves), -1)
    above = low > np.median(low[:, 1:], axis=1, keepdims=True)
    return _packed(above)[:, 0], _packed(waves[:, _detail()] > 0)


def _packed(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """(B, 64 k) bits as k numbers, (B, k)."""
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(">u8").astype(np.uint64)


@cache
def _detail() -> NDArray[np.bool_]:
    chosen = np.ones((_HIGH, _HIGH), bool)
    chosen[:_LOW, :_LOW] = False
    return chosen


@cache
def _waves(start: float, side: float) -> NDArray[np.float32]:
    """Cosines of a stretch of a line, (16, N): DCT-II of its samples."""
    places = 2 * np.arange(_SAMPLES)[None, :] + 1
    cosines = np.cos(np.pi * np.arange(_HIGH)[:, None] * places / (2 * _SAMPLES))
    return (cosines @ _resampling(start, side, _SAMPLES, SIDE)).astype(np.float32)


@cache
def _resampling(start: float, side: float, samples: int, length: int) -> NDArray[np.float32]:
    """Means over equal parts of the stretch from `start`, `side` long, of a line of px: (samples, length)."""
    edges = (start + side * np.arange(samples + 1) / samples) * length
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(length)[None, :]
    overlap = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
    return (overlap.clip(0) / (high - low)).astype(np.float32)
