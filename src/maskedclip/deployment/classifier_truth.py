"""Which label column of a store says the truth about a label that a user wrote.  n rows, T labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskedclip.data.prompts import humanise, is_normal, prompts_for
from maskedclip.data.store import Store
from maskedclip.deployment.heads import Kind
from maskedclip.errors import UserError
from maskedclip.evaluation.tasks import UNKNOWN, Task, read_tasks


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What is known of rows of a store.

    rows: of the store, (n,).  values: 1, 0 and -1 for unknown, (n, T); or, where labels exclude each other, the place
    of the row's label, (n,).  columns: of the store, that were read.  left_out: rows of the split about which nothing
    is known, or of which not just one label holds.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.int64]
    columns: tuple[str, ...]
    left_out: int


def read_truth(store: Store, labels: Sequence[str], kind: Kind, split: str = "val") -> Truth:
    """The truth about labels on the rows of a split.

    A label finds its column by name, however it is spelt, or by a synonym that the prompts know ("AMD", "age-related
    macular degeneration").  Labels that exclude each other are the classes of one column ("grade=2" names a class), or
    as many columns of 0 and 1, of which the rows with just one finding count.  A label that means normal and has no
    column holds where all columns of 0 and 1 say 0.

    Raises:
        UserError: there is no row of the split, or no column for a label.
    """
    rows = np.flatnonzero(store.splits == split)
    if not len(rows):
        raise UserError(
            f"{_name(store)}: has no row of the split {split}; give the manifest's split column such rows "
            "(maskedclip split), and curate again"
        )
    tasks = {name: task.on(rows) for name, task in read_tasks(store.labels)[0].items()}
    if kind == "independent":
        found = [_binary(tasks, label, store) for label in labels]
        return _known(rows, np.stack([task.truth for task in found], axis=1), [task.name for task in found])
    return _classes(tasks, labels, rows) or _one_of(tasks, labels, rows, store)


def _known(rows: NDArray[np.int64], values: NDArray[np.int64], columns: Sequence[str]) -> Truth:
    known = (values != UNKNOWN).any(axis=1) if values.ndim == 2 else values != UNKNOWN
    left_out = int((~known).sum())
    return Truth(rows=rows[known], values=values[known], columns=tuple(columns), left_out=left_out)


def _classes(tasks: Mapping[str, Task], labels: Sequence[str], rows: NDArray[np.int64]) -> Truth | None:
    """Labels as classes of one column; None where there is no such column."""
    for task in tasks.values():
        if task.kind == "binary":
            continue
        places = [_class_of(task, label) for label in labels]
        if None in places:
            continue
        values = np.full(len(task.truth), UNKNOWN)
        for place, own in enumerate(places):
            values[task.truth == own] = place
        return _known(rows, values, [task.name])
    return None


def _class_of(task: Task, label: str) -> int | None:
    name, equals, value = label.partition("=")
    for place, own in enumerate(task.classes):
        if equals and humanise(name) == humanise(task.name) and value.strip() == str(own):
            return place
        if isinstance(own, str) and _same(label, own):
            return place
    return None


def _one_of(tasks: Mapping[str, Task], labels: Sequence[str], rows: NDArray[np.int64], store: Store) -> Truth:
    """Labels as columns of 0 and 1: of a row with just one finding, and none unknown, that one is the truth."""
    found = [_binary(tasks, label, store) for label in labels]
    table = np.stack([task.truth for task in found], axis=1)
    single = (table != UNKNOWN).all(axis=1) & (table.sum(axis=1) == 1)
    return _known(rows, np.where(single, table.argmax(axis=1), UNKNOWN), [task.name for task in found])


def _binary(tasks: Mapping[str, Task], label: str, store: Store) -> Task:
    binary = {name: task for name, task in tasks.items() if task.kind == "binary"}
    if label in binary:
        return binary[label]
    near = [name for name in binary if _same(label, name)]
    if len(near) == 1:
        return binary[near[0]]
    if is_normal(label) and binary:
        table = np.stack([task.truth for task in binary.values()])
        truth = np.where((table == 1).any(axis=0), 0, np.where((table == UNKNOWN).any(axis=0), UNKNOWN, 1))
        return Task(name="none of " + ", ".join(binary), kind="binary", classes=(0, 1), truth=truth)
    if near:
        raise UserError(
            f"{_name(store)}: {label!r} may be label.{' or label.'.join(near)}; name one of them in --labels"
        )
    raise UserError(
        f"{_name(store)}: has no column of 0 and 1 for {label!r}; it has {', '.join(binary) or 'none'}; "
        "name labels so, or calibrate on another store"
    )


def _same(first: str, second: str) -> bool:
    """Whether two names say one thing, by spelling or by the prompts' synonyms."""
    return humanise(first) == humanise(second) or prompts_for(first) == prompts_for(second)


def _name(store: Store) -> str:
    return str(store.folders[0])
