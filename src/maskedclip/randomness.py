"""Randomness as a pure function of (seed, step, sample): no worker, rank, batch order or crash can change it.

Keys are hashed with SplitMix64's finaliser (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
2014).  On the processor a key seeds numpy's Philox; on a device `uniform` turns keys into numbers by integer
arithmetic alone, so a GPU and a CPU give the same bits.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MULTIPLY_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MULTIPLY_2)
    return x ^ (x >> np.uint64(31))


def sample_keys(seed: int, step: int, samples: np.ndarray) -> np.ndarray:
    """One 63-bit key for each sample of a step.

    Args:
        seed: of the recipe.
        step: optimizer step, from 0.
        samples: row numbers in the store, (B,).

    Returns: non-negative int64, (B,).
    """
    with np.errstate(over="ignore"):
        key = _mix(np.asarray([seed], np.uint64) + np.uint64(_GOLDEN))
        key = _mix(key ^ (np.uint64(step) * np.uint64(_GOLDEN) + np.uint64(1)))
        key = _mix(key ^ (samples.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(2)))
    return (key >> np.uint64(1)).astype(np.int64)


def stream_keys(keys: np.ndarray, stream: int) -> np.ndarray:
    """Keys for another use of the same samples, unrelated to the given ones: non-negative int64 (B,) -> (B,)."""
    with np.errstate(over="ignore"):
        mixed = _mix(keys.astype(np.uint64) ^ (np.uint64(stream) * np.uint64(_MULTIPLY_1) + np.uint64(3)))
    return (mixed >> np.uint64(1)).astype(np.int64)


def generator(key: int, stream: int = 0) -> np.random.Generator:
    """A numpy generator that depends on (key, stream) alone; each use of a key takes a stream of its own."""
    return np.random.Generator(np.random.Philox(key=np.asarray([key, stream], np.uint64)))


def uniform(keys: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1), multiples of 2^-24, on the keys' device; the same bits on every device.

    Args:
        keys: non-negative int64, (B,).
        count: numbers for each key.

    Returns: float32, (B, count).
    """
    place = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64) * _signed(_GOLDEN)
    x = keys[:, None] + place[None, :]  # (B, count); int64 arithmetic wraps
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLY_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLY_2)
    x = x ^ _shift_right(x, 31)
    return _shift_right(x, 40).float() * 2.0**-24


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift without carrying the sign in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def text_key(text: str) -> int:
    """A 63-bit key of a text, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def order(values: np.ndarray, seed: int) -> np.ndarray:
    """Positions that sort distinct strings by a seeded hash: a shuffle that new values do not disturb.

    Args:
        values: distinct strings, (n,).
        seed: of the recipe.

    Returns: int64, (n,).
    """
    salt = str(seed).encode()
    keys = [hashlib.blake2b(str(value).encode(), digest_size=8, key=salt).digest() for value in values]
    return np.asarray(sorted(range(len(keys)), key=lambda position: keys[position]), np.int64)
