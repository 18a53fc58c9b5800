"""The manifest: the table in which a user lists images, and texts, patients, splits, labels and masks where known.

Only `image` is required; a row without text is an unpaired image.  Every fault is told with its row and column, all
faults at once, before anything is written.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from maskedclip.data.manifest_checks import (
    STORE_COLUMNS,
    TEXT_COLUMNS,
    WINDOW_COLUMNS,
    as_label,
    as_split,
    as_text,
    check_columns,
    check_leakage,
    check_paths,
    check_repeated_images,
    check_windows,
    is_url,
    local_path,
)
from maskedclip.data.manifest_faults import Fault, FaultList, ManifestError
from maskedclip.data.manifest_files import read_raw

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them
_NEARLY = re.compile("(label|mask)[_:](.+)")  # what a label or mask column is often called

__all__ = ["Fault", "Manifest", "ManifestError", "is_url", "local_path", "read_manifest"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest without faults.

    Attributes:
        path: the file, or the folder of images.
        root: the folder that relative paths start from.
        table: columns `image`, `text`, `patient`, `split` (strings, null where not given), `label.NAME` (float32 or
            string), `mask.NAME` (strings), then the carried columns as read.  A carried column with a name of the
            store's own, such as `id`, is called `manifest.id`.
        rows: each row's number for a person, int64 (n,): in a CSV the header is row 1.
        notes: one-line remarks on what was read.
    """

    path: Path
    root: Path
    table: pa.Table
    rows: np.ndarray
    notes: list[str]

    def __len__(self) -> int:
        return self.table.num_rows

    def names(self, kind: str) -> list[str]:
        """The columns of a kind, `label` or `mask`, such as `label.glaucoma`."""
        return [name for name in self.table.column_names if name.startswith(f"{kind}.")]


def read_manifest(path: Path, *, encoding: str = "utf-8", allow_outside: bool = False) -> Manifest:
    """Read and check a manifest.

    Args:
        path: `.csv` or `.tsv` (separator `,` `;` or tab, read from the header; `.gz` too), `.jsonl`, `.parquet`, or a
            folder, of which every image file becomes a row without text.
        encoding: of text files; UTF-8 with or without a byte order mark by default.
        allow_outside: allow paths that leave the manifest's folder.

    Raises:
        ManifestError: all faults of the content.
        UserError: the file is missing or cannot be read at all.
    """
    path = Path(path)
    faults = FaultList()
    raw = read_raw(path, encoding, faults)
    root = path if path.is_dir() else path.parent
    notes, rows = list(raw.notes), raw.rows
    if not len(rows) and not faults:
        faults.add("there are no rows: list at least one image")
    check_columns(raw.table.column_names, faults)
    table = _normalised(raw.table, rows, faults, notes)
    if "image" in raw.table.column_names:
        _check_images(table, rows, faults)
    for name in table.column_names:
        if name == "image" or name.startswith("mask."):
            check_paths(table.column(name), name, root, rows, faults, allow_outside=allow_outside)
    check_leakage(table, rows, faults, notes)
    check_windows(table, rows, faults)
    if faults:
        raise ManifestError(path, faults.sorted())
    return Manifest(path=path, root=root, table=table, rows=rows, notes=notes)


def _normalised(raw: pa.Table, rows: np.ndarray, faults: FaultList, notes: list[str]) -> pa.Table:
    """Columns in the schema's order and types."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in TEXT_COLUMNS:
        given = name in raw.column_names
        nulls = pa.chunked_array([pa.nulls(len(rows), pa.string())])
        columns[name] = as_text(raw.column(name), name, faults) if given else nulls
    columns["image"] = _forward_slashes(columns["image"], notes)
    columns["split"] = as_split(columns["split"], rows, faults)
    for name in raw.column_names:
        if name.startswith("label."):
            columns[name] = as_label(raw.column(name), name, rows, faults)
    for name in raw.column_names:
        if name.startswith("mask."):
            columns[name] = _forward_slashes(as_text(raw.column(name), name, faults), notes)
    for name in raw.column_names:
        if name not in columns:
            carried = f"manifest.{name}" if name in STORE_COLUMNS else name
            if carried in columns or (carried != name and carried in raw.column_names):
                faults.add(f"the store has a column '{name}' of its own: rename it", column=name)
            elif carried != name:
                notes.append(f"column '{name}' is kept as '{carried}': the store has a '{name}' of its own")
            window = name in WINDOW_COLUMNS
            columns[carried] = as_label(raw.column(name), name, rows, faults) if window else _carried(raw.column(name))
        if nearly := _NEARLY.fullmatch(name):
            kind, rest = nearly.groups()
            notes.append(f"column '{name}' is carried along; to use it as a {kind}, call it '{kind}.{rest}'")
    return pa.table(columns)


def _carried(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A carried column as read; lists and objects, which not every reader of a store knows, as their JSON text."""
    if pa.types.is_null(column.type):
        return column.cast(pa.string())
    if pa.types.is_nested(column.type):
        texts = [None if value is None else json.dumps(value, default=str) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    return column


def _forward_slashes(column: pa.ChunkedArray, notes: list[str]) -> pa.ChunkedArray:
    """Paths written on Windows are read everywhere."""
    if not pc.any(pc.match_substring(column, "\\")).as_py():
        return column
    note = "read '\\' in paths as '/'"
    if note not in notes:
        notes.append(note)
    return pc.replace_substring(column, "\\", "/")


def _check_images(table: pa.Table, rows: np.ndarray, faults: FaultList) -> None:
    missing = table.column("image").is_null().to_numpy()
    if missing.all():
        if len(rows):
            faults.add("is empty in every row: give the images' paths", column="image")
        return
    for row in rows[missing]:
        faults.add("is empty: give the image's path, or remove the row", column="image", row=int(row))
    check_repeated_images(table, rows, faults)
