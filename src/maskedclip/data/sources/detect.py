"""What kind of source a path is, told by its files."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.data.dicom import is_dicom
from maskedclip.data.sources.flair import COLUMNS as FLAIR_COLUMNS
from maskedclip.data.sources.huggingface import SAVED
from maskedclip.data.sources.spreadsheet import TABLE_SUFFIXES
from maskedclip.data.sources.walk import is_image
from maskedclip.data.sources.webdataset import is_tar
from maskedclip.errors import UserError

_LOOKED_AT = 2_000  # files of a folder: enough to know it, quick on a network disk


def detect_kind(source: Path, *, table: Path | None = None) -> str:
    """The kind of a source: a key of `maskedclip.data.sources.make.SOURCES`.

    Raises:
        UserError: nothing is there, or it is of no known kind; with what to do.
    """
    if source.is_dir():
        return _of_folder(source, table)
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder; check the path, or name a data set on a hub with --kind huggingface"
        )
    name = source.name.lower()
    if is_tar(source):
        return "webdataset"
    if name.endswith(".npz"):
        return "medmnist"
    if name.endswith(".arrow") or (name.endswith(".parquet") and _holds_pictures(source)):
        return "huggingface"
    if name.removesuffix(".gz").endswith(TABLE_SUFFIXES):
        return _of_table(source)
    mend = "unpack it and name the folder" if name.endswith((".zip", ".rar", ".7z")) else "name one, or say --kind"
    raise UserError(f"{source}: is no folder, table, .npz or .tar; {mend}")


def _of_folder(source: Path, table: Path | None) -> str:
    if any((source / name).is_file() for name in SAVED):
        return "huggingface"
    names = list(itertools.islice(_names(source), _LOOKED_AT))
    pictures = [name for name in names if is_image(name) and not name.lower().endswith((".dcm", ".dicom"))]
    if not pictures and any(name.lower().endswith((".parquet", ".arrow")) for name in names):
        return "huggingface"
    if not pictures and any(is_tar(Path(name)) for name in names):
        return "webdataset"
    if not pictures and any(_is_dicom_file(source / name) for name in names):
        return "dicom"
    if not pictures:
        raise UserError(f"{source}: holds no images, DICOM, tars or Parquet files; check the path, or say --kind")
    return "table" if table is not None else "classes"


def _names(source: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        place = os.path.relpath(parent, source)
        yield from (os.path.join(place, name) for name in sorted(files) if not name.startswith("."))


def _is_dicom_file(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            return is_dicom(file.read(132), path.name)
    except OSError:
        return False


def _holds_pictures(path: Path) -> bool:
    try:
        schema: Any = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: is not a readable Parquet file ({reason}): copy it again") from error
    kinds = [field.type for field in schema if pa.types.is_struct(field.type)]
    return any({kind.field(index).name for index in range(kind.num_fields)} == {"bytes", "path"} for kind in kinds)


def _of_table(source: Path) -> str:
    name = source.name.lower()
    if not name.endswith((".csv", ".tsv")):
        return "manifest"
    with open(source, encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline()
    columns = [{column.strip() for column in next(csv.reader([header], delimiter=d), [])} for d in ",;\t"]
    if any(set(FLAIR_COLUMNS) <= names for names in columns):
        return "flair"
    if any("image" in names for names in columns):
        return "manifest"
    raise UserError(
        f"{source}: has no column 'image'; to join it with images, name their folder as SOURCE and this file as --table"
    )
