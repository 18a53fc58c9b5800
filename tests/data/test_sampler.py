"""Step -> rows is exact, without replacement, the same on any number of ranks, and split by patient."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedclip.data.sampler import EndlessShuffle, Pools, StepSampler, check_ranks, make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.recipe import Recipe
from tests.stores import make_store


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_endless_shuffle__visits_every_row_once_an_epoch(n: int, batch: int, seed: int) -> None:  # P30
    line = EndlessShuffle(np.arange(n) + 100, seed, 1)
    steps = -(-3 * n // batch)
    taken = np.concatenate([line.take(step * batch, batch) for step in range(steps)])
    for epoch in range(3):
        assert sorted(taken[epoch * n : (epoch + 1) * n].tolist()) == list(range(100, 100 + n))
    jumped = EndlessShuffle(np.arange(n) + 100, seed, 1).take((steps - 1) * batch, batch)  # P2: no replay needed
    assert np.array_equal(jumped, taken[(steps - 1) * batch :])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_step_sampler__ranks_share_one_global_batch(world: int) -> None:
    recipe = Recipe().replace(data={"batch_paired": 8, "batch_unpaired": 4})
    sampler = StepSampler(Pools(np.arange(30), np.arange(30, 80), (1, 1)), recipe)
    whole = sampler.rows(7)
    parts = [sampler.rows(7, rank, world) for rank in range(world)]
    assert np.array_equal(np.concatenate([paired for paired, _ in parts]), whole[0])
    assert np.array_equal(np.concatenate([unpaired for _, unpaired in parts]), whole[1])


def test_make_pools__keeps_texts_of_a_share_of_the_patients(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "s", rows=96))
    train = set(store.rows("train").tolist())
    kept: list[set[str]] = []
    for fraction in (0.1, 0.25, 0.5):
        pools = make_pools(store, Recipe().replace(data={"text_fraction": fraction}))
        paired, unpaired = set(pools.paired.tolist()), set(pools.unpaired.tolist())
        assert paired | unpaired == train
        assert not paired & unpaired
        patients = {str(store.patients[row]) for row in paired}
        assert not patients & {str(store.patients[row]) for row in unpaired}  # both eyes or none
        assert len(patients) == round(fraction * 32) == pools.patients_with_text[0]
        kept.append(patients)
    assert kept[0] < kept[1] < kept[2]
    other = make_pools(store, Recipe(seed=1).replace(data={"text_fraction": 0.5}))
    assert {str(store.patients[row]) for row in other.paired} != kept[2]


def test_make_pools__of_the_other_methods(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "s"))
    everything = make_pools(
        store, Recipe().replace(data={"pool": "all"}, objective={"clip_weight": 0.0, "mkd_weight": 0.0})
    )
    assert len(everything.paired) == 0
    assert np.array_equal(everything.unpaired, store.rows("train"))
    paired = make_pools(store, Recipe().replace(data={"pool": "paired", "text_fraction": 0.5}))
    assert len(paired.unpaired) == 0
    assert len(paired.paired) == 16


def test_make_pools__says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no unpaired images.*text_fraction"):
        make_pools(open_store(make_store(tmp_path / "full")), Recipe())
    with pytest.raises(UserError, match=r"no training row has a text.*--config mae"):
        make_pools(open_store(make_store(tmp_path / "bare", text_share=0.0)), Recipe())


def test_check_ranks__names_a_batch_that_fits() -> None:
    recipe = Recipe().replace(data={"batch_paired": 10, "batch_unpaired": 8})
    check_ranks(recipe, 2)
    with pytest.raises(UserError, match=r"data\.batch_paired: 10 does not divide over 4 ranks; give 8 or 12"):
        check_ranks(recipe, 4)
