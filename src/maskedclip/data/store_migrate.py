"""A store of an earlier version as one of today's, written anew; the old one stays as it is.

From version 1: the quality columns are measured on the stored pictures, and the shards get checksums.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import maskedclip
from maskedclip.console import bar
from maskedclip.data.imaging import UndecodableImage, decode
from maskedclip.data.quality import QUALITY, quality
from maskedclip.data.shards import SCHEMA_VERSION, file_digest, stored_schema, write_atomically, write_shard
from maskedclip.data.store import shard_files
from maskedclip.data.store_check import read_about
from maskedclip.errors import UserError


def migrate_store(folder: Path, out: Path) -> int:
    """Write `folder` as a store of the present version; returns its rows.  Ids and fingerprint stay what they were.

    Raises:
        UserError: no store, one that is of this version or a newer one, `out` exists, a picture cannot be decoded.
    """
    about = read_about(folder)
    version = about.get("schema_version", 1)
    if version == SCHEMA_VERSION:
        raise UserError(f"{folder}: is of version {version}, the present one; there is nothing to do")
    if version > SCHEMA_VERSION:
        raise UserError(f"{folder}: is of version {version}; this maskedclip knows {SCHEMA_VERSION}: update it")
    if out.exists():
        raise UserError(f"--out {out}: exists; choose another folder")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    checksums = {}
    with bar("migrate", about["counts"]["stored"]) as shown:
        for shard in shard_files(folder):
            table = pq.read_table(shard)
            figures = [_quality(row["bytes"], folder, shard) for row in table.column("image").to_pylist()]
            for name in QUALITY:
                if f"quality.{name}" not in table.column_names:
                    values = pa.array(np.array([entry[name] for entry in figures], np.float32))
                    table = table.append_column(f"quality.{name}", values)
            write_shard(table.cast(stored_schema(table.schema)), partial / shard.name)
            checksums[shard.name] = file_digest(partial / shard.name)
            shown.advance(len(table))
    for name in ("README.md", "quarantine.csv", "examples.jpg"):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, partial / name)
    new = about | {"schema_version": SCHEMA_VERSION, "checksums": checksums, "maskedclip": maskedclip.__version__}
    write_atomically(partial / "curation.json", (json.dumps(new, indent=2) + "\n").encode())
    partial.rename(out)
    return about["counts"]["stored"]


def _quality(data: bytes, folder: Path, shard: Path) -> dict[str, float]:
    try:
        return quality(decode(data))
    except UndecodableImage as error:
        raise UserError(f"{folder}: {shard.name}: a picture {error}; `maskedclip store check` names it") from None
