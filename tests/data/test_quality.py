"""Quality figures, on pictures of which it is known what is wrong."""

import numpy as np
import pytest
from scipy import ndimage

from maskedclip.data.quality import QUALITY, quality


def circle(side: int = 224) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    return rows**2 + columns**2 < 0.25


def photograph(seed: int = 0) -> np.ndarray:
    noise = np.random.Generator(np.random.Philox(seed)).normal(0, 1, (224, 224))
    texture = ndimage.gaussian_filter(noise, 1.5)
    grey = 110 + 40 * texture / texture.std()
    return (np.where(circle(), grey.clip(20, 240), 0)[:, :, None] * np.ones(3)).astype(np.uint8)


def test_quality__blur_lowers_sharpness_and_darkness_does_not() -> None:
    image = photograph()
    blurred = np.stack([ndimage.gaussian_filter(image[:, :, k].astype(float), 3) for k in range(3)], axis=2)
    dark = (image * 0.4).astype(np.uint8)
    sharp = quality(image)["sharpness"]
    assert quality(blurred.astype(np.uint8))["sharpness"] < 0.5 * sharp
    assert quality(dark)["sharpness"] == pytest.approx(sharp, rel=0.1)


def test_quality__light_and_coverage_are_those_of_the_visible_part() -> None:
    image = np.zeros((224, 224, 3), np.uint8)
    image[circle()] = 102
    found = quality(image)
    assert found["brightness"] == pytest.approx(0.4, abs=1e-3)
    assert found["contrast"] == pytest.approx(0, abs=1e-5)
    assert found["coverage"] == pytest.approx(np.pi / 4, abs=0.01)
    image[:112][circle()[:112]] = 255
    assert quality(image)["saturated"] == pytest.approx(0.5, abs=0.02)


def test_quality__of_nothing_is_nothing() -> None:
    assert quality(np.zeros((64, 48, 3), np.uint8)) == dict.fromkeys(QUALITY, 0.0)


def test_quality__hardly_depends_on_the_stored_size() -> None:
    image = photograph()
    larger = image.repeat(2, axis=0).repeat(2, axis=1)
    for name, value in quality(image).items():
        assert quality(larger)[name] == pytest.approx(value, rel=0.1, abs=0.01)
