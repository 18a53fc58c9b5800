"""A store in the shapes that other tools read: WebDataset tars, or an ImageFolder with a table beside it.

Pictures keep their stored bytes.  An export is written to `OUT.partial` and renamed at the end.
"""

import csv
import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from maskedclip.console import bar
from maskedclip.data.shards import PICTURE
from maskedclip.data.store import Store, open_store, refuse_volumes, shard_files
from maskedclip.errors import UserError

FORMATS = ("webdataset", "imagefolder")
TAR_ROWS = 1_000
_SAFE = re.compile(r"[^A-Za-z0-9._-]+")


def export_store(folder: Path, out: Path, kind: str, *, label: str | None = None) -> dict[str, int]:
    """Write a store elsewhere.

    - `webdataset`: `SPLIT-000000.tar` of at most 1,000 samples each: `ID.jpg` or `.png`, `ID.txt` where there is a
      text, `ID.json` with all other columns, `ID.mask.NAME.png` for masks.
    - `imagefolder`: `SPLIT/CLASS/ID.jpg` by the label that is named, or `SPLIT/ID.jpg`, and `SPLIT/metadata.csv` with
      all other columns, as Hugging Face's `imagefolder` reads it.  Rows whose label is unknown are left out.

    Returns: rows written by split; the key "left out" where there were any.

    Raises:
        UserError: `out` exists, an unknown format or label, a store that cannot be read.
    """
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: give {' or '.join(FORMATS)}")
    if out.exists():
        raise UserError(f"--out {out}: exists; choose another folder")
    store = open_store(folder)
    refuse_volumes(store, "store export")
    if label is not None and f"label.{label}" not in store.table.column_names:
        names = [name.removeprefix("label.") for name in store.table.column_names if name.startswith("label.")]
        raise UserError(f"--label {label}: the store has no such label; it has {', '.join(names) or 'none'}")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        writer = _webdataset if kind == "webdataset" else _image_folder
        counts = writer(store, partial, label)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); free space or choose another") from error
    return counts


def _rows(store: Store) -> Iterator[dict[str, Any]]:
    with bar("export", len(store)) as shown:
        for shard in shard_files(store.folders[0]):
            with pq.ParquetFile(shard) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group)
                    yield from rows.to_pylist()
                    shown.advance(rows.num_rows)


def _parts(row: dict[str, Any]) -> tuple[bytes, str, dict[str, Any], dict[str, bytes]]:
    """Picture, its suffix, the plain columns, and the masks of a row."""
    image = row["image"]["bytes"]
    suffix = "png" if image.startswith(b"\x89PNG") else "jpg"
    masks = {
        name: value["bytes"] for name, value in row.items() if name.startswith("mask.") and value and value["bytes"]
    }
    plain = {name: value for name, value in row.items() if name != "image" and not name.startswith("mask.")}
    return image, suffix, plain | {"source": row["image"]["path"]}, masks


def _webdataset(store: Store, out: Path, label: str | None) -> dict[str, int]:
    counts: dict[str, int] = {}
    tars: dict[str, tarfile.TarFile] = {}
    try:
        for row in _rows(store):
            split = row["split"] or "train"
            count = counts.get(split, 0)
            if count % TAR_ROWS == 0:
                if split in tars:
                    tars[split].close()
                tars[split] = tarfile.TarFile(out / f"{split}-{count // TAR_ROWS:06d}.tar", "w")
            counts[split] = count + 1
            image, suffix, plain, masks = _parts(row)
            key = row["id"]
            _add(tars[split], f"{key}.{suffix}", image)
            if row["text"] is not None:
                _add(tars[split], f"{key}.txt", row["text"].encode())
            if label is not None and row[f"label.{label}"] is not None:
                _add(tars[split], f"{key}.cls", _class(row[f"label.{label}"]).encode())
            _add(tars[split], f"{key}.json", json.dumps(plain, default=str, ensure_ascii=False).encode())
            for name, mask in masks.items():
                _add(tars[split], f"{key}.{name}.png", mask)
    finally:
        for tar in tars.values():
            tar.close()
    return counts


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)  # no times, owners or modes of this machine: the same store gives the same tar
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _image_folder(store: Store, out: Path, label: str | None) -> dict[str, int]:
    counts: dict[str, int] = {}
    columns = [field.name for field in pq.read_schema(shard_files(store.folders[0])[0]) if field.type != PICTURE]
    tables: dict[str, Any] = {}
    files: list[Any] = []
    try:
        for row in _rows(store):
            split = row["split"] or "train"
            value = None if label is None else row[f"label.{label}"]
            if label is not None and value is None:
                counts["left out"] = counts.get("left out", 0) + 1
                continue
            image, suffix, plain, masks = _parts(row)
            place = Path() if value is None else Path(_SAFE.sub("_", _class(value)))
            name = place / f"{row['id']}.{suffix}"
            path = out / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
            for mask, content in masks.items():
                beside = out / f"{split}_masks" / mask.removeprefix("mask.") / f"{row['id']}.png"
                beside.parent.mkdir(parents=True, exist_ok=True)
                beside.write_bytes(content)
            if split not in tables:
                file = (out / split / "metadata.csv").open("w", newline="", encoding="utf-8")
                files.append(file)
                tables[split] = csv.DictWriter(file, ["file_name", *columns, "source"])
                tables[split].writeheader()
            tables[split].writerow({"file_name": name.as_posix(), **plain})
            counts[split] = counts.get(split, 0) + 1
    finally:
        for file in files:
            file.close()
    return counts


def _class(value: float | str) -> str:
    """A label's value as a word: 1 for 1.0."""
    return value if isinstance(value, str) else f"{value:g}"
