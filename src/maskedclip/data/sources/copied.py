"""A manifest as a source: its rows again, with paths as the new place needs them and texts where they are made."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from maskedclip.data.manifest import is_url, read_manifest
from maskedclip.data.sources.gathered import Gathered, SourceOptions, as_cell
from maskedclip.data.sources.target import Target


def gather(source: Path, target: Target, options: SourceOptions) -> Gathered:
    """Rows of a manifest without faults.

    Raises:
        ManifestError: all its faults.
        UserError: it lies outside the new manifest's folder.
    """
    manifest = read_manifest(source, encoding=options.encoding, allow_outside=options.allow_outside)
    prefix = target.prefix(manifest.root)
    columns: dict[str, pa.Array] = {}
    for name in manifest.table.column_names:
        cells = [as_cell(value) for value in manifest.table.column(name).to_pylist()]
        if prefix and (name == "image" or name.startswith("mask.")):
            cells = [_moved(cell, prefix) for cell in cells]
        columns[name.removeprefix("manifest.")] = pa.array(cells, pa.string())
    return Gathered(table=pa.table(columns), notes=list(manifest.notes))


def _moved(cell: str | None, prefix: str) -> str | None:
    return cell if cell is None or is_url(cell) or cell.startswith(("/", "file://")) else prefix + cell
