"""Patient-clustered bootstrap: what a metric's value is worth.  n rows, R replicates.

The two eyes of a person, or two visits, are not independent: an interval that resamples images is too narrow.
Here whole patients are drawn with replacement, and a replicate is a vector of integer row weights (how often
the row's patient was drawn), so that every metric is computed on all replicates at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PERCENTILES = (2.5, 97.5)
# Above this share of replicates without a value, the estimate says so.
UNDEFINED_SHARE = 0.05
_CHUNK = 4_000_000  # draws held at once: 32 MB


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % percentile interval over `n` rows; NaN where undefined, never a stand-in such as 0.5."""

    value: float
    low: float
    high: float
    n: int
    note: str = ""

    def to_json(self) -> dict[str, float | int | str | None]:
        """{"value", "low", "high", "n"} and "note" where there is one; null stands for undefined."""
        numbers = {"value": _number(self.value), "low": _number(self.low), "high": _number(self.high), "n": self.n}
        return numbers | ({"note": self.note} if self.note else {})


def undefined(n: int, reason: str = "one class only") -> Estimate:
    """The estimate of a metric that has no value on the set, with the reason in its note."""
    return Estimate(value=np.nan, low=np.nan, high=np.nan, n=n, note=f"undefined (n={n}, {reason})")


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A metric's value on the set and on each bootstrap replicate, (R,); NaN where undefined."""

    value: float
    replicates: NDArray[np.float64]
    n: int

    @classmethod
    def from_rows(cls, values: NDArray[np.float64], n: int) -> "Distribution":
        """From a metric's values (1 + R,) under `with_point` weights."""
        return cls(value=float(values[0]), replicates=values[1:], n=n)

    def estimate(self, note: str = "") -> Estimate:
        """Value and 95 % percentile interval over the replicates that have a value.

        Replicates without one are left out, and counted in the note where they are more than 5 %.
        """
        if np.isnan(self.value):
            return undefined(self.n, "one class only" if self.n else "no row with a known value")
        defined = self.replicates[~np.isnan(self.replicates)]
        missing = 1 - len(defined) / max(len(self.replicates), 1)
        if missing > UNDEFINED_SHARE:
            note = "; ".join(filter(None, [note, f"{missing:.0%} of the replicates lack a class and are left out"]))
        if len(defined) == 0:
            return Estimate(value=self.value, low=np.nan, high=np.nan, n=self.n, note=note)
        low, high = np.percentile(defined, PERCENTILES)
        return Estimate(value=self.value, low=float(low), high=float(high), n=self.n, note=note)


def cluster_weights(
    patients: Sequence[str | None] | NDArray[np.object_], *, replicates: int = 1000, seed: int = 0
) -> NDArray[np.int16]:
    """How often each row is drawn when as many patients as there are get drawn with replacement: (R, n) integers.

    A row without patient (None or '') is a patient of its own.  A pure function of its arguments.  The result is
    the transpose of a C-ordered array, the layout in which `metrics` is fast.
    """
    codes = cluster_codes(patients)
    clusters = int(codes.max(initial=-1)) + 1
    weights = np.zeros((len(codes), replicates), dtype=np.int16)
    generator = np.random.Generator(np.random.Philox(seed))
    step = max(1, _CHUNK // max(clusters, 1))
    for start in range(0, replicates if clusters else 0, step):
        width = min(step, replicates - start)
        draws = generator.integers(clusters, size=(width, clusters)) + clusters * np.arange(width)[:, None]
        counts = np.bincount(draws.ravel(), minlength=width * clusters).reshape(width, clusters)
        weights[:, start : start + width] = counts.T[codes]
    return weights.T


def cluster_codes(patients: Sequence[str | None] | NDArray[np.object_]) -> NDArray[np.int64]:
    """The patient of each row as an integer from 0, in order of appearance; a row without patient gets its own."""
    known: dict[object, int] = {}
    keys = (patient or ("row", row) for row, patient in enumerate(patients))
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def with_point(weights: NDArray) -> NDArray:
    """(R, n) weights with a first row of ones, the set itself: (1 + R, n)."""
    return np.concatenate([np.ones((weights.shape[1], 1), weights.dtype), weights.T], axis=1).T


def paired_difference(first: Distribution, second: Distribution, *, note: str = "") -> Estimate:
    """`first` minus `second`, with the interval of the paired bootstrap.

    Both must have been computed under the same weights on the same rows (AssertionError otherwise where it can be
    seen): what the two models share, the luck of the test set, then cancels.
    """
    assert (first.n, first.replicates.shape) == (second.n, second.replicates.shape), "not the same bootstrap"
    difference = Distribution(
        value=first.value - second.value, replicates=first.replicates - second.replicates, n=first.n
    )
    return difference.estimate(note)


def weighted_median(values: ArrayLike, weights: NDArray) -> NDArray[np.float64]:
    """Median of `values` (n,), each repeated as often as its integer weight (R, n) says: (R,); NaN for no row."""
    values = np.asarray(values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    totals = np.cumsum(weights.T[order], axis=0, dtype=np.int64)  # (n, R)
    count = totals[-1] if len(values) else np.zeros(weights.shape[0], np.int64)
    defined = count > 0
    middle = [(totals <= position).sum(axis=0) for position in ((count - 1) // 2, count // 2)]
    result = np.full(weights.shape[0], np.nan)
    ranked = values[order]
    result[defined] = (ranked[middle[0][defined]] + ranked[middle[1][defined]]) / 2
    return result


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
