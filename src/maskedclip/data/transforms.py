"""Encoded bytes -> uint8 tensors, with augmentation as a pure function of a sample's key.

Images stay uint8 until they are on the device; `normalise` is the one place where they become floats.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform

from maskedclip import randomness

_CROP_STREAM = 1
_ASPECT = (3 / 4, 4 / 3)
_BICUBIC = InterpolationMode.BICUBIC


def decode(encoded: bytes | memoryview) -> Tensor:
    """Decode JPEG or PNG bytes of a store to RGB, uint8 (3, H, W).

    Raises:
        RuntimeError: the bytes are no such image.
    """
    buffer = torch.from_numpy(np.frombuffer(encoded, np.uint8).copy())
    return decode_image(buffer, mode=ImageReadMode.RGB)


def random_crop_box(
    height: int, width: int, scale: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """A box (top, left, height, width) whose share of the area is uniform in `scale` and whose aspect is log-uniform.

    The distribution of Inception-style cropping (Szegedy et al. 2015, section 6), with aspects in [3/4, 4/3].
    """
    for _ in range(10):
        area = height * width * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(random.integers(0, height - box_height + 1))
            left = int(random.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    side = min(height, width)  # ten misses: as much of the middle as fits
    return (height - side) // 2, (width - side) // 2, side, side


def augment(
    image: Tensor, *, size: int, scale: tuple[float, float], flip: bool, key: int, jitter: float = 0.0
) -> Tensor:
    """Random resized crop, mirroring and colour jitter, decided by `key` alone.

    Args:
        image: uint8 (3, H, W).
        size: side of the result.
        scale: area range of the crop.
        flip: mirror half of the images.
        key: of the sample at its step.
        jitter: brightness, contrast and saturation are multiplied by factors within 1 - jitter .. 1 + jitter.

    Returns: uint8 (3, size, size).
    """
    random = randomness.generator(key, _CROP_STREAM)
    top, left, height, width = random_crop_box(image.shape[-2], image.shape[-1], scale, random)
    mirrored = flip and random.random() < 0.5
    cropped = transform.resized_crop(
        image, top, left, height, width, [size, size], interpolation=_BICUBIC, antialias=True
    )
    if mirrored:
        cropped = transform.horizontal_flip(cropped)
    if jitter:
        brightness, contrast, saturation = random.uniform(1 - jitter, 1 + jitter, 3).tolist()
        cropped = transform.adjust_brightness(cropped, brightness)
        cropped = transform.adjust_contrast(cropped, contrast)
        cropped = transform.adjust_saturation(cropped, saturation)
    return cropped


def resize(image: Tensor, size: int) -> Tensor:
    """The view without augmentation: uint8 (3, H, W) -> (3, size, size)."""
    if image.shape[-2:] == (size, size):
        return image
    return transform.resize(image, [size, size], interpolation=_BICUBIC, antialias=True)


def normalise(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) on any device -> float32, zero mean and unit spread by channel.

    Args:
        image: uint8 (B, 3, H, W).
        mean: of values in [0, 1], (3,).
        std: of values in [0, 1], (3,).
    """
    return (image.float() / 255 - mean[:, None, None]) / std[:, None, None]
