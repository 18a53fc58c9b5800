"""Patient-clustered bootstrap: what a metric's value is worth.  n rows, R replicates.

The two eyes of a person, or two visits, are not independent: an interval that resamples images is too narrow.
Here whole patients are drawn with replacement, and a replicate is a vector of integer row weights (how often
the row's patient was drawn), so that every metric is computed on all replicates at once.

Where a metric's bounds are known, its interval comes from the deviation and the skewness of the replicates, since their
percentiles are too narrow in small sets: see `intervals`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maskedclip.errors import UserError
from maskedclip.evaluation.intervals import Bounds, Uncertain, difference_interval

PERCENTILES = (2.5, 97.5)
# Above this share of replicates without a value, the estimate says so.
UNDEFINED_SHARE = 0.05
_CHUNK = 4_000_000  # draws held at once: 32 MB


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval over `n` rows; NaN where undefined, never a stand-in such as 0.5."""

    value: float
    low: float
    high: float
    n: int
    note: str = ""

    def to_json(self) -> dict[str, float | int | str | None]:
        """{"value", "low", "high", "n"} and "note" where there is one; null stands for undefined."""
        numbers = {name: json_number(getattr(self, name)) for name in ("value", "low", "high")} | {"n": self.n}
        return numbers | ({"note": self.note} if self.note else {})


def undefined(n: int, reason: str = "one class only") -> Estimate:
    """The estimate of a metric that has no value on the set, with the reason in its note."""
    return Estimate(value=np.nan, low=np.nan, high=np.nan, n=n, note=f"undefined (n={n}, {reason})")


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A metric's value on the set and on each bootstrap replicate, (R,); NaN where undefined.

    bounds: the least and the greatest value that the metric can take, such as SHARE; None: the interval is that of the
    percentiles.  support: how many patients the value rests on, see `class_supports`; inf: as many as make no
    difference.  minuend and subtrahend: of a difference, what it is the difference of.  reason: why the value is
    undefined, where that is not a missing class.  note: what a reader of a defined value must know.  skewed: whether
    the skewness of the replicates shapes the interval; of a mean of a few values it is more noise than help.
    """

    value: float
    replicates: NDArray[np.float64]
    n: int
    bounds: Bounds | None = None
    support: float = np.inf
    minuend: "Distribution | None" = None
    subtrahend: "Distribution | None" = None
    reason: str = ""
    note: str = ""
    skewed: bool = True

    @classmethod
    def from_rows(
        cls,
        values: NDArray[np.float64],
        n: int,
        *,
        bounds: Bounds | None = None,
        support: float = np.inf,
        skewed: bool = True,
    ) -> "Distribution":
        """From a metric's values (1 + R,) under `with_point` weights."""
        return cls(value=float(values[0]), replicates=values[1:], n=n, bounds=bounds, support=support, skewed=skewed)

    def estimate(self, note: str = "") -> Estimate:
        """Value and 95 % interval from the replicates that have a value: see `intervals`, or percentiles.

        Replicates without one are left out, and counted in the note where they are more than 5 %.
        """
        if np.isnan(self.value):
            return undefined(self.n, self.reason or ("one class only" if self.n else "no row with a known value"))
        note = "; ".join(filter(None, [note, self.note]))
        defined = self.replicates[~np.isnan(self.replicates)]
        missing = 1 - len(defined) / max(len(self.replicates), 1)
        if missing > UNDEFINED_SHARE:
            note = "; ".join(filter(None, [note, f"{missing:.0%} of the replicates lack a class and are left out"]))
        if len(defined) < 2 or (self.support < 2 and not np.ptp(defined)):
            return Estimate(value=self.value, low=np.nan, high=np.nan, n=self.n, note=note)
        low, high = self._interval(defined)
        return Estimate(value=self.value, low=low, high=high, n=self.n, note=note)

    def _interval(self, defined: NDArray[np.float64]) -> Bounds:
        if self.minuend is not None and self.subtrahend is not None:
            correlation = _correlation(self.minuend.replicates, self.subtrahend.replicates)
            return difference_interval(self.minuend.uncertain(), self.subtrahend.uncertain(), correlation)
        if self.bounds is None:
            low, high = np.percentile(defined, PERCENTILES)
            return float(low), float(high)
        return self.uncertain().interval

    def uncertain(self) -> Uncertain:
        """The value with the deviation and the skewness of the replicates; its bounds must be known."""
        assert self.bounds is not None, "percentiles only"
        defined = self.replicates[~np.isnan(self.replicates)]
        deviation = float(np.std(defined, ddof=1))
        skewness = _skewness(defined, deviation) if self.skewed else None
        return Uncertain(value=self.value, error=deviation, bounds=self.bounds, support=self.support, skewness=skewness)


