"""Open one store, or several as one: metadata in memory, image bytes memory-mapped and shared by all processes.

Parquet is what others read; for random access each shard's images are copied once into an Arrow file (uncompressed,
so a read is a page fault), in `STORE/.cache` or, where that cannot be written, in the user's cache folder.
"""

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from torch import Tensor

from maskedclip.data.transforms import decode
from maskedclip.data.transforms_volume import decode_volume
from maskedclip.errors import UserError

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them
_ALIKE = "write it in one way in both manifests, and curate the one that you changed again"


class SupportsRows(Protocol):
    """Row -> pixels."""

    def __getitem__(self, row: int) -> Tensor:
        """Pixels of a row, uint8 (3, H, W)."""
        ...


class Store:
    """Rows of one or several stores in order; row numbers are positions in this order."""

    def __init__(self, folders: Sequence[Path | str]) -> None:
        self.folders = [Path(folder) for folder in folders]
        tables = [_metadata(folder) for folder in self.folders]
        self.sizes = [table.num_rows for table in tables]
        """Rows of each store."""
        self.table = _joined(self.folders, tables)
        self.curation = [json.loads((folder / "curation.json").read_text()) for folder in self.folders]
        self.decoded: SupportsRows | None = None
        """Pixels of all rows, when `decode_store` has made them."""
        self._images: list[pa.Array] | None = None
        self._starts: np.ndarray | None = None
        self._opening = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Reopen in a spawned process instead of copying."""
        return _reopen, (self.folders, self.decoded is not None)

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any source picture of any of the stores, or their order; see also `prepared`."""
        return hashlib.sha256("".join(entry["fingerprint"] for entry in self.curation).encode()).hexdigest()[:16]

    @property
    def fingerprints(self) -> list[str]:
        """One for each of the stores, in their order."""
        return [entry["fingerprint"][:16] for entry in self.curation]

    @cached_property
    def prepared(self) -> str:
        """Changes with any row of any of the stores, and with how its pictures were prepared; not with labels."""
        return hashlib.sha256("".join(map(_prepared, self.curation)).encode()).hexdigest()[:16]

    @cached_property
    def ids(self) -> list[str]:
        """Sample ids, unique in each store."""
        return self.table.column("id").to_pylist()

    @cached_property
    def texts(self) -> list[str | None]:
        """The report of each row, None where there is none."""
        return self.table.column("text").to_pylist()

    def text(self, row: int) -> str | None:
        """The report of one row."""
        return self.table.column("text")[row].as_py()

    @cached_property
    def has_text(self) -> np.ndarray:
        """Whether each row has a report, bool (n,)."""
        return self.table.column("text").is_valid().to_numpy()

    @cached_property
    def patients(self) -> np.ndarray:
        """Patient of each row, "" where it is not known, object (n,)."""
        return np.asarray(self.table.column("patient").fill_null("").to_pylist(), object)

    @cached_property
    def splits(self) -> np.ndarray:
        """`train`, `val` or `test`, str (n,); rows without a split belong to `train`, as in `rows`."""
        return np.asarray([split or "train" for split in self.table.column("split").to_pylist()], str)

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Labels by name: float32 with NaN for unknown, or object with None for unknown, (n,)."""
        found = {}
        for name in self.table.column_names:
            if name.startswith("label."):
                column = self.table.column(name)
                numeric = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
                values = column.to_pylist()
                found[name.removeprefix("label.")] = (
                    np.asarray([np.nan if value is None else value for value in values], np.float32)
                    if numeric
                    else np.asarray(values, object)
                )
        return found

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, int64; rows without a split belong to `train`."""
        column = self.table.column("split")
        wanted = pc.fill_null(pc.equal(column, split), split == "train").to_numpy()
        if split == "train":
            wanted = wanted | pc.fill_null(pc.equal(column, ""), False).to_numpy()
        return np.flatnonzero(wanted)

    def texts_of(self, rows: np.ndarray) -> list[tuple[str, int]]:
        """The distinct reports of some rows, sorted, with the number of rows that have each."""
        counted = pc.value_counts(self.table.column("text").take(pa.array(rows)))
        pairs = ((entry["values"], entry["counts"]) for entry in counted.to_pylist())
        return sorted((text, count) for text, count in pairs if text)

    def patient_codes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patients of some rows as numbers, int64 (n,), and the name of each number; a row without one is its own."""
        patients = self.table.column("patient").take(pa.array(rows))
        patients = pc.if_else(pc.equal(pc.fill_null(patients, ""), ""), pa.scalar(None, patients.type), patients)
        own = pc.binary_join_element_wise("row", self.table.column("id").take(pa.array(rows)), " ")
        encoded = pc.fill_null(patients, own).combine_chunks().dictionary_encode()
        return encoded.indices.to_numpy().astype(np.int64), np.asarray(encoded.dictionary.to_pylist(), object)

    def image_bytes(self, row: int) -> bytes | memoryview:
        """The encoded image of one row, read through the memory map."""
        if self._images is None:
            with self._opening:  # threads may ask for their first images at once
                if self._images is None:
                    images = [array for folder in self.folders for array in _image_arrays(folder)]
                    self._starts = np.cumsum([0, *(len(array) for array in images)])
                    self._images = images
        assert self._starts is not None
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return memoryview(self._images[shard][row - int(self._starts[shard])].as_buffer())

    def image(self, row: int) -> Tensor:
        """The pixels of one row, uint8 (3, H, W); not to be written to.

        Of a store of volumes its voxels, uint8 or float16 (C, X, Y, Z).

        Raises:
            RuntimeError: the bytes are no image.
        """
        if self.kind == "volumes":
            return decode_volume(self.image_bytes(row))
        return decode(self.image_bytes(row)) if self.decoded is None else self.decoded[row]

    @property
    def kind(self) -> Literal["images", "volumes"]:
        """What its rows are."""
        return self.curation[0]["settings"].get("kind", "images") if self.curation else "images"

    @cached_property
    def modalities(self) -> tuple[np.ndarray, list[str]]:
        """Modality of each row as a number, int64 (n,), -1 where it is not known; and the names, sorted."""
        name = next((name for name in ("modality", "label.modality") if name in self.table.column_names), None)
        values = [None] * len(self) if name is None else self.table.column(name).to_pylist()
        names = sorted({str(value) for value in values if value not in (None, "")})
        codes = {name: code for code, name in enumerate(names)}
        return np.asarray([codes.get(str(value), -1) for value in values], np.int64), names

    @property
    def crop(self) -> dict[str, Any]:
        """How the first store's images were prepared: `crop`, `size`."""
        settings = self.curation[0]["settings"]
        return {"crop": settings["crop"], "size": settings["size"]}


