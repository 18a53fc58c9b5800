"""Retrieval of texts: equal to brute force, its options, and signs of hubs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.objectives.pairing import NONE, Pairing, hubness
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.stores import SENTENCES, TINY, make_store


def _vectors(seed: int, count: int, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def _cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Plain float64 loops over pairs."""
    return np.asarray(
        [[float(i @ t) / float(np.linalg.norm(i) * np.linalg.norm(t)) for t in texts.astype(float)] for i in images]
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 30), st.integers(1, 50))
def test_pairing__is_the_brute_force_argmax_in_any_blocks(seed: int, images: int, texts: int, block: int) -> None:
    one, two = _vectors(seed, images), _vectors(seed + 1, texts)
    cosines = _cosines(one, two)
    index, score = Pairing().fit(one, two)
    np.testing.assert_array_equal(index, cosines.argmax(axis=1))
    np.testing.assert_allclose(score, cosines.max(axis=1), atol=1e-6)
    assert score.min() >= -1
    assert score.max() <= 1
    count = min(3, texts)
    found = Pairing(top=3).neighbours(one, two, block)
    np.testing.assert_array_equal(found.index, np.argsort(-cosines, axis=1, kind="stable")[:, :count])
    np.testing.assert_allclose(found.score, -np.sort(-cosines, axis=1)[:, :count], atol=1e-6)
    np.testing.assert_array_equal(Pairing().neighbours(one, two, block).index[:, 0], index)


def test_pairing__permuted_texts_permute_the_indices() -> None:
    images, texts = _vectors(1, 200), _vectors(2, 60)
    index, score = Pairing().fit(images, texts)
    order = np.random.default_rng(3).permutation(len(texts))
    moved, same = Pairing().fit(images, texts[order])
    np.testing.assert_array_equal(order[moved], index)
    np.testing.assert_array_equal(same, score)


def test_pairing__length_of_vectors_does_not_matter_and_the_first_of_equals_counts() -> None:
    images, texts = _vectors(1, 50), _vectors(2, 20)
    index, _ = Pairing().fit(images, texts)
    lengths = np.random.default_rng(0).uniform(0.1, 9, (20, 1))
    np.testing.assert_array_equal(Pairing().fit(images * 7, texts * lengths)[0], index)
    np.testing.assert_array_equal(Pairing().fit(images, np.concatenate([texts, texts]))[0], index)


def test_pairing__threshold_drops_pairs_below_it_only() -> None:
    images, texts = _vectors(1, 100), _vectors(2, 30)
    index, score = Pairing().fit(images, texts)
    least = float(np.median(score))
    kept, same = Pairing(threshold=least).fit(images, texts)
    np.testing.assert_array_equal(kept, np.where(score >= np.float32(least), index, NONE))
    np.testing.assert_array_equal(same, score)
    assert 0 < Pairing(threshold=least).neighbours(images, texts).found < 100


@pytest.mark.parametrize("top", [1, 3])
def test_pairing__mutual_keeps_pairs_that_choose_each_other(top: int) -> None:
    images, texts = _vectors(1, 40), _vectors(2, 25)
    cosines = _cosines(images, texts)
    of_images = np.argsort(-cosines, axis=1)[:, :top]
    of_texts = np.argsort(-cosines.T, axis=1)[:, :top]
    found = Pairing(top=top, mutual=True).neighbours(images, texts)
    for image in range(40):
        expected = [int(text) for text in of_images[image] if image in of_texts[text]]
        assert [int(text) for text in found.index[image] if text != NONE] == expected
    assert 0 < found.found < 40


def test_pairing__texts_at_the_class_means_give_every_image_its_class() -> None:
    """FAMILY.md, A: 100 % where a text's embedding is the mean of its class."""
    random = np.random.default_rng(4)
    centres = np.linalg.qr(random.normal(size=(16, 16)))[0][:6]
    classes = np.repeat(np.arange(6), 30)
    images = centres[classes] + random.normal(0, 0.08, (180, 16))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    means = np.stack([images[classes == k].mean(axis=0) for k in range(6)])
    index, _ = Pairing().fit(images, means)
    assert (index == classes).mean() == 1.0


def test_pairing__a_trained_model_finds_the_class_on_held_out_images(tmp_path: Path) -> None:
    """FAMILY.md, A: more than twice chance; measured 0.94 at a chance of 0.25, n 64."""
    folder = make_store(tmp_path / "s", rows=192)
    options = ["--data.batch_paired", "24", "--data.text_fraction", "1", "--training.lr", "0.02"]
    steps = ["--training.steps", "150", "--training.checkpoint_every", "1000"]
    pretrain(load_recipe(["clip", "tiny"], [*TINY, *options, *steps]), folder, tmp_path / "run")
    store, model = open_store(folder), load(tmp_path / "run", device="cpu")
    rows = np.flatnonzero(store.splits != "train")
    truth = np.asarray([SENTENCES.index(store.texts[row] or "") for row in rows])
    index, _ = Pairing().fit(model.features(store, rows)["projected"], model.encode_text(SENTENCES))
    chance = np.bincount(truth).max() / len(truth)
    assert (index == truth).mean() > 2 * chance


@pytest.mark.parametrize(
    ("images", "texts", "told"),
    [
        (np.zeros((2, 3)), np.ones((2, 3)), "image_embeddings: row 0 is zero"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), "text_embeddings: holds values that are not finite"),
        (np.ones((2, 3)), np.ones((2, 4)), "widths differ"),
        (np.ones((2, 3)), np.empty((0, 3)), "there is no text"),
        (np.ones(3), np.ones((2, 3)), "give"),
    ],
)
def test_pairing__refuses_what_has_no_direction(images: np.ndarray, texts: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Pairing().fit(images, texts)


def test_hubness__lies_above_0_and_flags_one_hub() -> None:
    images, texts = _vectors(1, 300), _vectors(2, 40)
    healthy = hubness(Pairing().fit(images, texts)[0], 40)
    assert 0 < healthy.used_share <= 1
    assert healthy.used == len(np.unique(Pairing().fit(images, texts)[0]))
    assert not healthy.has_hub
    assert not healthy.is_collapsed
    collapsed = np.tile(_vectors(7, 1), (300, 1)) + 1e-4 * _vectors(8, 300)  # one vector for all images
    hub = hubness(Pairing().fit(collapsed, texts)[0], 40)
    assert hub.is_collapsed
    assert hub.has_hub
    assert hub.used_share == pytest.approx(1 / 40)
    assert hub.top_share == 1
    assert hub.skewness > healthy.skewness


def test_hubness__counts_pairs_only() -> None:
    found = hubness([0, 0, 2, NONE], 5)
    assert (found.images, found.used, found.top, found.top_share) == (3, 2, 0, pytest.approx(2 / 3))
    assert found.used_share == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no image"):
        hubness([NONE], 5)
