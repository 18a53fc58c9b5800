"""Search the file that `embed` wrote: by text, by picture, by both, among all rows or those that pass a filter.

Scores are cosines.  Up to a million rows every search is exact; beyond, an index finds the candidates, whose scores are
exact.  Reading is safe in several threads at once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

from maskedclip.deployment.search_exact import best_of, exact_top
from maskedclip.deployment.search_graph import Graph, open_graph
from maskedclip.deployment.search_mask import rows_where
from maskedclip.deployment.search_pictures import Pictures
from maskedclip.deployment.search_stamp import sha256
from maskedclip.deployment.search_vectors import IN_MEMORY, is_vector, open_parquet, read_vectors
from maskedclip.errors import UserError

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them
Kind = Literal["auto", "exact", "approximate"]

EXACT_ROWS = 1_000_000
"""Up to this many rows `auto` searches exactly."""
_EXACT_SUBSET = 100_000
_MOST_CANDIDATES = 20_000
_COPY = 1e-5


@dataclass(frozen=True)
class Hit:
    """One row that was found.

    Attributes:
        id: of the row.
        score: cosine between query and row, in [-1, 1].
        columns: the row's other columns by name, vectors left out.
        row: its number in the file.
    """

    id: str
    score: float
    columns: dict[str, Any] = field(repr=False)
    row: int = -1


def compose(
    image: np.ndarray | None,
    text: np.ndarray | None,
    weight: float = 0.5,
    *,
    without: np.ndarray | None = None,
) -> np.ndarray:
    """One query from a picture and a text: "this, but with haemorrhages".

    Args:
        image: direction of the picture (E,).
        text: direction of what shall be there (E,).
        weight: share of the text, 0 to 1; the picture has the rest.  Without a picture the text counts fully.
        without: direction of what shall not be there (E,), subtracted with `weight`.

    Returns: unit length, float32 (E,).

    Raises:
        UserError: nothing is given, the weight is out of range, widths differ, or the parts cancel out.
    """
    if not 0 <= weight <= 1:
        raise UserError(f"weight: {weight} is outside 0 (picture only) to 1 (text only)")
    shares = [(image, 1.0 if text is None else 1 - weight), (text, 1.0 if image is None else weight)]
    given = [(np.asarray(part, np.float64), share) for part, share in [*shares, (without, -weight)] if part is not None]
    if not given or (image is None and text is None):
        raise UserError("a query needs a picture or a text")
    if len({part.shape for part, _ in given}) != 1 or given[0][0].ndim != 1:
        raise UserError(f"a query's parts differ in shape: {', '.join(str(part.shape) for part, _ in given)}")
    total = sum(share * _unit(part) for part, share in given)
    if not np.linalg.norm(total) > 1e-6:
        raise UserError("the query's parts cancel out; change --weight")
    return _unit(np.asarray(total)).astype(np.float32)


class SearchIndex:
    """The rows of one Parquet file, by one of its outputs.

    Attributes:
        path, output: what was opened.
        model: fingerprint of the model that made the vectors, "" where the file names none.
        source: the data that was embedded, where the file names it.  table: the columns that are no vectors.
        graph: the index, None where every search is exact.  left_out: rows without a vector, which are never found.
    """

    def __init__(self, path: Path, output: str, kind: Kind, texts: np.ndarray | None, in_memory: int) -> None:
        file = open_parquet(path)
        schema = file.schema_arrow
        metadata = schema.metadata or {}
        self.path, self.output = path, output
        self.model = metadata.get(b"maskedclip.model", b"").decode(errors="replace")
        named = metadata.get(b"maskedclip.source", b"").decode(errors="replace")
        self.source = Path(named) if named else None
        light = [entry.name for entry in schema if not is_vector(entry.type) and not _is_heavy(entry.type)]
        if "id" not in light:
            raise UserError(f"{path}: has no column id; give a file that `maskedclip embed` wrote")
        vectors = read_vectors(path, output, in_memory=in_memory)
        try:
            self.table = file.read(columns=light).select(light)  # `a` would bring `a.b`, too
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: is damaged ({str(error).splitlines()[0]}); embed again") from None
        self._values, self._usable = vectors.values, vectors.usable
        self.left_out = vectors.left_out
        approximate = kind == "approximate" or (kind == "auto" and len(self) > EXACT_ROWS)
        self.graph: Graph | None = open_graph(path, output, self._values, self._usable, texts) if approximate else None
        self._pictures: Pictures | None = None

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def width(self) -> int:
        """E, of a query."""
        return self._values.shape[1]

    @property
    def kind(self) -> Literal["exact", "approximate"]:
        """How rows are found."""
        return "exact" if self.graph is None else "approximate"

    @property
    def columns(self) -> list[str]:
        """What a filter may ask for."""
        return self.table.column_names

    def rows(self, where: str | None) -> np.ndarray | None:
        """The rows that pass a filter and have a vector, int64, ascending; None for all rows.

        Raises:
            UserError: the filter cannot be read; with position and known columns.
        """
        if where is None or not where.strip():
            return self._usable
        passing = rows_where(self.table, where)
        return passing if self._usable is None else np.intersect1d(passing, self._usable, assume_unique=True)

    def search(
        self,
        query: np.ndarray,
        top: int = 10,
        where: str | None = None,
        *,
        leave_out: Sequence[Collection[int]] | None = None,
    ) -> list[list[Hit]]:
        """The nearest rows.

        Args:
            query: float (Q, E), of any length above zero.
            top: how many rows a query.
            where: a filter, see docs/search.md.
            leave_out: for each query, rows that shall not be found (its own, those of its patient).

        Returns: for each query at most `top` hits, best first; equal scores in the order of the file.

        Raises:
            UserError: the shape does not fit, a query is not finite or zero, or the filter cannot be read.
        """
        wide = np.asarray(query, np.float64)
        if wide.ndim != 2 or wide.shape[1] != self.width:
            raise UserError(f"query: shape {wide.shape} does not fit (Q, {self.width}) of {self.output} in {self.path}")
        lengths = np.linalg.norm(wide, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise UserError("query: is zero or not finite; encode it again")
        if top < 1:
            raise UserError(f"top: {top} is below 1")
        unwanted = [set(entry) for entry in leave_out] if leave_out is not None else [set()] * len(wide)
        if len(unwanted) != len(wide):
            raise UserError(f"leave_out: {len(unwanted)} entries for {len(wide)} queries")
        unit = (wide / lengths).astype(np.float32)
        rows = self.rows(where)
        tops = [top + len(entry) for entry in unwanted]
        found = self._nearest(unit, tops, rows) if self.graph else exact_top(self._values, unit, tops, rows=rows)
        return [self._hits(*entry, skip, top) for entry, skip in zip(found, unwanted, strict=True)]

    def row(self, id: str) -> int:
        """Number of the first row with an id.

        Raises:
            UserError: there is none.
        """
        found = int(pc.index(self.table.column("id").cast(pa.string()), pa.scalar(id)).as_py())
        if found < 0:
            raise UserError(f"{self.path}: has no row with the id {id!r}")
        return found

    def vector(self, row: int) -> np.ndarray:
        """Unit vector of a row, float32 (E,); zero where it has none."""
        return np.array(self._values[row])

    def same_patient(self, row: int) -> set[int]:
        """A row and the others of its patient; the row alone where no patient is known."""
        if "patient" not in self.columns:
            return {row}
        patients = self.table.column("patient")
        own = patients[row].as_py()
        if own in (None, ""):
            return {row}
        return {row, *np.flatnonzero(pc.fill_null(pc.equal(patients, patients[row]), False).to_numpy()).tolist()}

    def row_of_file(self, path: Path) -> int | None:
        """The first row that was made of a file with these bytes, by a store's column sha256; None where none is."""
        if "sha256" not in self.columns:
            return None
        found = int(pc.index(self.table.column("sha256").cast(pa.string()), pa.scalar(sha256(path))).as_py())
        return found if found >= 0 else None

    def copy_of(self, query: np.ndarray) -> int | None:
        """The first row that has the direction (E,) of a query: the same picture.  None where there is none."""
        found = self.search(query[None], 1)[0]
        return found[0].row if found and found[0].score > 1 - _COPY else None

    def picture(self, id: str, size: int = 256) -> bytes | None:
        """A JPEG of at most `size` px a side, from the data that was embedded; None where it cannot be had."""
        return self.pictures().thumbnail(self.row(id), size)

    def pictures(self, source: Path | None = None) -> Pictures:
        """The pictures of the rows; `source` names where they are now, instead of what the file says."""
        if source is not None or self._pictures is None:
            self._pictures = Pictures(self.table, source or self.source)
        return self._pictures

    def _nearest(
        self, queries: np.ndarray, tops: list[int], rows: np.ndarray | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """By the index; among few rows, or where the filter leaves too few of its candidates, exactly."""
        assert self.graph is not None
        total = len(self.graph)
        if rows is not None and len(rows) <= _EXACT_SUBSET and len(rows) < total:
            return exact_top(self._values, queries, tops, rows=rows)
        passing = None
        share = 1.0
        if rows is not None and len(rows) < total:
            passing = np.zeros(len(self), bool)
            passing[rows] = True
            share = len(rows) / total
        found: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(queries)
        waiting = list(range(len(queries)))
        count = int(np.ceil(max(tops) / share))
        while waiting and count <= _MOST_CANDIDATES:
            near = self.graph.candidates(queries[waiting], count)
            for query, listed in zip(waiting, near, strict=True):
                kept = listed if passing is None else listed[passing[listed]]
                if len(kept) >= min(tops[query], total):
                    found[query] = best_of(self._values, queries[query], kept, tops[query])
            waiting = [query for query in waiting if found[query] is None]
            count *= 4
        if waiting:
            rest = exact_top(self._values, queries[waiting], [tops[query] for query in waiting], rows=rows)
            for query, entry in zip(waiting, rest, strict=True):
                found[query] = entry
        return [entry for entry in found if entry is not None]

    def _hits(self, rows: np.ndarray, scores: np.ndarray, skip: set[int], top: int) -> list[Hit]:
        kept = [(int(row), float(score)) for row, score in zip(rows, scores, strict=True) if int(row) not in skip][:top]
        taken = self.table.take(pa.array([row for row, _ in kept], pa.int64())).to_pylist()
        return [
            Hit(str(columns.pop("id")), score, columns, row) for (row, score), columns in zip(kept, taken, strict=True)
        ]


def open_index(
    path: Path | str,
    *,
    output: str = "projected",
    kind: Kind = "auto",
    texts: np.ndarray | None = None,
    in_memory: int = IN_MEMORY,
) -> SearchIndex:
    """Open what `maskedclip embed` wrote for searching.

    Args:
        path: the Parquet file; float32, float16 or float64 vectors, as fixed-size or plain lists.
        output: `projected`, comparable with texts; `encoder` or `bridge` for pictures that look alike.
        kind: `exact`; `approximate`, by an index, built once beside the file; `auto`, exact up to a million rows.
        texts: float32 (T, E), examples of queries by text, with which a new index measures its recall for texts too.
        in_memory: bytes of vectors up to which no converted copy is kept beside the file.

    Raises:
        UserError: the file or the output is missing, or an index is asked for and usearch is not installed.
    """
    if kind not in ("auto", "exact", "approximate"):
        raise UserError(f"--index {kind}: give auto, exact or approximate")
    return SearchIndex(Path(path), output, kind, texts, in_memory)


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    if not (np.isfinite(length) and length > 0):
        raise UserError("a part of the query is zero or not finite; encode it again")
    return vector / length


def _is_heavy(kind: Any) -> bool:
    """Pictures, patch tokens and the like, of no use beside a hit."""
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.types.is_nested(kind.value_type)
    nested = pa.types.is_struct(kind) or pa.types.is_map(kind)
    return nested or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
