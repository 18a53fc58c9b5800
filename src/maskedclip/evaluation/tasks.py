"""A label column as a classification task, and a model's answer to it.  n rows, K classes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNKNOWN = -1
# More classes than this, half of them with fewer than three rows, are free text or a measured quantity.
_MANY_CLASSES = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is to be told from an image.

    classes: their names (words) or numbers, sorted; (0, 1) for a finding.  truth (n,): index of each row's class,
    -1 where unknown.  kind: "binary" (0/1, one of possibly many findings of an image), "ordinal" (whole numbers)
    or "nominal" (words).
    """

    name: str
    kind: str
    classes: tuple[str, ...] | tuple[int, ...]
    truth: NDArray[np.int64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which rows have a value: (n,)."""
        return self.truth != UNKNOWN

    def on(self, rows: NDArray) -> "Task":
        """The same task on some rows (indices or mask)."""
        return Task(name=self.name, kind=self.kind, classes=self.classes, truth=self.truth[rows])


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """A model's answer on m rows.

    scores: (m,) for a binary task, the higher the likelier; (m, K) for the others, a NaN column for a class that
    could not be learnt.  predicted (m,): the class index decided for, chosen so that rare classes count as much
    as frequent ones.  chosen: the setting that validation chose (C, k), None where there is none.  probabilities:
    whether the scores mean to be probabilities, so that it makes sense to ask whether they are calibrated.
    """

    scores: NDArray[np.float64]
    predicted: NDArray[np.int64]
    chosen: float | None = None
    probabilities: bool = False


def read_tasks(labels: Mapping[str, NDArray]) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks in label columns (float with NaN, or objects with None), and why the others are none.

    0 and 1 make a binary task, other whole numbers an ordinal one, words a nominal one; a column with fractions, of
    free text, or with fewer than two values, is no task.
    """
    tasks, refused = {}, {}
    for name, column in labels.items():
        task = _words(name, column) if column.dtype == object else _numbers(name, column)
        if isinstance(task, Task):
            tasks[name] = task
        else:
            refused[name] = task
    return tasks, refused


def _numbers(name: str, column: NDArray) -> Task | str:
    known = ~np.isnan(column)
    values = np.unique(column[known])
    if (values != np.round(values)).any():
        return "has fractions: a quantity, not classes"
    binary = bool(np.isin(values, (0, 1)).all()) and len(values) > 0
    classes = (0, 1) if binary else tuple(int(value) for value in values)
    if len(classes) < 2:
        return _too_few(len(classes))
    if _too_many(np.unique(column[known], return_counts=True)[1]):
        return f"has {len(classes)} different values in {known.sum()} rows: a quantity, not classes"
    truth = np.full(len(column), UNKNOWN, dtype=np.int64)
    truth[known] = np.searchsorted(classes, column[known])
    return Task(name=name, kind="binary" if binary else "ordinal", classes=classes, truth=truth)


def _words(name: str, column: NDArray) -> Task | str:
    classes = tuple(sorted({str(value) for value in column if value is not None}))
    if len(classes) < 2:
        return _too_few(len(classes))
    rows = Counter(str(value) for value in column if value is not None)
    if _too_many(np.array(list(rows.values()))):
        return f"has {len(classes)} different texts in {rows.total()} rows: free text, not classes"
    index = {value: k for k, value in enumerate(classes)}
    truth = np.array([UNKNOWN if value is None else index[str(value)] for value in column], dtype=np.int64)
    return Task(name=name, kind="nominal", classes=classes, truth=truth)


def _too_few(classes: int) -> str:
    return "has one value only" if classes else "has no known value"


def _too_many(rows: NDArray) -> bool:
    """Whether values with so many rows each are no classes: many of them, half or more with one row or two."""
    return len(rows) > _MANY_CLASSES and 2 * int((rows < 3).sum()) >= len(rows)
