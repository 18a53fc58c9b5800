"""DeLong's variance of the area under the ROC curve, and the test of two models on the same rows.  n rows, M positives.

DeLong, DeLong & Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic
curves: a nonparametric approach", Biometrics 44 (1988), by the midranks of Sun & Xu, "Fast implementation of DeLong's
algorithm", IEEE Signal Processing Letters 21 (2014): O(n log n) instead of O(M (n - M)).

With `clusters`, rows of a cluster (the eyes of a patient) may depend on each other: Obuchowski, "Nonparametric analysis
of clustered ROC curve data", Biometrics 53 (1997).  That is the version to report wherever patients have several
images; without it the standard error is too small.

The 1988 paper takes the normal distribution.  With few patients of the rarer class, or near an AUROC of 1, that is too
narrow (measured by benchmarks/coverage.py).  So by default the intervals are those of `intervals`, and the test takes
Student's t for the patients of the rarer class; `small_sample=False` gives the paper's own numbers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from scipy.stats import t as student

from maskedclip.evaluation.intervals import Uncertain, difference_interval
from maskedclip.evaluation.statistics import cluster_codes, json_number, undefined

Clusters = Sequence[str | None] | NDArray[np.object_]

_Z = float(student.ppf(0.975, np.inf))
# Of the standard error of a difference between models that order the rows alike, no more than this remains.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Area:
    """An AUROC with its standard error and 95 % interval; NaN where undefined, with the reason in `note`."""

    auroc: float
    standard_error: float
    low: float
    high: float
    n: int
    note: str = ""

    def to_json(self) -> dict[str, float | int | str | None]:
        """The fields by name; null stands for undefined."""
        return _to_json(self)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """AUROC of `first` minus `second` on the same rows, with standard error, 95 % interval and two-sided test.

    z: the difference over its standard error.  NaN where undefined, with the reason in `note`.
    """

    first: float
    second: float
    difference: float
    standard_error: float
    low: float
    high: float
    z: float
    p_value: float
    n: int
    note: str = ""

    def to_json(self) -> dict[str, float | int | str | None]:
        """The fields by name; null stands for undefined."""
        return _to_json(self)


def delong_area(
    truth: ArrayLike, score: ArrayLike, *, clusters: Clusters | None = None, small_sample: bool = True
) -> Area:
    """AUROC of `score` for `truth`, with its standard error and interval.

    Args:
        truth: bool or 0/1, (n,).
        score: the higher the likelier, (n,).
        clusters: patient of each row, None or '' for a patient of its own, (n,); None: each row is.
        small_sample: whether the interval allows for few patients; False: symmetric, by the normal distribution.
    """
    truth, scores = np.asarray(truth, dtype=bool), np.asarray(score, dtype=np.float64)[None]
    codes = _codes(len(truth), clusters)
    fault = _fault(truth, scores, codes)
    if fault:
        return Area(auroc=np.nan, standard_error=np.nan, low=np.nan, high=np.nan, n=len(truth), note=fault)
    areas, parts = _areas_and_parts(truth, scores, codes)
    error = float(np.sqrt(max(_covariance(parts)[0, 0], 0.0)))
    low, high = (
        _uncertain(truth, scores, codes, areas, parts)[0].interval if small_sample else _normal(float(areas[0]), error)
    )
    return Area(auroc=float(areas[0]), standard_error=error, low=low, high=high, n=len(truth))


def delong_difference(
    truth: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    clusters: Clusters | None = None,
    small_sample: bool = True,
) -> Difference:
    """Test that two models, with scores `first` and `second` (n,) on the same rows, have the same AUROC.

    truth, clusters and small_sample as of `delong_area`.
    """
    truth = np.asarray(truth, dtype=bool)
    scores = np.stack([np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)])
    codes = _codes(len(truth), clusters)
    fault = _fault(truth, scores, codes)
    if fault:
        names = ("first", "second", "difference", "standard_error", "low", "high", "z", "p_value")
        return Difference(**dict.fromkeys(names, np.nan), n=len(truth), note=fault)
    areas, parts = _areas_and_parts(truth, scores, codes)
    covariance = _covariance(parts)
    found = {"first": float(areas[0]), "second": float(areas[1]), "difference": float(areas[0] - areas[1])}
    error = float(np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], 0.0)))
    if error < _ROUNDING:
        return _without_error(found, len(truth))
    z = found["difference"] / error
    if small_sample:
        product = covariance[0, 0] * covariance[1, 1]
        correlation = covariance[0, 1] / np.sqrt(product) if product > 0 else 0.0
        one, other = _uncertain(truth, scores, codes, areas, parts)
        low, high = difference_interval(one, other, float(correlation))
    else:
        low, high = _normal(found["difference"], error)
    p_value = float(2 * student.sf(abs(z), parts.support - 1 if small_sample else np.inf))
    return Difference(**found, standard_error=error, low=low, high=high, z=z, p_value=p_value, n=len(truth))  # type: ignore[arg-type]


def areas_and_covariance(
    truth: NDArray[np.bool_], scores: NDArray[np.float64], codes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC of each of the k score rows (k, n), and their covariance matrix: (k,), (k, k).

    codes (n,): the cluster of each row as an integer from 0.  Both classes must be seen in at least two clusters.
    """
    areas, parts = _areas_and_parts(truth, scores, codes)
    return areas, _covariance(parts)


