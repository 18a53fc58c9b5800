"""A user's spreadsheet (CSV, TSV, JSON lines, Parquet, XLSX), and which of its columns become what of a manifest."""

from __future__ import annotations

import datetime
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.data.manifest_checks import TEXT_COLUMNS
from maskedclip.data.manifest_faults import FaultList, ManifestError
from maskedclip.data.manifest_files import read_raw
from maskedclip.data.sources.gathered import SourceOptions, as_cell, column_name, listed
from maskedclip.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".xlsx")


@dataclass(frozen=True, kw_only=True)
class Spreadsheet:
    """A table of strings.

    Attributes:
        path: the file.
        columns: name -> cells (n,), null where blank.
        rows: each row's number for a person, int64 (n,).
        notes: one-line remarks on how it was read.
    """

    path: Path
    columns: dict[str, list[str | None]]
    rows: np.ndarray
    notes: list[str] = field(default_factory=list)

    def column(self, name: str, option: str) -> list[str | None]:
        """A column's cells; UserError, naming the option that asked for it, where there is none."""
        if name not in self.columns:
            raise UserError(f"{option} {name}: {self.path} has no such column; it has {listed(self.columns)}")
        return self.columns[name]


def read_spreadsheet(path: Path, *, encoding: str = "utf-8", sheet: str | None = None) -> Spreadsheet:
    """Read a spreadsheet; ManifestError with all faults of its rows, UserError where it cannot be read at all."""
    suffix = path.suffix.lower()
    if suffix == ".xlsx":
        return _read_xlsx(path, sheet)
    if suffix in (".xls", ".ods", ".numbers"):
        raise UserError(f"{path}: {suffix} files are not read: save it as .csv or .xlsx")
    if sheet is not None:
        raise UserError(f"--sheet {sheet}: {path} is no .xlsx file and has no sheets; leave --sheet away")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; a table is a file ({', '.join(TABLE_SUFFIXES)})")
    faults = FaultList()
    raw = read_raw(path, encoding, faults)
    if faults:
        raise ManifestError(path, faults.sorted())
    columns = {
        name: [as_cell(value) for value in raw.table.column(name).to_pylist()] for name in raw.table.column_names
    }
    return Spreadsheet(path=path, columns=columns, rows=raw.rows, notes=list(raw.notes))


def _read_xlsx(path: Path, sheet: str | None) -> Spreadsheet:
    try:
        openpyxl: Any = importlib.import_module("openpyxl")
    except ImportError as error:
        raise UserError(
            f"{path}: reading .xlsx needs openpyxl: pip install 'maskedclip[tables]', or save the sheet as .csv"
        ) from error
    if not path.is_file():
        raise UserError(f"{path}: no such file: give the spreadsheet's path")
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        names = list(book.sheetnames)
        if sheet is not None and sheet not in names:
            raise UserError(f"--sheet {sheet}: {path} has no such sheet; it has {listed(names)}")
        header, columns, rows = _cells(book[sheet or names[0]].iter_rows(values_only=True))
        book.close()
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as zip, XML and openpyxl have
        why = column_name(str(error)) or type(error).__name__
        raise UserError(f"{path}: is not a readable .xlsx file ({why}): save it again, or as .csv") from error
    if len(columns) < len(header):
        raise UserError(f"{path}: two columns have one name: rename or remove one of {listed(header)}")
    notes = [f"read sheet '{sheet or names[0]}' of {len(names)}"] if len(names) > 1 else []
    return Spreadsheet(path=path, columns=columns, rows=np.array(rows, np.int64), notes=notes)


def _cells(records: Iterator[tuple[Any, ...]]) -> tuple[list[str], dict[str, list[str | None]], list[int]]:
    """Names of the columns that have one, their cells, and the numbers of the rows that are not empty."""
    names = [column_name(str(name)) if name is not None else "" for name in next(records, ())]
    kept = [index for index, name in enumerate(names) if name]
    columns: dict[str, list[str | None]] = {names[index]: [] for index in kept}
    rows = []
    for number, record in enumerate(records, start=2):
        cells = {names[i]: as_cell(_plain(record[i])) if i < len(record) else None for i in kept}
        if any(cell is not None for cell in cells.values()):
            rows.append(number)
            for name, cell in cells.items():
                columns[name].append(cell)
    return [names[index] for index in kept], columns, rows


def _plain(value: Any) -> Any:
    """A date without a time of day is a date."""
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(sep=" ")
    return value


def plan_columns(
    names: list[str], options: SourceOptions, *, path: Path, dropped: tuple[str, ...] = (), own: tuple[str, ...] = ()
) -> tuple[dict[str, str], list[str]]:
    """Which column of a table becomes which of the manifest.

    A column that an option names becomes what it says; `text`, `patient`, `split` (in any case), `label.*` and
    `mask.*` become what they are called; the others are carried.  A carried column whose name is taken is called
    `table.NAME`.

    Args:
        names: the table's columns.
        options: text, patient, split and label name columns.
        path: of the table, for the error.
        dropped: columns that are not needed any more.
        own: the manifest's other columns.

    Returns: column -> manifest's column, and notes on what was taken without being asked for.

    Raises:
        UserError: an option names a column that is not there.
    """
    asked = {"text": options.text, "patient": options.patient, "split": options.split}
    plan: dict[str, str] = {}
    for role, name in [*asked.items(), *(("label", name) for name in options.label)]:
        if name is None:
            continue
        if name not in names:
            raise UserError(f"--{role} {name}: {path} has no such column; it has {listed(names)}")
        if name in plan:
            raise UserError(f"--{role} {name}: is named for {plan[name]} already; name another column")
        plan[name] = f"label.{_stem(name, 'label')}" if role == "label" else role
    notes = []
    for name in sorted(names, key=lambda name: name != name.lower()):  # 'text' before 'Text'
        role = name.lower()
        if name in plan or name in dropped:
            continue
        if role in TEXT_COLUMNS and role != "image" and role not in plan.values():
            plan[name] = role
            if name != role:
                notes.append(f"column '{name}' is used as {role}")
        elif role.startswith(("label.", "mask.")) and len(_stem(name, role[: role.index(".")])) > 0:
            plan[name] = role.partition(".")[0] + "." + name.partition(".")[2]
    taken = {*plan.values(), *own, "image"}
    for name in names:
        if name in plan or name in dropped:
            continue
        reserved = name.lower() in TEXT_COLUMNS or name.lower() in ("label.", "mask.")
        carried = f"table.{name}" if name in taken or reserved else name
        plan[name] = carried
        taken.add(carried)
    if len(set(plan.values())) < len(plan):
        twice = next(value for value in plan.values() if list(plan.values()).count(value) > 1)
        raise UserError(f"{path}: two columns become '{twice}' in the manifest: rename or remove one")
    return plan, notes


def _stem(name: str, role: str) -> str:
    return name[len(role) + 1 :] if name.lower().startswith(f"{role}.") else name


def records(sheet: Spreadsheet, plan: dict[str, str]) -> Iterator[dict[str, str | None]]:
    """The table's rows as cells of a manifest, in order."""
    columns = [(target, sheet.columns[name]) for name, target in plan.items()]
    for place in range(len(sheet.rows)):
        yield {target: cells[place] for target, cells in columns}
