"""Rows of a task from CSV files: where the images are, and what the columns say of them."""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from maskedclip.console import say
from maskedclip.data.label_columns import UNKNOWN_WORDS
from maskedclip.data.manifest_files import IMAGE_SUFFIXES
from maskedclip.evaluation.task_rows import Row
from maskedclip.evaluation.task_spec import PLACEHOLDER, Cell, Layout, PairSpec, TableSpec

_SEPARATORS = (",", ";", "\t")


def table_rows(layout: Layout, base: Path, faults: list[str]) -> list[Row]:
    """The rows of all the tables, with their labels as the cells have them (translated where the task says so).

    A row of a file that no table's `where` takes is told.  Noted as faults: a table, a column or an image that is
    missing, a cell that the task does not translate, an image that two rows name.
    """
    files = _Files(base)
    rows: list[Row] = []
    left_out: dict[str, set[int]] = {}
    for table in layout.tables:
        content = read_table(base / table.file, table.file, faults)
        if content:
            chosen = [n for n, record in enumerate(content[1]) if _chosen(table, record)]
            every = set(range(len(content[1])))
            left_out[table.file] = left_out.get(table.file, every) - set(chosen)
            rows += _rows(table, content[0], [content[1][n] for n in chosen], files, faults)
    for file, places in left_out.items():
        if places and not faults:
            say(f"{file}: left out, since no 'where' of the task takes them: {len(places):,} of its rows")
    if layout.pairs and not faults:
        rows = _paired(layout.pairs, rows, base, faults)
    counted: dict[str, int] = {}
    for row in rows:
        counted[row.image] = counted.get(row.image, 0) + 1
    repeated = [image for image, count in counted.items() if count > 1]
    if repeated:
        faults.append(f"{len(repeated):,} images are in several rows, such as {repeated[0]}")
    return rows


def read_table(path: Path, name: str, faults: list[str]) -> tuple[list[str], list[dict[str, str]]] | None:
    """The columns and rows of a CSV file, names and cells trimmed; separators `,` `;` and tab; None where it fails."""
    if not path.is_file():
        faults.append(f"{name}: no such file")
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{name}: cannot be read ({error}); save it as UTF-8")
        return None
    header = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_SEPARATORS, key=header.count))
    try:
        records = [[cell.strip() for cell in record] for record in reader if any(cell.strip() for cell in record)]
    except csv.Error as error:
        faults.append(f"{name}: line {reader.line_num} is not CSV ({error})")
        return None
    if len(records) < 2:
        faults.append(f"{name}: has no rows")
        return None
    columns = records[0]
    return columns, [dict(zip(columns, record, strict=False)) for record in records[1:]]


def _rows(
    table: TableSpec, columns: Sequence[str], records: Sequence[Mapping[str, str]], files: "_Files", faults: list[str]
) -> list[Row]:
    patterns = (*table.image, table.patient, table.text)
    needed = [column for pattern in patterns for column, _ in PLACEHOLDER.findall(pattern)]
    needed += [cell.column for cell in table.labels.values()] + [*table.columns.values(), *table.where]
    needed += [column for pattern in table.where.values() for column, _ in PLACEHOLDER.findall(pattern)]
    missing = [column for column in dict.fromkeys(needed) if column not in columns]
    if missing:
        known = ", ".join(column for column in columns if column)
        faults.extend(f"{table.file}: no column {column!r}; it has {known}" for column in missing)
        return []
    if not records:
        wanted = " and ".join(f"{column} = {pattern}" for column, pattern in table.where.items())
        faults.append(f"{table.file}: has no row where {wanted}")
    rows: list[Row] = []
    lost: list[str] = []
    untranslated: dict[str, list[str]] = {}
    for record in records:
        named = [_filled(pattern, record) for pattern in table.image]
        image = next(filter(None, map(files.find, named)), "")
        if not image:
            lost.append(named[0])
            continue
        labels = {}
        for name, cell in table.labels.items():
            value = _value(cell, record.get(cell.column, ""))
            if value is None:
                untranslated.setdefault(name, []).append(record[cell.column])
            labels[name] = value or ""
        patient, text = _filled(table.patient, record), _filled(table.text, record)
        carried = {name: record.get(column, "") for name, column in table.columns.items()}
        rows.append(Row(image=image, split=table.split, patient=patient, text=text, labels=labels, columns=carried))
    if lost and not rows:
        faults.append(f"{table.file}: no images found; the first would be {lost[0]}")
    elif lost:
        faults.append(f"{table.file}: {len(lost):,} of {len(records):,} images are not there, such as {lost[0]}")
    for name, cells in untranslated.items():
        known = ", ".join(map(str, table.labels[name].values or ()))
        faults.append(f"{table.file}: label {name}: {cells[0]!r} is a class that is not listed; known: {known}")
    return rows


