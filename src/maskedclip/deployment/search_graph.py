"""An index for more rows than a matrix product serves: usearch's navigable graph, with its recall measured.

At build some rows are held out and searched for, exactly and in the graph; so are texts where the caller has some,
since texts lie elsewhere in the shared space than pictures.  The effort of a search is the least that reaches `TARGET`.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.console import bar, say
from maskedclip.deployment.search_exact import exact_top
from maskedclip.deployment.search_stamp import Stamped
from maskedclip.errors import UserError

TARGET = 0.98
"""Share of the true ten nearest that a search shall find, for pictures and for texts."""
EFFORTS = (32, 64, 128, 256, 512, 1024)
HELD_OUT = 256
_CONNECTIVITY, _BUILD_EFFORT = 16, 128
_CHUNK = 4096


class Graph:
    """A built index: candidates for a query, best first.  Safe to be used by several threads.

    Attributes:
        recall: share of the true ten nearest that it found when it was built, by kind of query (`image`, `text`).
        effort: how many candidates a search holds; more find more and take longer.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        library = _usearch(path)
        self.recall: dict[str, float] = facts["recall"]
        self.effort = int(facts["effort"])
        self.build_seconds = float(facts["build_seconds"])
        self._reading = threading.Lock()  # the library gives concurrent callers the same scratch memory
        try:
            self._index = library.restore(str(path), view=True)
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(f"{path}: is damaged ({error}); delete it, it is built again") from None
        if self._index is None:
            raise UserError(f"{path}: is damaged; delete it, it is built again")

    def __len__(self) -> int:
        return len(self._index)

    def candidates(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Rows, int64, best first, for each of the queries float32 (Q, E); at least three times as many as asked."""
        count = min(3 * count, len(self))
        with self._reading:
            self._index.expansion_search = max(self.effort, count)
            return _keys(self._index, queries, count)


def open_graph(
    path: Path, output: str, values: np.ndarray, usable: np.ndarray | None, texts: np.ndarray | None = None
) -> Graph:
    """The index of one output of a file, built where there is none or the file has changed.

    Args:
        path: the Parquet file.
        output: of which the vectors are.
        values: float32 (N, E), unit rows.
        usable: the rows to be found; None for all.
        texts: float32 (T, E), unit rows, as examples of queries by text.

    Raises:
        UserError: usearch is not installed, or the index is damaged.
    """
    stamped = Stamped(path, f"{output}.usearch")
    facts = stamped.facts()
    if facts is None:
        say(f"{stamped.path}: an index is built, once for this file")
        facts = stamped.make(lambda partial: _build(partial, values, usable, texts))
        shown = ", ".join(f"{share:.3f} for queries by {kind}" for kind, share in facts["recall"].items())
        say(f"{stamped.path}: built in {facts['build_seconds']:.0f} s; recall@10 {shown}")
    return Graph(stamped.path, facts)


def _build(partial: Path, values: np.ndarray, usable: np.ndarray | None, texts: np.ndarray | None) -> dict[str, Any]:
    library = _usearch(partial)
    rows = np.arange(len(values)) if usable is None else usable
    threads = os.cpu_count() or 1
    began = time.perf_counter()
    index = library(
        ndim=values.shape[1],
        metric="cos",
        dtype="bf16",
        connectivity=_CONNECTIVITY,
        expansion_add=_BUILD_EFFORT,
    )
    mixed = np.random.Generator(np.random.Philox(key=0)).permutation(rows)
    held = np.sort(mixed[: min(HELD_OUT, len(rows) // 10)])
    first = np.setdiff1d(rows, held)
    with bar("build index", len(rows)) as shown:
        for start in range(0, len(first), _CHUNK):
            part = first[start : start + _CHUNK]
            index.add(part, np.ascontiguousarray(values[part]), threads=threads)
            shown.advance(len(part))
        queries = {"image": np.asarray(values[held])}
        if texts is not None and len(texts):
            queries["text"] = np.asarray(texts, np.float32)
        effort, recall = _measure(index, values, first, {kind: part for kind, part in queries.items() if len(part)})
        if len(held):
            index.add(held, np.ascontiguousarray(values[held]), threads=threads)
        shown.advance(len(held))
    try:
        index.save(str(partial))
    except RuntimeError as error:  # what usearch makes of a full disk, or of a folder that cannot be written
        raise UserError(f"{partial}: the index cannot be written ({error}); free space, or --index exact") from None
    return {
        "rows": len(rows),
        "width": values.shape[1],
        "recall": recall,
        "effort": effort,
        "held_out": len(held),
        "build_seconds": time.perf_counter() - began,
    }


def _measure(
    index: Any, values: np.ndarray, rows: np.ndarray, queries: dict[str, np.ndarray]
) -> tuple[int, dict[str, float]]:
    """The least effort that reaches the target for all kinds of query, and the recall@10 there."""
    top = min(10, len(rows))
    truth = {kind: exact_top(values, part, top, rows=rows) for kind, part in queries.items()}
    recall: dict[str, float] = {}
    effort = EFFORTS[0]
    for effort in EFFORTS:
        index.expansion_search = effort
        for kind, part in queries.items():
            found = _keys(index, part, min(3 * top, len(rows)))
            shares = [
                len(set(near.tolist()) & set(true.tolist())) / top
                for near, (true, _) in zip(found, truth[kind], strict=True)
            ]
            recall[kind] = float(np.mean(shares))
        if min(recall.values(), default=1.0) >= TARGET:
            break
    return effort, recall


def _keys(index: Any, queries: np.ndarray, count: int) -> list[np.ndarray]:
    matches = index.search(np.ascontiguousarray(queries, np.float32), count, threads=os.cpu_count() or 1)
    if len(queries) == 1:
        return [matches.keys.astype(np.int64)]
    return [keys[:n].astype(np.int64) for keys, n in zip(matches.keys, matches.counts, strict=True)]


def _usearch(path: Path) -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise UserError(
            f"{path}: an index needs the extra `search`: pip install 'maskedclip[search]'; or --index exact"
        ) from None
    return Index