def refuse_volumes(store: Store, verb: str) -> None:
    """Say that a verb takes pictures, where a store holds volumes.

    Raises:
        UserError: it does.
    """
    if store.kind == "volumes":
        raise UserError(
            f"{store.folders[0]}: holds volumes, and {verb} takes pictures; `maskedclip slices` makes "
            "pictures of volumes"
        )


def _reopen(folders: list[Path], decoded: bool) -> Store:
    store = Store(folders)
    if decoded:
        from maskedclip.data.decoded import decode_store

        decode_store(store, "on", shown=False)
    return store


def open_store(folders: Path | str | Sequence[Path | str]) -> Store:
    """Open a store, or several as one.

    Raises:
        UserError: a folder is missing, is no store, or lacks a part.
    """
    listed = [folders] if isinstance(folders, str | Path) else list(folders)
    for folder in map(Path, listed):
        if not folder.exists():
            raise UserError(f"{folder}: no such store; make one with `maskedclip curate MANIFEST --out {folder}`")
        if not folder.is_dir() or not any(folder.glob("shard-*.parquet")):
            raise UserError(
                f"{folder}: not a store (no shard-*.parquet); `maskedclip curate MANIFEST --out STORE` makes one"
            )
        if not (folder / "curation.json").is_file():
            raise UserError(f"{folder}: curation.json is missing, so the store is incomplete; curate it again")
    try:
        store = Store(listed)
        if len({entry["settings"].get("kind", "images") for entry in store.curation}) > 1:
            raise UserError("--data: some stores hold pictures and some volumes; give stores of one kind")
        return store
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(
            f"{listed[0]}: the store cannot be read ({str(error).splitlines()[0]}); curate it again"
        ) from None


