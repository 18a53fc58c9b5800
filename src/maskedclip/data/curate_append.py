"""Adding a new export to a store: only rows whose image the store does not have yet are read.

New shards are made in `STORE/.append.partial` and moved in at the end; `curation.json`, which names the shards that
count, is replaced last.  Until then readers see the store as it was, and the same command goes on after a crash.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

import maskedclip
from maskedclip.data.card import CardData, write_card
from maskedclip.data.curate_engine import Engine, use_engine
from maskedclip.data.curate_row import RowSettings
from maskedclip.data.curate_work import Curation, Work, count_rows, disk_full_told, progress_bar, quarantine_csv
from maskedclip.data.manifest import Manifest, read_manifest
from maskedclip.data.shards import PICTURE, SCHEMA_VERSION, file_digest, shard_name, write_atomically
from maskedclip.data.store import shard_files
from maskedclip.data.store_check import read_about
from maskedclip.errors import UserError

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them

PARTIAL = ".append.partial"


def append(
    manifest: Path,
    out: Path,
    *,
    engine: Engine = "local",
    text_encoding: str = "utf-8",
    allow_outside: bool = False,
    progress: bool = True,
) -> Curation:
    """Add the rows of a manifest whose images are not in the store yet, prepared as the store's own are.

    What the store has stays as it is, also where the manifest now says other texts or labels: that is counted in the
    notes.  The manifest's paths must start where those of the store started, since an image is known by its path.

    Args:
        manifest, engine, text_encoding, allow_outside, progress: as of `curate`.
        out: a store.

    Returns: counts of the whole store, seconds and rate of this run.

    Raises:
        UserError: no store, one of an older version, a column of another type, a patient who is in another split of
            the store, faults of the manifest.
    """
    begun = time.perf_counter()
    about = read_about(out)
    if about.get("schema_version", 1) != SCHEMA_VERSION:
        raise UserError(
            f"{out}: is of version {about.get('schema_version', 1)}, new rows would be of version {SCHEMA_VERSION}; "
            f"run `maskedclip store migrate {out} --out NEW` first"
        )
    if about["settings"].get("kind") == "volumes":
        raise UserError(f"{out}: holds volumes, to which nothing is appended; curate all of them into a new store")
    settings = RowSettings(**about["settings"])
    had = _rows(out)
    given = read_manifest(manifest, encoding=text_encoding, allow_outside=allow_outside)
    new, notes = _new_rows(given, had)
    _check_types(new.table.schema, had.schema, out)
    _check_splits(new, had, out)
    if not len(new):
        return _curation(out, about, [], [*given.notes, *notes], time.perf_counter() - begun, 0.0)
    use_engine(engine)
    work = Work.begin(new, out, settings, partial=out / PARTIAL)
    done_before = work.next
    with disk_full_told(work), progress_bar(len(new), work.next, shown=progress) as advance:
        work.run(engine, advance)
    seconds = time.perf_counter() - begun
    rate = (len(new) - done_before) / seconds if seconds else 0.0
    about = _merge(work, out, about, had, new)
    return _curation(out, about, work.quarantine, [*given.notes, *notes], seconds, rate)


def _rows(out: Path) -> pa.Table:
    """The store's rows as a manifest's table has them: columns without pictures, and pictures by their paths."""
    parts = []
    for shard in shard_files(out):
        with pq.ParquetFile(shard) as file:  # unlike read_table, it takes a dot in a column's name as it is
            table = file.read(columns=_paths_only(shard))
        for name in table.column_names:
            if pa.types.is_struct(table.schema.field(name).type):
                place = table.column_names.index(name)
                table = table.set_column(place, name, pc.struct_field(table.column(name), "path"))
        parts.append(table.replace_schema_metadata(None))
    return pa.concat_tables(parts, promote_options="permissive")


def _paths_only(shard: Path) -> list[str]:
    return [f"{field.name}.path" if field.type == PICTURE else field.name for field in pq.read_schema(shard)]


def _new_rows(given: Manifest, had: pa.Table) -> tuple[Manifest, list[str]]:
    """The rows whose image is not in the store, and what is to be said of the others."""
    known = pc.is_in(given.table.column("image"), value_set=had.column("image").combine_chunks())
    rows = pc.invert(known)
    count = len(given) - int(pc.sum(rows).as_py() or 0)
    new = replace(given, table=given.table.filter(rows), rows=given.rows[rows.to_numpy().astype(bool)])
    notes = [f"{count:,} rows are in the store already and were not read again"] if count else []
    changed = _changed(given.table.filter(known), had)
    if changed:
        notes.append(
            f"{changed:,} of them have another text, patient, split or label in the manifest now; the store keeps its "
            "own: curate anew to change them"
        )
    return new, notes


def _changed(given: pa.Table, had: pa.Table) -> int:
    place = {image: row for row, image in enumerate(had.column("image").to_pylist())}
    rows = pa.array([place[image] for image in given.column("image").to_pylist()], pa.int64())
    different = np.zeros(len(given), bool)
    for name in given.column_names:
        if name in had.column_names and (name in ("text", "patient", "split") or name.startswith("label.")):
            before, now = had.column(name).take(rows).to_pylist(), given.column(name).to_pylist()
            different |= np.array([a != b for a, b in zip(before, now, strict=True)], dtype=bool)
    return int(different.sum())


def _check_types(new: pa.Schema, had: pa.Schema, out: Path) -> None:
    for column in new:
        if column.name in had.names:
            before = had.field(column.name).type
            if before != column.type and not pa.types.is_null(column.type) and not pa.types.is_null(before):
                raise UserError(
                    f"column {column.name}: is {column.type} in the manifest and {before} in {out}; give it the same "
                    "type in both"
                )


def _check_splits(new: Manifest, had: pa.Table, out: Path) -> None:
    """Refuse a patient who would be in two splits (P24)."""
    before: dict[str, str] = {}
    for patient, split in zip(had.column("patient").to_pylist(), had.column("split").to_pylist(), strict=True):
        if patient and split:
            before[patient] = split
    columns = (new.table.column(name).to_pylist() for name in ("patient", "split"))
    both = sorted({p for p, split in zip(*columns, strict=True) if p in before and split and split != before[p]})
    if both:
        raise UserError(
            f"split: {len(both)} patients are in another split of {out} already ({', '.join(both[:3])}"
            f"{', ...' if len(both) > 3 else ''}); give them the split that they have there"
        )


def _merge(work: Work, out: Path, about: dict[str, Any], had: pa.Table, new: Manifest) -> dict[str, Any]:
    """Move the new shards in and write the store's files anew, `curation.json` last."""
    partial, first = work.partial, len(about["checksums"])
    rejected = {entry.row for entry in work.quarantine}
    kept = new.table.filter(pa.array([int(row) not in rejected for row in new.rows]))
    added = [partial / shard_name(number) for number in range(work.shards)]
    ids = had.column("id").to_pylist()
    fields_found = about["counts"]["fields_found"]
    checksums = dict(about["checksums"])
    for number, shard in enumerate(added):
        table = pq.read_table(shard, columns=["id", "field_found"])
        ids += table.column("id").to_pylist()
        fields_found += int(pc.sum(table.column("field_found")).as_py())
        checksums[shard_name(first + number)] = file_digest(shard)
    rows = pa.concat_tables([had, kept], promote_options="permissive")
    total = {"rows": about["counts"]["rows"] + len(new)}
    counts = count_rows(rows, rows, fields_found) | total
    counts["quarantined"] = counts["rows"] - counts["stored"]
    entry = {"manifest": new.path.name, "rows": len(new), "stored": len(kept), "maskedclip": maskedclip.__version__}
    merged = about | {
        "counts": counts,
        "fingerprint": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        "checksums": checksums,
        "appended": [*about.get("appended", []), entry],
    }
    names = ", ".join([about["manifest"], *(str(part["manifest"]) for part in merged["appended"])])
    quarantine = (out / "quarantine.csv").read_bytes() + quarantine_csv(work.quarantine).split(b"\n", 1)[1]
    reasons: dict[str, int] = {}
    for entry in work.quarantine:
        reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    schema = pa.unify_schemas([pq.read_schema(shard).remove_metadata() for shard in (*shard_files(out), *added)])
    card = CardData(
        name=out.name,
        manifest=names,
        version=maskedclip.__version__,
        settings=work.settings,
        counts=counts,
        rows=rows,
        schema=schema,
        quarantine=reasons,
        provenance=about.get("provenance", {}),
        examples=(out / "examples.jpg").is_file(),
    )
    text = write_card(card)
    for number, shard in enumerate(added):
        _put(shard, out / shard_name(first + number))
    write_atomically(out / "quarantine.csv", quarantine)
    write_atomically(out / "README.md", text.encode())
    write_atomically(out / "curation.json", (json.dumps(merged, indent=2) + "\n").encode())
    shutil.rmtree(partial)
    return merged


def _put(shard: Path, place: Path) -> None:
    """Give a shard a second name, so that a merge that is cut off can be done again."""
    temporary = place.with_name(f".{place.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(shard, temporary)
    except OSError:  # not every file system has links
        shutil.copyfile(shard, temporary)
    os.replace(temporary, place)


def _curation(
    out: Path, about: dict[str, Any], quarantine: list, notes: list[str], seconds: float, rate: float
) -> Curation:
    reasons: dict[str, int] = {}
    for entry in quarantine:
        reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    return Curation(
        out=out,
        counts=about["counts"],
        quarantine=quarantine,
        reasons=reasons,
        notes=notes,
        fingerprint=about["fingerprint"],
        seconds=seconds,
        images_per_second=rate,
    )
