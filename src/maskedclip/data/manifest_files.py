"""The files a manifest can be (CSV, TSV, JSON lines, Parquet, a folder of images), each read into one raw table."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from maskedclip.data.address import is_archive, written_name
from maskedclip.data.archives import list_members
from maskedclip.data.manifest_faults import FaultList
from maskedclip.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm", ".dicom")
pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them
BLOCK = 50_000  # records turned into Arrow at a time: bounds what Python strings take
_SEPARATORS = {",": "','", ";": "';'", "\t": "tab"}
_UNDECODED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" leaves of a byte
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 cannot


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A manifest as it was read.

    Attributes:
        table: columns in file order; empty cells of text files are null.
        rows: number of each row for a person, int64 (n,).
        notes: one-line remarks on how the file was read.
    """

    table: pa.Table
    rows: np.ndarray
    notes: list[str]


def read_raw(path: Path, encoding: str, faults: FaultList) -> RawTable:
    """Read a manifest file by its suffix, or a folder; what cannot be read at all is a UserError."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder: give a manifest, or a folder of images")
    if path.is_dir():
        return _read_folder(path)
    if is_archive(path.name):
        return _read_archive(path)
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    try:
        if suffix in (".csv", ".tsv"):
            return _read_separated(_bytes_of(path), encoding, "\t" if suffix == ".tsv" else ",", faults)
        if suffix in (".jsonl", ".ndjson"):
            return _read_json_lines(_bytes_of(path), encoding, faults)
        if suffix == ".parquet":
            return _read_parquet(path, faults)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or str(error).splitlines()[0]})") from error
    raise UserError(f"{path}: a manifest is a .csv, .tsv, .jsonl or .parquet file (or .csv.gz), or a folder of images")


def _bytes_of(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path}: is not a complete gzip file ({error}): compress it again") from error


def _decode(data: bytes, encoding: str, notes: list[str]) -> str:
    """Text of a file; bytes that do not fit the encoding become lone surrogates, which the reader reports by cell."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        notes.append("read as UTF-16 (byte order mark)")
        encoding = "utf-16"
    try:
        codec = codecs.lookup(encoding).name
    except LookupError as error:
        raise UserError(f"text encoding {encoding!r} is unknown: name one such as utf-8, latin-1 or cp1252") from error
    try:
        return data.decode("utf-8-sig" if codec == "utf-8" else codec, errors="surrogateescape")
    except UnicodeError as error:
        raise UserError(f"the manifest is not {encoding} ({error}): give its encoding, --encoding") from error


def _separator(header: str, default: str) -> str:
    """The separator whose header names an `image` column and most columns; the suffix decides a tie."""

    def merit(separator: str) -> tuple[bool, int, bool]:
        names = [name.strip().strip('"') for name in header.split(separator)]
        return "image" in names, len(names), separator == default

    return max(_SEPARATORS, key=merit)


def _read_separated(data: bytes, encoding: str, default: str, faults: FaultList) -> RawTable:
    notes: list[str] = []
    text = _decode(data, encoding, notes)
    separator = _separator(text.split("\n", 1)[0].rstrip("\r"), default)
    if separator != default:
        notes.append(f"read with {_SEPARATORS[separator]} as separator")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        header = [name.strip() for name in next(reader, [])]
        blocks, rows = _read_records(reader, header, faults, notes, odd_quotes=text.count('"') % 2 == 1)
    except csv.Error as error:
        raise UserError(
            f"row {reader.line_num}: cannot be read as CSV ({error}): close the quotation mark that is left open"
        ) from error
    header = [_UNDECODED.sub("?", name) for name in header]
    columns = [
        _nulls_for_empty(pa.chunked_array([block[index] for block in blocks], pa.string()))
        for index in range(len(header))
    ]
    header, columns = _drop_unnamed(header, columns, faults, notes)
    header, columns = _drop_repeated(header, columns, faults)
    return RawTable(table=pa.table(dict(zip(header, columns, strict=True))), rows=rows, notes=notes)


def _read_records(
    reader: Any, header: list[str], faults: FaultList, notes: list[str], *, odd_quotes: bool
) -> tuple[list[list[pa.Array]], np.ndarray]:
    """Records of the right length as blocks of columns, with their row numbers."""
    blocks: list[list[pa.Array]] = []
    records: list[list[str]] = []
    rows: list[int] = []
    width, empty = len(header), 0
    record: list[str] = []
    number = 1
    for number, record in enumerate(reader, start=2):
        if not any(record):
            empty += 1
        elif len(record) != width:
            hint = ": a quotation mark may be left open" if len(record) < width and "\n" in "".join(record) else ""
            faults.add(f"has {len(record)} fields where the header has {width}{hint}", row=number)
        else:
            records.append(record)
            rows.append(number)
            if len(records) == BLOCK:
                blocks.append(_to_columns(records, header, rows[-len(records) :], faults))
                records = []
    if odd_quotes and any("\n" in cell for cell in record):
        faults.add("a quotation mark is opened and never closed: the rest of the file was read as one cell", row=number)
    if records:
        blocks.append(_to_columns(records, header, rows[-len(records) :], faults))
    if empty:
        notes.append(f"skipped {empty:,} empty row{'s' if empty > 1 else ''}")
    return blocks, np.array(rows, dtype=np.int64)


