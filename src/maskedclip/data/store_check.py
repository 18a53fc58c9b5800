"""Is a store what curation made of it?  Checked on demand: shards, columns, row ids, pictures, and the sources."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.console import bar
from maskedclip.data.imaging import UndecodableImage, decode
from maskedclip.data.shards import PICTURE, SCHEMA_VERSION, file_digest, row_id
from maskedclip.data.store import shard_files
from maskedclip.data.transforms_volume import decode_volume
from maskedclip.errors import UserError

_MOST = 20
_NEEDED = ("id", "image", "text", "patient", "split", "sha256")


@dataclass(kw_only=True)
class StoreCheck:
    """What was found.  rows: that were read.  faults: one line each, in order, the first twenty of a kind."""

    rows: int = 0
    faults: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, fault: str) -> None:
        """Note a fault; of each kind the first twenty are told, all are counted."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= _MOST:
            self.faults.append(fault)


def check_store(folder: Path, *, pictures: bool = True, sources: Path | None = None) -> StoreCheck:
    """Read a whole store and say what is wrong with it.

    Args:
        folder: the store.
        pictures: decode every picture, too.
        sources: the folder that the manifest's paths start from; each source file is then hashed again, and one that
            has changed or is gone since the curation is a fault.

    Raises:
        UserError: it is no store at all.
    """
    about = read_about(folder)
    found = StoreCheck()
    if about.get("schema_version", 1) > SCHEMA_VERSION:
        found.add(
            "version", f"schema version {about['schema_version']} is newer than this maskedclip's {SCHEMA_VERSION}"
        )
    volumes = about["settings"].get("kind") == "volumes"
    if volumes and sources is not None:
        raise UserError(f"--sources: {folder} holds volumes, whose hashes are of voxels, not of files; leave it out")
    digest = hashlib.sha256()
    seen: set[str] = set()
    checksums = about.get("checksums", {})
    expected = [name for name in checksums if name not in {shard.name for shard in shard_files(folder)}]
    for name in expected:
        found.add("shard", f"{name}: is missing")
    total = about["counts"]["stored"]
    with bar("check", total) as shown:
        for shard in shard_files(folder):
            if shard.name in checksums and file_digest(shard) != checksums[shard.name]:
                found.add("shard", f"{shard.name}: its bytes are not those that curation wrote")
            try:
                for batch in _batches(shard):
                    _check_rows(batch, shard.name, found, seen, digest, pictures, sources, volumes)
                    shown.advance(batch.num_rows)
            except (pa.ArrowException, OSError) as error:
                found.add("shard", f"{shard.name}: cannot be read ({str(error).splitlines()[0]})")
    if found.rows != total:
        found.add("rows", f"holds {found.rows:,} rows where curation.json says {total:,}")
    if not found.counts and digest.hexdigest() != about["fingerprint"]:
        found.add("rows", "its ids, or their order, are not those of the fingerprint in curation.json")
    return found


def read_about(folder: Path) -> dict[str, Any]:
    """A store's curation.json.

    Raises:
        UserError: the folder is no store, or the file is damaged.
    """
    path = folder / "curation.json"
    if not path.is_file():
        raise UserError(f"{folder}: not a store (no curation.json); `maskedclip curate MANIFEST --out STORE` makes one")
    try:
        about = json.loads(path.read_text())
        for needed in (about["counts"]["stored"], about["fingerprint"], about["settings"]["size"]):
            assert needed is not None
    except (ValueError, KeyError, TypeError, OSError, AssertionError) as error:
        raise UserError(f"{path}: is damaged ({error}); curate again") from None
    return about


def _batches(shard: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(shard) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _check_rows(
    rows: pa.Table,
    shard: str,
    found: StoreCheck,
    seen: set[str],
    digest: Any,
    pictures: bool,
    sources: Path | None,
    volumes: bool = False,
) -> None:
    lacking = [name for name in _NEEDED if name not in rows.column_names]
    if lacking:
        found.add("columns", f"{shard}: has no column {', '.join(lacking)}")
        return
    hashes = rows.column("sha256").to_pylist()
    kinds = [name for name in rows.column_names if rows.schema.field(name).type == PICTURE]
    cells = {name: rows.column(name).to_pylist() for name in kinds}
    for place, row in enumerate(rows.column("id").to_pylist()):
        digest.update((b"\n" if found.rows else b"") + str(row).encode())
        found.rows += 1
        if row in seen:
            found.add("ids", f"{shard}: row {row} stands twice")
        seen.add(row)
        image = cells["image"][place]
        if image is None or image["bytes"] is None:
            found.add("pictures", f"{shard}: row {row} has no picture")
            continue
        if image["path"] is not None and row_id(image["path"], hashes[place]) != row:
            found.add("ids", f"{shard}: row {row} is not the hash of its image's name and source")
        if pictures:
            for name in kinds:
                value = cells[name][place]
                if value is not None and value["bytes"] is not None:
                    try:
                        if volumes:
                            decode_volume(value["bytes"])
                        else:
                            decode(value["bytes"], name=str(value["path"]))
                    except (UndecodableImage, RuntimeError) as error:
                        found.add("pictures", f"{shard}: row {row}, {name} {error}")
        if sources is not None and image["path"] is not None:
            _check_source(sources / image["path"], hashes[place], found)


def _check_source(path: Path, expected: str, found: StoreCheck) -> None:
    try:
        if file_digest(path) != expected:
            found.add("sources", f"{path}: has changed since the curation")
    except OSError as error:
        found.add("sources", f"{path}: {error.strerror or error}")
