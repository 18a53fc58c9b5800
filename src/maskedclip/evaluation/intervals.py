"""95 % intervals from a standard error, for metrics with bounds and for few patients.

Percentiles of a bootstrap, and a value plus or minus 1.96 standard errors, are too narrow where a class is seen in few
patients, and where a metric is near its bound: there a good value by luck comes with a small error by luck.  With 100
patients, 10 % of the eyes positive and a true AUROC of 0.95, percentiles hold the truth in 84 % of the sets, not in
95 %.  `benchmarks/coverage.py` measures that, and what is here.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t as student

Bounds = tuple[float, float]

SHARE: Bounds = (0.0, 1.0)
"""Bounds of AUROC, accuracy and their kin."""
_FLATTEST = -0.7


@dataclass(frozen=True, kw_only=True)
class Uncertain:
    """A value within `bounds`, its standard error, and what shapes its 95 % interval.

    support: how many patients it rests on, those of the rarer class; inf: as many as make no difference.  skewness: of
    its distribution, third standardised moment; None: not known.
    """

    value: float
    error: float
    bounds: Bounds = SHARE
    support: float = np.inf
    skewness: float | None = None

    @cached_property
    def quantile(self) -> float:
        """97.5 % of Student's t with one degree of freedom less than `support`."""
        return float(student.ppf(0.975, max(self.support - 1, 1)))

    @property
    def reach(self) -> float:
        """Half the width of the plain symmetric interval."""
        return self.quantile * self.error

    @cached_property
    def interval(self) -> Bounds:
        """95 % interval within the bounds.

        - On the logit scale of the bounds: Pepe, "The statistical evaluation of medical tests" (2003), section 5.2.5.
        - With Student's t for `support` patients in the place of the normal distribution.
        - Where the skewness is known, corrected for what of it the logit has not undone: Hall, "On the removal of
          skewness by transformation", Journal of the Royal Statistical Society B 54 (1992), in the logit's coordinates.
        - At a bound itself, where the replicates show no error whatever the number of patients: Wilson's interval of a
          share of `support` patients.
        """
        low, high = self.bounds
        share = (self.value - low) / (high - low)
        below, above = self._at_bound(share) if share * (1 - share) < 1e-12 else self._on_logit(share)
        return low + (high - low) * below, low + (high - low) * above

    def _at_bound(self, share: float) -> Bounds:
        square = self.quantile**2
        uncertain = square / (self.support + square) if np.isfinite(self.support) else 0.0
        return (0.0, uncertain) if share < 0.5 else (1 - uncertain, 1.0)

    def _on_logit(self, share: float) -> Bounds:
        scaled = self.error / (self.bounds[1] - self.bounds[0]) / (share * (1 - share))  # by the logit's derivative
        bend, shift = 0.0, 0.0
        if self.skewness is not None:
            bend, shift = self.skewness / 3 - (1 - 2 * share) * scaled / 2, self.skewness / 6
        edges = [float(expit(logit(share) - scaled * _unbent(x, bend, shift))) for x in (self.quantile, -self.quantile)]
        # A strong bend may put both edges on one side.
        return min(share, edges[0]), max(share, edges[1])


def difference_interval(first: Uncertain, second: Uncertain, correlation: float) -> Bounds:
    """95 % interval of first.value minus second.value, whose errors have the given correlation.

    What reaches far to one side of a value reaches far in the difference: Zou, "Toward using confidence intervals to
    compare correlations", Psychological Methods 12 (2007), adds p^2 + q^2 - 2 r p q for the one-sided lengths p of the
    first and q of the second.  With an r near 1, as between two trainings of one model, lengths of unlike sides do not
    cancel, and that interval is several times too wide.  [ours] With the plain lengths a and b, whose square in the
    difference is (a - b)^2 + 2 (1 - r) a b, the first part is stretched by (p / a)^2 or (q / b)^2, whichever belongs to
    the longer, the second by (p / a)(q / b): the same for r = 0 and a = b up to the kind of mean, and nothing is left
    of two models that err alike.
    """
    (low, high), (other_low, other_high) = first.interval, second.interval
    down = _joint((first.value - low, other_high - second.value), (first.reach, second.reach), correlation)
    up = _joint((high - first.value, second.value - other_low), (first.reach, second.reach), correlation)
    return first.value - second.value - down, first.value - second.value + up


def _joint(lengths: Bounds, plain: Bounds, correlation: float) -> float:
    (p, q), (a, b) = lengths, plain
    if min(a, b) == 0:  # a value at its bound, of which only the length is known
        return float(np.hypot(p, q))
    apart = 1 - correlation if correlation < 1 - 1e-12 else 0.0
    longer = q / b if b > a else p / a
    return float(np.sqrt(((a - b) * longer) ** 2 + 2 * apart * p * q))


def _unbent(quantile: float, bend: float, shift: float) -> float:
    """The studentised deviation y for which y + bend y^2 + bend^2 y^3 / 3 + shift is the quantile.

    [ours] Where 3 bend (quantile - shift) nears -1 the cubic is flat, and a little more of a skewness that is estimated
    from some hundred replicates would move y to three times the deviation.  Beyond -0.7, y is stretched as much as
    there, by 1.42: in simulations it holds the truth as often (benchmarks/coverage.py).
    """
    x = quantile - shift
    flat = max(3 * bend * x, _FLATTEST)
    return x if abs(flat) < 1e-9 else 3 * x * float(np.cbrt(1 + flat) - 1) / flat
