"""The nearest rows by matrix product, block by block, in an order that no block size or number of threads can change.

A float32 product finds all rows that may belong to the nearest, given its largest possible rounding error; these few
are scored again in float64, each by itself.  Rows with equal scores keep the order of the file.
"""

from collections.abc import Sequence

import numpy as np

BLOCK = 1 << 16
"""Rows of a block: with 64 queries its scores take 16 MiB."""
_QUERIES = 64
_RESCORED = 4096
_FLOAT32_UNIT = 2.0**-24


def exact_top(
    vectors: np.ndarray,
    queries: np.ndarray,
    top: int | Sequence[int],
    *,
    rows: np.ndarray | None = None,
    block: int = BLOCK,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The `top` rows with the largest inner product with each query.

    Args:
        vectors: float32 (N, E), unit length; may be memory-mapped.
        queries: float32 (Q, E), unit length.
        top: how many, one number or one for each query; fewer come back where there are fewer rows.
        rows: the rows that may be found, int64, ascending; None for all.

    Returns: for each query the rows, int64, best first, equal ones in the file's order, and their float64 scores.
    """
    tops = [top] * len(queries) if isinstance(top, int) else list(top)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, len(queries), _QUERIES):
        part = np.ascontiguousarray(queries[start : start + _QUERIES], np.float32)
        candidates = _candidates(vectors, part, tops[start : start + _QUERIES], rows, block)
        found += [
            best_of(vectors, query, near, wanted)
            for query, near, wanted in zip(part, candidates, tops[start : start + _QUERIES], strict=True)
        ]
    return found


def best_of(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `top` of some rows by their float64 scores: rows and scores."""
    scores = np.empty(len(rows))
    wide = query.astype(np.float64)
    for start in range(0, len(rows), _RESCORED):
        part = rows[start : start + _RESCORED]
        scores[start : start + len(part)] = (vectors[part].astype(np.float64) * wide).sum(axis=1)
    order = np.lexsort((rows, -scores))[:top]
    return rows[order], scores[order]


def _candidates(
    vectors: np.ndarray, queries: np.ndarray, tops: list[int], rows: np.ndarray | None, block: int
) -> list[np.ndarray]:
    """For each query all rows that a float32 score cannot rule out."""
    width = vectors.shape[1]
    error = width * _FLOAT32_UNIT / (1 - width * _FLOAT32_UNIT)
    # Twice, of the row and of the one it is compared with; the rest for vectors and limits that are rounded themselves.
    margin = 2.05 * error + 2.0**-22
    kept = [_Kept(top, margin) for top in tops]
    for start in range(0, len(vectors), block):
        stop = min(start + block, len(vectors))
        names, matrix = _block(vectors, rows, start, stop)
        if not len(names):
            continue
        scores = np.ascontiguousarray((matrix @ queries.T).T)  # a third faster than queries @ matrix.T
        if len(matrix) != len(names):
            scores = scores[:, names - start]
        for query, nearest in enumerate(kept):
            nearest.add(names, scores[query])
    return [nearest.rows() for nearest in kept]


def _block(vectors: np.ndarray, rows: np.ndarray | None, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The wanted rows of a block, and the vectors of these, or of the whole block where most of it is wanted."""
    if rows is None:
        return np.arange(start, stop), vectors[start:stop]
    inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
    return inside, vectors[start:stop] if 4 * len(inside) > stop - start else vectors[inside]


class _Kept:
    """Rows that may be among the nearest of one query, and the score below which none can be."""

    def __init__(self, top: int, margin: float) -> None:
        self.top, self.margin, self.least = top, margin, -np.inf
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []
        self.count = 0

    def add(self, rows: np.ndarray, scores: np.ndarray) -> None:
        if self.least == -np.inf and len(scores) > self.top:
            self._raise(scores)
        near = np.flatnonzero(scores >= self.least)
        if len(near):
            self.parts.append((rows[near], scores[near]))
            self.count += len(near)
        if self.count > 4 * self.top + 1024:
            self._prune()

    def _raise(self, scores: np.ndarray) -> None:
        """Lift the limit to what the nearest of these scores allow."""
        if self.top < len(scores):
            last = len(scores) - self.top
            self.least = max(self.least, float(np.partition(scores, last)[last]) - self.margin)

    def _prune(self) -> None:
        rows, scores = (np.concatenate(values) for values in zip(*self.parts, strict=True))
        self._raise(scores)
        near = scores >= self.least
        self.parts = [(rows[near], scores[near])]
        self.count = int(near.sum())

    def rows(self) -> np.ndarray:
        if not self.parts:
            return np.zeros(0, np.int64)
        self._prune()
        return self.parts[0][0].astype(np.int64)
