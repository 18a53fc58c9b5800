"""Pictures that are there more than once: the same file, a copy that was changed, or the same eye photographed again.

Candidates come from perceptual hashes of all windows of all pictures; a candidate becomes a finding by its pixels.

n rows, of which the first `audited` are the audited store's; k pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskedclip.console import bar
from maskedclip.data.audit.bands import HashIndex
from maskedclip.data.audit.descriptors import Descriptors
from maskedclip.data.audit.likeness import likeness, may_be_alike, residual
from maskedclip.data.audit.windows import WINDOWS, Window, view, window_hashes

LIKENESS = 0.62
"""From here on two pictures are told of.  Measured on 6,214 fundus photographs, see docs/audit.md."""
SAME_PICTURE = 0.9
"""From here on they are one picture; below, one picture or two of the same eye."""
RESIDUAL = 2.0
"""Grey levels: pictures that agree so well but for gain and offset are one, however little structure they have."""
RADIUS, CUT_RADIUS = 8, 6  # bits of the perceptual hash, for the whole picture and for parts
DETAIL, CUT_DETAIL = 40, 32  # bits of 192 of the detail hash
CROWD = 64  # rows of one hash that a row is compared with: a thousand black pictures make no million pairs
_CHUNK = 8192
_VERIFIED = 2048


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of rows that show the same, the surest first; `first` is the lower row.

    Attributes:
        first, second: rows, int64 (k,).
        likeness: correlation of the fine structure, 1 for equal files, float32 (k,).
        same: whether they are one picture, not just one eye, bool (k,).
        how: for a reader, what was done to the one to get the other, (k,).
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    likeness: NDArray[np.float32]
    same: NDArray[np.bool_]
    how: list[str]

    def __len__(self) -> int:
        return len(self.first)


def find_duplicates(known: Descriptors, audited: int, *, least: float = LIKENESS, shown: bool = True) -> Pairs:
    """Pairs of which at least one row is below `audited`, each once.

    A file that is there m times makes m - 1 pairs, each copy with the first of them.
    """
    exact = _exact(known.files, audited)
    candidates = _candidates(known, audited, shown=shown)
    leader = _leaders(known.files)
    pair_of_copies = leader[candidates[:, 0]] == leader[candidates[:, 1]]
    near = candidates[~pair_of_copies]
    score, left = _verified(known, near, shown=shown)
    kept = (score >= least) | (left <= RESIDUAL)
    near, score, left = near[kept], score[kept], left[kept]
    same = (score >= SAME_PICTURE) | (left <= RESIDUAL)
    how = ["the same file"] * len(exact) + [WINDOWS[place].describe() for place in near[:, 2].tolist()]
    first = np.concatenate([exact[:, 0], near[:, 0]])
    second = np.concatenate([exact[:, 1], near[:, 1]])
    total = np.concatenate([np.full(len(exact), 1, np.float32), np.minimum(score, 0.9999).astype(np.float32)])
    order = np.lexsort((second, first, -total))
    return Pairs(
        first=np.minimum(first, second)[order],
        second=np.maximum(first, second)[order],
        likeness=total[order],
        same=np.concatenate([np.ones(len(exact), bool), same])[order],
        how=[how[place] for place in order.tolist()],
    )


def _leaders(files: NDArray[np.object_]) -> NDArray[np.int64]:
    """The first row that has the same file, its own where the hash is not known: (n,)."""
    first: dict[str, int] = {}
    return np.array(
        [row if file is None else first.setdefault(file, row) for row, file in enumerate(files.tolist())], np.int64
    )


def _exact(files: NDArray[np.object_], audited: int) -> NDArray[np.int64]:
    leader = _leaders(files)
    copies = np.flatnonzero(leader != np.arange(len(leader)))
    copies = copies[leader[copies] < audited]
    return np.stack([leader[copies], copies], axis=1)


def _candidates(known: Descriptors, audited: int, *, shown: bool) -> NDArray[np.int64]:
    """Pairs that hashes take for one: lower row, higher row, window, whether the higher one is seen through it: (c, 4).

    Of a pair's windows the one that agrees best is kept.
    """
    whole, cut = HashIndex(known.hashes, RADIUS), HashIndex(known.hashes, CUT_RADIUS)
    count = len(known.hashes)
    blocks = [np.empty((0, 5), np.int64)]
    with bar("searching near-duplicates", count, shown=shown) as wait:
        for start in range(0, count, _CHUNK):
            small = known.small[start : start + _CHUNK].astype(np.float32)
            parts = []
            for place, (window, low, detail) in enumerate(window_hashes(small)):
                index, most = (whole, DETAIL) if window.whole else (cut, CUT_DETAIL)
                low = known.hashes[start : start + _CHUNK] if window == WINDOWS[0] else low
                for asked, found, different in _near(index, low, detail, known.details, most):
                    fits = (asked + start != found) & (np.minimum(asked + start, found) < audited)
                    row, found, different = asked[fits] + start, found[fits], different[fits]
                    swapped = row > found
                    columns = (np.minimum(row, found), np.maximum(row, found), np.full(len(row), place), swapped)
                    parts.append(np.stack([*columns, different], axis=1).astype(np.int64))
            blocks.append(_best(np.concatenate(parts)) if parts else blocks[0])
            wait.advance(len(small))
    return _best(np.concatenate(blocks))[:, :4]


def _near(
    index: HashIndex,
    low: NDArray[np.uint64],
    detail: NDArray[np.uint64],
    details: NDArray[np.uint64],
    most: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Queries, rows and differing bits of the detail hash, of pairs that both hashes take for one."""
    for asked, values in index.search(low):
        counts = np.minimum(index.counts[values], CROWD)
        query = np.repeat(asked, counts)
        found = np.concatenate([index.rows(value)[:CROWD] for value in values.tolist()])
        different = np.bitwise_count(detail[query] ^ details[found]).sum(axis=1)
        kept = different <= most
        yield query[kept], found[kept], different[kept].astype(np.int64)


def _best(found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of the rows (c, 5) of each pair the one with the fewest differing bits, whole pictures first."""
    found = found[np.lexsort((found[:, 2], found[:, 4], found[:, 1], found[:, 0]))]
    new = np.ones(len(found), bool)
    new[1:] = (found[1:, :2] != found[:-1, :2]).any(axis=1)
    return found[new]


def _verified(
    known: Descriptors, pairs: NDArray[np.int64], *, shown: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Likeness and residual of candidate pairs, (c,) each; 0 and infinite where a rough look was enough."""
    score, left = np.zeros(len(pairs), np.float32), np.full(len(pairs), np.inf, np.float32)
    with bar("comparing pixels", len(pairs), shown=shown) as wait:
        for place, window in enumerate(WINDOWS):
            chosen = np.flatnonzero(pairs[:, 2] == place)
            for start in range(0, len(chosen), _VERIFIED):
                part = chosen[start : start + _VERIFIED]
                wait.advance(len(part))
                part = part[may_be_alike(*_views(known.rough, pairs[part], window))]
                seen, other = _views(known.small, pairs[part], window)
                score[part], left[part] = likeness(seen, other), residual(seen, other)
    return score, left


def _views(
    pictures: NDArray[np.uint8] | NDArray[np.int8], pairs: NDArray[np.int64], window: Window
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    swapped = pairs[:, 3] == 1
    through, other = np.where(swapped, pairs[:, 1], pairs[:, 0]), np.where(swapped, pairs[:, 0], pairs[:, 1])
    seen = view(pictures[through].astype(np.float32), window)
    return np.ascontiguousarray(seen), pictures[other].astype(np.float32)
