import itertools
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t as student

from maskedclip.data.curate import curate
from maskedclip.data.manifest import read_manifest
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.evaluation import retrieval as module
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.retrieval import (
    chance_median_rank,
    chance_recall,
    distinct,
    image_to_text_ranks,
    recall,
    recall_per_text,
    retrieval_figures,
    text_to_image_ranks,
)
from maskedclip.evaluation.statistics import cluster_weights
from tests.evaluation.stand_ins import ArrayModel
from tests.stores import draw


def retrieval(images: NDArray, texts: NDArray, own: NDArray, weights: NDArray) -> dict[str, dict[str, dict]]:
    ranks = image_to_text_ranks(images, texts, own), text_to_image_ranks(images, texts, own)
    return retrieval_figures(*ranks, own, weights)


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
        entry = figures[direction]["recall_at_1"]
        assert (entry["value"], entry["high"], entry["n"]) == (1, 1, n)
        quantile = student.ppf(0.975, n - 1) ** 2
        assert entry["low"] == pytest.approx(1 - quantile / (n + quantile))  # Wilson's, of n patients or texts
        assert figures[direction]["median_rank"]["value"] == 1
    assert figures["image_to_text"]["recall_at_1"]["chance"] == pytest.approx(1 / 8)
    assert figures["image_to_text"]["median_rank"]["candidates"] == 8


