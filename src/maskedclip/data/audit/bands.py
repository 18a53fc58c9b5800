"""All pairs of 64-bit hashes that differ in few bits, without comparing all pairs: a multi-index of bands.

The bits are cut into m bands.  If two hashes differ in at most r bits, then in at least one band b they differ in at
most t_b bits, as long as the t_b sum to r - m + 1: were they above t_b everywhere, they would differ in r + 1 bits.
So each query looks up every value of each band within t_b bits of its own, in a table of the band's values (Norouzi,
Punjani, Fleet: "Fast search in Hamming space with multi-index hashing", 2012; the uneven t_b: Qin et al., "GPH", 2018).

m queries, n hashes of which u are distinct.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

WIDEST_BAND = 22  # bits: a band's table has an entry for each of its values
_CHUNK = 1 << 16  # queries at once
_HELD = 1 << 24  # candidates compared at once
_COMPARISON = 4.0  # what a comparison costs in lookups


@dataclass(frozen=True)
class _Band:
    """Bits `shift` to `shift + width` of the hashes; `values` are sorted by them, and `starts` says where each begins.

    values: uint64 (u,).  places: of the values in the index's order, int32 (u,).  starts: int64 (2^width + 1,).
    """

    shift: int
    width: int
    within: int
    values: NDArray[np.uint64]
    places: NDArray[np.int32]
    starts: NDArray[np.int64]

    def part(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        return _part(hashes, self.shift, self.width)


def _part(hashes: NDArray[np.uint64], shift: int, width: int) -> NDArray[np.int64]:
    return ((hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)).astype(np.int64)


class HashIndex:
    """Hashes (n,) in which those within `radius` bits of a query are found.

    Raises:
        ValueError: the radius is below 0 or above 16, where the search would be as slow as comparing all.
    """

    def __init__(self, hashes: NDArray[np.uint64], radius: int) -> None:
        if not 0 <= radius <= 16:
            raise ValueError(f"radius is {radius}: give 0 to 16 bits")
        self.radius = radius
        self.values, self._inverse, self.counts = np.unique(hashes, return_inverse=True, return_counts=True)
        """Distinct hashes, sorted, uint64 (u,), and how many rows have each, int64 (u,)."""
        self._members = np.argsort(self._inverse, kind="stable")
        self._first = np.concatenate([[0], np.cumsum(self.counts)])
        self._bands = [_band(self.values, *entry) for entry in plan(len(self.values), radius)]

    def rows(self, value: int) -> NDArray[np.int64]:
        """The rows, ascending, that have the distinct hash of a position in `values`."""
        return self._members[self._first[value] : self._first[value + 1]]

    def search(self, queries: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs within the radius, each once: positions of queries, and positions in `values`, as blocks of (k,)."""
        for start in range(0, len(queries), _CHUNK):
            part = queries[start : start + _CHUNK]
            for place, band in enumerate(self._bands):
                for asked, found in self._lookups(part, place, band):
                    yield asked + start, found

    def _lookups(
        self, queries: NDArray[np.uint64], place: int, band: _Band
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        keys = band.part(queries)
        for mask in _masks(band.width, band.within):
            first = band.starts[keys ^ mask]
            many = band.starts[(keys ^ mask) + 1] - first
            hit = np.flatnonzero(many)
            ends = np.cumsum(many[hit])
            begin = 0
            while begin < len(hit):  # blocks of bounded size, however full a bucket is
                end = max(begin + 1, int(np.searchsorted(ends, (ends[begin - 1] if begin else 0) + _HELD, "right")))
                asked, found = self._compared(queries, hit[begin:end], first, many, band, place)
                if len(asked):
                    yield asked, found
                begin = end

    def _compared(
        self,
        queries: NDArray[np.uint64],
        hit: NDArray[np.int64],
        first: NDArray[np.int64],
        many: NDArray[np.int64],
        band: _Band,
        place: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of the candidates of some queries those within the radius that no earlier band has told."""
        counts = many[hit]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        asked, candidates = np.repeat(hit, counts), np.repeat(first[hit], counts) + offsets
        different = queries[asked] ^ band.values[candidates]
        near = np.bitwise_count(different) <= self.radius
        asked, candidates, different = asked[near], candidates[near], different[near]
        told = np.zeros(len(asked), bool)
        for earlier in self._bands[:place]:
            told |= np.bitwise_count(earlier.part(different)) <= earlier.within
        return asked[~told], band.places[candidates[~told]].astype(np.int64)


def plan(count: int, radius: int) -> list[tuple[int, int, int]]:
    """Bands for `count` distinct hashes: (shift, width, bits within), the cheapest split for evenly spread hashes."""
    best: tuple[float, list[tuple[int, int, int]]] | None = None
    for bands in range(1, max(3, radius + 1) + 1):
        widths = [64 // bands + (place < 64 % bands) for place in range(bands)]
        if radius < bands - 1:  # fewer bands tell all
            widths = [min(WIDEST_BAND, 64 // (radius + 1))] * (radius + 1)
        if max(widths) > WIDEST_BAND:
            continue
        allowed = max(0, radius - len(widths) + 1)
        within = [allowed // len(widths) + (place < allowed % len(widths)) for place in range(len(widths))]
        cost = sum(
            sum(math.comb(width, bits) for bits in range(most + 1)) * (1 + _COMPARISON * count / 2**width)
            for width, most in zip(widths, within, strict=True)
        )
        if best is None or cost < best[0]:
            shifts = np.cumsum([0, *widths[:-1]]).tolist()
            best = cost, list(zip(shifts, widths, within, strict=True))
    assert best is not None
    return best[1]


def _band(values: NDArray[np.uint64], shift: int, width: int, within: int) -> _Band:
    keys = _part(values, shift, width)
    places = np.argsort(keys, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << width))])
    return _Band(shift, width, within, values[places], places.astype(np.int32), starts)


def _masks(width: int, within: int) -> Iterator[int]:
    """Every pattern of at most `within` set bits."""
    for bits in range(within + 1):
        for chosen in combinations(range(width), bits):
            yield sum(1 << bit for bit in chosen)
