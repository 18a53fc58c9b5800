"""A folder of images and a spreadsheet, joined on a column; what is unmatched on either side is listed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from maskedclip.data.manifest_faults import FaultList, ManifestError
from maskedclip.data.sources.gathered import Gathered, Remark, Rows, SourceOptions, example, listed, shown
from maskedclip.data.sources.patients import found_in, patient_pattern
from maskedclip.data.sources.spreadsheet import Spreadsheet, plan_columns, read_spreadsheet, records
from maskedclip.data.sources.target import Target
from maskedclip.data.sources.walk import sayable, walk
from maskedclip.errors import UserError

FILE_NAME, STEM = "file name", "name without suffix"
AMBIGUOUS = "several images have this name: join on their path, --image-column, to tell them apart; kept without a row"


def gather(source: Path, target: Target, options: SourceOptions) -> Gathered:
    """Rows of a folder's images, each with the cells of the table's row that names it.

    `options.on` names the image by its path, its file name or its name without suffix, whichever fits most rows (the
    choice is told), or what `options.key` finds in the image's path (a study's folder, say: then one row may describe
    several images).  `options.image_column` holds paths only, from `options.image_root` or, by default, from the
    folder or the table's folder.  Images without a row are kept, as unpaired images, unless `options.only_matched`.

    Raises:
        ManifestError: rows of the table that claim the same image.
        UserError: no column to join on, or nothing matches.
    """
    if options.table is None:
        raise UserError("--table: give the spreadsheet that describes the images, and its column to join --on")
    sheet = read_spreadsheet(options.table, encoding=options.encoding, sheet=options.sheet)
    column = _join_column(sheet, options)
    values = sheet.column(column, "--on")
    prefix, found = target.prefix(source), walk(source)
    remarks, notes = list(found.remarks), [*sheet.notes, *found.notes]
    files = sayable(found.files, prefix, remarks)
    how, keys, wanted = _best(files, values, source, options)
    dropped = (column,) if column.lower() == "image" else ()
    plan, planned = plan_columns(list(sheet.columns), options, path=sheet.path, dropped=dropped)
    owner = owners(sheet, wanted, column)
    row_of = {file: owner[key] for file, key in zip(files, keys, strict=True) if key is not None and key in owner}
    if how.startswith((FILE_NAME, STEM)):
        _drop_ambiguous(files, keys, row_of, remarks)
    if not row_of:
        raise UserError(
            f"--on {column}: none of the {len(values):,} values, such as '{example(values)}', names one of "
            f"the {len(files):,} images, such as '{files[0] if files else 'none'}'; name another column, or say "
            "how the image's path holds it, --key REGEX"
        )
    cells = re_rooted(list(records(sheet, plan)), plan, target, sheet.path.parent)
    rows = Rows()
    for file in files:
        row = row_of.get(file)
        if row is None:
            remarks.append(unmatched_image(file, sheet.path, options))
            if options.only_matched:
                continue
        rows.add({"image": prefix + file} | dict.fromkeys(plan.values()) | (cells[row] if row is not None else {}))
    remarks += unmatched_rows(sheet, values, set(row_of.values()))
    notes = [f"'{column}' is the image's {how}", *planned, *text_note(sheet, plan), *notes]
    return Gathered(table=rows.table(), remarks=remarks, notes=notes)


def _join_column(sheet: Spreadsheet, options: SourceOptions) -> str:
    if options.on is not None and options.image_column is not None:
        raise UserError("--image-column: joins on the images' paths, --on on their names; give one of them")
    column = options.image_column or options.on
    if column is None:
        raise UserError(f"--on: say which column of {sheet.path} names the image; it has {listed(sheet.columns)}")
    return column


def _best(
    files: list[str], values: list[str | None], source: Path, options: SourceOptions
) -> tuple[str, list[str | None], list[str | None]]:
    """The reading of the join column that fits most images: its name, each image's key, each row's key."""
    if options.key is not None:
        pattern = patient_pattern(options.key, "--key")
        return f"path, by {options.key}", [found_in(pattern, file) for file in files], values
    start = options.image_root or (options.table.parent if options.table else source)
    above = os.path.relpath(os.path.realpath(source), os.path.realpath(start))
    readings: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {  # of an image's path, of a value
        "path": (_same, _same),
        f"path from {start}": (lambda file: os.path.normpath(f"{above}/{file}"), _same),
    }
    if options.image_column is None:
        readings |= {
            FILE_NAME: (_name, _same),
            STEM: (_stem, _same),
            f"{FILE_NAME}, without the folders before it": (_name, _name),
            f"{STEM}, with another suffix": (_stem, _stem),
        }
    slashed = [None if value is None else os.path.normpath(value.replace("\\", "/")) for value in values]

    def fits(how: str) -> int:
        of_image, of_value = readings[how]
        given = {of_value(value) for value in slashed if value is not None}
        return sum(of_image(file) in given for file in files)

    best = max(readings, key=fits)
    of_image, of_value = readings[best]
    return best, [of_image(file) for file in files], [None if value is None else of_value(value) for value in slashed]


def _same(path: str) -> str:
    return path


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


def _drop_ambiguous(files: list[str], keys: list[str | None], row_of: dict[str, int], remarks: list[Remark]) -> None:
    """A name that two images have could give one the report of the other."""
    holders: dict[str | None, list[str]] = {}
    for file, key in zip(files, keys, strict=True):
        if file in row_of:
            holders.setdefault(key, []).append(file)
    for several in holders.values():
        if len(several) > 1:
            for file in several:
                del row_of[file]
                remarks.append(Remark(name=file, kept=True, reason=AMBIGUOUS))


def owners(sheet: Spreadsheet, keys: list[str | None], column: str) -> dict[str, int]:
    """Key -> place of the row that has it; rows that are equal throughout count once.

    Raises:
        ManifestError: different rows have one key.
    """
    faults, found = FaultList(), dict[str, int]()
    given = list(sheet.columns.values())
    clashing: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        if key is None:
            continue
        first = found.setdefault(key, place)
        if first != place and any(cells[first] != cells[place] for cells in given):
            clashing.setdefault(key, [first]).append(place)
    for key, places in clashing.items():
        problem = f"'{key}' is in {len(places)} different rows: keep one row, with the texts joined"
        for place in places:
            faults.add(problem, column=column, row=int(sheet.rows[place]))
    if faults:
        raise ManifestError(sheet.path, faults.sorted())
    return found


def unmatched_image(file: str, table: Path, options: SourceOptions) -> Remark:
    """An image that no row describes."""
    kept = not options.only_matched
    return Remark(name=file, kept=kept, reason=f"no row of {table.name} describes it" + (": unpaired" if kept else ""))


def unmatched_rows(sheet: Spreadsheet, values: list[str | None], used: set[int]) -> list[Remark]:
    """Rows that describe no image; a row that repeats a used one is not among them."""
    known = {values[place] for place in used}
    return [
        Remark(
            name=f"{sheet.path.name} row {sheet.rows[place]}" + (f": {shown(value)}" if value else ""),
            kept=False,
            reason="row without an image" if value else "row with an empty column to join on",
        )
        for place, value in enumerate(values)
        if place not in used and (value is None or value not in known)
    ]


def re_rooted(
    cells: list[dict[str, str | None]], plan: dict[str, str], target: Target, folder: Path
) -> list[dict[str, str | None]]:
    """Paths of masks, which start from the table's folder, as paths from the manifest's."""
    masks = [name for name in plan.values() if name.startswith("mask.")]
    if masks and (prefix := target.prefix(folder)):
        for row in cells:
            row |= {name: prefix + value for name in masks if (value := row[name]) is not None}
    return cells


def text_note(sheet: Spreadsheet, plan: dict[str, str]) -> list[str]:
    """Say that the table gives no text, which is seldom meant."""
    if "text" in plan.values():
        return []
    return [f"no column of {sheet.path.name} is used as text: name one with --text ({listed(sheet.columns)})"]