def test_retrieval__order_by_frequency_against_a_model_that_reads_the_images() -> None:
    """Half of the images have one text: whoever always puts it first beats a model that tells the rare ones apart."""
    own = np.array([0] * 50 + [1] * 20 + [2] * 10 + list(range(3, 23)))
    patients = [str(row // 2) for row in range(100)]
    weights = cluster_weights(patients, replicates=200)
    texts = np.eye(23)
    fixed = np.linspace(1, 0, 23)[None].repeat(100, axis=0)  # the same order for all, the commonest first
    blind = retrieval(fixed, texts, own, weights)
    seeing = retrieval(np.where(np.arange(23) == 0, -1.0, texts[own]), texts, own, weights)  # never says text 0
    for k, level in ((1, 0.5), (5, 0.82), (10, 0.87)):
        entry = blind["image_to_text"][f"recall_at_{k}"]
        assert entry["value"] == pytest.approx(level)
        assert entry["fixed_order"] == pytest.approx(level)
        assert seeing["image_to_text"][f"recall_at_{k}"]["fixed_order"] == pytest.approx(level)
        entry = blind["image_to_text_per_text"][f"recall_at_{k}"]
        assert entry["value"] == pytest.approx(k / 23)
        assert entry["chance"] == pytest.approx(k / 23)
        assert entry["n"] == 23
        assert entry["low"] < k / 23 < entry["high"]
    assert seeing["image_to_text"]["recall_at_5"]["value"] == pytest.approx(0.5)
    assert seeing["image_to_text_per_text"]["recall_at_5"]["value"] == pytest.approx(22 / 23)
    assert set(blind["image_to_text_per_text"]) == {"recall_at_1", "recall_at_5", "recall_at_10"}


@pytest.mark.parametrize("k", [1, 5])
def test_recall_per_text__equals_the_naive_mean(k: int) -> None:
    generator = np.random.Generator(np.random.Philox(6))
    own = np.concatenate([np.arange(9), generator.integers(0, 9, 40)])
    ranks = generator.integers(1, 12, len(own))
    weights = cluster_weights([None] * 9, replicates=7)
    found = recall_per_text(ranks, own, k, weights)
    share = [np.mean([rank <= k for rank, text in zip(ranks, own, strict=True) if text == one]) for one in range(9)]
    assert found.value == pytest.approx(np.mean(share))
    naive = [np.mean(np.repeat(share, drawn)) for drawn in weights]
    np.testing.assert_allclose(found.replicates - found.value, (np.array(naive) - np.mean(share)) * np.sqrt(9 / 8))


@pytest.mark.parametrize("found", [0, 3, 12])
def test_recall__of_texts_has_the_interval_of_a_share_of_single_draws(found: int) -> None:
    ranks = np.where(np.arange(12) < found, 1, 9)
    estimate = recall(ranks, 5, cluster_weights([None] * 12, replicates=20_000), module.TEXT_TO_IMAGE).estimate()
    share = found / 12
    assert estimate.value == pytest.approx(share)
    if 0 < share < 1:
        reach = 1.96 / np.sqrt(12 * share * (1 - share))
        expected = [expit(logit(share) - reach), expit(logit(share) + reach)]
    else:  # Wilson's
        square = student.ppf(0.975, 11) ** 2
        uncertain = square / (12 + square)
        expected = [0, uncertain] if share == 0 else [1 - uncertain, 1]
    assert [estimate.low, estimate.high] == pytest.approx(expected, abs=0.01)


def test_recall_per_text__replicates_have_the_variance_of_a_mean_and_no_skewness_bends_its_interval() -> None:
    own = np.repeat(np.arange(12), 3)
    ranks = np.where(np.arange(36) % 9 < 2, 9, 1)  # four texts are found by one of three images, the others always
    found = recall_per_text(ranks, own, 5, cluster_weights([None] * 12, replicates=20_000))
    share = np.repeat([1 / 3, 1, 1], 4)
    expected = share.std(ddof=1) / np.sqrt(12)
    assert found.uncertain().error == pytest.approx(expected, rel=0.02)
    reach = student.ppf(0.975, 11) * expected / (found.value * (1 - found.value))
    assert found.estimate().low == pytest.approx(expit(logit(found.value) - reach), abs=0.01)
    assert found.estimate().high == pytest.approx(expit(logit(found.value) + reach), abs=0.01)


def test_retrieval__fewer_texts_than_k() -> None:
    own = _own(3, 20, 4)
    figures = retrieval(_unit(1, 20, 6), _unit(2, 4, 6), own, cluster_weights([None] * 20, replicates=10))
    assert figures["image_to_text"]["recall_at_10"]["fixed_order"] == 1
    assert figures["image_to_text_per_text"]["recall_at_5"]["chance"] == 1


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


def test_retrieval__several_texts_of_an_image_are_one_candidate_and_twins_are_two_queries(tmp_path: Path) -> None:
    """From the manifest's check to the ranks: several texts of an image, and one picture in two files."""
    for name, row in (("a", 0), ("b", 1), ("c", 2), ("twin", 0)):
        (tmp_path / f"{name}.png").write_bytes(draw(row, 32, row))
    manifest, head = tmp_path / "manifest.csv", "image,text,patient,split\n"
    rest = ["b.png,Normal.,2,test", "c.png,Glaucoma,3,test", "twin.png,Myopia,4,test"]
    manifest.write_text(head + "\n".join(["a.png,Drusen.,1,test", "a.png,Large cup,1,test", *rest]))
    with pytest.raises(UserError) as refused:
        read_manifest(manifest)
    told = re.search(r"given 2 times: keep one row with its texts joined, as in '(.*)'", str(refused.value))
    assert told is not None
    manifest.write_text(head + "\n".join([f"a.png,{told[1]},1,test", *rest]))
    curate(manifest, tmp_path / "store", size=32, crop="none", encoding="png", progress=False)
    store = open_store(tmp_path / "store")
    assert store.texts == ["Drusen. Large cup", "Normal.", "Glaucoma", "Myopia"]
    assert store.image_bytes(0) == store.image_bytes(3)

    words: dict[str, NDArray] = dict(zip(("drusen", "normal", "glaucoma", "myopia"), np.eye(4), strict=True))
    seen = np.array([[1, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0.5]])  # the twins alike
    model = ArrayModel(tables={"projected": seen}, words=words)
    results = evaluate(model, store, tmp_path / "out", replicates=10, protocols=["retrieval"])["retrieval"]
    assert results["image_to_text"]["median_rank"]["candidates"] == 4
    assert results["image_to_text"]["recall_at_1"]["n"] == 4
    ranks = {row["id"]: row["rank"] for row in pq.read_table(tmp_path / "out" / "retrieval.parquet").to_pylist()}
    assert [ranks[key] for key in store.ids] == [1, 1, 1, 2]
    texts = ("drusen. large cup", "normal", "glaucoma", "myopia")
    assert [ranks[text] for text in texts] == [2, 1, 1, 2]
