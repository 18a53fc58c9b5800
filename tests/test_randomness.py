"""The same key gives the same bits, everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskedclip import randomness


def _naive_uniform(key: int, place: int) -> float:
    """SplitMix64's finaliser on python integers."""
    mask = 2**64 - 1
    x = (key + (place + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 40) / 2**24


@given(key=st.integers(0, 2**63 - 1))
def test_uniform__equals_exact_integer_arithmetic(key: int) -> None:
    drawn = randomness.uniform(torch.tensor([key]), 5)[0].tolist()
    assert drawn == [_naive_uniform(key, place) for place in range(5)]
    assert all(0 <= value < 1 for value in drawn)


def test_sample_keys__depend_on_seed_step_and_sample() -> None:
    rows = np.arange(1000)
    keys = [randomness.sample_keys(seed, step, rows) for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(np.unique(np.concatenate(keys))) == 4000
    assert np.array_equal(randomness.sample_keys(0, 1, rows[7:9]), keys[1][7:9])
    assert (np.concatenate(keys) >= 0).all()


def test_generator__streams_differ_and_repeat() -> None:
    first, again, other = (randomness.generator(9, stream).random(4) for stream in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_uniform__is_uniform() -> None:
    values = randomness.uniform(torch.from_numpy(randomness.sample_keys(0, 0, np.arange(2000))), 100)
    counts = torch.histc(values, bins=20, min=0, max=1) / values.numel()
    assert counts.tolist() == pytest.approx([0.05] * 20, abs=0.002)


def test_order__of_a_subset_is_the_order_within_the_whole() -> None:
    values = np.asarray([f"p{number}" for number in range(50)])
    whole = values[randomness.order(values, seed=4)].tolist()
    part = values[::3]
    ordered = part[randomness.order(part, seed=4)].tolist()
    assert ordered == [value for value in whole if value in set(part.tolist())]
