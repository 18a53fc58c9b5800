"""What the audit knows of each picture: one pass over the stored pictures, in bounded memory.

n rows, N the side of the small pictures, C = len(STATISTICS).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from maskedclip.console import bar
from maskedclip.data.audit.burnt_in import letters_outside
from maskedclip.data.audit.likeness import ROUGH_SIDE, rough_structure
from maskedclip.data.audit.windows import SIDE, WINDOWS, window_hashes
from maskedclip.data.imaging import UndecodableImage, decode
from maskedclip.data.quality import QUALITY, quality
from maskedclip.data.store import Store, shard_files
from maskedclip.errors import UserError

STATISTICS = (*QUALITY, "red", "green", "blue")
"""The quality figures of a picture, and the means of the colours of its lit part, 0 to 255."""
_LIT = 25  # grey levels: what is brighter belongs to the field
_BATCH = 256
_WHOLE = WINDOWS[:1]


@dataclass(frozen=True, kw_only=True)
class Descriptors:
    """What is known of the pictures of a store.

    Attributes:
        small: grey pictures, uint8 (n, N, N), on the disk.
        rough: their rough structures, int8 (n, N/2, N/2), on the disk.
        hashes: the store's perceptual hashes, or where it has none those of the small pictures, uint64 (n,).
        details: detail hashes, uint64 (n, 3).
        files: sha256 of the source file, or where the store has none of the stored bytes, object (n,).
        statistics: float32 (n, C).
        letters: letter-like marks in a line outside of the field, int32 (n,).
    """

    small: NDArray[np.uint8]
    rough: NDArray[np.int8]
    hashes: NDArray[np.uint64]
    details: NDArray[np.uint64]
    files: NDArray[np.object_]
    statistics: NDArray[np.float32]
    letters: NDArray[np.int32]


def describe(store: Store, *, shown: bool = True) -> Descriptors:
    """Decode every picture once.

    Raises:
        UserError: a picture cannot be decoded.
    """
    count = len(store)
    # Unlinked at once: the small pictures of 10^7 rows take 51 GB, too much for memory, and must not outlive the audit.
    with tempfile.TemporaryFile(prefix="maskedclip-audit-") as file, tempfile.TemporaryFile() as other:
        small = np.memmap(file, np.uint8, "w+", shape=(max(1, count), SIDE, SIDE))[:count]
        rough = np.memmap(other, np.int8, "w+", shape=(max(1, count), ROUGH_SIDE, ROUGH_SIDE))[:count]
    statistics, letters = np.empty((count, len(STATISTICS)), np.float32), np.empty(count, np.int32)
    details, computed = np.empty((count, 3), np.uint64), np.empty(count, np.uint64)
    digests: list[str] = []
    hashed = "sha256" in store.table.column_names
    start = 0
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        bar("looking at pictures", count, shown=shown) as wait,
    ):
        for batch in _encoded(store):
            for place, one in enumerate(pool.map(_described, batch), start=start):
                if isinstance(one, UndecodableImage):
                    raise UserError(f"image of row {store.ids[place]} {one}; the store is damaged, curate again")
                small[place], statistics[place], letters[place] = one
            end = start + len(batch)
            grey = small[start:end].astype(np.float32)
            ((_, computed[start:end], details[start:end]),) = window_hashes(grey, _WHOLE)
            rough[start:end] = rough_structure(grey)
            digests += [] if hashed else [hashlib.sha256(data).hexdigest() for data in batch]
            start = end
            wait.advance(len(batch))
    return Descriptors(
        small=small,
        rough=rough,
        hashes=_perceptual(store, computed),
        details=details,
        files=np.asarray(store.table.column("sha256").to_pylist() if hashed else digests, object),
        statistics=statistics,
        letters=letters,
    )


def _encoded(store: Store) -> Iterator[list[bytes]]:
    """The encoded pictures in the order of the rows, read from the shards without a copy of the store."""
    for shard in (shard for folder in store.folders for shard in shard_files(Path(folder))):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=["image"]):
                yield batch.column(0).field("bytes").to_pylist()


def _described(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.float32], int] | UndecodableImage:
    try:
        pixels = decode(data)
    except UndecodableImage as error:
        return error
    grey = Image.fromarray(pixels).convert("L")
    shrunk = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    return shrunk, _statistics(pixels), letters_outside(pixels.max(axis=2))


def _statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    lit = pixels.max(axis=2) > _LIT
    colours = pixels[lit].mean(axis=0) if lit.any() else np.zeros(3)
    return np.array([*quality(pixels).values(), *colours], np.float32)


def _perceptual(store: Store, computed: NDArray[np.uint64]) -> NDArray[np.uint64]:
    if "perceptual_hash" not in store.table.column_names:
        return computed
    given = store.table.column("perceptual_hash").to_pylist()
    try:
        return np.array(
            [own if value is None else int(value, 16) for value, own in zip(given, computed.tolist(), strict=True)],
            np.uint64,
        )
    except (ValueError, OverflowError):
        raise UserError(
            f"{store.folders[0]}: column perceptual_hash holds values that are not 16 hex digits; curate it again"
        ) from None
