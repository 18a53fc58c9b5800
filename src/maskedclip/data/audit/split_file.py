"""A manifest in, a manifest with splits out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from maskedclip.data.audit.fix import check_new, write_csv
from maskedclip.data.audit.split import Splits, make_splits
from maskedclip.data.manifest import is_url, read_manifest
from maskedclip.errors import UserError


def split_manifest(
    manifest: Path,
    out: Path,
    *,
    val: float,
    test: float,
    seed: int,
    keep: Path | None = None,
    independent: bool = False,
    encoding: str = "utf-8",
    allow_outside: bool = False,
) -> Splits:
    """Write a copy of a manifest in which every row has a split.

    Args:
        manifest: the table; patients who have a split keep it.
        out: a new CSV in the manifest's folder.
        keep: an earlier manifest, whose patients keep their splits of it.
        val, test, seed, independent: as `make_splits`.
        encoding, allow_outside: as `read_manifest`.

    Raises:
        UserError: a manifest has faults, the two disagree, `out` is there already or elsewhere.
    """
    check_new(out)
    read = read_manifest(manifest, encoding=encoding, allow_outside=allow_outside)
    table = read.table
    paths = [name for name in table.column_names if name == "image" or name.startswith("mask.")]
    loose = any(_is_relative(value) for name in paths for value in table.column(name).to_pylist() if value)
    if loose and out.resolve().parent != read.root.resolve():
        raise UserError(
            f"{out}: paths start at the manifest's folder, so write the new one there: {read.root / out.name}"
        )
    if keep is not None:
        earlier = read_manifest(keep, encoding=encoding, allow_outside=True).table
        table = _with_splits(table, earlier, keep)
    made = make_splits(table, val=val, test=test, seed=seed, independent=independent)
    place = table.column_names.index("split")
    write_csv(table.set_column(place, "split", pa.array(made.names.tolist(), pa.string())), out)
    return made


def _is_relative(value: str) -> bool:
    return not is_url(value) and not value.startswith(("/", "file://"))


def _with_splits(table: pa.Table, earlier: pa.Table, name: Path) -> pa.Table:
    """The table with the splits of an earlier one, by patient, or by image where a row has no patient."""
    images, patients, splits = (earlier.column(column).to_pylist() for column in ("image", "patient", "split"))
    known = {
        (patient or f"image\0{image}"): split
        for image, patient, split in zip(images, patients, splits, strict=True)
        if split
    }
    if not known:
        raise UserError(f"{name}: has no splits to keep; give a manifest that `maskedclip split` wrote")
    images, patients, splits = (table.column(column).to_pylist() for column in ("image", "patient", "split"))
    kept = []
    for image, patient, split in zip(images, patients, splits, strict=True):
        before = known.get(patient or f"image\0{image}")
        if before and split and before != split:
            raise UserError(f"'{patient or image}' is in {split} here and in {before} in {name}: empty one of the two")
        kept.append(before or split)
    return table.set_column(table.column_names.index("split"), "split", pa.array(kept, pa.string()))
