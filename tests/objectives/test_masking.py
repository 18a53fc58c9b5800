"""Masks are exact, per sample, and depend on the sample's key alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedclip import randomness
from maskedclip.objectives.masking import MaskContext, RandomMasker, mask_from_scores, visible_patches


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 5),
    length=st.integers(1, 256),
    ratio=st.floats(0, 0.99),
    ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_mask_from_scores__is_exact_and_invertible(
    batch: int, length: int, ratio: float, ties: bool, seed: int
) -> None:
    scores = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed))
    if ties:
        scores = scores.round(decimals=1)
    mask = mask_from_scores(scores, ratio)
    visible = max(1, round((1 - ratio) * length))
    assert mask.keep.shape == (batch, visible)
    assert mask.hidden.shape == (batch, length - visible)
    assert mask.is_hidden().sum(dim=1).tolist() == [length - visible] * batch
    order = torch.cat([mask.keep, mask.hidden], dim=1)
    assert torch.equal(order.sort(dim=1).values, torch.arange(length).expand(batch, -1))
    assert torch.equal(order.gather(1, mask.restore), torch.arange(length).expand(batch, -1))
    if mask.hidden.shape[1]:
        assert (scores.gather(1, mask.keep).amax(1) <= scores.gather(1, mask.hidden).amin(1)).all()


def test_visible_patches__of_the_paper_sizes() -> None:
    assert visible_patches(196, 0.75) == 49
    assert visible_patches(64, 0.75) == 16
    assert visible_patches(196, 0.0) == 196


def test_random_masker__depends_on_the_sample_alone() -> None:
    keys = torch.tensor([11, 5, 77, 5])
    alone = RandomMasker().score(MaskContext(keys[1:2], 50, 0.3))
    together = RandomMasker().score(MaskContext(keys, 50, 0.9))
    assert torch.equal(alone[0], together[1])
    assert torch.equal(together[1], together[3])
    assert not torch.equal(together[0], together[2])


def test_random_masker__hides_every_patch_equally_often() -> None:
    keys = torch.from_numpy(randomness.sample_keys(0, 3, torch.arange(4000).numpy()))
    hidden = mask_from_scores(RandomMasker().score(MaskContext(keys, 16, 0.0)), 0.75).is_hidden().float()
    assert hidden.mean(dim=0).tolist() == pytest.approx([0.75] * 16, abs=0.03)
