"""From a public set as it was unpacked to the project's manifest: class folders, or CSV files beside images.

Everything that does not fit the task is told, all at once, before anything is written.  The manifest names images by
a link `images` beside it that leads to the set, so that a sample's id does not depend on where the set lies and the
results of two people can be compared in pairs.
"""

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maskedclip.data.manifest_files import IMAGE_SUFFIXES
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.evaluation.task_rows import Row, check_labels, check_patients, split_rows
from maskedclip.evaluation.task_spec import SPLITS, LabelSpec, Layout, TaskError, TaskFile
from maskedclip.evaluation.task_tables import table_rows
from maskedclip.evaluation.tasks import TaskLabels
from maskedclip.whole_files import PARTIAL, write_whole

LINK = "images"
_SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


def task_manifest(task: TaskFile, root: Path, out: Path) -> Path:
    """Write the manifest of a task's data, and return its path, for `curate(..., allow_outside=True)`.

    Args:
        task: what `load_task` gave.
        root: the folder in which the set was unpacked.
        out: a new folder for `manifest.csv` and the link `images` to `root`, or one in which a call was cut off.

    Raises:
        TaskError: all that does not fit: files, columns, classes, patients in two splits.
        UserError: `root` is missing, `out` exists or can't be written, or the task is one on a store.
    """
    if task.on_store:
        raise UserError(f"task {task.name}: is one on a store; give it with --data STORE")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one in which {task.name} was unpacked")
    if out.exists() and (not out.is_dir() or not all(map(_left_behind, out.iterdir()))):
        raise UserError(f"{out}: exists already; give another folder or remove it")
    layout, base = _found(task, root)
    faults: list[str] = []
    rows = table_rows(layout, base, faults) if layout.kind == "table" else _folder_rows(layout, base, faults)
    if not rows and not faults:
        faults.append("no images found")
    if not faults:
        rows = check_labels(task, rows, faults)
        rows = split_rows(task, rows, faults)
        check_patients(rows, faults)
    if faults:
        raise TaskError(f"{base} as task {task.name}", list(dict.fromkeys(faults)))  # tables may be of one file
    return _write(task, rows, root, out, base)


def task_store(task: TaskFile, store: Store) -> Store:
    """The store with the labels of the task alone: their values as the task writes its classes, of the task's kind.

    Args:
        task: one on a store, or one on files.
        store: with the task's columns; of a task on files the one that was curated from its manifest.

    Raises:
        TaskError: a column is missing, is of another kind, has a class that is not listed, or one class only.
        UserError: the task is one on files, and the store has none of its labels.
    """
    layout = next((layout for layout in task.layouts if layout.kind == "store"), None)
    # A layout of files need not have all labels, so the manifest need not either.
    columns = {name: name for name in task.labels if name in store.labels} if layout is None else layout.columns
    if not columns:
        raise UserError(f"task {task.name}: is one on files; give their folder with --root FOLDER")
    known = ", ".join(store.labels) or "none"
    faults = [
        f"label {name}: the store has no column label.{column}; it has {known}"
        for name, column in columns.items()
        if column not in store.labels
    ]
    labels = {name: store.labels[column] for name, column in columns.items() if column in store.labels}
    cells = {name: [_cell(value) for value in values] for name, values in labels.items()}
    rows = [Row(image=key, labels={name: cells[name][n] for name in cells}) for n, key in enumerate(store.ids)]
    rows = check_labels(task, rows, faults, complete=False)
    if faults:
        raise TaskError(f"{', '.join(map(str, store.folders))} as task {task.name}", faults)
    view = Store(store.folders)
    view.decoded = store.decoded
    # The checked values, not the store's: "Left" and "left" are one class, and "True" is 1.
    specs = {name: task.labels[name] for name in labels}
    view.labels = TaskLabels({name: _column(rows, spec) for name, spec in specs.items()}, specs)
    return view


def _column(rows: Sequence[Row], spec: LabelSpec) -> NDArray:
    """Checked values of a label as a store has them, (n,): objects with None, or float32 with NaN."""
    cells = [row.labels[spec.name] for row in rows]
    if spec.kind == "nominal":
        return np.array([cell or None for cell in cells], dtype=object)
    return np.array([cell or "nan" for cell in cells]).astype(np.float32)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    return f"{float(value):g}" if isinstance(value, float | np.floating) else str(value)


