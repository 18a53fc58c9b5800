"""Checks of a manifest's columns: each normalises what it checks and adds every fault it finds."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pyarrow as pa
import pyarrow.compute

from maskedclip.data.address import split_address, written_name
from maskedclip.data.manifest_faults import FaultList

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them
WINDOW_COLUMNS = ("window_center", "window_width")  # the range of greys shown; see maskedclip.data.pixels.Window
TEXT_COLUMNS = ("image", "text", "patient", "split")
STORE_COLUMNS = (
    "id",
    "sha256",
    "perceptual_hash",
    "width",
    "height",
    "source_width",
    "source_height",
    "field_found",
)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_IMAGE_NAMES = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "image_path",
    "img",
    "img_path",
    "image_id",
    "name",
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"
_DECIMAL_COMMA = r"^[+-]?\d+,\d+$"


def is_url(value: str) -> bool:
    """Whether an image or mask is fetched (http, s3, gs, ...) and not a path; `file://` is a path."""
    return "://" in value and _URL.match(value) is not None and not value.startswith("file://")


def local_path(value: str, root: Path) -> Path:
    """The file that a manifest's value names, seen from the manifest's folder."""
    return root / (url2pathname(urlsplit(value).path) if value.startswith("file://") else value)


def check_columns(names: list[str], faults: FaultList) -> None:
    """An `image` column must be there; near misses of the schema's names are told, so that none is silently carried."""
    for name in names:
        if name in TEXT_COLUMNS or name.startswith(("label.", "mask.")):
            if name in ("label.", "mask."):
                faults.add(f"has no name after the point: write {name}NAME", column=name)
        elif name.lower() in TEXT_COLUMNS:
            faults.add(f"write it as '{name.lower()}'", column=name)
        elif name.lower().startswith(("label.", "mask.")):
            kind, _, rest = name.partition(".")
            faults.add(f"write it as '{kind.lower()}.{rest}'", column=name)
    if "image" not in names and not any(name.lower() == "image" for name in names):
        lowered = {name.lower(): name for name in names}
        known = [lowered[name] for name in _IMAGE_NAMES if name in lowered]
        near = known or [lowered[name] for name in difflib.get_close_matches("image", lowered, n=1)]
        mend = f"rename '{near[0]}' to 'image'" if near else "name the column of the images' paths 'image'"
        faults.add(f"there is no column 'image': {mend} (columns: {', '.join(names) or 'none'})")


def as_text(column: pa.ChunkedArray, name: str, faults: FaultList) -> pa.ChunkedArray:
    """A column as trimmed strings, null where blank; whole numbers in float columns lose their '.0'."""
    kind = column.type
    if pa.types.is_floating(kind) and not pc.any(pc.not_equal(pc.floor(column), column)).as_py():
        column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind)).cast(pa.int64())
    elif pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        faults.add(f"holds {kind}: give a path or a text", column=name)
        return pa.chunked_array([pa.nulls(len(column), pa.string())])
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(pc.utf8_length(text), 0), pa.scalar(None, pa.string()), text)


def as_split(column: pa.ChunkedArray, rows: np.ndarray, faults: FaultList) -> pa.ChunkedArray:
    """Splits as `train`, `val`, `test` or null; the usual other names are understood, in any case."""
    coded = Encoded(column)
    names = [SPLIT_NAMES.get(value.lower()) for value in coded.values]
    for code, value in enumerate(coded.values):
        if names[code] is None:
            for row in rows[coded.codes == code]:
                faults.add(f"'{value}' is none of train, val, test (or empty)", column="split", row=int(row))
    return _taken(names, coded.codes, pa.string())


