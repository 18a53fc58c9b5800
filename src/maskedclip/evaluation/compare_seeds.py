"""The mean over the training seeds of a method, with an interval that holds patients and seeds.

S seeds of a method, R bootstrap replicates of the patients.

What new trainings and a new test set would give differs from the mean at hand for three reasons: the patients, the
seeds, and that each seed errs on other patients.  The replicates of the patients, the same for all seeds and methods,
hold the first and the third.  The second comes from the variance between seeds,

    s2 = sum over methods and seeds of (value - mean of the method)^2 / f,   f = sum over methods of (S - 1)
    v  = the same of the replicates about the values: what of s2 the choice of the patients explains

and the squared error of a mean or a difference is (variance of its replicates) + c max(0, s2 - v), c = 1 / S of a mean
and 1 / S + 1 / S' of a difference.  The interval of the patients is stretched so that its half width is that of

    sqrt(t_f^2 c max(s2, v) + t_p^2 rest),   rest = (variance of the replicates) - c v,

each part with the quantile of Student's t for its own degrees of freedom, f and those of the patients: few trainings
say little of s2.  [ours], on the safe side, after Cochran and Cox, "Experimental designs" (1957), who weigh the
quantiles themselves; joint degrees of freedom by Satterthwaite's rule held the truth in 91 % of simulated
studies of two methods and three seeds.  The variance is pooled over the methods: two seeds of one method say next to
nothing about it, two of each of ten do.

Where the same seeds train all methods, as in a study, they are blocks: a seed draws the same texts, images and first
weights for every method, and what that does to all of them alike is no part of a difference.  There s2 is

    sum over methods and seeds of (value - mean of the method - mean of the seed + mean of all)^2 / f,
    f = (M - 1) (S - 1),

as of a randomised block design (Fisher, "The design of experiments", 1935, chapter IV), v the same of the replicates;
for two methods that is the paired t interval of the seeds.  Where f is below LEAST_FREEDOM, seeds are not paired.

Seeds are not resampled like patients, as two of them resampled show half of their variance, and a bootstrap that
crosses both counts the third reason three times: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1
(2007).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import t as student

from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.statistics import Distribution, Estimate

LEAST_FREEDOM = 3
"""Degrees of freedom from which a difference is paired in its seeds; with fewer, Student's t takes more than pairing
gives: 12.7 and 4.3 standard errors with 1 and 2, against 4.3 and 2.8 of two methods that aren't paired."""
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class SeedVariance:
    """Of a metric, pooled over methods.  between: s2; explained: v; freedom: f, 0 where no method has two seeds."""

    between: float = 0.0
    explained: float = 0.0
    freedom: int = 0


def seed_variance(methods: Mapping[str, Sequence[Distribution]]) -> SeedVariance:
    """The variance between the seeds of a method, all on the same replicates."""
    tables = [
        np.stack([np.concatenate([[part.value], part.replicates]) for part in parts]) for parts in methods.values()
    ]
    freedom = sum(len(table) - 1 for table in tables)
    if freedom == 0:
        return SeedVariance()
    deviations = np.concatenate([table - table.mean(axis=0) for table in tables])  # (seeds, 1 + R)
    return _pooled(deviations, freedom)


def block_variance(methods: Sequence[Mapping[Any, Distribution]], blocks: Collection[Any]) -> SeedVariance:
    """The variance that is left between seeds once each seed's own share is taken away: s2 of blocks, for differences.

    Args:
        methods: of each method its trainings by seed, all on the same replicates; those that lack a seed say nothing.
        blocks: the seeds.
    """
    complete = [parts for parts in methods if all(block in parts for block in blocks)]
    if min(len(complete), len(blocks)) < 2:
        return SeedVariance()
    freedom = (len(complete) - 1) * (len(blocks) - 1)
    table = np.stack(
        [[np.concatenate([[parts[block].value], parts[block].replicates]) for block in blocks] for parts in complete]
    )  # (methods, seeds, 1 + R)
    within = table - table.mean(axis=1, keepdims=True)
    return _pooled((within - within.mean(axis=0, keepdims=True)).reshape(-1, table.shape[2]), freedom)


def _pooled(deviations: NDArray[np.float64], freedom: int) -> SeedVariance:
    """From deviations of the values, first, and of their replicates, (trainings, 1 + R)."""
    luck = ((deviations[:, 1:] - deviations[:, :1]) ** 2).sum(axis=0)
    # A replicate without a class has no value for any model.
    defined = luck[~np.isnan(luck)]
    return SeedVariance(
        between=float((deviations[:, 0] ** 2).sum() / freedom),
        explained=float(defined.sum() / max(len(defined), 1) / freedom),
        freedom=freedom,
    )


def mean_over_seeds(parts: Sequence[Distribution]) -> Distribution:
    """The mean of the seeds of a method, replicate by replicate; its deviation is that of the patients alone."""
    return replace(
        parts[0],
        value=float(np.mean([part.value for part in parts])),
        replicates=np.mean([part.replicates for part in parts], axis=0),
        support=min(part.support for part in parts),
    )


def estimate_with_seeds(mean: Distribution, variance: SeedVariance, share: float, note: str = "") -> Estimate:
    """A mean over seeds, or a difference of two, with its 95 % interval.

    Args:
        mean: as `mean_over_seeds` gives it, or a difference of two.
        variance: between seeds.  Without a degree of freedom the interval is that of the patients alone.
        share: c above, how much of the variance between seeds is left in the mean: 1 / S, or the sum of two.
        note: of the estimate.
    """
    patients = mean.estimate(note)
    if variance.freedom == 0 or np.isnan(patients.low):
        return patients
    # Where s2 happens to be below v, it is taken as v: nothing is added, and the degrees of freedom stay few.
    between = share * max(variance.between, variance.explained)
    error = float(np.nanstd(mean.replicates, ddof=1))
    rest = max(error**2 - share * variance.explained, 0.0)
    # A difference has the support of the two that it is made of.
    support = min(part.support for part in (mean, mean.minuend, mean.subtrahend) if part is not None)
    reach = float(np.hypot(_quantile(variance.freedom) * np.sqrt(between), _quantile(support - 1) * np.sqrt(rest)))
    if error < _ROUNDING:
        low, high = mean.value - reach, mean.value + reach
        low, high = (max(low, 0.0), min(high, 1.0)) if mean.bounds == SHARE else (low, high)
    else:
        factor = max(reach / (_quantile(support - 1) * error), 1.0)
        low, high = (_stretched(mean, edge, factor) for edge in (patients.low, patients.high))
    return replace(patients, low=low, high=high)


def _stretched(mean: Distribution, edge: float, factor: float) -> float:
    """An edge of an interval moved away from the value, on the logit scale where the value is a share."""
    if mean.bounds != SHARE or not 0 < mean.value < 1:
        return mean.value + factor * (edge - mean.value)
    return float(expit(logit(mean.value) + factor * (logit(edge) - logit(mean.value))))


def _quantile(freedom: float) -> float:
    """97.5 % of Student's t."""
    return float(student.ppf(0.975, max(freedom, 1)))