def _found(task: TaskFile, root: Path) -> tuple[Layout, Path]:
    """The first layout of which there is anything below `root`, and the folder that it starts from."""
    wanted = []
    for layout in task.layouts:
        for base in (root / name for name in layout.roots):
            if layout.kind == "table":
                there = any((base / table.file).is_file() for table in layout.tables)
                wanted += [table.file for table in layout.tables]
            else:
                there = bool(_class_folders(layout, base))
                names = {"split": "train", "class": _first(layout)}
                wanted += [pattern.format_map(names) for pattern in layout.patterns]
            if there:
                return layout, base
    listed = ", ".join(dict.fromkeys(wanted))
    raise TaskError(f"{root} as task {task.name}", [f"no images found; looked for {listed}"])


def _first(layout: Layout) -> str:
    return next(iter((layout.folders or {"CLASS": ("CLASS",)}).values()))[0]


def _plain(name: str) -> str:
    """Folder names are told apart by their letters and digits alone."""
    return re.sub(r"[^0-9a-z]", "", name.lower())


def _class_folders(layout: Layout, base: Path) -> Sequence[tuple[Path, str]]:
    """Folders in the places of classes and the split that each belongs to, '' where the pattern has none."""
    found: list[tuple[Path, str]] = []
    for pattern in layout.patterns:
        for split in SPLITS if "{split}" in pattern else ("",):
            for name in _SPLIT_FOLDERS.get(split, ("",)):
                parent = base / pattern.replace("{split}", name).split("{class}")[0]
                if parent.is_dir():
                    found += [(entry, split) for entry in sorted(parent.iterdir()) if _visible_folder(entry)]
        known = {_plain(name) for names in (layout.folders or {}).values() for name in names}
        if any(_plain(folder.name) in known for folder, _ in found):
            return found
        found = []
    return found


def _visible_folder(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))


def _folder_rows(layout: Layout, base: Path, faults: list[str]) -> list[Row]:
    assert layout.folders is not None
    classes = {_plain(name): value for value, names in layout.folders.items() for name in names}
    rows, unmatched = [], []
    for folder, split in _class_folders(layout, base):
        place = folder.relative_to(base).as_posix()
        if _plain(folder.name) not in classes:
            faults.append(f"{place}: a class that is not listed; the task has {', '.join(map(str, layout.folders))}")
            continue
        for file in sorted(entry for entry in folder.rglob("*") if entry.suffix.lower() in IMAGE_SUFFIXES):
            patient = ""
            if layout.patient:
                match = re.search(layout.patient, file.name)
                patient = match.group(1) if match else ""
                unmatched += [] if match else [file.name]
            labels = {layout.label: str(classes[_plain(folder.name)])}
            rows.append(Row(image=file.relative_to(base).as_posix(), split=split, patient=patient, labels=labels))
    if unmatched:
        faults.append(
            f"the patient ({layout.patient}) is not found in {len(unmatched):,} file names, such as {unmatched[0]}"
        )
    return rows


def _left_behind(entry: Path) -> bool:
    """Whether it is what a call that was cut off leaves: all but the manifest."""
    return (entry.name == LINK and entry.is_symlink()) or entry.name.startswith(PARTIAL)


def _write(task: TaskFile, rows: Sequence[Row], root: Path, out: Path, base: Path) -> Path:
    """The link first and the manifest last and whole: where it is, the folder is complete."""
    labels = [name for name in task.labels if any(name in row.labels for row in rows)]
    carried = list(dict.fromkeys(name for row in rows for name in row.columns))
    inside = base.relative_to(root).as_posix()
    prefix = LINK if inside == "." else f"{LINK}/{inside}"
    columns: dict[str, Callable[[Row], str]] = {
        "image": lambda row: f"{prefix}/{row.image}",
        "text": lambda row: row.text,
        "patient": lambda row: row.patient,
        "split": lambda row: row.split,
    }
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(f"label.{name}" for name in labels), *carried])
    for row in rows:
        own = [row.labels.get(name, "") for name in labels] + [row.columns.get(name, "") for name in carried]
        writer.writerow([*(cell(row) for cell in columns.values()), *own])
    manifest = out / "manifest.csv"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for entry in out.iterdir():
            entry.unlink()  # of a call that was cut off
        os.symlink(root.resolve(), out / LINK, target_is_directory=True)
        write_whole(manifest, text.getvalue())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); give a folder on a file system with links") from error
    return manifest
