"""A tree of DICOM files, of which only the headers are read, with reports from a table where there is one."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from maskedclip.console import bar
from maskedclip.data.dicom import is_dicom
from maskedclip.data.sources.gathered import Gathered, Remark, Rows, SourceOptions, as_cell, example, listed
from maskedclip.data.sources.joined import owners, re_rooted, text_note, unmatched_image, unmatched_rows
from maskedclip.data.sources.spreadsheet import Spreadsheet, plan_columns, read_spreadsheet, records
from maskedclip.data.sources.target import Target
from maskedclip.data.sources.walk import sayable, walk
from maskedclip.errors import UserError

CARRIED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "Modality",
    "Laterality",
    "ViewPosition",
    "InstanceNumber",
    "NumberOfFrames",
    "Manufacturer",
    "ManufacturerModelName",
    "WindowCenter",
    "WindowWidth",
)
JOINED_ON = ("AccessionNumber", "StudyInstanceUID", "StudyID", "SeriesInstanceUID", "SOPInstanceUID")
_TAGS = (*CARRIED, "ImageLaterality", "PatientID", "Rows", "Columns")
_HEAD = 132  # bytes that tell whether a file is DICOM


def gather(source: Path, target: Target, options: SourceOptions) -> Gathered:
    """Rows of the DICOM files below a folder that hold a picture.

    `patient` is PatientID; the tags of CARRIED are carried under their names (of several windows the first, as
    decoding takes it).  `options.table` is joined on the column that is called like one of JOINED_ON (in any
    spelling: accession_number), or on `options.on`, given as COLUMN or COLUMN=TAG.

    Raises:
        UserError: pydicom is missing, or the table cannot be joined.
    """
    pydicom, prefix = _library(), target.prefix(source)
    found = walk(source, wanted=lambda path: True)
    remarks, notes = list(found.remarks), list(found.notes)
    files = sayable(found.files, prefix, remarks)
    headers: list[tuple[str, dict[str, str | None]]] = []
    others = 0
    with bar("headers", len(files)) as progress:
        for file in files:
            progress.advance()
            header = _header(pydicom, source / file, remarks, file)
            if header is None:
                others += 1
            elif header:
                headers.append((file, header))
    if others:
        notes.append(f"passed over {others:,} files that are not DICOM")
    modalities = Counter(header["Modality"] or "none" for _, header in headers)
    notes.insert(0, "modalities: " + ", ".join(f"{name} {count:,}" for name, count in sorted(modalities.items())))
    notes.append("patient and the carried numbers are those of the files: they identify people unless exported so")
    rows = Rows()
    if options.table is None:
        for file, header in headers:
            rows.add({"image": prefix + file} | header)
    else:
        sheet = read_spreadsheet(options.table, encoding=options.encoding, sheet=options.sheet)
        column, tag = _join(sheet, options)
        notes.insert(1, f"'{column}' of {sheet.path.name} is joined on {tag}")
        notes += _join_rows(rows, headers, prefix, sheet, column, tag, target, options, remarks)
    return Gathered(table=rows.table(), remarks=remarks, notes=notes)


def _library() -> Any:
    try:
        return importlib.import_module("pydicom")
    except ImportError as error:
        raise UserError("a DICOM tree needs pydicom: install maskedclip[medical]") from error


def _header(pydicom: Any, path: Path, remarks: list[Remark], name: str) -> dict[str, str | None] | None:
    """Cells of a file's header; None where it is not DICOM, empty where it is but was remarked on."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        if not is_dicom(head, path.name):
            if path.suffix.lower() not in (".dcm", ".dicom"):
                return None
            reason = "is not DICOM, though it is called so" if head else "is empty (0 bytes)"
            remarks.append(Remark(name=name, kept=False, reason=reason))
            return {}
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
            cells: dict[str, str | None] = {"patient": _text(header.get("PatientID"))}
            cells |= {tag: _text(header.get(tag)) for tag in CARRIED}
            cells["Laterality"] = cells["Laterality"] or _text(header.get("ImageLaterality"))
            has_picture = bool(header.get("Rows")) and bool(header.get("Columns"))
    except OSError as error:
        remarks.append(Remark(name=name, kept=False, reason=f"cannot be read ({error.strerror or error})"))
        return {}
    except Exception as error:  # pydicom meets hostile bytes: whatever it raises is the file's fault, and is told
        reason = f"is a damaged DICOM file ({type(error).__name__})"
        remarks.append(Remark(name=name, kept=False, reason=reason))
        return {}
    if not has_picture:
        reason = f"is a DICOM file without a picture ({cells['Modality'] or 'no modality'})"
        remarks.append(Remark(name=name, kept=False, reason=reason))
        return {}
    return cells


class _quiet:
    """pydicom logs what it bends; a tree of 400,000 files needs none of it."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("pydicom")
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)


def _text(value: Any) -> str | None:
    """An element's value as a cell; of several values the first."""
    if value is not None and not isinstance(value, str) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    return as_cell(value if isinstance(value, float) or value is None else str(value).strip("\0 "))


def _spelling(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _join(sheet: Spreadsheet, options: SourceOptions) -> tuple[str, str]:
    """The table's column and the tag that it is joined on."""
    known = {_spelling(tag): tag for tag in JOINED_ON} | {
        "accession": "AccessionNumber",
        "studyuid": "StudyInstanceUID",
    }
    known |= {"patientid": "patient"}
    if options.on is not None:
        column, _, tag = options.on.partition("=") if options.on not in sheet.columns else (options.on, "", "")
        sheet.column(column, "--on")
        spelled = _spelling(tag or column)
        if spelled not in known:
            raise UserError(
                f"--on {options.on}: say which tag the column is, --on {column}=AccessionNumber "
                f"(or {', '.join(JOINED_ON[1:])})"
            )
        return column, known[spelled]
    for tag in JOINED_ON:
        for name in sheet.columns:
            if known.get(_spelling(name)) == tag:
                return name, tag
    raise UserError(
        f"--on: say which column of {sheet.path} is joined, --on COLUMN=AccessionNumber; it has {listed(sheet.columns)}"
    )


def _join_rows(
    rows: Rows,
    headers: list[tuple[str, dict[str, str | None]]],
    prefix: str,
    sheet: Spreadsheet,
    column: str,
    tag: str,
    target: Target,
    options: SourceOptions,
    remarks: list[Remark],
) -> list[str]:
    """Add a row for each file; a table's row may describe every file of its study.  Returns notes."""
    values = sheet.column(column, "--on")
    plan, notes = plan_columns(list(sheet.columns), options, path=sheet.path, dropped=(column,), own=CARRIED)
    owner = owners(sheet, values, column)
    cells = re_rooted(list(records(sheet, plan)), plan, target, sheet.path.parent)
    used: set[int] = set()
    for file, header in headers:
        row = owner.get(header[tag] or "")
        if row is None:
            remarks.append(unmatched_image(file, sheet.path, options))
            if options.only_matched:
                continue
        else:
            used.add(row)
        described = cells[row] if row is not None else dict.fromkeys(plan.values())
        told = {name: value for name, value in described.items() if value is not None or name not in header}
        rows.add({"image": prefix + file} | header | told)
    if not used:
        found = next((header[tag] for _, header in headers if header[tag]), "nothing")
        raise UserError(
            f"--on {column}: none of its {len(values):,} values, such as '{example(values)}', "
            f"is the {tag} of a file, such as '{found}'; join on another column or tag"
        )
    remarks += unmatched_rows(sheet, values, used)
    return [*sheet.notes, *notes, *text_note(sheet, plan)]
