"""What a step sees depends on (seed, step, sample) alone: not on workers, ranks, or where a run began."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from maskedclip import randomness
from maskedclip.data.decoded import decode_store
from maskedclip.data.loader import HostBatch, StepDataset, step_loader
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.text import TextTokenizer, train_tokenizer
from maskedclip.recipe import Recipe, load_recipe
from tests.stores import SENTENCES, TINY, make_store


def _dataset(folder: Path, recipe: Recipe, rank: int = 0, world: int = 1) -> StepDataset:
    store = open_store(folder)
    tokenizer = TextTokenizer(train_tokenizer(SENTENCES, 300), 16)
    return StepDataset(store, make_pools(store, recipe), recipe, tokenizer, rank, world)


def _recipe(workers: int = 0) -> Recipe:
    return load_recipe(["tiny"], [*TINY, "--data.workers", str(workers)])


def _same(a: HostBatch, b: HostBatch) -> bool:
    return all(
        torch.equal(value, vars(b)[name]) if isinstance(value, torch.Tensor) else value == vars(b)[name]
        for name, value in vars(a).items()
    )


def _texts(batch: HostBatch) -> torch.Tensor:
    """The real tokens of each paired image's text, padded to 16."""
    assert batch.text_ids is not None
    assert batch.text_mask is not None
    assert batch.text_index is not None
    ids = (batch.text_ids * batch.text_mask)[batch.text_index]
    return torch.nn.functional.pad(ids, (0, 16 - ids.shape[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("loader") / "s")


def test_step_loader__worker_count_changes_no_bit(folder: Path) -> None:
    alone = list(step_loader(_dataset(folder, _recipe(0)), 0, 6))
    helped = list(step_loader(_dataset(folder, _recipe(2)), 0, 6))
    assert [batch.step for batch in helped] == list(range(6))
    assert all(_same(a, b) for a, b in zip(alone, helped, strict=True))
    assert not torch.equal(alone[0].image, alone[1].image)


def test_step_loader__starting_later_is_the_same_step(folder: Path) -> None:
    dataset = _dataset(folder, _recipe())
    assert _same(next(step_loader(dataset, 4, 6)), dataset[4])


def test_dataset__two_ranks_hold_one_rank_s_batch(folder: Path) -> None:
    whole = _dataset(folder, _recipe())[3]
    halves = [_dataset(folder, _recipe(), rank, 2)[3] for rank in range(2)]
    paired = torch.cat([half.image[: half.num_paired] for half in halves])
    unpaired = torch.cat([half.image[half.num_paired :] for half in halves])
    assert torch.equal(torch.cat([paired, unpaired]), whole.image)
    assert torch.equal(torch.cat([_texts(half) for half in halves]), _texts(whole))


def test_dataset__equal_texts_have_equal_keys(folder: Path) -> None:
    dataset = _dataset(folder, load_recipe(["tiny"], [*TINY, "--data.sentences", "all"]))
    batch = dataset[0]
    assert batch.text_key is not None
    texts = [dataset.store.text(row) for row in batch.rows[: batch.num_paired].tolist()]
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            assert (a == b) == bool(batch.text_key[i] == batch.text_key[j])


def test_dataset__each_distinct_text_is_tokenised_once(folder: Path) -> None:
    dataset = _dataset(folder, load_recipe(["tiny"], [*TINY, "--data.sentences", "all", "--data.batch_paired", "16"]))
    batch = dataset[0]
    texts = [dataset.store.text(row) or "" for row in batch.rows[:16].tolist()]
    assert len(set(texts)) <= 4
    assert batch.text_ids is not None
    assert batch.text_ids.shape == (4, 16)  # rows in eighths of the batch, tokens in eights: few shapes
    assert dataset.tokenizer is not None
    ids, mask = dataset.tokenizer(texts)
    assert torch.equal(_texts(batch), ids * mask)


@pytest.mark.parametrize("workers", [0, 2])
def test_dataset__decoded_pixels_change_no_bit(folder: Path, tmp_path: Path, workers: int) -> None:  # P4, P22
    shutil.copytree(folder, tmp_path / "s")
    recipe = load_recipe(["tiny"], [*TINY, "--data.workers", str(workers), "--data.colour_jitter", "0.2"])
    plain = list(step_loader(_dataset(tmp_path / "s", recipe), 0, 3))
    dataset = _dataset(tmp_path / "s", recipe)
    decode_store(dataset.store, "on")
    dataset.store.image_bytes = None  # type: ignore[assignment]
    assert dataset.store.decoded is not None
    assert all(_same(a, b) for a, b in zip(plain, step_loader(dataset, 0, 3), strict=True))
    assert len(list((tmp_path / "s").glob(".cache/*/*.decoded.arrow"))) == 3


def test_dataset__replaces_and_counts_what_cannot_be_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # P16, P25
    dataset = _dataset(folder, _recipe())
    good = dataset[0]
    bad = int(good.rows[2])
    read = dataset.store.image_bytes
    monkeypatch.setattr(dataset.store, "image_bytes", lambda row: b"rubbish" if row == bad else read(row))
    batch = dataset[0]
    assert batch.substituted == 1
    assert batch.image.shape == good.image.shape
    assert torch.equal(batch.image[[0, 1, 3, 4]], good.image[[0, 1, 3, 4]])


def test_dataset__what_replaces_a_damaged_image_is_of_its_pool_with_its_own_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY, "--data.sentences", "all", "--data.labels", "[red, green]"]
    dataset = _dataset(folder, load_recipe(["tiny"], options))
    store, pools = dataset.store, dataset.pools
    bad = 7  # the rows after it are of the validation split, and the next training rows have another text
    assert bad in store.rows("train")
    assert bad + 1 in store.rows("val")
    steps = [step for step in range(30) if bad in dataset[step].rows.tolist()]
    assert steps
    read = store.image_bytes
    monkeypatch.setattr(store, "image_bytes", lambda row: b"rubbish" if row == bad else read(row))
    assert dataset.labels is not None
    for step in steps:
        good, batch = dataset.sampler.rows(step), dataset[step]
        place = int(np.flatnonzero(np.concatenate(good) == bad)[0])
        pool = pools.paired if place < batch.num_paired else pools.unpaired
        expected = int(pool[(int(np.searchsorted(pool, bad)) + 1) % len(pool)])
        assert batch.substituted == 1
        assert batch.rows[place] == expected
        assert set(batch.rows.tolist()) <= set(store.rows("train").tolist())
        assert torch.equal(batch.labels, dataset.labels[batch.rows])  # type: ignore[arg-type]
        assert np.array_equal(batch.keys, randomness.sample_keys(dataset.recipe.seed, step, batch.rows.numpy()))
        assert dataset.tokenizer is not None
        ids, mask = dataset.tokenizer([store.text(row) or "" for row in batch.rows[: batch.num_paired].tolist()])
        assert torch.equal(_texts(batch), ids * mask)


@pytest.mark.parametrize("workers", [0, 1])
def test_step_loader__a_damaged_store_is_one_line(tmp_path: Path, workers: int) -> None:
    folder = make_store(tmp_path / "s")
    dataset = _dataset(folder, _recipe(workers))
    dataset.store.image_bytes(0)
    for path in folder.glob(".cache/*/*.arrow"):
        path.write_bytes(path.read_bytes().replace(b"IHDR", b"XXXX"))
    with pytest.raises(UserError, match="cannot be decoded; the store is damaged") as caught:
        list(step_loader(_dataset(folder, _recipe(workers)), 0, 1))
    assert "\n" not in str(caught.value)
