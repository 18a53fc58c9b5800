"""Labels: do they contradict each other on pictures of one eye, and how are the classes spread over the splits?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskedclip.data.audit.duplicates import Pairs
from maskedclip.data.store import Store

MOST_CLASSES = 12
"""A label of numbers with more values is a measurement and has no classes."""


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A label on which the two of a pair disagree.

    Attributes:
        pair: place among the pairs.
        label: its name.
        values: of the first and of the second row.
    """

    pair: int
    label: str
    values: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How a class of a label, or the mean of a measurement, is spread over the splits.

    Attributes:
        label: its name.
        value: the class; empty for a measurement.
        shares: split -> share of its known rows that have the class, or the mean; NaN where none is known.
        counts: split -> rows that have the class, or whose value is known.
    """

    label: str
    value: str
    shares: dict[str, float]
    counts: dict[str, int]


def contradictions(store: Store, pairs: Pairs) -> list[Contradiction]:
    """Known labels that differ within a pair, in the order of the pairs."""
    found = []
    for name, values in store.labels.items():
        first, second = values[pairs.first], values[pairs.second]
        known = ~(unknown(first) | unknown(second))
        for place in np.flatnonzero(known & (first != second)).tolist():
            shown = (spell(first[place]), spell(second[place]))
            found.append(Contradiction(pair=place, label=name, values=shown))
    return sorted(found, key=lambda entry: entry.pair)


def balance(labels: dict[str, NDArray], splits: NDArray[np.str_]) -> list[Balance]:
    """Classes of every label by split."""
    names = [name for name in ("train", "val", "test") if (splits == name).any()]
    found = []
    for label, values in labels.items():
        known = ~unknown(values)
        classes = classes_of(values[known])
        if not classes:
            numbers = values.astype(np.float64) if known.any() else np.empty(len(values))
            parts = {name: numbers[known & (splits == name)] for name in names}
            shares = {name: float(part.mean()) if len(part) else float("nan") for name, part in parts.items()}
            counts = {name: len(part) for name, part in parts.items()}
            found += [Balance(label=label, value="", shares=shares, counts=counts)] if known.any() else []
            continue
        totals = {name: int((known & (splits == name)).sum()) for name in names}
        for value in classes:
            counts = {name: int(((values == value) & (splits == name)).sum()) for name in names}
            shares = {name: counts[name] / totals[name] if totals[name] else float("nan") for name in names}
            found.append(Balance(label=label, value=spell(value), shares=shares, counts=counts))
    return found


def classes_of(values: NDArray) -> Sequence[float | str]:
    """The distinct known values, sorted; empty for a measurement.  Of words the most frequent are taken."""
    counts = Counter(values.tolist())
    if len(counts) > MOST_CLASSES and not isinstance(next(iter(counts)), str):
        return []
    frequent = sorted(counts, key=lambda value: (-counts[value], str(value)))[:MOST_CLASSES]
    return sorted(frequent)


def unknown(values: NDArray) -> NDArray[np.bool_]:
    """Where a label is not given, (n,)."""
    if values.dtype == object:
        return np.array([value is None for value in values], bool)
    return np.isnan(values)


def spell(value: float | str) -> str:
    """A label's value for a reader."""
    return value if isinstance(value, str) else f"{float(value):g}"
