"""Overlays: a spot comes back to where it was in the photograph, and colours tell order without hue."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskedclip.data.imaging import standardise
from maskedclip.deployment.overlay import (
    OUTLINES,
    colours,
    outlined,
    overlay,
    panel,
    to_photograph,
    visible_part,
    with_legend,
)


def _fundus(height: int, width: int, radius: int, centre: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
    picture = np.where(disc[..., None], [150, 80, 40], [2, 2, 2]).astype(np.uint8)
    return picture + np.random.default_rng(0).integers(0, 5, picture.shape, dtype=np.uint8)


def _lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB (n, 3)."""
    linear = np.where(rgb / 255 <= 0.04045, rgb / 255 / 12.92, ((rgb / 255 + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(y) - 16, 903.3 * y)


@pytest.mark.parametrize(("shape", "radius", "centre"), [((300, 420), 140, (150, 210)), ((500, 380), 160, (290, 180))])
@pytest.mark.parametrize("spot", [(-60, 40), (90, -70), (0, 0)])
def test_to_photograph__a_spot_returns_to_its_place(
    shape: tuple[int, int], radius: int, centre: tuple[int, int], spot: tuple[int, int]
) -> None:
    picture = _fundus(*shape, radius, centre)
    row, column = centre[0] + spot[0], centre[1] + spot[1]
    picture[row - 6 : row + 7, column - 6 : column + 7] = 255
    standard = standardise(picture, size=224)
    assert standard.field.found
    light = standard.image.min(axis=2).reshape(32, 7, 32, 7).mean(axis=(1, 3))  # a map of 32 x 32 patches
    found = to_photograph(light, standard.transform)
    assert found.shape == shape
    peak = np.unravel_index(int(np.nan_to_num(found, nan=-1).argmax()), shape)
    patch = 2 * radius / 32
    assert abs(peak[0] - row) <= patch
    assert abs(peak[1] - column) <= patch
    weights = np.nan_to_num(np.maximum(found - 120, 0))
    y, x = np.mgrid[: shape[0], : shape[1]]
    assert (weights * y).sum() / weights.sum() == pytest.approx(row, abs=patch / 4)
    assert (weights * x).sum() / weights.sum() == pytest.approx(column, abs=patch / 4)
    corner = found[0, 0] if centre[0] != shape[0] // 2 else found[shape[0] // 2, 0]
    assert np.isnan(corner)  # the crop left it out


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([16, 32, 64]))
def test_to_photograph__inverts_standardise_without_a_crop(height: int, width: int, size: int) -> None:
    """A ramp over the photograph, read in the square's coordinates, comes back as the same ramp."""
    transform = standardise(np.zeros((height, width, 3), np.uint8), size=size, crop="none").transform
    row, column, tall, wide = transform.placed
    ramp = ((np.arange(size) + 0.5 - row) / tall)[:, None] + 2 * ((np.arange(size) + 0.5 - column) / wide)[None, :]
    found = to_photograph(ramp, transform)
    expected = ((np.arange(height) + 0.5) / height)[:, None] + 2 * ((np.arange(width) + 0.5) / width)[None, :]
    edge = 1 + int(np.ceil(max(height, width) / size))  # beyond the outermost centres the map is level
    assert np.allclose(found[edge:-edge, edge:-edge], expected[edge:-edge, edge:-edge], atol=1e-4)
    half = to_photograph(ramp, transform, (height // 2, width // 2))
    assert half.shape == (height // 2, width // 2)
    assert half.mean() == pytest.approx(found.mean(), abs=0.05)


def test_visible_part__is_the_field() -> None:
    picture = _fundus(300, 420, 140, (150, 210))
    picture[100:200, 80:140] //= 6  # a dark side
    standard = standardise(picture, size=128)
    visible = visible_part(standard.image, standard.transform, fundus=True)
    y, x = np.mgrid[:128, :128] + 0.5
    disc = (y - 64) ** 2 + (x - 64) ** 2 < 64**2
    assert (visible & disc).sum() / (visible | disc).sum() > 0.94
    wide = standardise(np.full((50, 100, 3), 90, np.uint8), size=64, crop="none")
    assert visible_part(wide.image, wide.transform, fundus=False).sum() == 32 * 64
    black = standardise(np.zeros((50, 50, 3), np.uint8), size=64, crop="none")
    assert visible_part(black.image, black.transform, fundus=True).all()


def test_colours__lightness_rises_evenly_and_no_hue_is_of_a_fundus() -> None:
    table = colours(np.linspace(0, 1, 65)).astype(float)
    steps = np.diff(_lightness(table))
    assert steps.min() > 0
    assert steps.max() < 3 * steps.mean()
    assert (table[:, 2] >= table[:, 0]).all()  # never redder than blue
    for entry in OUTLINES:
        assert _lightness(np.array([entry]))[0] > 60


def test_overlay__is_transparent_at_zero_and_keeps_the_size() -> None:
    picture = _fundus(60, 90, 28, (30, 45))
    heat = np.zeros((4, 6))
    assert np.array_equal(np.asarray(overlay(picture, heat)), picture)
    heat[1, 4] = 1
    shown = np.asarray(overlay(picture, heat, opacity=1.0)).astype(int)
    changed = np.abs(shown - picture).sum(axis=2)
    assert shown.shape == picture.shape
    assert changed[:, :40].max() == 0
    row, column = np.unravel_index(int(changed.argmax()), changed.shape)
    assert abs(row - 22) <= 8
    assert abs(column - 67) <= 8
    holes = np.full((60, 90), np.nan)
    assert np.array_equal(np.asarray(overlay(picture, holes)), picture)


def test_with_legend__leaves_the_picture_as_it_is() -> None:
    picture = Image.fromarray(_fundus(200, 400, 90, (100, 200)))
    sheet = with_legend(
        picture, "Blutung / αιμορραγία", note="words " * 60, bar=(-0.1, 0.25), swatches=[("a", OUTLINES[0])]
    )
    assert np.array_equal(np.asarray(sheet)[:200, :400], np.asarray(picture))
    assert sheet.height > 300
    assert np.asarray(sheet)[200:].std() > 5


def test_outlined__draws_along_the_edge_alone() -> None:
    picture = Image.new("RGB", (80, 80), (100, 60, 30))
    mask = np.zeros((80, 80), bool)
    mask[20:60, 30:50] = True
    shown = np.asarray(outlined(picture, [(mask, OUTLINES[0])], thickness=2))
    assert tuple(shown[20, 40]) == OUTLINES[0]
    assert tuple(shown[40, 40]) == (100, 60, 30)
    assert tuple(shown[5, 5]) == (100, 60, 30)
    assert np.array_equal(np.asarray(outlined(picture, [(np.zeros((80, 80), bool), OUTLINES[0])])), np.asarray(picture))


def test_panel__has_room_for_all() -> None:
    cells = [
        (f"a label with many words {number}", Image.new("RGB", (50, 40), (number * 40,) * 3)) for number in range(5)
    ]
    sheet = panel(cells, side=100, columns=2)
    assert sheet.width == 208
    assert sheet.height > 3 * 80