def _to_columns(records: list[list[str]], header: list[str], rows: list[int], faults: FaultList) -> list[pa.Array]:
    """Transpose records into Arrow columns; cells that were not decodable are reported and get '?'."""
    columns = []
    for name, cells in zip(header, zip(*records, strict=True), strict=True):
        try:
            columns.append(pa.array(cells, pa.string()))
        except UnicodeEncodeError:
            clean = []
            for row, cell in zip(rows, cells, strict=True):
                if _UNDECODED.search(cell):
                    faults.add(
                        "has letters that are not UTF-8: save the file as UTF-8, or give its encoding, "
                        "such as --encoding latin-1",
                        column=_UNDECODED.sub("?", name),
                        row=row,
                    )
                clean.append(_UNDECODED.sub("?", cell))
            columns.append(pa.array(clean, pa.string()))
    return columns


def _nulls_for_empty(column: pa.ChunkedArray) -> pa.ChunkedArray:
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
    return pc.if_else(blank, pa.scalar(None, pa.string()), column)


def _drop_unnamed(
    header: list[str], columns: list[pa.ChunkedArray], faults: FaultList, notes: list[str]
) -> tuple[list[str], list[pa.ChunkedArray]]:
    """Spreadsheets leave empty columns at the end: those go; an unnamed column with values is a fault."""
    kept = []
    for index, (name, column) in enumerate(zip(header, columns, strict=True), start=1):
        if name:
            kept.append((name, column))
        elif column.null_count < len(column):
            faults.add(f"column {index} has no name: name it or remove it (pandas: to_csv(..., index=False))")
        elif "ignored empty columns without a name" not in notes:
            notes.append("ignored empty columns without a name")
    return [name for name, _ in kept], [column for _, column in kept]


def _drop_repeated(
    header: list[str], columns: list[pa.ChunkedArray], faults: FaultList
) -> tuple[list[str], list[pa.ChunkedArray]]:
    kept: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(header, columns, strict=True):
        if name in kept:
            faults.add(f"this name is given {header.count(name)} times: rename or remove the others", column=name)
        kept.setdefault(name, column)
    return list(kept), list(kept.values())


def _read_json_lines(data: bytes, encoding: str, faults: FaultList) -> RawTable:
    notes: list[str] = []
    text = _decode(data, encoding, notes)
    records: list[dict[str, Any]] = []
    rows: list[int] = []
    names: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        if _UNDECODED.search(line):
            faults.add("has letters that are not UTF-8: give the file's encoding, --encoding latin-1", row=number)
            line = _UNDECODED.sub("?", line)
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            faults.add(f"is not valid JSON ({error.msg}, character {error.pos + 1}): one object a line", row=number)
            continue
        if not isinstance(record, dict):
            faults.add("is not a JSON object: write {...}, one a line", row=number)
            continue
        record = _flattened(record)
        names.update(dict.fromkeys(record))
        records.append(record)
        rows.append(number)
    table = pa.table({name: _json_column([record.get(name) for record in records]) for name in names})
    return RawTable(table=table, rows=np.array(rows, dtype=np.int64), notes=notes)


def _flattened(record: dict[str, Any]) -> dict[str, Any]:
    """`{"label": {"glaucoma": 1}}` means the same as `{"label.glaucoma": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if name in ("label", "mask") and isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name.strip()] = value
    return flat


def _json_column(values: list[Any]) -> pa.Array:
    """One Arrow type where the values have one; else the values' texts, as a CSV would hold them."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 or kinds == {int, float}:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError):
            return pa.array(values)  # fails for lists of mixed things and the like: these stay JSON texts
    texts = [value if isinstance(value, str) or value is None else json.dumps(value) for value in values]
    return pa.array([None if text is None else _LONE_SURROGATE.sub("?", text) for text in texts], pa.string())


def _read_parquet(path: Path, faults: FaultList) -> RawTable:
    try:
        table = pq.ParquetFile(path).read()
        table.validate(full=True)  # a damaged file can hold texts that are not UTF-8, and places outside its values
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    header: list[str] = []
    columns: list[pa.ChunkedArray] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        nested = name in ("label", "mask") and pa.types.is_struct(column.type)
        flat = pa.table({name: column}).flatten() if nested else pa.table({name: column})
        header.extend(inner.strip() for inner in flat.column_names)
        columns.extend(
            inner.cast(inner.type.value_type) if pa.types.is_dictionary(inner.type) else inner for inner in flat.columns
        )
    header, columns = _drop_repeated(header, columns, faults)
    rows = np.arange(1, table.num_rows + 1, dtype=np.int64)
    return RawTable(table=pa.table(dict(zip(header, columns, strict=True))), rows=rows, notes=[])


def _read_folder(folder: Path) -> RawTable:
    """Every image file below a folder, sorted by path; hidden files and folders are left out."""
    found: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        place = Path(parent).relative_to(folder)
        images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
        found.extend(written_name((place / name).as_posix()) for name in images)
    if not found:
        raise UserError(f"{folder}: holds no image files ({', '.join(IMAGE_SUFFIXES)})")
    table = pa.table({"image": pa.array(sorted(found), pa.string())})
    rows = np.arange(1, len(found) + 1, dtype=np.int64)
    return RawTable(table=table, rows=rows, notes=[f"made from the {len(found):,} image files of the folder, no texts"])


def _read_archive(path: Path) -> RawTable:
    """Every image file in a zip or tar archive, in the order in which the archive is read fastest."""
    found = list_members(path, IMAGE_SUFFIXES)
    rows = np.arange(1, len(found) + 1, dtype=np.int64)
    note = f"made from the {len(found):,} image files of the archive, no texts"
    return RawTable(table=pa.table({"image": pa.array(found, pa.string())}), rows=rows, notes=[note])
