"""Disruptions of an input that an autoencoder must undo (Disruptive Autoencoders, arXiv 2307.16896).

All randomness comes from the samples' keys, so a step disrupts a sample in the same way in every order of the batch, on
every device and after every restart.  B samples of pictures (H, W) or volumes (X, Y, Z), D channels of an embedding.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from maskedclip import randomness
from maskedclip.ranks import gather_rows

_NOISE, _CHANNELS = 0x5851F42D4C957F2D, 0x14057B7EF767814F
_SIGN = (1 << 63) - 1


def add_noise(image: Tensor, keys: Tensor, variance: float) -> Tensor:
    """x + sqrt(variance) n, n standard normal and independent in every value.

    Args:
        image: float, (B, ...).
        keys: of the samples at their step, int64 (B,).
        variance: of the noise; 0 returns the image itself.
    """
    if variance == 0:
        return image
    noise = gaussian(keys, image[0].numel()).view_as(image)
    return image + math.sqrt(variance) * noise.to(image.dtype)


def gaussian(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers of keys, float32 (B, count), by the transform of Box and Muller (1958)."""
    half = -(-count // 2)
    numbers = randomness.uniform((keys ^ _NOISE) & _SIGN, 2 * half)
    radius = (-2 * torch.log1p(-numbers[:, :half])).sqrt()  # 1 - u is never 0
    angle = 2 * math.pi * numbers[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def lower_resolution(image: Tensor, factor: int) -> Tensor:
    """Nearest neighbour down by a factor and up again: every cell of factor^n values holds its first corner's.

    Args:
        image: (B, C, H, W) or (B, C, X, Y, Z); cells at the far ends may be smaller.
        factor: 1 returns the image itself.
    """
    if factor == 1:
        return image
    for axis in range(2, image.ndim):
        side = image.shape[axis]
        kept = torch.arange(0, side, factor, device=image.device)
        image = image.index_select(axis, kept).repeat_interleave(factor, axis).narrow(axis, 0, side)
    return image


def channel_mask(keys: Tensor, channels: int, ratio: float, draw: Literal["batch", "sample"] = "batch") -> Tensor:
    """Channels to be zeroed at every location: True for exactly int(ratio D) of them, bool (B, D).

    Args:
        keys: of the samples at their step, int64 (B,).
        channels: D.
        ratio: share to hide, in [0, 1).
        draw: `batch`, one draw for the samples of all ranks, as the official code has it, whatever their order;
            `sample`, one for each.
    """
    if draw == "batch":
        keys = gather_rows(keys).min().expand(len(keys))
    scores = randomness.uniform((keys ^ _CHANNELS) & _SIGN, channels)
    hidden = scores.argsort(dim=1, stable=True)[:, : int(ratio * channels)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, hidden, True)
