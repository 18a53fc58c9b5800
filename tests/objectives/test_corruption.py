"""Disruptions do what they say and nothing else; a key decides them, not the place in the batch."""

import numpy as np
import pytest
import torch

from maskedclip import randomness
from maskedclip.objectives.corruption import add_noise, channel_mask, gaussian, lower_resolution


def keys_of(count: int, step: int = 3) -> torch.Tensor:
    return torch.from_numpy(randomness.sample_keys(0, step, np.arange(count)))


def test_gaussian__has_mean_0_variance_1_and_normal_quantiles() -> None:
    numbers = gaussian(keys_of(8), 20_001).double()
    assert numbers.shape == (8, 20_001)
    assert abs(float(numbers.mean())) < 0.01
    assert abs(float(numbers.var()) - 1) < 0.02
    for value, share in ((-1.0, 0.1587), (0.0, 0.5), (1.96, 0.975)):
        assert float((numbers < value).double().mean()) == pytest.approx(share, abs=0.005)
    correlation = np.corrcoef(numbers.numpy())
    assert np.abs(correlation - np.eye(8)).max() < 0.04


@pytest.mark.parametrize("shape", [(4, 3, 32, 32), (4, 1, 24, 24, 24)])
def test_add_noise__has_the_asked_variance_and_leaves_the_input(shape: tuple[int, ...]) -> None:
    clean = torch.rand(shape)
    before = clean.clone()
    noisy = add_noise(clean, keys_of(4), 0.1)
    assert torch.equal(clean, before)
    assert float((noisy - clean).var()) == pytest.approx(0.1, rel=0.05)
    assert add_noise(clean, keys_of(4), 0.0) is clean


def test_add_noise__follows_the_key_and_not_the_place() -> None:
    clean, keys = torch.rand(4, 1, 8, 8, 8), keys_of(4)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(add_noise(clean, keys, 0.1)[order], add_noise(clean[order], keys[order], 0.1))
    assert not torch.equal(add_noise(clean, keys, 0.1), add_noise(clean, keys_of(4, step=4), 0.1))


@pytest.mark.parametrize("sides", [(16, 16), (16, 12, 8), (10, 9, 7)])
def test_lower_resolution__is_constant_in_each_cell_and_keeps_its_corner(sides: tuple[int, ...]) -> None:
    clean = torch.rand(2, 1, *sides)
    before = clean.clone()
    low = lower_resolution(clean, 4)
    assert low.shape == clean.shape
    assert torch.equal(clean, before)
    for place in np.ndindex(*sides):
        corner = tuple(index // 4 * 4 for index in place)
        assert torch.equal(low[(..., *place)], clean[(..., *corner)])
    assert lower_resolution(clean, 1) is clean


@pytest.mark.parametrize("draw", ["batch", "sample"])
@pytest.mark.parametrize("channels", [24, 48, 50, 96])
def test_channel_mask__hides_exactly_int_ratio_channels(draw: str, channels: int) -> None:
    mask = channel_mask(keys_of(16), channels, 0.6, draw)  # type: ignore[arg-type]
    assert mask.shape == (16, channels)
    assert mask.dtype == torch.bool
    assert (mask.sum(dim=1) == int(0.6 * channels)).all()
    assert (len(torch.unique(mask, dim=0)) == 1) == (draw == "batch")


@pytest.mark.parametrize("draw", ["batch", "sample"])
def test_channel_mask__does_not_know_the_order_of_the_batch(draw: str) -> None:
    keys, order = keys_of(6), torch.tensor([5, 2, 0, 1, 4, 3])
    mask = channel_mask(keys, 48, 0.6, draw)  # type: ignore[arg-type]
    assert torch.equal(mask[order], channel_mask(keys[order], 48, 0.6, draw))  # type: ignore[arg-type]


def test_channel_mask__hides_all_channels_equally_often() -> None:
    often = sum(channel_mask(keys_of(4, step), 20, 0.6).float()[0] for step in range(400)) / 400
    assert isinstance(often, torch.Tensor)
    assert float((often - 0.6).abs().max()) < 0.1
