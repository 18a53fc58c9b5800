"""Hugging Face data sets: a folder that `save_to_disk` wrote, a folder of Parquet or Arrow files, or a name on a hub.

Read by `datasets`, as a stream or memory-mapped; no code of a data set is run.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from maskedclip.console import bar
from maskedclip.data.manifest_checks import SPLIT_NAMES
from maskedclip.data.sources.gathered import Gathered, Remark, Rows, SourceOptions, column_name, listed
from maskedclip.data.sources.labels import check_classes, class_cells
from maskedclip.data.sources.pictures import suffix_of
from maskedclip.data.sources.spreadsheet import plan_columns
from maskedclip.data.sources.target import Target
from maskedclip.errors import UserError

SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves
_SCALARS = ("string", "large_string", "bool", "int", "uint", "float", "date", "timestamp", "time", "decimal")


def gather(source: Path | str, target: Target, options: SourceOptions) -> Gathered:
    """Rows of a data set, its images written into the target's folder as the bytes they are.

    The first image column, or `options.image_column`, becomes `image`.  A column of class numbers with names becomes
    `label.COLUMN` (`label.class` for one called `label`), one of lists of class numbers a 0/1 column each.  Columns of
    words and numbers are carried; others are left aside, and that is told.

    Raises:
        UserError: `datasets` is missing, or cannot read the source; there is no image column.
    """
    parts = _load(source)
    rows, remarks, notes = Rows(), list[Remark](), list[str]()
    with bar("parts", len(parts)) as progress:
        for name, part in parts.items():
            reader = _Reader(part, str(source), options)
            notes += [note for note in reader.notes if note not in notes]
            split = SPLIT_NAMES.get(name.lower())
            for place, row in enumerate(_stream(reader.part, source)):
                progress.advance(0, f"{place + 1:,} images")
                data, why = _bytes_of(row[reader.image], source)
                suffix = suffix_of(data, str((row[reader.image] or {}).get("path") or "")) if data else None
                if data is None or suffix is None:
                    why = why or "its image is of no known kind"
                    remarks.append(Remark(name=f"{name} row {place}", kept=False, reason=why))
                    continue
                cells: dict[str, Any] = {"image": target.write_image(f"{_plain(name)}/{place:06d}{suffix}", data)}
                cells |= {"split": split} if split else {"source_split": name}
                rows.add(cells | {key: value for key, value in reader.cells(row).items() if value is not None})
            progress.advance()
    notes.insert(0, f"parts: {', '.join(parts)}")
    return Gathered(table=rows.table(), remarks=remarks, notes=notes)


class _Reader:
    """How the columns of one part become cells; a class number without a name (-1) is unknown."""

    def __init__(self, part: Any, source: str, options: SourceOptions) -> None:
        datasets, features = _library(), part.features
        if features is None:
            raise UserError(f"{source}: does not say what its columns hold: save it as Parquet with an image column")
        self.image = _image_column(features, source, options)
        self.labels: Literal["nominal", "one-hot"] = options.labels or "nominal"
        self.classes = {name: names for name, feature in features.items() if (names := _class_names(feature))}
        for names in self.classes.values():
            check_classes([column_name(value) for value in names[0]], self.labels)
        plain = [name for name, feature in features.items() if name in self.classes or _is_plain(feature)]
        left = [name for name in features if name not in plain and name != self.image]
        self.notes = [f"column '{self.image}' holds the images"]
        if left:
            self.notes.append(f"columns left aside, as they hold neither words nor numbers: {', '.join(left)}")
        carried = [name for name in plain if name not in self.classes and name != self.image]
        self.plan, planned = plan_columns(carried, options, path=Path(source), own=("source_split",))
        self.notes += planned
        self.features = features
        self.part = part.select_columns([self.image, *plain]).cast_column(self.image, datasets.Image(decode=False))

    def cells(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row's cells but the image."""
        cells: dict[str, Any] = {target: row[name] for name, target in self.plan.items()}
        for name, (names, several) in self.classes.items():
            value = row[name]
            numbers = value if isinstance(value, list) else [value]
            words = [
                column_name(names[number]) for number in numbers if number is not None and 0 <= number < len(names)
            ]
            listed = [column_name(word) for word in names]
            column = "class" if name == "label" else name
            cells |= class_cells(words, listed, "one-hot" if several else self.labels, column)
        return cells


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise UserError("a Hugging Face data set needs the library: pip install 'maskedclip[huggingface]'") from error


def _load(source: Path | str) -> dict[str, Any]:
    """Parts of a data set by name.  A local source never reaches a hub."""
    datasets = _library()
    datasets.disable_progress_bars()
    path = Path(source)
    try:
        if path.is_dir() and any((path / name).is_file() for name in SAVED):
            loaded = datasets.load_from_disk(str(path))
        elif path.is_file():
            kind = "parquet" if path.suffix.lower() == ".parquet" else "arrow"
            loaded = datasets.load_dataset(kind, data_files=str(path), streaming=True)
        else:
            loaded = datasets.load_dataset(str(source), streaming=True)
    except Exception as error:  # the library has many ways to say that it cannot
        reason = (str(error) or type(error).__name__).splitlines()[0]
        where = "check the folder" if path.exists() else "check the name, and that a hub can be reached"
        raise UserError(f"{source}: cannot be read as a Hugging Face data set ({reason}): {where}") from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "all"): loaded}


def _stream(part: Any, source: Path | str) -> Iterator[dict[str, Any]]:
    try:
        yield from part
    except UserError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{source}: is damaged ({reason}): copy it again") from error


def _image_column(features: Any, source: str, options: SourceOptions) -> str:
    found = [name for name, feature in features.items() if _is_image(feature)]
    if options.image_column is not None and options.image_column not in found:
        raise UserError(f"--image-column {options.image_column}: no column of images; {source} has {listed(found)}")
    if not found:
        raise UserError(f"{source}: has no column of images but {listed(features)}: name another data set")
    return options.image_column or found[0]


def _is_image(feature: Any) -> bool:
    if isinstance(feature, dict):  # Parquet of another writer
        return set(feature) == {"bytes", "path"}
    return type(feature).__name__ == "Image"


def _is_plain(feature: Any) -> bool:
    return type(feature).__name__ == "Value" and str(feature.dtype).startswith(_SCALARS)


def _class_names(feature: Any) -> tuple[list[str], bool] | None:
    """Names of the classes, and whether a row has a list of them."""
    inner: Any = getattr(feature, "feature", None)
    for candidate, several in ((feature, False), (inner, True)):
        if type(candidate).__name__ == "ClassLabel":
            return list(candidate.names), several
    return None


def _bytes_of(image: dict[str, Any] | None, source: Path | str) -> tuple[bytes | None, str | None]:
    """An image's bytes, or why there are none; a path in the data is followed only within the source's folder."""
    if image is None:
        return None, "has no image"
    if image.get("bytes"):
        return bytes(image["bytes"]), None
    path = image.get("path")
    if not path:
        return None, "has no image"
    real, root = os.path.realpath(Path(source) / path), os.path.realpath(source)
    if not real.startswith(root.rstrip("/") + "/"):
        return None, "names a file outside the data set instead of holding its bytes"
    try:
        return Path(real).read_bytes(), None
    except OSError as error:
        return None, f"names a file that cannot be read ({error.strerror})"


def _plain(name: str) -> str:
    """A part's name as a folder's."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) or "all"