def third_moment(truth: NDArray[np.bool_], score: NDArray, codes: NDArray[np.int64]) -> float:
    """Third central moment of the AUROC of `score` (n,), to the order of 1 / n^2; truth and codes as above.

    An area is its mean, plus what each cluster adds, plus what each pair of a positive and a negative adds beyond its
    clusters' parts: the decomposition of Hoeffding, "A class of statistics with asymptotically normal distribution",
    Annals of Mathematical Statistics 19 (1948).  Of the mean cube remain the clusters' own cubes, and six times each
    pair's addition times both clusters' parts.  Near an area of 1 the pairs hold most of the skewness.
    """
    areas, parts = _areas_and_parts(truth, score[None], codes)
    of_cluster = parts.by_positives[0] + parts.by_negatives[0]
    upper, lower = of_cluster[codes[truth]], of_cluster[codes[~truth]]
    order = np.argsort(score[~truth], kind="stable")
    below = np.concatenate([[0.0], np.cumsum(lower[order])])
    left, right = (np.searchsorted(score[~truth][order], score[truth], side=side) for side in ("left", "right"))
    wins = upper @ (below[left] + below[right]) / 2
    # A pair's addition is its win, less the placements of both, plus the area.
    positives, negatives = (side[0] for side in placements(truth, score[None]))
    pairs = (
        wins
        - (upper @ positives) * lower.sum()
        - upper.sum() * (lower @ negatives)
        + areas[0] * upper.sum() * lower.sum()
    )
    return float((of_cluster**3).sum() + 6 * pairs / (len(upper) * len(lower)))


