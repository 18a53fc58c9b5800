import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from maskedclip.evaluation import retrieval as module
from maskedclip.evaluation.retrieval import (
    chance_median_rank,
    chance_recall,
    distinct,
    image_to_text_ranks,
    retrieval,
    text_to_image_ranks,
)
from maskedclip.evaluation.statistics import cluster_weights


def _unit(seed: int, rows: int, levels: int) -> NDArray:
    """Unit vectors on a coarse grid: equal ones are frequent."""
    x = np.random.Generator(np.random.Philox(seed)).integers(1, 1 + levels, size=(rows, 3)).astype(float)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _own(seed: int, images: int, texts: int) -> NDArray[np.int64]:
    """Every text has an image; the first has about half of them, as "normal fundus" has."""
    generator = np.random.Generator(np.random.Philox(seed))
    rest = np.where(generator.random(images - texts) < 0.5, 0, generator.integers(0, texts, images - texts))
    return generator.permutation(np.concatenate([np.arange(texts), rest]))


def _naive(images: NDArray, texts: NDArray, own: NDArray) -> tuple[list[int], list[int]]:
    cosine = [[float(np.dot(i.astype(float), t.astype(float))) for t in texts] for i in images]
    to_text = []
    for image, true in enumerate(own):
        others = (t for t in range(len(texts)) if t != true)
        to_text.append(1 + sum(cosine[image][t] >= cosine[image][true] - 1e-6 for t in others))
    to_image = []
    for text in range(len(texts)):
        best = max(cosine[i][text] for i in range(len(images)) if own[i] == text)
        rivals = (i for i in range(len(images)) if own[i] != text)
        to_image.append(1 + sum(cosine[i][text] >= best - 1e-6 for i in rivals))
    return to_text, to_image


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(0, 12), st.integers(1, 5))
def test_ranks__equal_a_naive_double_loop(seed: int, texts: int, more: int, levels: int) -> None:  # P29
    images, candidates = _unit(seed, texts + more, levels), _unit(seed + 1, texts, levels)
    own = _own(seed, texts + more, texts)
    expected = _naive(images, candidates, own)
    assert image_to_text_ranks(images, candidates, own).tolist() == expected[0]
    assert text_to_image_ranks(images, candidates, own).tolist() == expected[1]


def test_ranks__slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, own = _unit(1, 23, 5), _unit(2, 7, 5), _own(3, 23, 7)
    whole = image_to_text_ranks(images, texts, own), text_to_image_ranks(images, texts, own)
    monkeypatch.setattr(module, "_CHUNK", 50)
    assert (image_to_text_ranks(images, texts, own) == whole[0]).all()
    assert (text_to_image_ranks(images, texts, own) == whole[1]).all()


@pytest.mark.parametrize("constant", ["images", "texts", "both"])
def test_retrieval__constant_embedding_retrieves_nothing(constant: str) -> None:
    images, texts, own = _unit(1, 300, 9), _unit(2, 20, 9), _own(3, 300, 20)
    images = np.repeat(images[:1], 300, axis=0) if constant in ("images", "both") else images
    texts = np.repeat(texts[:1], 20, axis=0) if constant in ("texts", "both") else texts
    figures = retrieval(images, texts, own, cluster_weights([None] * 300, replicates=10))
    if constant != "images":
        assert figures["image_to_text"]["recall_at_10"]["value"] == 0
    if constant != "texts":  # "normal fundus" aside, a text has at least half of the images as rivals
        assert figures["text_to_image"]["recall_at_10"]["value"] == 0


def test_retrieval__perfect_embedding_with_repeated_texts() -> None:
    own = _own(3, 40, 8)
    figures = retrieval(np.eye(8)[own], np.eye(8), own, cluster_weights([None] * 40, replicates=50))
    for direction, n in (("image_to_text", 40), ("text_to_image", 8)):
        assert figures[direction]["recall_at_1"] | {"chance": 0} == {
            "value": 1,
            "low": 1,
            "high": 1,
            "n": n,
            "chance": 0,
        }
        assert figures[direction]["median_rank"]["value"] == 1
    assert figures["image_to_text"]["recall_at_1"]["chance"] == pytest.approx(1 / 8)
    assert figures["image_to_text"]["median_rank"]["candidates"] == 8


def test_retrieval__intervals_of_images_are_clustered_by_patient() -> None:
    """Ten copies of each of 30 images: a patient's rows hit or miss together."""
    generator = np.random.Generator(np.random.Philox(4))
    images, texts = np.repeat(generator.normal(size=(30, 5)), 10, axis=0), generator.normal(size=(12, 5))
    own = np.repeat(np.concatenate([np.arange(12), generator.integers(0, 12, 18)]), 10)
    widths = []
    for patients in ([str(row // 10) for row in range(300)], [None] * 300):
        figures = retrieval(images, texts, own, cluster_weights(patients, replicates=300))
        recall = figures["image_to_text"]["recall_at_5"]
        widths.append(recall["high"] - recall["low"])
    assert widths[0] > 2 * widths[1]


def test_chance__equals_all_orders_of_a_small_set() -> None:
    correct = np.array([1, 2])
    for k in (1, 2, 4, 5):
        orders = list(itertools.permutations(range(4)))
        hits = [np.mean([min(order[:c]) < k for order in orders]) for c in correct]
        assert chance_recall(correct, 4, k) == pytest.approx(np.mean(hits))
    assert chance_median_rank(np.ones(3), 9) == 5
    assert chance_median_rank(np.array([9, 9]), 9) == 1


def test_distinct__in_order_of_appearance() -> None:
    texts, own = distinct(["b", "a", "b", "c"])
    assert texts == ["b", "a", "c"]
    assert own.tolist() == [0, 1, 0, 2]