def shard_files(folder: Path) -> list[Path]:
    """The shards of one store, in the order of their rows: those that curation.json names, so that an append which is
    under way, or was cut off, is not seen."""
    try:
        named = json.loads((folder / "curation.json").read_text()).get("checksums")
    except (OSError, ValueError, AttributeError):
        named = None
    return sorted(folder / name for name in named) if named else sorted(folder.glob("shard-*.parquet"))


def _metadata(folder: Path) -> pa.Table:
    """All columns but the pictures."""
    tables = []
    for shard in shard_files(folder):
        names = pq.read_schema(shard).names
        light = [name for name in names if name != "image" and not name.startswith("mask.")]
        tables.append(pq.read_table(shard, columns=light).replace_schema_metadata(None))
    return pa.concat_tables(tables, promote_options="permissive")


def _joined(folders: Sequence[Path], tables: Sequence[pa.Table]) -> pa.Table:
    """The tables of several stores as one.

    Raises:
        UserError: a column is of different kinds in two of them.
    """
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise UserError(f"--data: {_clash(folders, tables) or error}; {_ALIKE}") from None


def _clash(folders: Sequence[Path], tables: Sequence[pa.Table]) -> str:
    """Which column is of which kinds in which two stores."""
    known: dict[str, tuple[pa.Schema, Path]] = {}
    for folder, table in zip(folders, tables, strict=True):
        for field in table.schema:
            own = pa.schema([field])
            before, where = known.get(field.name, (own, folder))
            try:
                joint = pa.unify_schemas([before, own], promote_options="permissive")
            except pa.ArrowTypeError:
                kinds = _kind(before.field(0).type), _kind(field.type)
                return f"{field.name} holds {kinds[0]} in {where} and {kinds[1]} in {folder}"
            # An empty column has no kind: the store that has one is named.
            known[field.name] = (joint, folder if before.field(0).type == pa.null() else where)
    return ""


def _kind(of: pa.DataType) -> str:
    if pa.types.is_floating(of) or pa.types.is_integer(of):
        return "numbers"
    return "words" if pa.types.is_string(of) or pa.types.is_large_string(of) else str(of)


def _prepared(curation: dict[str, Any]) -> str:
    """Of one store: its rows and the settings that made its pictures of the sources."""
    words = json.dumps([curation["fingerprint"], curation["settings"]], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def cache_folder(folder: Path) -> Path:
    """A writable folder for copies of the pictures and what is computed of them, another one where they are others."""
    fingerprint = _prepared(json.loads((folder / "curation.json").read_text()))
    inside = folder / ".cache" / fingerprint
    if inside.is_dir() or os.access(folder, os.W_OK):
        return inside
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "maskedclip" / fingerprint


def _image_arrays(folder: Path) -> list[pa.Array]:
    """Memory-mapped image bytes of each shard, written once."""
    cache = cache_folder(folder)
    cache.mkdir(parents=True, exist_ok=True)
    arrays = []
    for shard in shard_files(folder):
        path = cache / f"{shard.stem}.arrow"
        if not path.is_file():
            _write_arrow(shard, path)
        with pa.memory_map(str(path)) as source:
            arrays.append(pa.ipc.open_file(source).get_batch(0).column(0))
    return arrays


def _write_arrow(shard: Path, path: Path) -> None:
    column = pq.read_table(shard, columns=["image"]).column("image").combine_chunks()
    images = column.field("bytes").cast(pa.large_binary())
    batch = pa.record_batch([images], names=["bytes"])
    # Ranks of several nodes may write at once, with one process id: the last rename wins, bits equal.
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    partial.replace(path)
