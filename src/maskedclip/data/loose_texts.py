"""Texts without images: a table of reports or diagnoses that text losses read beside the images' own."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maskedclip.data.text import normalise_text
from maskedclip.errors import UserError


@dataclass(frozen=True)
class LooseTexts:
    """Distinct texts of a table, in its order.

    texts: as they are written.  rows: of the table.  empty: rows without text.  repeated: those whose text came before.
    """

    path: Path
    texts: tuple[str, ...]
    rows: int
    empty: int
    repeated: int

    @property
    def fingerprint(self) -> str:
        """Of the texts and their order, SHA-256."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()

    def summary(self) -> str:
        """One line for a person."""
        out = [f"{count:,} {what}" for count, what in ((self.repeated, "repeated"), (self.empty, "empty")) if count]
        return f"{len(self.texts):,} distinct of {self.rows:,} rows in {self.path.name}" + (
            f" ({', '.join(out)})" if out else ""
        )

    def facts(self) -> dict[str, str | int]:
        """For environment.json."""
        return {
            "file": str(self.path.resolve()),
            "rows": self.rows,
            "distinct": len(self.texts),
            "empty": self.empty,
            "repeated": self.repeated,
            "fingerprint": self.fingerprint,
        }


def read_loose_texts(path: Path | str, columns: Sequence[str] = ("text",)) -> LooseTexts:
    """Read texts from a CSV, TSV, JSON lines, Parquet or XLSX file.

    A row's text is its cells of `columns`, one after the other; blank ones are passed over.  Rows whose texts are the
    same but for case, spaces and final punctuation count once.

    Raises:
        UserError: the file cannot be read, lacks a column, has faulty rows or no text at all; one line.
    """
    from maskedclip.data.manifest_faults import ManifestError
    from maskedclip.data.sources.spreadsheet import read_spreadsheet

    path = Path(path)
    try:
        sheet = read_spreadsheet(path)
    except ManifestError as error:
        more = f" and {len(error.faults) - 1:,} faults more" if len(error.faults) > 1 else ""
        raise UserError(f"data.texts: {path}: {error.faults[0]}{more}; mend the file") from None
    except UserError as error:
        raise UserError(f"data.texts: {error}") from None
    missing = [name for name in columns if name not in sheet.columns]
    if missing:
        raise UserError(
            f"data.texts: {path} has no column {missing[0]}; it has {', '.join(sheet.columns)}; name those to join in "
            "data.texts_columns"
        )
    found: dict[str, str] = {}
    empty = 0
    cells = [sheet.columns[name] for name in columns]
    for row in zip(*cells, strict=True):
        text = _joined([cell for cell in row if cell is not None])
        key = normalise_text(text)
        if not key:
            empty += 1
            continue
        found.setdefault(key, text)
    rows = len(sheet.rows)
    if not found:
        raise UserError(f"data.texts: {path}: none of its {rows:,} rows has a text in {', '.join(columns)}")
    return LooseTexts(path, tuple(found.values()), rows, empty, rows - empty - len(found))


def _joined(cells: Sequence[str]) -> str:
    """Cells as one text, each a sentence of its own."""
    text = ""
    for cell in (" ".join(cell.split()) for cell in cells):
        if text and cell:
            text += " " if text[-1] in ".;:!?" else ". "
        text += cell
    return text
