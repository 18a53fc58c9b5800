"""Augmentation depends on the key alone; evaluation never augments."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedclip.data import transforms
from tests.stores import draw


def test_augment__is_a_pure_function_of_the_key() -> None:
    image = transforms.decode(draw(0, 48, 3))
    settings_ = {"size": 32, "scale": (0.2, 1.0), "flip": True}
    first = transforms.augment(image, key=5, **settings_)
    torch.manual_seed(1)
    np.random.default_rng(3).random()
    assert torch.equal(transforms.augment(image, key=5, **settings_), first)
    assert not torch.equal(transforms.augment(image, key=6, **settings_), first)
    assert first.dtype == torch.uint8
    assert first.shape == (3, 32, 32)


def test_augment__jitter_changes_colours_and_nothing_else() -> None:
    image = transforms.decode(draw(0, 48, 3))
    plain = transforms.augment(image, key=5, size=32, scale=(0.2, 1.0), flip=True)
    jittered = transforms.augment(image, key=5, size=32, scale=(0.2, 1.0), flip=True, jitter=0.4)
    assert torch.equal(jittered, transforms.augment(image, key=5, size=32, scale=(0.2, 1.0), flip=True, jitter=0.4))
    assert not torch.equal(jittered, plain)
    edges = [torch.diff(picture.float().mean(dim=0), dim=1).flatten() for picture in (plain, jittered)]
    assert torch.corrcoef(torch.stack(edges))[0, 1] > 0.9


def test_augment__whole_image_without_flip_is_nearly_resize() -> None:
    image = transforms.decode(draw(0, 48, 3))
    plain = transforms.resize(image, 24).float()
    crops = [transforms.augment(image, size=24, scale=(1.0, 1.0), flip=False, key=key).float() for key in range(5)]
    assert min(float((crop - plain).abs().mean()) for crop in crops) < 20


@settings(max_examples=200, deadline=None)
@given(height=st.integers(8, 300), width=st.integers(8, 300), low=st.floats(0.05, 1), key=st.integers(0, 2**62))
def test_random_crop_box__lies_inside_with_the_asked_area(height: int, width: int, low: float, key: int) -> None:
    random = np.random.Generator(np.random.Philox(key))
    top, left, box_height, box_width = transforms.random_crop_box(height, width, (low, 1.0), random)
    assert 0 <= top <= top + box_height <= height
    assert 0 <= left <= left + box_width <= width
    if not (box_height == box_width == min(height, width)):
        assert (box_height + 0.5) * (box_width + 0.5) >= low * height * width * 0.999 - 0.3 * (box_height + box_width)
        assert 0.5 < box_width / box_height < 2


def test_normalise__is_the_stated_formula() -> None:
    image = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    out = transforms.normalise(image, mean, std)
    assert float(out[1, 2, 3, 0]) == pytest.approx((int(image[1, 2, 3, 0]) / 255 - 0.6) / 0.1, abs=1e-5)


def test_decode__refuses_what_is_no_image() -> None:
    with pytest.raises(RuntimeError):
        transforms.decode(b"not an image")
