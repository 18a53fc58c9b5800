"""Check a manifest: every fault at once, and what it holds where it is good."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from maskedclip.data.manifest import Manifest, ManifestError, is_url, local_path, read_manifest
from maskedclip.data.manifest_faults import FaultList

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them
_SHOWN_VALUES = 10


def check_manifest(path: Path, *, encoding: str = "utf-8", allow_outside: bool = False) -> Manifest:
    """Read a manifest and see that the files it names are there.

    Raises:
        ManifestError: all faults of its content; where there are none, all files that are missing.
        UserError: it cannot be read at all.
    """
    manifest = read_manifest(path, encoding=encoding, allow_outside=allow_outside)
    faults, folders = FaultList(), dict[str, frozenset[str]]()
    for name in ["image", *manifest.names("mask")]:
        for row, value in zip(manifest.rows, manifest.table.column(name).to_pylist(), strict=True):
            if value is not None and not is_url(value) and not _is_there(local_path(value, manifest.root), folders):
                faults.add("there is no such file: mend the path, or remove the row", column=name, row=int(row))
    if faults:
        raise ManifestError(path, faults.sorted())
    return manifest


def _is_there(path: Path, folders: dict[str, frozenset[str]]) -> bool:
    """Whether a file is there; each folder is listed once, so that 400,000 paths cost a few thousand calls."""
    parent = str(path.parent)
    if parent not in folders:
        folders[parent] = frozenset(os.listdir(parent)) if os.path.isdir(parent) else frozenset()
    return path.name in folders[parent]


def summarise(manifest: Manifest) -> list[str]:
    """What a manifest holds, a line each: rows, texts, patients, splits, labels, masks, carried columns."""
    table, count = manifest.table, len(manifest)
    text = table.column("text")
    paired = count - text.null_count
    distinct = pc.count_distinct(text).as_py()
    splits = Counter(table.column("split").to_pylist())
    patients = pc.count_distinct(table.column("patient")).as_py()
    unknown = table.column("patient").null_count
    listed = [f"{name} {splits[name]:,}" for name in ("train", "val", "test") if splits[name]]
    lines = [
        f"rows: {count:,}, {paired:,} with text ({distinct:,} distinct), {count - paired:,} without",
        f"patients: {patients:,}" + (f", {unknown:,} rows without" if unknown else ""),
        "splits: " + (", ".join([*listed, *([f"none {splits[None]:,}"] if splits[None] else [])])),
        *(f"{name}: {_values(table.column(name))}" for name in manifest.names("label")),
        *(f"{name}: {count - table.column(name).null_count:,} of {count:,} rows" for name in manifest.names("mask")),
    ]
    known = ("image", "text", "patient", "split")
    carried = [name for name in table.column_names if name not in known and not name.startswith(("label.", "mask."))]
    return lines + ([f"carried: {', '.join(carried)}"] if carried else [])


def _values(column: pa.ChunkedArray) -> str:
    """A label's values with their counts; the range of many numbers, the commonest of many words."""
    counts = Counter(value for value in column.to_pylist() if value is not None)
    unknown = f"; {column.null_count:,} unknown" if column.null_count else ""
    numbers = pa.types.is_floating(column.type)
    if len(counts) > _SHOWN_VALUES and numbers:
        values = np.array(list(counts), np.float64)
        return f"{len(counts):,} values from {values.min():g} to {values.max():g}{unknown}"
    ordered = sorted(counts.items()) if numbers else counts.most_common(_SHOWN_VALUES)
    more = f", and {len(counts) - len(ordered):,} more values" if len(ordered) < len(counts) else ""
    return ", ".join(f"{f'{value:g}' if numbers else value} {each:,}" for value, each in ordered) + more + unknown
