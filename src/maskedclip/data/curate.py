"""Curation: a manifest becomes a store, that is Parquet shards, a data card, a quarantine list and `curation.json`.

Everything is first written to `OUT.partial`, shard by shard, and renamed to OUT at the end.  After a crash or a full
disk the same command goes on after the last complete shard.  The same manifest and files give the same bytes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from maskedclip.data.curate_engine import Engine, use_engine
from maskedclip.data.curate_row import RowSettings
from maskedclip.data.curate_work import Curation, Rejected, Work, disk_full_told, nothing_stored, progress_bar
from maskedclip.data.manifest import read_manifest
from maskedclip.errors import UserError

__all__ = ["Curation", "Rejected", "curate"]


def curate(
    manifest: Path,
    out: Path,
    *,
    size: int = 256,
    crop: Literal["fundus", "none"] = "fundus",
    engine: Engine = "local",
    encoding: Literal["jpeg", "png"] = "jpeg",
    text_encoding: str = "utf-8",
    allow_outside: bool = False,
    progress: bool = True,
    provenance: dict[str, str] | None = None,
) -> Curation:
    """Turn a manifest, or a folder of images, into a store.

    Args:
        manifest: CSV, TSV, JSON lines or Parquet, see `read_manifest`; or a folder of images.
        out: the store's folder, which must not exist.
        size: side of the stored square pictures, px.
        crop: `fundus` crops to the circular field where one is found; `none` keeps the whole picture.
        engine: `local`, all cores of this machine; `ray`, a Ray cluster whose machines see the same files.
        encoding: `jpeg` (quality 95, 4:4:4) or `png`.
        text_encoding: of a CSV, TSV or JSON lines manifest.
        allow_outside: allow paths that leave the manifest's folder.
        provenance: what the card says of the images' source and licence, by the keys of `card.PROVENANCE`.
        progress: show a bar with rate and time left on stderr.

    Raises:
        UserError: the manifest has faults (all are told), `out` exists, no row can be stored, the disk is full.
    """
    begun = time.perf_counter()
    manifest, out = Path(manifest), Path(out)
    try:
        settings = RowSettings(size=size, crop=crop, encoding=encoding)
    except ValueError as error:
        raise UserError(str(error)) from error
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; name another folder with --out, or delete it")
    table = read_manifest(manifest, encoding=text_encoding, allow_outside=allow_outside)
    use_engine(engine)
    work = Work.begin(table, out, settings, provenance=provenance)
    done_before = work.next
    with disk_full_told(work), progress_bar(len(table), work.next, shown=progress) as advance:
        work.run(engine, advance)
        if work.stored == 0:
            raise nothing_stored(manifest, work)
        seconds = time.perf_counter() - begun
        made = len(table) - done_before
        return work.finish(seconds=seconds, images_per_second=made / seconds if made else 0.0)
