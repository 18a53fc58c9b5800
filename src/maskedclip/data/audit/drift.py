"""Do pictures or labels differ between sources?  A model tells hospitals apart before it tells diseases apart.

n rows, C statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskedclip.data.audit.labels import MOST_CLASSES, unknown

NOTABLE = 0.5
"""Standardised differences from here on are told: half a standard deviation, a medium effect (Cohen, 1988)."""
_LEAST_ROWS = 10
_MOST_GROUPS = 20


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How a source differs from all others in one figure.

    Attributes:
        source: of the rows.
        figure: a statistic of the pictures, or `label NAME`.
        inside, outside: means in the source and elsewhere.
        difference: standardised, (inside - outside) / sqrt((variance inside + variance outside) / 2), as in Austin,
            "Balance diagnostics", 2009; infinite where both are constant and differ.
        rows: of the source.
    """

    source: str
    figure: str
    inside: float
    outside: float
    difference: float
    rows: int


def drift(sources: NDArray, figures: Mapping[str, NDArray]) -> list[Drift]:
    """Every source against the others, largest differences first.

    Args:
        sources: name of each row's source, None where unknown, object (n,).
        figures: values of each row by name; NaN or None where unknown; words and measurements of no order are left out.
    """
    names = [name for name in dict.fromkeys(sources.tolist()) if name is not None]
    counts = {name: int((sources == name).sum()) for name in names}
    frequent = sorted((name for name in names if counts[name] >= _LEAST_ROWS), key=lambda name: -counts[name])
    found = []
    for figure, values in figures.items():
        if values.dtype == object:
            continue
        known = ~unknown(values)
        for name in frequent[:_MOST_GROUPS]:
            inside, outside = values[known & (sources == name)], values[known & (sources != name)]
            if min(len(inside), len(outside)) >= _LEAST_ROWS:
                found.append(_compared(name, figure, inside.astype(np.float64), outside.astype(np.float64)))
    return sorted(found, key=lambda entry: (-abs(entry.difference), entry.source, entry.figure))


def _compared(name: str, figure: str, inside: NDArray[np.float64], outside: NDArray[np.float64]) -> Drift:
    between = float(inside.mean() - outside.mean())
    spread = math.sqrt((float(inside.var(ddof=1)) + float(outside.var(ddof=1))) / 2)
    difference = between / spread if spread > 1e-12 else math.copysign(math.inf, between) if between else 0.0
    return Drift(
        source=str(name),
        figure=figure,
        inside=float(inside.mean()),
        outside=float(outside.mean()),
        difference=difference,
        rows=len(inside),
    )


def is_source(values: NDArray) -> bool:
    """Whether a carried column can tell sources apart: words, few and repeated."""
    distinct = {value for value in values.tolist() if value is not None}
    return 2 <= len(distinct) <= max(MOST_CLASSES, _MOST_GROUPS) and all(isinstance(value, str) for value in distinct)