def as_label(column: pa.ChunkedArray, name: str, rows: np.ndarray, faults: FaultList) -> pa.ChunkedArray:
    """A label as float32 where every given value is a number (or true, false), else as strings; null is unknown."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return column.cast(pa.float32())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _finite(column.cast(pa.float64(), safe=False), name, rows, faults)
    text = as_text(column, name, faults)
    if text.null_count == len(text):
        return text.cast(pa.float32())
    coded = Encoded(text)
    values = [{"true": "1", "false": "0"}.get(value.lower(), value) for value in coded.values]
    word = np.array([re.match(_NUMBER, value) is None for value in values])
    for pattern, problem in (
        (_NOT_FINITE, "'{}' is not a label: leave the cell empty where it is unknown"),
        (_DECIMAL_COMMA, "'{}' has a decimal comma: write a point"),
    ):
        for code in np.flatnonzero(word):
            if re.match(pattern, values[code]):
                word[code] = False
                for row in rows[coded.codes == code]:
                    faults.add(problem.format(coded.values[code]), column=name, row=int(row))
                values[code] = "0"
    if word.all():
        return text
    if word.any():
        _tell_mixture(coded, word, name, rows, faults)
        return pa.chunked_array([pa.nulls(len(text), pa.float32())])
    return _finite(_taken([float(value) for value in values], coded.codes, pa.float64()), name, rows, faults)


def _tell_mixture(coded: Encoded, word: np.ndarray, name: str, rows: np.ndarray, faults: FaultList) -> None:
    """Name the rows of the rarer kind: these are the likely slips."""
    counts = np.bincount(coded.codes[coded.codes >= 0], minlength=len(word))
    words, numbers = int(counts[word].sum()), int(counts[~word].sum())
    rarer = word if words <= numbers else ~word
    for code in np.flatnonzero(rarer):
        kind = "a word" if word[code] else "a number"
        problem = (
            f"'{coded.values[code]}' is {kind}, but the column mixes {numbers:,} numbers and {words:,} words: "
            "use one kind, and leave the cell empty where the label is unknown"
        )
        for row in rows[coded.codes == code]:
            faults.add(problem, column=name, row=int(row))


def _finite(column: pa.ChunkedArray, name: str, rows: np.ndarray, faults: FaultList) -> pa.ChunkedArray:
    """A float64 column as float32; values that are not finite in it are faults."""
    single = column.cast(pa.float32(), safe=False)
    wrong = pc.invert(pc.fill_null(pc.is_finite(single), True)).to_numpy()
    for row in rows[wrong]:
        faults.add("is not a finite number: leave the cell empty where the label is unknown", column=name, row=int(row))
    return pc.if_else(pc.is_finite(single), single, pa.scalar(None, pa.float32()))


def check_windows(table: pa.Table, rows: np.ndarray, faults: FaultList) -> None:
    """A window is two numbers, the width above 0; where neither is given the file decides."""
    given = [name for name in WINDOW_COLUMNS if name in table.column_names]
    numbers = {}
    for name in given:
        if pa.types.is_string(table.column(name).type):
            faults.add("holds words: give numbers, in the file's units after its rescale", column=name)
            return
        numbers[name] = table.column(name).cast(pa.float64()).to_numpy()
    none = np.full(len(rows), np.nan)
    centre, width = (numbers.get(name, none) for name in WINDOW_COLUMNS)
    for row in rows[np.isnan(centre) != np.isnan(width)]:
        faults.add("give window_center and window_width together, or neither", column=given[0], row=int(row))
    for row in rows[width <= 0]:
        faults.add("a window's width is above 0", column="window_width", row=int(row))


def check_repeated_images(table: pa.Table, rows: np.ndarray, faults: FaultList) -> None:
    """An image is one row: two rows of the same image are told, with what to do with their texts."""
    coded = Encoded(pa.chunked_array([pa.array(map(_plain, table.column("image").to_pylist()), pa.string())]))
    repeated = np.flatnonzero(np.bincount(coded.codes[coded.codes >= 0], minlength=len(coded.values)) > 1)
    texts = table.column("text") if "text" in table.column_names else None
    for code, places in _places(coded.codes, repeated):
        problem = f"'{coded.values[code]}' is given {len(places)} times: keep one row"
        given = [] if texts is None else [text for text in texts.take(places).to_pylist() if text is not None]
        distinct = list(dict.fromkeys(given))
        if len(distinct) > 1:
            joined = _short(". ".join(text.rstrip(". ") for text in distinct))
            problem += f" with its texts joined, as in '{joined}'"
        for row in rows[places]:
            faults.add(problem, column="image", row=int(row))


def _plain(value: str | None) -> str | None:
    """`./a//b.png` is the same file as `a/b.png`."""
    if value is None or not (value.startswith("./") or "/./" in value or "//" in value) or is_url(value):
        return value
    return os.path.normpath(value)


def check_leakage(table: pa.Table, rows: np.ndarray, faults: FaultList, notes: list[str]) -> None:
    """All rows of a patient belong to one split, else what is learnt from one eye is tested on the other."""
    patient, split = Encoded(table.column("patient")), Encoded(table.column("split"))
    known = (patient.codes >= 0) & (split.codes >= 0)
    pairs = np.unique(np.stack([patient.codes[known], split.codes[known]]), axis=1)
    crossing = np.flatnonzero(np.bincount(pairs[0], minlength=len(patient.values)) > 1)
    for code, places in _places(np.where(known, patient.codes, -1), crossing):
        splits = " and ".join(sorted({split.values[index] for index in split.codes[places]}))
        problem = f"patient '{patient.values[code]}' is in {splits} (leakage): put all rows of a patient into one split"
        for row in rows[places]:
            faults.add(problem, column="split", row=int(row))
    loose = (patient.codes >= 0) & (split.codes < 0)
    half = np.intersect1d(patient.codes[loose], patient.codes[known])
    if len(half):
        notes.append(
            f"{len(half):,} patients have rows with and rows without a split, such as '{patient.values[half[0]]}'"
        )


def check_paths(
    column: pa.ChunkedArray, name: str, root: Path, rows: np.ndarray, faults: FaultList, *, allow_outside: bool
) -> None:
    """Paths stay below the manifest's folder, links followed: a shared manifest must not read other files.

    Each folder is resolved and listed once, so that 400,000 paths cost a few thousand calls.
    """
    if allow_outside:
        return
    inside = os.path.realpath(root)
    below = inside.rstrip("/") + "/"
    folders: dict[str, tuple[str, bool, frozenset[str]]] = {}
    for row, value in zip(rows, column.to_pylist(), strict=True):
        if value is None or is_url(value):
            continue
        if "\0" in value:
            faults.add("holds a zero byte, which no file's name can: write the path again", column=name, row=int(row))
            continue
        value = split_address(value).file  # an archive's members are never paths; the archive itself is one
        path = str(local_path(value, root)) if value.startswith("file://") else value
        parent, slash, base = path.rpartition("/")
        parent = parent or slash  # "/a.png" lies in "/", "a.png" in the manifest's folder
        if parent not in folders:
            real, links = _resolved(os.path.join(root, parent))
            folders[parent] = real, real == inside or real.startswith(below), links
        real, ok, links = folders[parent]
        if base in links or base in ("..", "."):
            real = os.path.realpath(os.path.join(real, base))
            ok = real.startswith(below)
        if not ok:
            faults.add(
                f"leads out of the manifest's folder, to {real}: move the file inside, or say --allow-outside",
                column=name,
                row=int(row),
            )


def _resolved(folder: str) -> tuple[str, frozenset[str]]:
    """A folder with links followed, and the links among its entries; one that is not there has none."""
    real = os.path.realpath(folder)
    if not os.path.isdir(real):
        return real, frozenset()
    with os.scandir(real) as entries:
        return real, frozenset(written_name(entry.name) for entry in entries if entry.is_symlink())


class Encoded:
    """A string column as distinct values and codes (n,), -1 for null: loops run over few values, not many rows."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        coded = column.combine_chunks().dictionary_encode()
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.combine_chunks()
        self.values: list[str] = coded.dictionary.to_pylist()
        self.codes: np.ndarray = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _taken(values: list, codes: np.ndarray, kind: pa.DataType) -> pa.ChunkedArray:
    indices = pa.array(codes, mask=codes < 0)
    return pa.chunked_array([pa.array(values, kind).take(indices)])


def _places(codes: np.ndarray, wanted: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """For each wanted code, the positions that have it."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], wanted, side="left")
    ends = np.searchsorted(codes[order], wanted, side="right")
    for code, start, end in zip(wanted, starts, ends, strict=True):
        yield int(code), order[start:end]


def _short(text: str, length: int = 80) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