def _chosen(table: TableSpec, record: Mapping[str, str]) -> bool:
    return all(record.get(column, "") == _filled(pattern, record) for column, pattern in table.where.items())


def _value(cell: Cell, text: str) -> str | None:
    """What a cell says, '' for nothing, None for something that the task does not translate.

    Words for "unknown" stay, to be told with those of other layouts.
    """
    if text.lower() in UNKNOWN_WORDS and text not in (cell.values or {}):
        return text
    if cell.contains is not None:
        codes = text.replace("[", " ").replace("]", " ").replace("'", " ").replace(",", " ").split()
        return str(int(cell.contains in codes)) if codes else ""
    if cell.values is None:
        return text
    value = cell.values.get(text, cell.values.get(text.removesuffix(".0")))
    if value is None:
        return None if text else ""
    return str(value)


def _filled(pattern: str, record: Mapping[str, str]) -> str:
    """A pattern with the cells of a record; {column:digits} takes a cell's digits alone."""

    def cell(match: re.Match[str]) -> str:
        text = record.get(match.group(1)) or ""
        return "".join(filter(str.isdigit, text)) if match.group(2) else text

    return PLACEHOLDER.sub(cell, pattern)


def _paired(pairs: PairSpec, rows: Sequence[Row], base: Path, faults: list[str]) -> list[Row]:
    """The rows with the patient whom a file of pairs gives them, named by the first image."""
    content = read_table(base / pairs.file, pairs.file, faults)
    if content is None:
        return list(rows)
    missing = [column for column in pairs.columns if column not in content[0]]
    if missing:
        faults.extend(f"{pairs.file}: no column {column!r}; it has {', '.join(content[0])}" for column in missing)
        return list(rows)
    patients: dict[str, str] = {}
    for record in content[1]:
        images = [Path(record[column]).stem.lower() for column in pairs.columns if record.get(column)]
        patients |= dict.fromkeys(images, images[0] if images else "")
    alone = [row.image for row in rows if Path(row.image).stem.lower() not in patients]
    if alone:
        faults.append(f"{pairs.file}: {len(alone):,} images are in no pair, such as {alone[0]}")
    return [replace(row, patient=patients.get(Path(row.image).stem.lower(), "")) for row in rows]


class _Files:
    """Finds images below a folder, whatever the case of a name and its suffix; each folder is listed once."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._folders: dict[str, dict[str, str]] = {}

    def find(self, named: str) -> str:
        """The path below the folder of an image named with or without its suffix; '' where there is none."""
        parent, _, name = named.rpartition("/")
        if parent not in self._folders:
            folder = self.base / parent
            listed = sorted(os.listdir(folder)) if folder.is_dir() else []
            images = [entry for entry in listed if entry.lower().endswith(IMAGE_SUFFIXES)]
            self._folders[parent] = {Path(entry).stem.lower(): entry for entry in images} | {
                entry.lower(): entry for entry in images
            }
        found = self._folders[parent]
        suffixed = name.lower().endswith(IMAGE_SUFFIXES)
        entry = found.get(name.lower()) or found.get(Path(name).stem.lower() if suffixed else name.lower())
        return f"{parent}/{entry}" if entry and parent else entry or ""
