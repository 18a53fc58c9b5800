"""What a task file says, as typed parts; `task_file` reads it, `task_layouts` follows it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from maskedclip.errors import UserError

KINDS = ("binary", "ordinal", "nominal")
LAYOUTS = ("folders", "table", "store")
PROTOCOLS = ("linear", "knn", "fewshot", "label_efficiency", "zero_shot", "retrieval", "dense", "finetune", "lora")
SPLITS = ("train", "val", "test")
PLACEHOLDER = re.compile(r"\{([^{}:]+)(:digits)?\}")  # {column}, or {column:digits} for its digits alone


class TaskError(UserError):
    """A task file, or data that do not fit it.  `faults` holds all of them; the message has a line for each."""

    def __init__(self, where: str, faults: list[str]) -> None:
        self.where, self.faults = where, faults
        head = f"{where}: {faults[0]}" if len(faults) == 1 else f"{where}: {len(faults)} faults"
        super().__init__("\n".join([head, *(f"  {fault}" for fault in faults if len(faults) > 1)]))

    def __reduce__(self) -> "tuple[type[TaskError], tuple[str, list[str]]]":
        return type(self), (self.where, self.faults)


@dataclass(frozen=True, kw_only=True)
class LabelSpec:
    """One label.  classes: what a row can be, numbers (0 and 1 for a finding) or words, each with its meaning."""

    name: str
    kind: str
    classes: Mapping[int | str, str]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Where a table says a label: a column; `values` translates cells to classes; `contains`: 1 where the cell does."""

    column: str
    values: Mapping[str, int | str] | None = None
    contains: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One CSV file.

    image: patterns of a file's path, such as "images/{id}", the first that is there is taken.  columns: name in the
    store -> column of the table, carried along for subgroups.  where: column -> pattern; the rows that have it.
    """

    file: str
    image: tuple[str, ...]
    labels: Mapping[str, Cell]
    split: str = ""
    patient: str = ""
    text: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PairSpec:
    """A CSV file whose rows name the images of one patient, in some columns."""

    file: str
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which the data are found.

    roots: folders below the one that a user names, in which to look.  Of `folders`: patterns of "{split}" and
    "{class}", the label, the folders of each class, and a regular expression whose group is the patient in a file's
    name.  Of `table`: the tables, and pairs.  Of `store`: the label columns.
    """

    kind: str
    roots: tuple[str, ...] = (".",)
    patterns: tuple[str, ...] = ()
    label: str = ""
    folders: Mapping[int | str, tuple[str, ...]] | None = None
    patient: str = ""
    tables: tuple[TableSpec, ...] = ()
    pairs: PairSpec | None = None
    columns: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Split:
    """How data are split that come without.

    shares: of the patients, where there is no split at all.  validation: of the training patients, where there is no
    validation split; 0 leaves it so.
    """

    shares: Mapping[str, float] | None = None
    validation: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """A task as its file says it.  crop: how curation crops its images, `fundus` or `none`."""

    name: str
    about: str
    citation: str
    labels: Mapping[str, LabelSpec]
    layouts: tuple[Layout, ...]
    split: Split
    protocols: tuple[str, ...]
    crop: str
    path: Path

    @property
    def on_store(self) -> bool:
        """Whether the task is one on a store, so that there are no files to make a manifest of."""
        return all(layout.kind == "store" for layout in self.layouts)
