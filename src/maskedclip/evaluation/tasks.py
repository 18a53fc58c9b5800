"""A label column as a classification task, and a model's answer to it.  n rows, K classes."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from maskedclip.console import say
from maskedclip.data.label_columns import UNKNOWN_WORDS, words_with_rows
from maskedclip.data.prompts import Overrides, is_normal, prompts_for_meaning
from maskedclip.evaluation.task_spec import LabelSpec
from maskedclip.ranks import rank_and_world

UNKNOWN = -1
_NONE = "none"
# More classes than this, half of them with fewer than three rows, are free text or a measured quantity.
_MANY_CLASSES = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is to be told from an image.

    classes: their names (words) or numbers, sorted; (0, 1) for a finding.  truth (n,): index of each row's class,
    -1 where unknown.  kind: "binary" (0/1, one of possibly many findings of an image), "ordinal" (whole numbers)
    or "nominal" (words).  meanings: what a task file calls each grade; empty where there is no such file.
    """

    name: str
    kind: str
    classes: tuple[str, ...] | tuple[int, ...]
    truth: NDArray[np.int64]
    meanings: Mapping[int, str] = field(default_factory=dict)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which rows have a value: (n,)."""
        return self.truth != UNKNOWN

    def on(self, rows: NDArray) -> "Task":
        """The same task on some rows (indices or mask)."""
        return replace(self, truth=self.truth[rows])


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


class TaskLabels(dict[str, NDArray]):
    """Label columns (n,) by name, with what a task file says each of them is; `read_tasks` keeps to that.

    Numbers are float32 with NaN, words are objects with None, as in any store; every value is one of the classes.
    """

    def __init__(self, columns: Mapping[str, NDArray], specs: Mapping[str, LabelSpec]) -> None:
        super().__init__(columns)
        self.specs = dict(specs)


def read_tasks(labels: Mapping[str, NDArray]) -> tuple[dict[str, Task], dict[str, str]]:
    """The tasks in label columns (float with NaN, or objects with None), and why the others are none.

    0 and 1 make a binary task, other whole numbers an ordinal one, words a nominal one; a column with fractions, of
    free text, or with fewer than two values, is no task.  `TaskLabels` are of the kind that their task says.

    `UNKNOWN_WORDS` are no classes, which is told.  Nor is "none" beside another class that says normal ("normal",
    "healthy", ...); else it is the class of what has no finding, or the lowest grade.
    """
    specs = labels.specs if isinstance(labels, TaskLabels) else {}
    tasks, refused = {}, {}
    for name, column in labels.items():
        read = _words if column.dtype == object else _numbers
        task = read(name, column, specs.get(name))
        if isinstance(task, Task):
            tasks[name] = task
        else:
            refused[name] = task
    return tasks, refused


def task_prompts(tasks: Mapping[str, Task], prompts: Overrides | None) -> Overrides | None:
    """A user's prompts, and below them what the tasks' files call those grades that are not described here."""
    meant = {
        f"{task.name}={value}": sentences
        for task in tasks.values()
        for value, meaning in task.meanings.items()
        if (sentences := prompts_for_meaning(task.name, value, meaning))
    }
    return {**meant, **(prompts or {})} if meant else prompts


def _numbers(name: str, column: NDArray, spec: LabelSpec | None) -> Task | str:
    known = ~np.isnan(column)
    values = np.unique(column[known])
    if (values != np.round(values)).any():
        return "has fractions: a quantity, not classes"
    # Grades 0 and 1 are as good a pair as any, where a task file says that they are grades.
    binary = len(values) > 0 and (bool(np.isin(values, (0, 1)).all()) if spec is None else spec.kind == "binary")
    classes = (0, 1) if binary else tuple(int(value) for value in values)
    if len(classes) < 2:
        return _too_few(len(classes))
    if spec is None and _too_many(np.unique(column[known], return_counts=True)[1]):
        return f"has {len(classes)} different values in {known.sum()} rows: a quantity, not classes"
    truth = np.full(len(column), UNKNOWN, dtype=np.int64)
    truth[known] = np.searchsorted(classes, column[known])
    meanings = {} if spec is None or binary else {value: spec.classes[value] for value in classes}
    return Task(name=name, kind="binary" if binary else "ordinal", classes=classes, truth=truth, meanings=meanings)


def _words(name: str, column: NDArray, spec: LabelSpec | None) -> Task | str:
    rows = Counter(str(value) for value in column if value is not None)
    unknown = {} if spec is not None else _unknown_words(rows)
    if unknown:
        if rank_and_world()[0] == 0:
            told = words_with_rows(unknown)
            _say_once(f"label.{name}: {told} taken as unknown; a task file can make a class of such a word")
        rows -= Counter(unknown)
    classes = tuple(sorted(rows))
    if len(classes) < 2:
        return _too_few(len(classes))
    if spec is None and _too_many(np.array(list(rows.values()))):
        return f"has {len(classes)} different texts in {rows.total()} rows: free text, not classes"
    index = {value: k for k, value in enumerate(classes)}
    truth = np.array([UNKNOWN if value is None else index.get(str(value), UNKNOWN) for value in column], dtype=np.int64)
    return Task(name=name, kind="nominal", classes=classes, truth=truth)


@cache
def _say_once(line: str) -> None:
    """Labels are read for every model and monitor of a process, and told of once."""
    say(line)


def _unknown_words(rows: Mapping[str, int]) -> dict[str, int]:
    """Which words of a column are no classes, and in how many rows each stands, the most frequent first."""
    words = UNKNOWN_WORDS
    if any(is_normal(word) for word in rows):  # the label has a word for "nothing found" already
        words = (*words, _NONE)
    found = {word: count for word, count in rows.items() if word.strip().lower() in words}
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def _too_few(classes: int) -> str:
    return "has one value only" if classes else "has no known value"


def _too_many(rows: NDArray) -> bool:
    """Whether values with so many rows each are no classes: many of them, half or more with one row or two."""
    return len(rows) > _MANY_CLASSES and 2 * int((rows < 3).sum()) >= len(rows)
