"""FLAIR-style tables: columns `image`, `attributes`, `categories`, the latter two lists as Python or JSON has them."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

from maskedclip.data.manifest_faults import FaultList, ManifestError
from maskedclip.data.sources.gathered import Gathered, Remark, Rows, SourceOptions, column_name
from maskedclip.data.sources.labels import check_classes, class_cells
from maskedclip.data.sources.spreadsheet import plan_columns, read_spreadsheet, records
from maskedclip.data.sources.target import Target, unsayable
from maskedclip.errors import UserError

COLUMNS = ("image", "attributes", "categories")
_LONGEST_LIST = 20_000  # letters; a list of categories is some hundreds


def gather(source: Path, target: Target, options: SourceOptions) -> Gathered:
    """Rows of a FLAIR-style table; images are found below `options.image_root`, by default the table's folder.

    Categories become labels: by default one nominal `label.class` where every row has exactly one, else a 0/1 column
    for each.  Attributes are carried, joined by "; ".  Images that are not there are left out.

    Raises:
        ManifestError: lists that cannot be read, all at once.
        UserError: a column is missing, or no image is there.
    """
    sheet = read_spreadsheet(source, encoding=options.encoding, sheet=options.sheet)
    images, faults = sheet.column("image", "column"), FaultList()
    lists = {
        name: [
            _parsed(cell, name, int(row), faults)
            for cell, row in zip(sheet.column(name, "column"), sheet.rows, strict=True)
        ]
        for name in ("categories", "attributes")
    }
    if faults:
        raise ManifestError(source, faults.sorted())
    categories = lists["categories"]
    classes = list(dict.fromkeys(sorted(column_name(value) for row in categories for value in row)))
    labels = options.labels or ("nominal" if all(len(row) <= 1 for row in categories) else "one-hot")
    if labels == "nominal" and any(len(row) > 1 for row in categories):
        raise UserError(f"--labels nominal: some rows of {source} have several categories; say --labels one-hot")
    check_classes(classes, labels)
    plan, notes = plan_columns(list(sheet.columns), options, path=source, dropped=COLUMNS)
    root = options.image_root or source.parent
    prefix = target.prefix(root)
    rows, remarks, used = Rows(), list[Remark](), 0
    for place, others in enumerate(records(sheet, plan)):
        name = (images[place] or "").replace("\\", "/")
        reason = "names no image" if not name else unsayable(prefix + name)
        if reason is None and not os.path.isfile(root / name):
            reason = "there is no such file"
        if reason:
            remarks.append(Remark(name=name or f"row {sheet.rows[place]}", kept=False, reason=reason))
            continue
        used += 1
        attributes = "; ".join(lists["attributes"][place])
        rows.add(
            {"image": os.path.normpath(prefix + name)}
            | class_cells(categories[place], classes, labels)
            | {"attributes": attributes}
            | others
        )
    if not used:
        raise UserError(
            f"{source}: none of its {len(images):,} images is in {root}: "
            "say where their paths start, --image-root FOLDER"
        )
    notes = [*sheet.notes, f"{len(classes):,} categories as {labels} labels", *notes]
    return Gathered(table=rows.table(), remarks=remarks, notes=notes)


def _parsed(cell: str | None, column: str, row: int, faults: FaultList) -> list[str]:
    """A list of strings as JSON or Python spells it; never run as code."""
    if cell is None:
        return []
    problem = "is no list of words: write it as ['glaucoma', 'cataract'] or []"
    if len(cell) > _LONGEST_LIST:
        faults.add(f"is longer than {_LONGEST_LIST:,} letters: {problem}", column=column, row=row)
        return []
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(cell)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            faults.add(problem, column=column, row=row)
            return []
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        faults.add(problem, column=column, row=row)
        return []
    return [word.strip() for word in value if word.strip()]
