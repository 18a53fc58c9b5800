"""The fundus field: found where it is, whatever the light, the cut and the letters around it (P10)."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from maskedclip.data.circle import fit_circle, fit_ellipse
from maskedclip.data.field import find_field, resize, standardise
from maskedclip.data.imaging import decode


def _photograph(
    height: int,
    width: int,
    row: float,
    column: float,
    radius: float,
    *,
    light: float = 150.0,
    stretch: float = 1.0,
    background: float = 0.0,
    noise: float = 2.0,
) -> np.ndarray:
    """A disc with a vignette and texture on a dark ground, 8-bit RGB."""
    rng = np.random.Generator(np.random.Philox(0))
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y + 0.5 - row, (x + 0.5 - column) / stretch) / radius
    disc = np.where(away < 1, light * (1 - 0.5 * away**2), 0.0)
    colour = disc[:, :, None] * np.array([1.0, 0.5, 0.25]) + background
    return (colour + rng.normal(0, noise, colour.shape)).clip(0, 255).astype(np.uint8)


def _assert_box(image: np.ndarray, expected: tuple[float, float, float, float], tolerance: float) -> None:
    field = find_field(image)
    assert field.found
    box = field.top, field.left, field.bottom, field.right
    assert np.abs(np.array(box) - expected).max() <= tolerance, (box, expected)


@settings(max_examples=25, deadline=None)
@given(
    row=st.floats(0.42, 0.58),
    column=st.floats(0.4, 0.6),
    radius=st.floats(0.25, 0.4),
    light=st.floats(14, 250),
    size=st.sampled_from([(200, 300), (400, 300), (600, 800)]),
)
def test_find_field__whole_circles(row: float, column: float, radius: float, light: float, size: tuple) -> None:
    height, width = size
    r = radius * min(size)
    image = _photograph(height, width, row * height, column * width, r, light=light, noise=1.0)
    y, x = row * height, column * width
    expected = np.clip((y - r, x - r, y + r, x + r), 0, (height, width, height, width))
    _assert_box(image, tuple(expected), tolerance=max(4.0, 0.015 * max(size)))


def test_find_field__cut_at_top_and_bottom() -> None:
    _assert_box(_photograph(400, 640, 200, 320, 260), (0, 60, 400, 580), tolerance=6)


def test_find_field__letters_notch_and_hazy_ground_do_not_matter() -> None:
    image = Image.fromarray(_photograph(480, 640, 240, 330, 200, background=18))
    pen = ImageDraw.Draw(image)
    pen.text((8, 8), "OD 2019-03-04 ID 12345", fill=(255, 255, 255))
    pen.rectangle((600, 440, 632, 470), fill=(230, 230, 60))
    pen.rectangle((465, 80, 490, 105), fill=(150, 80, 30))  # the notch that some cameras leave at the rim
    _assert_box(np.asarray(image), (40, 130, 440, 530), tolerance=7)


def test_find_field__one_dark_side_does_not_shift_the_box() -> None:
    image = _photograph(400, 400, 200, 200, 150).astype(np.float32)
    image *= np.linspace(0.0, 1.6, 400)[None, :, None].clip(0, 1)
    _assert_box(image.astype(np.uint8), (50, 50, 350, 350), tolerance=9)


def test_find_field__squashed_circle_is_an_ellipse() -> None:
    _assert_box(_photograph(256, 256, 128, 128, 126, stretch=0.75), (0, 33, 256, 223), tolerance=4)


@pytest.mark.parametrize("kind", ["noise", "even", "black", "white", "radiograph", "tiny"])
def test_find_field__other_pictures_keep_their_frame(kind: str) -> None:
    rng = np.random.Generator(np.random.Philox(0))
    image = np.zeros((240, 300, 3), np.uint8)
    if kind == "noise":
        image = rng.integers(0, 255, image.shape, dtype=np.uint8)
    elif kind in ("even", "white"):
        image[:] = 90 if kind == "even" else 255
    elif kind == "radiograph":
        image[20:230, 30:270] = rng.integers(60, 220, (210, 240, 1), dtype=np.uint8)
    elif kind == "tiny":
        image = np.full((1, 3, 3), 7, np.uint8)
    field = find_field(image)
    assert not field.found
    assert (field.top, field.left, field.bottom, field.right) == (0, 0, *image.shape[:2])


@pytest.mark.parametrize("crop", ["fundus", "none"])
@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (256, 256), (40, 30), (1, 7)])
def test_standardise__square_of_the_size_with_black_padding(crop: str, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 200, np.uint8)
    result = standardise(image, size=64, crop=crop)  # type: ignore[arg-type]
    assert result.image.shape == (64, 64, 3)
    assert result.image.dtype == np.uint8
    share = (result.image > 0).all(axis=2).mean()
    assert share == pytest.approx(min(shape) / max(shape), abs=0.02)


@settings(max_examples=15, deadline=None)
@given(
    row=st.floats(0.4, 0.6),
    column=st.floats(0.4, 0.6),
    radius=st.floats(0.28, 0.6),
    size=st.sampled_from([(300, 450), (420, 300), (300, 300)]),
)
def test_standardise__twice_is_once_within_a_px(row: float, column: float, radius: float, size: tuple) -> None:
    height, width = size
    image = _photograph(height, width, row * height, column * width, radius * min(size))
    once = standardise(image, size=224)
    twice = standardise(once.image, size=224)
    if once.field.found:
        top, left, bottom, right = twice.transform.box
        assert max(top, left, 224 - bottom, 224 - right) <= 3  # at most TIGHT of the side is taken off
        assert abs(twice.image.astype(int) - once.image).mean() < 4
    else:
        assert np.array_equal(once.image, twice.image)


def test_standardise__tight_square_is_returned_as_it_is() -> None:
    image = _photograph(256, 256, 128, 128, 127)
    result = standardise(image, size=256)
    assert result.field.found
    assert result.transform.is_identity
    assert result.image is image


def test_standardise__is_pure() -> None:
    image = _photograph(300, 400, 150, 200, 120)
    before = image.copy()
    first, second = standardise(image, size=128), standardise(image, size=128)
    assert np.array_equal(image, before)
    assert np.array_equal(first.image, second.image)


def test_transform__mask_moves_with_its_image() -> None:
    image = _photograph(360, 480, 170, 250, 140, light=90, noise=0)
    mask = np.zeros((360, 480), np.uint8)
    for row, column, value in ((120, 200, 7), (230, 310, 9)):
        image[row - 8 : row + 8, column - 8 : column + 8] = 255
        mask[row - 8 : row + 8, column - 8 : column + 8] = value
    result = standardise(image, size=256)
    moved = result.transform.apply_to_mask(mask)
    assert set(np.unique(moved)) == {0, 7, 9}
    bright = (result.image > 170).all(axis=2)
    assert (bright & (moved > 0)).sum() / (bright | (moved > 0)).sum() > 0.85
    with pytest.raises(ValueError, match="is 3 x 2 px, the image is 480 x 360 px"):
        result.transform.apply_to_mask(np.zeros((2, 3), np.uint8))


def test_resize__near_pillow() -> None:
    image = _photograph(200, 300, 100, 150, 90)
    pillow = np.asarray(Image.fromarray(image).resize((96, 64), Image.Resampling.BICUBIC))
    assert np.abs(resize(image, 64, 96).astype(int) - pillow).max() <= 2
    assert resize(image, 200, 300) is image


@settings(max_examples=20, deadline=None)
@given(
    row=st.floats(-50, 50),
    column=st.floats(-50, 50),
    tall=st.floats(40, 90),
    aspect=st.floats(0.62, 1.6),
    seed=st.integers(0, 99),
)
def test_fit__recovers_shapes_among_outliers(row: float, column: float, tall: float, aspect: float, seed: int) -> None:
    rng = np.random.Generator(np.random.Philox(seed))
    angle = rng.uniform(0, 2 * np.pi, 200)

    def outline(wide: float) -> np.ndarray:
        points = np.stack([row + tall * np.sin(angle), column + wide * np.cos(angle)], axis=1)
        points += rng.normal(0, 0.3, points.shape)
        points[:40] = rng.uniform(-150, 150, (40, 2))
        return points

    circle, ellipse = fit_circle(outline(tall)), fit_ellipse(outline(tall * aspect))
    assert circle is not None
    assert ellipse is not None
    assert (circle.row, circle.column, circle.radius) == pytest.approx((row, column, tall), abs=1.0)
    found = (ellipse.row, ellipse.column, ellipse.tall, ellipse.wide)
    assert found == pytest.approx((row, column, tall, tall * aspect), abs=2.0)


def test_fit__degenerate_points_give_none() -> None:
    line = np.stack([np.arange(30.0), np.arange(30.0)], axis=1)
    assert fit_circle(line) is None
    assert fit_ellipse(np.ones((30, 2))) is None


@pytest.mark.shared
def test_find_field__real_photographs(shared: Path) -> None:
    for name, least in (("odir", 0.97), ("eyepacs", 0.94), ("drive", 1.0)):
        paths = sorted((shared / "data" / name / "images").iterdir())[::60] or []
        fields = [find_field(decode(path.read_bytes())) for path in paths]
        assert np.mean([field.found for field in fields]) >= least, name


@pytest.mark.shared
def test_standardise__a_camera_frame_around_a_real_photograph_is_removed(shared: Path) -> None:
    path = sorted((shared / "data" / "odir" / "images").iterdir())[0]
    photograph = Image.open(io.BytesIO(path.read_bytes()))
    frame = Image.new("RGB", (420, 300), (3, 3, 3))
    frame.paste(photograph, (90, 20))
    field = find_field(np.asarray(frame))
    assert np.abs(np.array([field.top - 20, field.left - 90, field.bottom - 276, field.right - 346])).max() <= 5
