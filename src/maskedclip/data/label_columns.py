"""Labels of a store as numbers for a loss: one column a finding, one column for each class of several.

`NAME` is a finding (0 or 1), `NAME=CLASS` one class of a label that has several; columns of one label stand together.
`UNKNOWN_WORDS` are no classes: their rows are unknown, which is told.  n rows, C columns.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from maskedclip.console import say
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.ranks import rank_and_world
from maskedclip.recipe import Recipe

ALL = "all"
UNKNOWN_WORDS = ("", "na", "n/a", "nan", "null", "unknown")
"""What people write, in any case, where nothing is known: no class of a label, and no group of rows."""
_MOST_CLASSES = 64


def resolve_labels(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with every column of `data.labels` named: `all` and labels of several classes are written out.

    Raises:
        UserError: the store has no such label, or it is no finding and no class.
    """
    columns = column_names(store, recipe.data.labels)
    for label in dict.fromkeys(name.partition("=")[0] for name in columns if "=" in name):
        _tell_unknown(label, store.labels[label])
    return recipe if columns == tuple(recipe.data.labels) else recipe.replace(data={"labels": columns})


def column_names(store: Store, names: Sequence[str]) -> tuple[str, ...]:
    """The columns that names stand for; names of columns stand for themselves.

    Raises:
        UserError: as of `resolve_labels`.
    """
    found: list[str] = []
    for name in (name.removeprefix("label.") for name in names):
        label, mark, _ = name.partition("=")
        if name == ALL and ALL not in store.labels:
            binary = [label for label, values in store.labels.items() if _is_binary(values)]
            if not binary:
                raise UserError("data.labels: all: the store has no label of zeros and ones; name one")
            found += binary
        elif mark:
            _values(store, label)
            found.append(name)
        else:
            values = _values(store, name)
            found += [name] if _is_binary(values) else [f"{name}={value}" for value in _classes(name, values)]
    return tuple(dict.fromkeys(found))


def label_columns(store: Store, names: Sequence[str]) -> NDArray[np.float32]:
    """Values of columns: 0, 1, or NaN where unknown, (n, C).

    Args:
        store: of the n rows.
        names: as `column_names` gives them.

    Raises:
        UserError: as of `resolve_labels`, or a class that no row has.
    """
    columns = []
    for name in names:
        label, mark, value = name.partition("=")
        values = _values(store, label)
        if not mark:
            if not _is_binary(values):
                raise UserError(f"data.labels: {name}: has other values than 0 and 1; name a class, e.g. {name}=VALUE")
            columns.append(values.astype(np.float32))
            continue
        words = np.asarray([None if text is None else text == value for text in _words(values)], object)
        if True not in words:
            raise UserError(f"data.labels: {name}: no row has this class; it has {', '.join(_classes(label, values))}")
        columns.append(np.asarray([np.nan if same is None else float(same) for same in words], np.float32))
    return np.stack(columns, axis=1) if columns else np.empty((len(store), 0), np.float32)


def label_groups(names: Sequence[str]) -> list[tuple[int, int]]:
    """Columns [start, stop) that belong together: one for a finding, all classes of a label that has several."""
    groups: list[tuple[int, int]] = []
    for place, name in enumerate(names):
        label, mark, _ = name.partition("=")
        if mark and groups and place and names[place - 1].partition("=")[:2] == (label, mark):
            groups[-1] = (groups[-1][0], place + 1)
        else:
            groups.append((place, place + 1))
    return groups


def _values(store: Store, label: str) -> NDArray:
    if label not in store.labels:
        known = list(store.labels)
        near = difflib.get_close_matches(label, known, 1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"data.labels: {label}: no such label in the store; {meant}known: {', '.join(known) or 'none'}")
    return store.labels[label]


def _is_binary(values: NDArray) -> bool:
    if values.dtype == object:
        return False
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool(np.isin(known, (0, 1)).all())


def _words(values: NDArray) -> list[str | None]:
    if values.dtype == object:
        return [None if value is None or _is_unknown(str(value)) else str(value) for value in values]
    return [None if np.isnan(value) else f"{value:g}" for value in values]


def _is_unknown(word: str) -> bool:
    return word.strip().lower() in UNKNOWN_WORDS


def _tell_unknown(label: str, values: NDArray) -> None:
    rows = Counter(str(value) for value in values if isinstance(value, str) and _is_unknown(value))
    if rows and rank_and_world()[0] == 0:
        say(f"data.labels: {label}: {words_with_rows(dict(sorted(rows.items())))} taken as unknown")


def words_with_rows(rows: Mapping[str, int]) -> str:
    """Words of a label column with the number of their rows, for a reader."""
    return ", ".join(f"'{word}' ({count:,} row{'s' * (count > 1)})" for word, count in rows.items())


def _classes(name: str, values: NDArray) -> list[str]:
    if values.dtype != object:
        known = np.unique(values[~np.isnan(values)])
        if (known != np.round(known)).any():
            raise UserError(f"data.labels: {name}: has fractions, so it is a quantity and no class; leave it out")
        classes = [f"{value:g}" for value in known]
    else:
        classes = sorted({word for word in _words(values) if word is not None})
    if not 2 <= len(classes) <= _MOST_CLASSES:
        raise UserError(f"data.labels: {name}: has {len(classes)} classes; give a label of 2 to {_MOST_CLASSES}")
    return classes
