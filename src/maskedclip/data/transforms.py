"""Encoded bytes -> uint8 tensors, with augmentation as a pure function of the samples' keys.

Images stay uint8 until they are on the device; `normalise` is the one place where they become floats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.io import ImageReadMode, decode_image

from maskedclip import randomness

_CROP_STREAM = 1
_TRIES = 10
_ASPECT = (3 / 4, 4 / 3)
_LUMA = (0.299, 0.587, 0.114)


def decode(encoded: bytes | memoryview) -> Tensor:
    """Decode JPEG or PNG bytes of a store to RGB, uint8 (3, H, W).

    Raises:
        RuntimeError: the bytes are no such image.
    """
    buffer = torch.from_numpy(np.frombuffer(encoded, np.uint8).copy())
    return decode_image(buffer, mode=ImageReadMode.RGB)


@dataclass(frozen=True)
class Augmentation:
    """What is done to the images of a batch, decided by their keys alone.

    boxes: top, left, height, width of the crops, int64 (B, 4).  mirrored: bool (B,).
    colour: factors of brightness, contrast and saturation, float32 (B, 3).
    """

    boxes: np.ndarray
    mirrored: np.ndarray
    colour: np.ndarray


def draw_augmentation(
    keys: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    scales: np.ndarray,
    *,
    flip: bool,
    jitter: float = 0.0,
) -> Augmentation:
    """Random resized crop, mirroring and colour jitter of a batch.

    A crop's share of the area is uniform in its scale and its aspect log-uniform in [3/4, 4/3], as in Inception-style
    cropping (Szegedy et al. 2015, section 6); the first of ten draws that fits is taken, or else the middle.

    Args:
        keys: of the samples at their step, int64 (B,).
        heights: of the images, (B,).
        widths: of the images, (B,).
        scales: area range of each crop, (B, 2).
        flip: mirror half of the images.
        jitter: brightness, contrast and saturation are multiplied by factors within 1 - jitter .. 1 + jitter.
    """
    batch = len(keys)
    noise = randomness.uniform(torch.from_numpy(randomness.stream_keys(keys, _CROP_STREAM)), 4 * _TRIES + 4)
    numbers = noise.numpy().astype(np.float64)
    tries = numbers[:, : 4 * _TRIES].reshape(batch, _TRIES, 4)
    low, high = scales[:, :1], scales[:, 1:]
    area = (heights * widths)[:, None] * (low + tries[..., 0] * (high - low))  # (B, tries)
    aspect = np.exp(math.log(_ASPECT[0]) + tries[..., 1] * math.log(_ASPECT[1] / _ASPECT[0]))
    height, width = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (height > 0) & (height <= heights[:, None]) & (width > 0) & (width <= widths[:, None])
    first, row = fits.argmax(axis=1), np.arange(batch)
    side = np.minimum(heights, widths)
    found = fits.any(axis=1)
    height, width = np.where(found, height[row, first], side), np.where(found, width[row, first], side)
    top = np.where(found, tries[row, first, 2] * (heights - height + 1), (heights - side) / 2)
    left = np.where(found, tries[row, first, 3] * (widths - width + 1), (widths - side) / 2)
    boxes = np.stack([np.floor(top), np.floor(left), height, width], axis=1).astype(np.int64)
    mirrored = flip & (numbers[:, -4] < 0.5)
    colour = 1 + jitter * (2 * numbers[:, -3:] - 1)
    return Augmentation(boxes, mirrored, colour.astype(np.float32))


def crop_and_mirror(images: Sequence[Tensor], augmentation: Augmentation, size: int) -> Tensor:
    """Cut, resize and mirror: B images, uint8 (3, H, W) -> uint8 (B, 3, size, size), channels last in memory."""
    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8, memory_format=torch.channels_last)
    places = zip(images, out.split(1), augmentation.boxes.tolist(), augmentation.mirrored.tolist(), strict=True)
    for image, target, (top, left, height, width), mirrored in places:
        cut = image[None, :, top : top + height, left : left + width]
        # Straight into the batch: a result of its own, and the copy of it, would cost half of the resizing again.
        torch.ops.aten._upsample_bicubic2d_aa.out(cut, [size, size], False, out=target)
        if mirrored:
            target.copy_(target.flip(-1))
    return out


def _bicubic(image: Tensor, size: int) -> Tensor:
    return functional.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0]


def jitter_colour(image: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation, on the device; as torchvision's adjust_* on floats.

    Args:
        image: values in [0, 1], float32 (B, 3, H, W).
        factors: of brightness, contrast and saturation, (B, 3).
    """
    brightness, contrast, saturation = (factors[:, place, None, None, None] for place in range(3))
    image = (image * brightness).clamp(0, 1)
    image = _grey(image).mean(dim=(1, 2, 3), keepdim=True).lerp(image, contrast).clamp(0, 1)
    return _grey(image).lerp(image, saturation).clamp(0, 1)


def _grey(image: Tensor) -> Tensor:
    """ITU-R 601 luma, (B, 1, H, W)."""
    weight = image.new_tensor(_LUMA)[:, None, None]
    return (image * weight).sum(dim=1, keepdim=True)


def resize(image: Tensor, size: int) -> Tensor:
    """The view without augmentation: uint8 (3, H, W) -> (3, size, size)."""
    return image if image.shape[-2:] == (size, size) else _bicubic(image, size)


def normalise(image: Tensor, mean: Tensor, std: Tensor, colour: Tensor | None = None) -> Tensor:
    """uint8 (B, 3, H, W) on any device -> float32, zero mean and unit spread by channel.

    Volumes (B, C, X, Y, Z), whose intensities were mapped when they were curated, only become float32.

    Args:
        image: uint8 (B, 3, H, W).
        mean: of values in [0, 1], (3,).
        std: of values in [0, 1], (3,).
        colour: factors for `jitter_colour`, (B, 3), or None.
    """
    if image.ndim == 5:
        return image.float()
    scaled = image.float() / 255
    if colour is not None:
        scaled = jitter_colour(scaled, colour)
    return (scaled - mean[:, None, None]) / std[:, None, None]
