"""The banded search finds what comparing all pairs finds, and nothing twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedclip.data.audit.bands import WIDEST_BAND, HashIndex, plan


def _all_pairs(queries: np.ndarray, values: np.ndarray, radius: int) -> list[tuple[int, int]]:
    near = np.bitwise_count(queries[:, None] ^ values[None, :]) <= radius
    return sorted(zip(*(part.tolist() for part in np.nonzero(near)), strict=True))


def _found(index: HashIndex, queries: np.ndarray) -> list[tuple[int, int]]:
    return sorted(
        pair for asked, values in index.search(queries) for pair in zip(asked.tolist(), values.tolist(), strict=True)
    )


@pytest.mark.parametrize("radius", [0, 1, 3, 6, 8, 12])
def test_search__equals_all_pairs(radius: int) -> None:
    random = np.random.Generator(np.random.Philox(radius))
    centres = random.integers(0, 2**64, 20, dtype=np.uint64)
    hashes = np.repeat(centres, 20)
    for _ in range(radius + 3):  # clouds around the centres, within the radius and beyond it
        hashes ^= np.uint64(1) << random.integers(0, 64, len(hashes)).astype(np.uint64)
    index = HashIndex(hashes, radius)
    queries = hashes[::3]
    assert _found(index, queries) == _all_pairs(queries, index.values, radius)
    assert len(_found(index, queries)) >= len(queries)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12), st.integers(0, 2**64 - 1), st.integers(0, 10))
def test_search__any_hashes(known: list[int], mask: int, radius: int) -> None:
    hashes = np.array(known, np.uint64)
    queries = hashes ^ np.uint64(mask)
    index = HashIndex(hashes, radius)
    assert _found(index, queries) == _all_pairs(queries, index.values, radius)


def test_search__blocks_do_not_lose_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskedclip.data.audit.bands._HELD", 5)
    monkeypatch.setattr("maskedclip.data.audit.bands._CHUNK", 7)
    hashes = np.arange(60, dtype=np.uint64)
    index = HashIndex(hashes, 3)
    assert _found(index, hashes) == _all_pairs(hashes, index.values, 3)


@pytest.mark.parametrize("count", [1, 5_000, 1_000_000, 10_000_000])
@pytest.mark.parametrize("radius", [0, 2, 6, 8])
def test_plan__misses_no_pair(count: int, radius: int) -> None:
    bands = plan(count, radius)
    covered = [bit for shift, width, _ in bands for bit in range(shift, shift + width)]
    assert len(covered) == len(set(covered))
    assert max(covered) < 64
    assert all(width <= WIDEST_BAND for _, width, _ in bands)
    # Above `within` in every band would be more than the radius in all.
    assert sum(within + 1 for _, _, within in bands) >= radius + 1


def test_rows__of_a_hash() -> None:
    index = HashIndex(np.array([5, 9, 5, 5], np.uint64), 0)
    assert index.rows(0).tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="radius"):
        HashIndex(np.zeros(1, np.uint64), 17)
