"""Exact search equals a naive float64 reference, whatever the blocks, the number of queries and the ties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedclip.deployment.search_exact import exact_top


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _reference(vectors: np.ndarray, query: np.ndarray, top: int, rows: np.ndarray | None) -> list[tuple[int, float]]:
    """Every row scored in float64, one after another, and sorted by score, then row."""
    allowed = range(len(vectors)) if rows is None else rows.tolist()
    wide = query.astype(np.float64)
    scored = [(-float((vectors[row].astype(np.float64) * wide).sum()), int(row)) for row in allowed]
    return [(row, -score) for score, row in sorted(scored)[:top]]


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 70),
    st.integers(1, 25),
    st.booleans(),
)
@settings(max_examples=60)
def test_exact_top__equals_the_reference(
    seed: int, count: int, width: int, asked: int, top: int, block: int, subset: bool
) -> None:
    random = np.random.default_rng(seed)
    # Few different directions: most scores are tied, exactly.
    vectors = _unit(random.integers(-1, 2, (count, width)) + 0.25)
    queries = _unit(random.integers(-1, 2, (asked, width)) + 0.25)
    rows = np.flatnonzero(random.uniform(size=count) < 0.5) if subset else None
    for query, (found, scores) in zip(queries, exact_top(vectors, queries, top, rows=rows, block=block), strict=True):
        expected = _reference(vectors, query, top, rows)
        assert found.tolist() == [row for row, _ in expected]
        assert scores.tolist() == [score for _, score in expected]


def test_exact_top__blocks_and_company_do_not_matter() -> None:
    random = np.random.default_rng(0)
    vectors = _unit(random.normal(size=(3000, 37)) + 4)  # all near one another: float32 cannot tell some apart
    vectors[2000:2500] = vectors[:500]
    queries = _unit(random.normal(size=(70, 37)) + 4)
    alone = [exact_top(vectors, queries[place : place + 1], 50)[0] for place in range(len(queries))]
    for block in (1, 999, 4096):
        for (rows, scores), (own, own_scores) in zip(exact_top(vectors, queries, 50, block=block), alone, strict=True):
            assert np.array_equal(rows, own)
            assert np.array_equal(scores, own_scores)


def test_exact_top__finds_what_float32_ranks_wrongly() -> None:
    random = np.random.default_rng(1)
    centre = random.normal(size=512)
    vectors = _unit(
        centre + 1e-4 * random.normal(size=(2000, 512))
    )  # scores differ by less than a float32 product errs
    query = _unit(centre[None])
    expected = [row for row, _ in _reference(vectors, query[0], 10, None)]
    coarse = np.argsort(-(query @ vectors.T)[0], kind="stable")[:10].tolist()
    assert coarse != expected  # else this test shows nothing
    assert exact_top(vectors, query, 10)[0][0].tolist() == expected


def test_exact_top__all_rows_alike_and_a_top_for_each_query() -> None:
    vectors = np.tile(_unit(np.ones((1, 8))), (5000, 1))
    queries = vectors[:2]
    first, second = exact_top(vectors, queries, [3, 4000], block=100)
    assert first[0].tolist() == [0, 1, 2]
    assert second[0].tolist() == list(range(4000))
    assert first[1] == pytest.approx(1)
    assert exact_top(vectors, queries, 5, rows=np.zeros(0, np.int64))[0][0].tolist() == []
