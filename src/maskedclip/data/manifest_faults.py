"""Faults of a manifest: collected one by one, told all at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from maskedclip.errors import UserError

SHOWN_FAULTS = 20
SHOWN_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing to mend.

    Attributes:
        rows: the rows that have it, as a spreadsheet numbers them (the header is row 1; JSON lines and Parquet rows
            count from 1); empty when the whole file or column is meant.
        column: the column's name, empty when whole rows or the file are meant.
        problem: what is wrong and the mend.
    """

    rows: tuple[int, ...]
    column: str
    problem: str

    def __str__(self) -> str:
        place = []
        if self.rows:
            shown = ", ".join(str(row) for row in self.rows[:SHOWN_ROWS])
            rest = len(self.rows) - SHOWN_ROWS
            place.append(
                f"row{'s' if len(self.rows) > 1 else ''} {shown}" + (f" and {rest:,} more" if rest > 0 else "")
            )
        if self.column:
            place.append(f"column {self.column}")
        return f"{', '.join(place)}: {self.problem}" if place else self.problem


class ManifestError(UserError):
    """A manifest with faults.  `faults` holds all of them; the message one line each, the first twenty."""

    def __init__(self, path: Path, faults: list[Fault]) -> None:
        self.path = path
        self.faults = faults
        rows = {row for fault in faults for row in fault.rows}
        where = f" in {len(rows):,} row{'s' if len(rows) > 1 else ''}" if rows else ""
        head = f"{path}: {len(faults):,} fault{'s' if len(faults) > 1 else ''}{where}; mend the manifest and run again"
        lines = [head, *(f"  {fault}" for fault in faults[:SHOWN_FAULTS])]
        if len(faults) > SHOWN_FAULTS:
            lines.append(f"  ... and {len(faults) - SHOWN_FAULTS:,} more")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[ManifestError], tuple[Path, list[Fault]]]:
        return type(self), (self.path, self.faults)


@dataclass(kw_only=True)
class FaultList:
    """Collects faults; the same problem of the same column is one fault with many rows."""

    _rows: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, problem: str, *, column: str = "", row: int | None = None) -> None:
        """Note a problem of a row and column, of a column (no row), or of the file (neither)."""
        rows = self._rows.setdefault((column, problem), [])
        if row is not None:
            rows.append(row)

    def sorted(self) -> list[Fault]:
        """Faults of the file and of whole columns first, then by their first row."""
        faults = [
            Fault(rows=tuple(sorted(rows)), column=column, problem=problem)
            for (column, problem), rows in self._rows.items()
        ]
        return sorted(faults, key=lambda fault: fault.rows[0] if fault.rows else 0)
