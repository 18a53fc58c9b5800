"""The vectors of a Parquet file as one float32 matrix of unit rows: in memory where it is small, else memory-mapped."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.console import bar, say
from maskedclip.deployment.search_stamp import Stamped
from maskedclip.errors import UserError

IN_MEMORY = 256 << 20
"""Bytes of float32 up to which the matrix is read anew each time, and no copy is kept."""
_BATCH = 8192


@dataclass(frozen=True)
class Vectors:
    """values: float32 (N, E), unit rows.  left_out: rows without a vector (null, not finite, or zero), int64."""

    values: np.ndarray
    left_out: np.ndarray

    @property
    def usable(self) -> np.ndarray | None:
        """The rows that have a vector, int64, ascending; None where all have."""
        return np.setdiff1d(np.arange(len(self.values)), self.left_out) if len(self.left_out) else None


def read_vectors(path: Path, output: str, *, in_memory: int = IN_MEMORY) -> Vectors:
    """Read one output of a file, of any float type; a large one is converted once and kept beside the file.

    Raises:
        UserError: the file cannot be read, or has no such output.
    """
    file = open_parquet(path)
    width = _width(path, file, output)
    shape = (file.metadata.num_rows, width)
    if 4 * shape[0] * shape[1] <= in_memory:
        values = np.empty(shape, np.float32)
        return Vectors(values, _fill(values, path, file, output))
    stamped = Stamped(path, f"{output}.vectors.npy")
    facts = stamped.facts()
    if facts is None:
        try:
            facts = stamped.make(lambda partial: _convert(partial, shape, path, file, output))
        except OSError as error:
            reason = "no space left" if error.errno == errno.ENOSPC else error.strerror
            say(f"{stamped.path}: cannot be written ({reason}); the vectors are held in memory this time")
            values = np.empty(shape, np.float32)
            return Vectors(values, _fill(values, path, file, output))
    try:
        values = np.load(stamped.path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{stamped.path}: is damaged ({error}); delete it, it is made again") from None
    if values.shape != shape or values.dtype != np.float32:
        raise UserError(f"{stamped.path}: does not fit {path.name}; delete it, it is made again")
    return Vectors(values, np.asarray(facts["left_out"], np.int64))


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a file for reading column by column.

    Raises:
        UserError: it is missing, or no Parquet file.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `maskedclip embed RUN --data STORE --out {path}` makes one")
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: no readable Parquet file ({str(error).splitlines()[0]}); embed again") from None


def is_vector(kind: Any) -> bool:
    """Whether a column's type is a list of floats."""
    listed = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return listed and pa.types.is_floating(kind.value_type)


def _width(path: Path, file: pq.ParquetFile, output: str) -> int:
    schema = file.schema_arrow
    if output not in schema.names or not is_vector(schema.field(output).type):
        have = [field.name for field in schema if is_vector(field.type)]
        mend = f"give one of {', '.join(have)} with --output" if have else "give a file that `maskedclip embed` wrote"
        raise UserError(f"{path}: has no vectors `{output}`; {mend}")
    if file.metadata.num_rows == 0:
        raise UserError(f"{path}: has no rows; embed some images")
    kind = schema.field(output).type
    if pa.types.is_fixed_size_list(kind):
        return kind.list_size
    for batch in _read(path, file, output):
        lengths = [length for length in batch.column(output).value_lengths().unique().to_pylist() if length]
        if lengths:
            return lengths[0]
    raise UserError(f"{path}: `{output}` has no vector in any row; embed again")


def _convert(partial: Path, shape: tuple[int, int], path: Path, file: pq.ParquetFile, output: str) -> dict[str, Any]:
    values = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
    if hasattr(os, "posix_fallocate"):  # a map of a file with holes ends the process where the disk is full
        with partial.open("r+b") as reserved:
            os.posix_fallocate(reserved.fileno(), 0, partial.stat().st_size)
    left_out = _fill(values, path, file, output)
    values.flush()
    return {"output": output, "rows": shape[0], "width": shape[1], "left_out": left_out.tolist()}


def _fill(values: np.ndarray, path: Path, file: pq.ParquetFile, output: str) -> np.ndarray:
    """Write unit rows into `values`; the rows that have no direction become zero and are returned."""
    left_out = []
    with bar("read vectors", len(values)) as shown:
        for start, rows in _batches(path, file, output, values.shape[1]):
            lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
            good = np.isfinite(lengths) & (lengths > 0)
            rows[~good] = 0
            values[start : start + len(rows)] = rows / np.where(good, lengths, 1)[:, None]
            left_out.append(start + np.flatnonzero(~good))
            shown.advance(len(rows))
    return np.concatenate(left_out).astype(np.int64)


def _read(path: Path, file: pq.ParquetFile, output: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(_BATCH, columns=[output])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is damaged ({str(error).splitlines()[0]}); embed again") from None


def _batches(path: Path, file: pq.ParquetFile, output: str, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """First row and float64 (n, E) of each batch; NaN where there is no vector."""
    start = 0
    for batch in _read(path, file, output):
        column: Any = batch.column(output)
        rows = np.full((len(column), width), np.nan)
        there = column.is_valid().to_numpy(zero_copy_only=False)
        if not pa.types.is_fixed_size_list(column.type):
            wrong = np.flatnonzero(there & (np.asarray(column.value_lengths().fill_null(width)) != width))
            if len(wrong):
                raise UserError(
                    f"{path}: `{output}` of row {start + wrong[0]} is not {width} wide as the others; embed again"
                )
        flat = column.drop_null().flatten()
        rows[there] = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
        yield start, rows
        start += len(column)
