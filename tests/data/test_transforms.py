"""Augmentation depends on the key alone; evaluation never augments."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from maskedclip.data import transforms
from tests.stores import draw


def _augment(images: list[torch.Tensor], keys: list[int], size: int = 32, **options: Any) -> torch.Tensor:
    given: dict[str, Any] = {"flip": True} | options
    low, high = given.pop("scale", (0.2, 1.0))
    shapes = np.asarray([image.shape[1:] for image in images])
    scales = np.asarray([[low, high]] * len(images))
    drawn = transforms.draw_augmentation(np.asarray(keys), shapes[:, 0], shapes[:, 1], scales, **given)
    return transforms.crop_and_mirror(images, drawn, size)


def test_augment__is_a_pure_function_of_each_key() -> None:
    images = [transforms.decode(draw(row, 48, 3)) for row in range(3)]
    first = _augment(images, [5, 6, 7])
    torch.manual_seed(1)
    np.random.default_rng(3).random()
    assert torch.equal(_augment(images[:1], [5])[0], first[0])
    assert torch.equal(_augment(images[::-1], [7, 6, 5]).flip(0), first)
    assert not torch.equal(_augment(images[:1], [6])[0], first[0])
    assert first.dtype == torch.uint8
    assert first.shape == (3, 3, 32, 32)


def test_augment__half_are_mirrored() -> None:
    drawn = transforms.draw_augmentation(
        np.arange(4000), np.full(4000, 9), np.full(4000, 9), np.full((4000, 2), 1.0), flip=True
    )
    assert 0.46 < drawn.mirrored.mean() < 0.54
    image = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    boxes = np.asarray([[0, 0, 3, 3]] * 2)
    out = transforms.crop_and_mirror(
        [image, image], transforms.Augmentation(boxes, np.asarray([False, True]), np.ones((2, 3), np.float32)), 3
    )
    assert torch.equal(out[0], image)
    assert torch.equal(out[1], image.flip(-1))


def test_augment__resizes_as_torchvision_does() -> None:
    image = transforms.decode(draw(0, 48, 3))
    boxes = np.asarray([[3, 5, 30, 40]])
    drawn = transforms.Augmentation(boxes, np.asarray([False]), np.ones((1, 3), np.float32))
    expected = reference.resized_crop(
        image, 3, 5, 30, 40, [24, 24], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    assert torch.equal(transforms.crop_and_mirror([image], drawn, 24)[0], expected)


@settings(max_examples=50, deadline=None)
@given(factors=st.tuples(*[st.floats(0.4, 1.6)] * 3), seed=st.integers(0, 999))
def test_jitter_colour__equals_torchvision(factors: tuple[float, float, float], seed: int) -> None:
    image = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    expected = reference.adjust_brightness(image, factors[0])
    expected = reference.adjust_contrast(expected, factors[1])
    expected = reference.adjust_saturation(expected, factors[2])
    mine = transforms.jitter_colour(image, torch.tensor([factors, factors]))
    assert torch.allclose(mine, expected, atol=2e-3)  # torchvision's luma weights are rounded otherwise


def test_draw_augmentation__jitter_changes_colours_and_nothing_else() -> None:
    keys, sides, scales = np.arange(500), np.full(500, 40), np.full((500, 2), 0.3)
    plain = transforms.draw_augmentation(keys, sides, sides, scales, flip=True)
    jittered = transforms.draw_augmentation(keys, sides, sides, scales, flip=True, jitter=0.4)
    assert np.array_equal(plain.boxes, jittered.boxes)
    assert np.array_equal(plain.mirrored, jittered.mirrored)
    assert np.all(plain.colour == 1)
    assert 0.6 <= jittered.colour.min() < 0.62
    assert 1.38 < jittered.colour.max() <= 1.4


@settings(max_examples=200, deadline=None)
@given(height=st.integers(8, 300), width=st.integers(8, 300), low=st.floats(0.05, 1), key=st.integers(0, 2**62))
def test_draw_augmentation__boxes_lie_inside_with_the_asked_area(height: int, width: int, low: float, key: int) -> None:
    drawn = transforms.draw_augmentation(
        np.asarray([key]), np.asarray([height]), np.asarray([width]), np.asarray([[low, 1.0]]), flip=True
    )
    top, left, box_height, box_width = drawn.boxes[0].tolist()
    assert 0 <= top <= top + box_height <= height
    assert 0 <= left <= left + box_width <= width
    if not (box_height == box_width == min(height, width)):
        assert (box_height + 0.5) * (box_width + 0.5) >= low * height * width * 0.999 - 0.3 * (box_height + box_width)
        assert 0.5 < box_width / box_height < 2


def test_draw_augmentation__area_is_uniform() -> None:
    keys, sides = np.arange(20_000), np.full(20_000, 1000)
    drawn = transforms.draw_augmentation(keys, sides, sides, np.asarray([[0.2, 0.6]] * 20_000), flip=True)
    area = drawn.boxes[:, 2] * drawn.boxes[:, 3] / 1e6
    assert np.allclose(np.quantile(area, [0, 0.25, 0.5, 0.75, 1]), [0.2, 0.3, 0.4, 0.5, 0.6], atol=0.01)


def test_normalise__is_the_stated_formula() -> None:
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    out = transforms.normalise(image, mean, std)
    assert float(out[1, 2, 3, 0]) == pytest.approx((int(image[1, 2, 3, 0]) / 255 - 0.6) / 0.1, abs=1e-5)


def test_decode__refuses_what_is_no_image() -> None:
    with pytest.raises(RuntimeError):
        transforms.decode(b"not an image")