def class_supports(truth: NDArray[np.int64], classes: int, weights: NDArray) -> list[float]:
    """How many patients the contrast of each class with the others rests on: those of the rarer side.

    truth (n,) indices below `classes`; weights (R, n).  The rows of a patient are drawn together, so rows with the same
    weights in all replicates are one patient's.
    """
    known: dict[bytes, int] = {}
    codes = np.array([known.setdefault(column.tobytes(), len(known)) for column in weights.T], dtype=np.int64)
    sides = [[codes[truth == k], codes[truth != k]] for k in range(classes)]
    return [float(min(len(np.unique(side)) for side in pair)) for pair in sides]


def drawn_together(weights: NDArray) -> int:
    """How many patients there are among rows with weights (R, n): the rows of one are drawn together."""
    return len({column.tobytes() for column in weights.T})


def joint_support(parts: Sequence[Distribution]) -> float:
    """The support of the mean of values that rest on different numbers of patients.

    Satterthwaite's degrees of freedom ("An approximate distribution of estimates of variance components", Biometrics
    Bulletin 2, 1946), with the variances of the replicates.
    """
    used = [part for part in parts if np.isfinite(part.replicates).sum() > 1]
    if not used:
        return np.inf
    variances = np.array([np.nanvar(part.replicates) for part in used])
    supports = np.array([part.support for part in used])
    if variances.max() < 1e-20:  # rounding alone
        return float(supports.min())
    freedom = (variances**2 / np.maximum(supports - 1, 1)).sum()
    return float(variances.sum() ** 2 / freedom + 1) if freedom else np.inf


def check_seed(seed: int) -> None:
    """Refuse, as a UserError, what no generator takes."""
    if seed < 0:
        raise UserError(f"seed: {seed} is negative; give 0 or more")
    if seed >= 2**64:
        raise UserError(f"seed: {seed} has more than 64 bits; give a smaller one")


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


def difference(first: Distribution, second: Distribution, *, n: int | None = None) -> Distribution:
    """`first` minus `second`, replicate by replicate: what both share, the luck of the test set, cancels.

    Both must have been computed under the same weights, and on the same rows (AssertionError otherwise where it can be
    seen) unless `n` says on how many rows the difference rests.
    """
    assert first.replicates.shape == second.replicates.shape, "not the same bootstrap"
    assert n is not None or first.n == second.n, "not the same rows"
    bounded = first.bounds is not None and second.bounds is not None
    return Distribution(
        value=first.value - second.value,
        replicates=first.replicates - second.replicates,
        n=first.n if n is None else n,
        minuend=first if bounded else None,
        subtrahend=second if bounded else None,
        reason=first.reason or second.reason,
    )


def paired_difference(first: Distribution, second: Distribution, *, note: str = "") -> Estimate:
    """`first` minus `second`, with the interval of the paired bootstrap; arguments as of `difference`."""
    return difference(first, second).estimate(note)


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


def json_number(value: float) -> float | None:
    """NaN as null, which JSON has."""
    return None if np.isnan(value) else float(value)


def _skewness(values: NDArray[np.float64], deviation: float) -> float:
    """Third standardised moment; 0 where there is no deviation but rounding."""
    return float(np.mean((values - values.mean()) ** 3) / deviation**3) if deviation > 1e-9 else 0.0


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Over the replicates in which both have a value; 0 where one of them does not vary."""
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2 or min(np.ptp(first[both]), np.ptp(second[both])) < 1e-9:
        return 0.0
    return float(np.corrcoef(first[both], second[both])[0, 1])
