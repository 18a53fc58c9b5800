"""Photographs of any origin under one face: a store, a folder, a manifest, a list, an archive or one image.

Ids are unique and stable: the store's own; else the path as it was given, or as it is below the folder or archive.
A photograph that cannot be read is told with its reason; it never ends the work on the others.
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.data.address import is_archive, split_address
from maskedclip.data.images import stored_image
from maskedclip.data.pixels import UndecodableImage
from maskedclip.data.store import Store, open_store, refuse_volumes
from maskedclip.errors import UserError
from maskedclip.models.saving import Preprocessing

_AHEAD = 128  # photographs that are decoded while the model works: two batches
_MOST_THREADS = 8
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Rejected:
    """A photograph that cannot be read: its id and a clause that says why, such as "is a truncated JPEG"."""

    id: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A photograph as the model reads it: uint8 (3, S, S), or None and the reason why there is none.

    row: its place among the inputs.
    """

    row: int
    id: str
    image: Tensor | None
    reason: str = ""


class Inputs(ABC):
    """Photographs in a fixed order.

    Attributes:
        path: what was given.
        ids: unique, one a photograph.
        table: `id`, then the columns that came along (of a store or a manifest), one row a photograph.
        notes: one-line remarks on what was found, for the user.
        unlisted: what was met and is no photograph that could be read, such as a folder without permission.
    """

    def __init__(self, path: Path, table: pa.Table, notes: list[str], unlisted: list[Rejected]) -> None:
        self.path, self.table, self.notes, self.unlisted = path, table, notes, unlisted
        self.ids: list[str] = table.column("id").to_pylist()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes where photographs come, go, change, or where their columns change; without reading them all."""

    @abstractmethod
    def pixels(self, row: int) -> NDArray[np.uint8]:
        """A photograph before any preparation, RGB (H, W, 3).

        Raises:
            UndecodableImage: with a reason that follows the id in a sentence.
        """

    @abstractmethod
    def prepare(self, row: int, preprocessing: Preprocessing) -> Tensor:
        """A photograph as the model reads it, uint8 (3, S, S): the same numbers as `Model.preprocess`, or, of a store,
        as `Model.features`.

        Raises:
            UndecodableImage: with a reason that follows the id in a sentence.
        """

    def prepared(self, preprocessing: Preprocessing, rows: Iterable[int] | None = None) -> Iterator[Prepared]:
        """Photographs in order, all or some rows, read and prepared by threads ahead of the caller."""
        yield from in_threads(
            partial(self._try, preprocessing=preprocessing), range(len(self)) if rows is None else rows
        )

    def _try(self, row: int, *, preprocessing: Preprocessing) -> Prepared:
        try:
            return Prepared(row, self.ids[row], self.prepare(row, preprocessing))
        except UndecodableImage as error:
            return Prepared(row, self.ids[row], None, str(error))


def in_threads(work: Callable[[_T], _R], items: Iterable[_T], *, ahead: int = _AHEAD) -> Generator[_R]:
    """`map` whose results are made by threads, up to `ahead` of the caller, in order; decoders leave Python's lock."""
    threads = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    waiting: deque[Future[_R]] = deque()
    try:
        for item in items:
            waiting.append(threads.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


class StoreInputs(Inputs):
    """Rows of a store, prepared already by curation."""

    def __init__(self, path: Path, store: Store) -> None:
        super().__init__(path, store.table, [], [])
        self.store = store

    @property
    def fingerprint(self) -> str:
        """The store's own, and how many rows it has."""
        return f"{self.store.fingerprint}-{len(self.store)}"

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """The stored picture, (H, W, 3)."""
        try:
            return np.ascontiguousarray(self.store.image(row).permute(1, 2, 0).numpy())
        except RuntimeError:
            raise UndecodableImage("is damaged in its store") from None

    def prepare(self, row: int, preprocessing: Preprocessing) -> Tensor:
        """The stored picture at the model's size."""
        try:
            return stored_image(self.store, row, preprocessing.size)
        except UserError:
            raise UndecodableImage("is damaged in its store") from None


class VolumeInputs(StoreInputs):
    """Rows of a store of volumes."""

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """None: a volume is no picture."""
        raise UndecodableImage("is a volume")

    def prepare(self, row: int, preprocessing: Preprocessing) -> Tensor:
        """The stored volume, (C, X, Y, Z); tiles are cut where it is encoded."""
        try:
            return self.store.image(row)
        except (RuntimeError, ValueError):
            raise UndecodableImage("is damaged in its store") from None


def open_inputs(
    data: Path | str, *, volumes: bool = False, encoding: str = "utf-8", allow_outside: bool = False
) -> Inputs:
    """Open whatever holds photographs.

    Args:
        data: a store; a folder, searched to its depths; a manifest (CSV, TSV, JSON lines, Parquet) with a column
            `image`; a list, `.txt` with a path a line; a zip or tar archive; or one image, also as
            `archive.zip!member` or `film.dcm#frame=3`.
        volumes: the reader takes volumes, which only a store has, and no pictures.
        encoding: of the text of a manifest or list.
        allow_outside: let a manifest name files outside its own folder.

    Raises:
        UserError: there is nothing of this name, it holds no photograph, or a manifest has faults.
    """
    from maskedclip.deployment import inputs_files

    path = Path(data)
    is_store = path.is_dir() and any(path.glob("shard-*.parquet"))
    if volumes:
        store = open_store(path) if is_store else None
        if store is None or store.kind != "volumes":
            raise UserError(f"{data}: the model reads volumes; give a store that `maskedclip curate-volumes` made")
        return VolumeInputs(path, store)
    if path.is_dir():
        if is_store:
            store = open_store(path)
            refuse_volumes(store, "this verb")
            return StoreInputs(path, store)
        return inputs_files.of_folder(path)
    address = split_address(str(data))
    if not path.is_file():
        if (address.member is not None or address.frame is not None) and Path(address.file).is_file():
            return inputs_files.of_image(str(data))
        raise UserError(f"{data}: no such store or folder, manifest, list, archive or image")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")):
        return inputs_files.of_manifest(path, encoding, allow_outside=allow_outside)
    if name.endswith(".txt"):
        return inputs_files.of_list(path, encoding)
    if is_archive(path.name):
        return inputs_files.of_archive(path)
    return inputs_files.of_image(str(data))
