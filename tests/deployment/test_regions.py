"""Regions: cuts of one tree, on the grid connected, and a choice of them that never overlaps."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maskedclip.deployment.regions import masks_of, named_regions, pieces, propose_regions, region_maps, region_scores


def _quadrants(side: int = 8, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (side, side, 6) of four squares, and the squares' numbers."""
    truth = (np.arange(side) >= side // 2)[:, None] * 2 + (np.arange(side) >= side // 2)[None, :]
    random = np.random.default_rng(0)
    return (np.eye(4, 6)[truth] * 3 + random.normal(0, noise, (side, side, 6))).astype(np.float32), truth


def test_propose_regions__finds_what_differs() -> None:
    tokens, truth = _quadrants()
    (found,) = propose_regions(tokens, (4,))
    assert found.shape == (8, 8)
    pairs = {(int(a), int(b)) for a, b in zip(found.ravel(), truth.ravel(), strict=True)}
    assert len(pairs) == 4  # one to one


def _pieces(mask: np.ndarray) -> int:
    labelled: Any = ndimage.label(mask)
    return labelled[1]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 7))
def test_propose_regions__cuts_are_connected_and_nested(seed: int, rows: int, columns: int) -> None:
    tokens = np.random.default_rng(seed).normal(size=(rows, columns, 5)).astype(np.float32)
    coarse, middle, fine = propose_regions(tokens, (2, 5, 50))
    for partition, count in ((coarse, 2), (middle, 5), (fine, 50)):
        masks = masks_of(partition)
        assert len(masks) == min(count, rows * columns)
        assert np.sum(masks, axis=0).min() == np.sum(masks, axis=0).max() == 1
        assert all(_pieces(mask) == 1 for mask in masks)
    for outer, inner in ((coarse, middle), (middle, fine)):
        assert all(len(np.unique(outer[mask])) == 1 for mask in masks_of(inner))
    assert all(
        np.array_equal(a, b) for a, b in zip(propose_regions(tokens, (2, 5, 50)), (coarse, middle, fine), strict=True)
    )


def test_propose_regions__agrees_with_scikit_learn() -> None:
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.feature_extraction.image import grid_to_graph
    from sklearn.metrics import adjusted_rand_score

    tokens = np.random.default_rng(1).normal(size=(6, 7, 4)).astype(np.float32)
    flat = tokens.reshape(42, 4).astype(np.float64)
    flat -= flat.mean(axis=0)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    for count in (3, 9):
        peer = AgglomerativeClustering(count, connectivity=grid_to_graph(6, 7)).fit(flat)
        assert adjusted_rand_score(peer.labels_, propose_regions(tokens, (count,))[0].ravel()) == pytest.approx(1)


def test_region_scores__are_cosines_of_means_and_maps_paint_them() -> None:
    random = np.random.default_rng(2)
    embeddings = random.normal(size=(4, 4, 3)).astype(np.float32)
    directions = random.normal(size=(2, 3)).astype(np.float32)
    partition = np.repeat([[0, 0, 1, 1]], 4, axis=0)
    scores = region_scores(masks_of(partition), embeddings, directions)
    for number in range(2):
        mean = np.mean([embeddings[r, c] for r in range(4) for c in range(4) if partition[r, c] == number], axis=0)
        assert np.allclose(scores[number], directions @ (mean / np.linalg.norm(mean)), atol=1e-6)
    painted = region_maps([partition, np.zeros_like(partition)], embeddings, directions)
    whole = region_scores([np.ones((4, 4), bool)], embeddings, directions)[0]
    assert np.allclose(painted[1, 0, 3], (scores[1, 1] + whole[1]) / 2, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_named_regions__never_overlap_and_beat_the_background(seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = [random.random((5, 5)) < 0.3 for _ in range(12)]
    masks = [mask for mask in masks if mask.any()]
    scores = random.normal(size=(len(masks), 3)).astype(np.float32)
    background = random.normal(size=len(masks)).astype(np.float32)
    chosen = named_regions(masks, scores, background, ["a", "b", "c"], least=0.1)
    total = np.sum([region.mask for region in chosen], axis=0) if chosen else np.zeros((5, 5))
    assert np.max(total) <= 1
    margins = scores - background[:, None]
    assert [region.score for region in chosen] == sorted((region.score for region in chosen), reverse=True)
    for region in chosen:
        place = next(n for n, mask in enumerate(masks) if mask is region.mask)
        assert region.score == pytest.approx(margins[place].max())
        assert region.label == "abc"[margins[place].argmax()]
        assert region.score > 0.1
    union = total > 0
    for mask, margin in zip(masks, margins.max(axis=1), strict=True):  # what was left out has a reason
        if margin > 0.1 and not any(mask is region.mask for region in chosen):
            assert (mask & union).any()


def test_named_regions__leave_out_what_is_not_seen() -> None:
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    args = ([mask], np.ones((1, 1), np.float32), np.zeros(1, np.float32), ["a"])
    visible = np.zeros((4, 4), bool)
    visible[0, :1] = True
    assert not named_regions(*args, visible=visible)
    visible[0, :2] = True
    assert len(named_regions(*args, visible=visible)) == 1


def test_pieces__tell_place_and_size() -> None:
    mask = np.zeros((6, 8), bool)
    mask[0:2, 0:3], mask[4, 5], mask[5, 6] = True, True, True  # the last two touch at a corner: one piece
    values = np.zeros((6, 8), np.float32)
    values[1, 2], values[4, 5] = 0.5, 0.9
    first, second = pieces(mask, values)
    assert (first["row"], first["column"], first["px"], first["score"]) == (4, 5, 2, pytest.approx(0.9))
    assert [second[name] for name in ("top", "left", "bottom", "right", "px")] == [0, 0, 2, 3, 6]
    assert len(pieces(mask, values, least=3)) == 1