def placements(truth: NDArray[np.bool_], scores: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """DeLong's structural components of each score row (k, n): of the positives (k, M), of the negatives (k, n - M).

    Of a positive, the share of the negatives that it outranks; of a negative, the share of the positives that outrank
    it; ties counted half.  The mean of either is the AUROC.
    """
    everywhere = rankdata(scores, axis=1)
    own = rankdata(scores[:, truth], axis=1), rankdata(scores[:, ~truth], axis=1)
    positives = (everywhere[:, truth] - own[0]) / (~truth).sum()
    negatives = 1 - (everywhere[:, ~truth] - own[1]) / truth.sum()
    return positives, negatives


def _cluster_sums(values: NDArray, codes: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Sums of the columns of `values` (k, m) that have the same code: (k, count)."""
    return np.stack([np.bincount(codes, weights=row, minlength=count) for row in values]).astype(np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Parts:
    """What each of c clusters adds to the error of each of k areas, (k, c): by its positives, by its negatives.

    with_positives, with_negatives: how many clusters have any.
    """

    by_positives: NDArray[np.float64]
    by_negatives: NDArray[np.float64]
    with_positives: int
    with_negatives: int

    @property
    def support(self) -> int:
        """Clusters of the rarer class."""
        return min(self.with_positives, self.with_negatives)


def _areas_and_parts(truth: NDArray[np.bool_], scores: NDArray, codes: NDArray) -> tuple[NDArray[np.float64], _Parts]:
    positives, negatives = placements(truth, scores)
    areas = positives.mean(axis=1)
    count = int(codes.max()) + 1
    return areas, _Parts(
        by_positives=_cluster_sums(positives - areas[:, None], codes[truth], count) / truth.sum(),
        by_negatives=_cluster_sums(negatives - areas[:, None], codes[~truth], count) / (~truth).sum(),
        with_positives=_clusters(codes[truth]),
        with_negatives=_clusters(codes[~truth]),
    )


def _covariance(parts: _Parts) -> NDArray[np.float64]:
    """Obuchowski (1997), from S10, S01 and S11.  Where each row is a cluster, S11 is 0 and the others are DeLong's."""
    one, other = parts.by_positives, parts.by_negatives
    cross = one @ other.T
    return (
        _correction(parts.with_positives) * (one @ one.T)
        + _correction(parts.with_negatives) * (other @ other.T)
        + _correction(one.shape[1]) * (cross + cross.T)
    )


def _uncertain(truth: NDArray, scores: NDArray, codes: NDArray, areas: NDArray, parts: _Parts) -> list[Uncertain]:
    """Each area with its standard error and skewness."""
    errors = np.sqrt(np.maximum(np.diag(_covariance(parts)), 0))
    found = []
    for area, error, score in zip(areas, errors, scores, strict=True):
        skewness = third_moment(truth, score, codes) / error**3 if error > _ROUNDING else None
        found.append(Uncertain(value=float(area), error=float(error), support=parts.support, skewness=skewness))
    return found


def _normal(value: float, error: float) -> tuple[float, float]:
    return value - _Z * error, value + _Z * error


def _correction(clusters: int) -> float:
    return clusters / (clusters - 1)


def _clusters(codes: NDArray[np.int64]) -> int:
    return len(np.unique(codes))


def _codes(n: int, clusters: Clusters | None) -> NDArray[np.int64]:
    return np.arange(n) if clusters is None else cluster_codes(clusters)


def _fault(truth: NDArray[np.bool_], scores: NDArray, codes: NDArray[np.int64]) -> str:
    """Why there is no variance, as an estimate's note; '' where there is one."""
    n = len(truth)
    broken = int((~np.isfinite(scores)).any(axis=0).sum())
    if broken:
        return undefined(n, f"{broken} of {n} scores are not finite").note
    if n == 0:
        return undefined(n, "no row with a known value").note
    if truth.all() or not truth.any():
        return undefined(n).note
    fewest = min(_clusters(codes[truth]), _clusters(codes[~truth]))
    return undefined(n, "a class is seen in one patient only").note if fewest < 2 else ""


def _without_error(found: dict[str, float], n: int) -> Difference:
    """Of two models whose placements differ by a constant, nearly always by nothing."""
    if abs(found["difference"]) < _ROUNDING:
        same = {"standard_error": 0.0, "low": 0.0, "high": 0.0, "z": 0.0, "p_value": 1.0}
        return Difference(**found | {"difference": 0.0}, **same, n=n, note="both models order the rows alike")
    nothing = dict.fromkeys(("standard_error", "low", "high", "z", "p_value"), np.nan)
    note = "no test: each model ranks all rows of a class alike"
    return Difference(**found, **nothing, n=n, note=note)


def _to_json(result: Area | Difference) -> dict[str, float | int | str | None]:
    entries = asdict(result)
    note = entries.pop("note")
    numbers = {name: json_number(value) if isinstance(value, float) else value for name, value in entries.items()}
    return numbers | ({"note": note} if note else {})
