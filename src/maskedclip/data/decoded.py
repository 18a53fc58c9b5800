"""Decoded pixels of a store, memory-mapped: a small store is decoded once instead of once an epoch.

An Arrow file for each shard, one row an image: pixels (H W 3 bytes, null where the image cannot be decoded), height,
width.  All workers and ranks share the page cache's one copy.
"""

import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from maskedclip.console import bar, say
from maskedclip.data.store import Store, cache_folder, shard_files
from maskedclip.errors import UserError

_CHUNK = 256
_SCHEMA = pa.schema([("pixels", pa.large_binary()), ("height", pa.int32()), ("width", pa.int32())])
_SHARE = 4
"""`auto` takes at most this part of the memory and of the free disk."""

# The maps are read-only, and nobody writes to a view of them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class DecodedImages:
    """Row -> pixels, for the rows of all files in order."""

    def __init__(self, files: list[Path]) -> None:
        self._chunks: list[_Pixels] = []
        for path in files:
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                self._chunks += [_Pixels.of(reader.get_batch(place)) for place in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(len(chunk.height) for chunk in self._chunks)])

    def __getitem__(self, row: int) -> Tensor:
        """Pixels of a row, uint8 (3, H, W), a view of the map: not to be written to.

        Raises:
            RuntimeError: the image could not be decoded.
        """
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        chunk, inside = self._chunks[place], row - int(self._starts[place])
        height, width = chunk.height[inside], chunk.width[inside]
        if not height:
            raise RuntimeError(f"row {row} cannot be decoded")
        start = chunk.offset[inside]
        array = chunk.values[start : start + height * width * 3].reshape(height, width, 3)
        return torch.from_numpy(array).permute(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """A batch of the file as plain arrays, since an Arrow scalar costs as much as a third of a crop.

    values: all bytes of n images in a row; offset, height, width: of each, (n,); height 0 where it has no pixels.
    """

    values: np.ndarray
    offset: list[int]
    height: list[int]
    width: list[int]

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "_Pixels":
        _, offsets, values = batch.column(0).buffers()
        first = batch.column(0).offset
        return cls(
            values=np.frombuffer(values, np.uint8) if values is not None else np.empty(0, np.uint8),
            offset=np.frombuffer(offsets, np.int64)[first : first + batch.num_rows].tolist(),
            height=batch.column(1).to_pylist(),
            width=batch.column(2).to_pylist(),
        )


@dataclass(frozen=True)
class _Shard:
    """One shard's rows [start, stop) of the whole store, and the file of their pixels."""

    start: int
    stop: int
    file: Path


def decode_store(store: Store, choice: str, *, shown: bool = True) -> None:
    """Let a store serve decoded pixels where that is wanted, and decode what has not been decoded yet.

    Args:
        store: its `image` reads decoded pixels afterwards.
        choice: `on`, `off`, or `auto`: on where the pixels take at most a quarter of the memory and of the free disk.
        shown: whether this process speaks.

    Raises:
        UserError: `on`, and there is no space on the disk.
    """
    if store.kind == "volumes":  # their voxels are stored as they are read
        return
    shards = _shards(store)
    size = _bytes(store)
    missing = [shard for shard in shards if not shard.file.is_file()]
    if choice == "off" or (choice == "auto" and not _fits(shards, size, bool(missing))):
        return
    try:
        if missing:
            if shown:
                say(f"decoding {len(store):,} images once ({size / 1e9:.2g} GB; data.decoded_cache off avoids it)")
            count = sum(shard.stop - shard.start for shard in missing)
            with bar("decode", count, shown=shown) as progress, ThreadPoolExecutor(os.cpu_count()) as threads:
                for shard in missing:
                    for done in _write(store, shard, threads):
                        progress.advance(done)
    except OSError as error:
        if choice == "on":
            raise UserError(
                f"data.decoded_cache: {missing[0].file.parent}: cannot be written ({error.strerror}); free "
                f"{size / 1e9:.2g} GB, or say off"
            ) from None
        return
    store.decoded = DecodedImages([shard.file for shard in shards])


def _shards(store: Store) -> list[_Shard]:
    shards, start = [], 0
    for folder in store.folders:
        for shard in shard_files(folder):
            stop = start + pq.read_metadata(shard).num_rows
            shards.append(_Shard(start, stop, cache_folder(folder) / f"{shard.stem}.decoded.arrow"))
            start = stop
    return shards


def _bytes(store: Store) -> int:
    """Size of all pixels, were all as large as the first: curation makes them so, but for `--crop none`."""
    try:
        return len(store) * store.image(0).numel() if len(store) else 0
    except RuntimeError:
        return len(store) * 3 * store.crop["size"] ** 2


def _fits(shards: list[_Shard], size: int, to_be_written: bool) -> bool:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory / _SHARE:
        return False
    if not to_be_written:
        return True
    place = next(parent for parent in shards[0].file.parents if parent.exists())
    return size <= shutil.disk_usage(place).free / _SHARE


def _write(store: Store, shard: _Shard, threads: ThreadPoolExecutor) -> Iterator[int]:
    """Write the pixels of a shard; yields how many images were done.  A file has its name only when it is whole."""
    shard.file.parent.mkdir(parents=True, exist_ok=True)
    partial = shard.file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for start in range(shard.start, shard.stop, _CHUNK):
                rows = range(start, min(start + _CHUNK, shard.stop))
                images = list(threads.map(lambda row: _pixels(store, row), rows))
                shapes = [(0, 0) if image is None else image.shape[:2] for image in images]
                columns = [
                    pa.array([None if image is None else image.tobytes() for image in images], pa.large_binary()),
                    pa.array([height for height, _ in shapes], pa.int32()),
                    pa.array([width for _, width in shapes], pa.int32()),
                ]
                writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
                yield len(rows)
        partial.replace(shard.file)
    finally:
        partial.unlink(missing_ok=True)


def _pixels(store: Store, row: int) -> np.ndarray | None:
    try:
        return store.image(row).permute(1, 2, 0).numpy()
    except RuntimeError:
        return None
