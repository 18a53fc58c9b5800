"""Class folders: `class/image` as torchvision's ImageFolder reads it, `train/class/image` as RETFound does."""

from __future__ import annotations

from pathlib import Path

from maskedclip.data.manifest_checks import SPLIT_NAMES
from maskedclip.data.sources.gathered import Gathered, Remark, Rows, SourceOptions, column_name
from maskedclip.data.sources.labels import check_classes, class_cells
from maskedclip.data.sources.patients import found_in, patient_pattern
from maskedclip.data.sources.target import Target
from maskedclip.data.sources.walk import sayable, walk
from maskedclip.errors import UserError


def gather(source: Path, target: Target, options: SourceOptions) -> Gathered:
    """Rows of a folder of class folders, or of splits of class folders.

    The class is the name of the first folder (below the split); folders deeper down only group.  Where all images lie
    in one folder, that is no class.  `options.patient` is searched in the file's name, `options.labels` is `nominal`
    unless it is given.

    Raises:
        UserError: splits and classes lie side by side, or the classes cannot be one column.
    """
    prefix, pattern = target.prefix(source), patient_pattern(options.patient)
    found = walk(source)
    remarks, notes = list(found.remarks), list(found.notes)
    files = sayable(found.files, prefix, remarks)
    with_splits = _has_splits(source, files)
    placed = [_placed(file, with_splits) for file in files]
    classes = sorted({name for _, name in placed if name is not None})
    labels = options.labels or "nominal"
    if len(classes) == 1:
        notes.append(f"all images lie in one folder, '{classes[0]}': no label is made of it")
        classes = []
    check_classes(classes, labels)
    unmatched = 0
    rows = Rows()
    for file, (split, name) in zip(files, placed, strict=True):
        cells: dict[str, str | None] = {"image": prefix + file, "split": split}
        if pattern:
            cells["patient"] = found_in(pattern, file.rpartition("/")[2])
            unmatched += cells["patient"] is None
        if classes:
            cells |= class_cells(None if name is None else [name], classes, labels)
            if name is None:
                remarks.append(Remark(name=file, kept=True, reason="lies in no class folder: its label is unknown"))
        rows.add(cells)
    layout = f"folders of splits ({', '.join(sorted({s for s, _ in placed if s}))})" if with_splits else "one folder"
    listed = f"{len(classes):,} classes, {', '.join(classes[:10])}" if classes else "no classes, so no labels"
    notes.insert(0, f"{listed}; {layout}")
    if unmatched:
        notes.append(f"--patient is found in none of {unmatched:,} names: their patient is unknown")
    return Gathered(table=rows.table(), remarks=remarks, notes=notes)


def _has_splits(source: Path, files: list[str]) -> bool:
    tops = sorted({file.split("/", 1)[0] for file in files if "/" in file})
    splits = [name for name in tops if name.lower() in SPLIT_NAMES]
    others = [name for name in tops if name.lower() not in SPLIT_NAMES]
    if splits and others:
        raise UserError(
            f"{source}: '{others[0]}' lies beside '{splits[0]}', a split: move it into a split or out of the folder"
        )
    return bool(splits)


def _placed(file: str, with_splits: bool) -> tuple[str | None, str | None]:
    """Split and class of a file by its folders, None where it lies above them."""
    folders = file.split("/")[:-1]
    split = SPLIT_NAMES[folders.pop(0).lower()] if with_splits and folders else None
    return split, (column_name(folders[0]) or None) if folders else None
