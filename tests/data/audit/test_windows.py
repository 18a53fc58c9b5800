"""Hashes of windows are the hashes of what the windows show."""

import numpy as np
import pytest

from maskedclip.data.audit.windows import SIDE, WINDOWS, Window, view, window_hashes
from maskedclip.data.imaging import perceptual_hash
from tests.data.audit.eyes import eye


def _small(seed: int) -> np.ndarray:
    return eye(seed, SIDE).mean(axis=2).astype(np.float32)[None]


@pytest.mark.parametrize("seed", range(4))
def test_window_hashes__of_the_whole_is_the_stores(seed: int) -> None:
    picture = np.repeat(_small(seed).round().astype(np.uint8)[0][:, :, None], 3, axis=2)
    _, low, _ = next(window_hashes(picture[:, :, 0].astype(np.float32)[None]))
    assert (int(low[0]) ^ int(perceptual_hash(picture), 16)).bit_count() <= 6


def test_window_hashes__equal_those_of_the_views() -> None:
    small = _small(1)
    for window, low, detail in window_hashes(small):
        _, seen, seen_detail = next(window_hashes(np.ascontiguousarray(view(small, window))))
        assert (int(low[0]) ^ int(seen[0])).bit_count() <= 6, window
        assert np.bitwise_count(detail ^ seen_detail).sum() <= 24, window


def test_view__mirrored_and_cropped() -> None:
    small = _small(2)
    assert np.array_equal(view(small, Window(mirrored=True)), small[:, :, ::-1])
    zoomed = view(small, Window(0.05, 0.05, 0.9))
    assert zoomed.shape == small.shape
    assert zoomed[0, SIDE // 2, SIDE // 2] == pytest.approx(small[0, SIDE // 2, SIDE // 2], abs=40)
    assert (view(small + 1, Window(-0.025, 0.0, 1.0))[0, 0] == 0).all()  # above the picture is black


def test_windows__are_distinct_and_described() -> None:
    assert len(set(WINDOWS)) == len(WINDOWS)
    assert WINDOWS[0].whole
    assert WINDOWS[0].describe() == "the same view"
    assert Window(0.05, 0.05, 0.9, True).describe() == "cropped by about 10% and mirrored"
