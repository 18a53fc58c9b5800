"""Finished parts of an embedding in `FILE.parquet.partial/`, each there completely or not at all, and how they join.

A part is a fixed range of the inputs' rows, so neither a crash nor the number of ranks changes what is in it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskedclip.data.shards import write_atomically
from maskedclip.deployment.inputs import Rejected
from maskedclip.errors import UserError

PART_ROWS = 512
_PART_BYTES = 64 << 20
_BEGUN, _REJECTED = "embedding.json", b"maskedclip.rejected"
_NAMES = {  # what a person calls the settings of an unfinished embedding
    "model": "another model",
    "data": "other data",
    "outputs": "other --outputs",
    "dtype": "another --dtype",
    "precision": "another --precision",
    "batch": "another --batch",
    "device": "another kind of --device",
    "rows_a_part": "another version",
    "version": "another version",
}


def rows_a_part(batch: int, row_bytes: int) -> int:
    """Rows of a part: whole batches, about `PART_ROWS`, fewer where a row is large (patch tokens)."""
    rows = min(PART_ROWS, max(1, _PART_BYTES // max(row_bytes, 1)))
    return max(1, rows // batch) * batch


class Parts:
    """The parts of one embedding.

    Attributes: `folder`, `FILE.parquet.partial`; `count`, how many parts there are in all.
    """

    def __init__(self, out: Path, rows: int, settings: dict[str, Any]) -> None:
        self.out, self.rows, self.settings = out, rows, settings
        self.folder = out.with_name(f"{out.name}.partial")
        self.size: int = settings["rows_a_part"]
        self.count = -(-rows // self.size)

    @property
    def begun(self) -> bool:
        """Whether an unfinished embedding of this output is there."""
        return (self.folder / _BEGUN).is_file()

    def begin(self) -> None:
        """Make the folder, or go on in it.

        Raises:
            UserError: it belongs to another model, other data or other settings, or it is something else.
        """
        if self.begun:
            try:
                before = json.loads((self.folder / _BEGUN).read_text())
            except ValueError:
                before = {}
            other = [_NAMES.get(name, name) for name, value in self.settings.items() if before.get(name) != value]
            if other:
                raise UserError(
                    f"{self.folder}: was begun with {' and '.join(dict.fromkeys(other))}; give that command again to "
                    "go on, or delete the folder to start anew"
                )
            return
        if self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir())):
            raise UserError(f"{self.folder}: is no unfinished embedding; delete it, or choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / _BEGUN, json.dumps(self.settings, indent=2).encode())

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """The folder for this process alone, until it ends, however it ends.

        Raises:
            UserError: another process is at it.
        """
        with (self.folder / ".claim").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another process is writing it; wait, or stop that one") from None
            except OSError:  # a file system without locks
                pass
            yield

    def range(self, part: int) -> range:
        """The rows of the inputs that a part covers."""
        return range(part * self.size, min((part + 1) * self.size, self.rows))

    def is_done(self, part: int) -> bool:
        """Whether a part is there and whole."""
        try:
            pq.read_metadata(self._file(part))
        except (OSError, pa.ArrowInvalid):
            return False
        return True

    def write(self, part: int, table: pa.Table, rejected: list[Rejected]) -> None:
        """Write a part; what was left out of it travels along."""
        told = json.dumps([[entry.id, entry.reason] for entry in rejected]).encode()
        sink = pa.BufferOutputStream()
        with _writer(sink, table.schema.with_metadata({_REJECTED: told})) as writer:
            writer.write_table(table.replace_schema_metadata({_REJECTED: told}))
        write_atomically(self._file(part), memoryview(sink.getvalue()))

    def rejected(self) -> Iterator[Rejected]:
        """What was left out, in order."""
        for part in range(self.count):
            metadata = pq.read_schema(self._file(part)).metadata or {}
            for name, reason in json.loads(metadata[_REJECTED]):
                yield Rejected(name, reason)

    def join(self, metadata: dict[bytes, bytes]) -> int:
        """Write all parts as one file in the folder, a row group each, without holding more than one; its rows."""
        rows, joined = 0, self.joined
        writer: pq.ParquetWriter | None = None
        partial = joined.with_name(f"{joined.name}.tmp")
        try:
            for part in range(self.count):
                table = pq.read_table(self._file(part))
                if not len(table):
                    continue
                if writer is None:
                    writer = _writer(partial, table.schema.with_metadata(metadata))
                writer.write_table(table.replace_schema_metadata(metadata), row_group_size=self.size)
                rows += len(table)
        finally:
            if writer is not None:
                writer.close()
        if rows:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(joined)
        return rows

    @property
    def joined(self) -> Path:
        """Where `join` writes."""
        return self.folder / "joined.parquet"

    def remove(self) -> None:
        """Delete the folder with all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, part: int) -> Path:
        return self.folder / f"part-{part:06d}.parquet"


def feature_array(values: NDArray[np.float32], dtype: str) -> pa.Array:
    """Features (N, D), or tokens (N, L, D), as lists of fixed length, for `dtype` float32 or float16.

    Raises:
        UserError: a value that float16 cannot hold.
    """
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if dtype == "float16" and not np.isfinite(cast).all() and np.isfinite(values).all():
        raise UserError(f"--dtype float16: cannot hold {np.abs(values).max():.3g}; leave it out for float32")
    array: pa.Array = pa.array(cast.ravel())
    for side in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, side)
    return array


def _writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Columns that came along are packed; features are noise to a packer and are read faster as they are."""
    light: Any = [field.name for field in schema if not pa.types.is_fixed_size_list(field.type)]
    packed: Any = dict.fromkeys(light, "zstd")
    return pq.ParquetWriter(sink, schema, compression=packed, use_dictionary=light, write_statistics=light)
