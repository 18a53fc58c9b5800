"""Noise of a masking, each use in a stream of its own; all of it from the samples' keys."""

import torch
from torch import Tensor

from maskedclip import randomness

_MULTIPLIER = 0x2545F4914F6CDD1D
"""Odd, so streams differ in many bits of the key (Marsaglia's xorshift multiplier)."""


def uniform(keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """Numbers in [0, 1) that depend on (key, stream) alone.

    Args:
        keys: non-negative int64, (B,).
        count: numbers for each key.
        stream: 0 has the numbers of random masking; each further use of the keys takes another one.

    Returns: float32, (B, count).
    """
    return randomness.uniform(keys ^ (stream * _MULTIPLIER % (1 << 63)), count)


def gumbel(keys: Tensor, count: int, stream: int) -> Tensor:
    """Standard Gumbel noise, -log(-log u), float32 (B, count): adding it to log weights draws without replacement."""
    noise = uniform(keys, count, stream).clamp(2.0**-25, 1 - 2.0**-24)
    return -torch.log(-torch.log(noise))
