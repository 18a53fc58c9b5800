"""What every source hands over: rows for a manifest, remarks on what was left out or odd, and how it was read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from maskedclip.data.manifest_files import BLOCK

_LISTED = 30
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON and file names can hold them, UTF-8 cannot


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a user says of a source; each source takes only some of them (see `maskedclip.data.sources.make`).

    Attributes:
        patient: a regular expression for the file's name, or the column that names the patient.
        labels: `nominal`, one column with the class's name; `one-hot`, a 0/1 column for each class.  None: the
            source decides, and says so.
        table: the spreadsheet to join; `on`: its column; `key`: regular expression for the image's path whose group
            `on` is compared with; `sheet`: of an .xlsx file.
        image_column, text, split, label: columns that become `image`, `text`, `split`, `label.NAME`.
        image_root: the folder that the image paths of a table start from.
        class_names: names of the classes 0, 1, ...
        slices: middle slices to take of each volume, 0 to refuse volumes.
        only_matched: leave out images that no row of the table describes.
        encoding: of text files.
        allow_outside: the manifest may name files outside its folder.
    """

    patient: str | None = None
    labels: Literal["nominal", "one-hot"] | None = None
    table: Path | None = None
    on: str | None = None
    key: str | None = None
    sheet: str | None = None
    image_column: str | None = None
    image_root: Path | None = None
    text: str | None = None
    split: str | None = None
    label: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    slices: int = 0
    only_matched: bool = False
    encoding: str = "utf-8"
    allow_outside: bool = False


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One thing that a person should know of: its name, whether it is in the manifest, and why it is listed."""

    name: str
    kept: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a source holds.

    Attributes:
        table: string columns, `image` among them, null where unknown.
        remarks: what was left out, or kept with a flaw.
        notes: one-line remarks on how the source was read.
    """

    table: pa.Table
    remarks: list[Remark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Rows:
    """Collects rows of string cells; what is collected is Arrow's, so that 10^6 rows take little memory."""

    def __init__(self) -> None:
        self._columns: dict[str, list[str | None]] = {}
        self._waiting = 0
        self._blocks: list[pa.Table] = []

    def add(self, cells: Mapping[str, Any]) -> None:
        """Add a row; a column that a row does not name is null in it."""
        for name, value in cells.items():
            if name not in self._columns:
                self._columns[name] = [None] * self._waiting
            self._columns[name].append(as_cell(value))
        self._waiting += 1
        for column in self._columns.values():
            if len(column) < self._waiting:
                column.append(None)
        if self._waiting == BLOCK:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._blocks.append(pa.table({name: pa.array(cells, pa.string()) for name, cells in self._columns.items()}))
        self._columns, self._waiting = {name: [] for name in self._columns}, 0

    def table(self) -> pa.Table:
        """All rows, columns in the order in which they were first named."""
        self._flush()
        return pa.concat_tables(self._blocks, promote_options="default") if self._blocks else pa.table({})


def as_cell(value: Any) -> str | None:
    """A value as a manifest's cell: null for blank and NaN, 1 and 0 for true and false, JSON for lists and objects."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if value is None or isinstance(value, str):
        text = value
    elif isinstance(value, list | tuple | dict):
        text = json.dumps(value, default=str, ensure_ascii=False)
    else:
        text = str(value)
    if text is None or not text.strip():
        return None
    return _LONE_SURROGATE.sub("?", text)


def shown(name: str) -> str:
    """A file's name for a person: bytes that are not UTF-8 as \\xNN."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def listed(names: Iterable[str]) -> str:
    """Names for an error, in one line and not more than fit into it."""
    plain = [column_name(name) for name in names]
    more = f" and {len(plain) - _LISTED:,} more" if len(plain) > _LISTED else ""
    return (", ".join(plain[:_LISTED]) or "none") + more


def example(values: Iterable[str | None]) -> str:
    """The first known value, for an error, in one line."""
    return column_name(next((value for value in values if value is not None), "nothing"))


def column_name(text: str) -> str:
    """A name that a column can have: one line, without white space around it."""
    return " ".join(_LONE_SURROGATE.sub("?", text).split())
