"""Protocols that learn from a draw of the training data: the mean over draws, and what it is worth.

A result has two sources of chance, which patients are tested and which were drawn to learn from, and its interval
holds both: each replicate resamples the test patients and, independently, the draws (Owen, "The pigeonhole bootstrap",
Annals of Applied Statistics 1(2), 2007).  Of d draws d - 1 are drawn with replacement, so that the variance comes out
right for a few draws too (Rao and Wu, "Resampling inference with complex survey data", JASA 83, 1988).  The mean over
the draws is what one draw is expected to give; the spread says how far one draw lies from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maskedclip.evaluation import metrics
from maskedclip.evaluation.scoring import macro_estimate
from maskedclip.evaluation.statistics import Distribution, undefined
from maskedclip.evaluation.tasks import Task
from maskedclip.randomness import generator, text_key


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """One metric over d draws.

    mean: over the draws that have a value; its replicates resample draws and test patients.  values (d,): the metric
    of each draw on the test rows, NaN where undefined.
    """

    mean: Distribution
    values: NDArray[np.float64]

    def to_json(self) -> dict:
        """The mean as an estimate, with "draws", how many have a value, and "spread", their standard deviation."""
        defined = int((~np.isnan(self.values)).sum())
        some = 0 < defined < len(self.values)
        note = f"{len(self.values) - defined} of {len(self.values)} draws have no value and are left out"
        return self.mean.estimate(note if some else "").to_json() | _over(self.values)


def over_draws(parts: Sequence[Distribution], *, key: str, seed: int) -> Drawn:
    """The mean of a metric over its draws, all on the same test rows and bootstrap weights.

    key names what is drawn: equal keys resample their draws alike, different ones independently.
    """
    values = np.array([part.value for part in parts])
    defined = [part for part in parts if not np.isnan(part.value)]
    if not defined:
        return Drawn(mean=parts[0], values=values)
    table = np.stack([part.replicates for part in defined])  # (d, R)
    counts = _resampled(len(defined), table.shape[1], f"draws {key}", seed)
    some = ~np.isnan(table)
    total = (counts * some).sum(axis=0)
    replicates = np.full(table.shape[1], np.nan)
    np.divide((counts * np.where(some, table, 0)).sum(axis=0), total, out=replicates, where=total > 0)
    mean = float(np.mean([part.value for part in defined]))
    return Drawn(mean=replace(defined[0], value=mean, replicates=replicates, support=_support(defined)), values=values)


@dataclass(frozen=True, kw_only=True, eq=False)
class Repeated:
    """A protocol of draws on one feature.

    section: of results.json, by setting, such as the number of shots.  means: of AUROC by setting and label, those that
    could be learnt, for differences that are paired in patients and draws.
    """

    section: dict[str, dict]
    means: dict[tuple[str, str], Distribution]


def means_of(setting: str, drawn: Mapping[str, Drawn | str]) -> dict[tuple[str, str], Distribution]:
    """By setting and label, of what could be learnt."""
    return {(setting, name): part.mean for name, part in drawn.items() if isinstance(part, Drawn)}


def score_draws(tasks: Mapping[str, Task], drawn: Mapping[str, Drawn | str]) -> dict[str, dict[str, dict]]:
    """{"macro": {"auroc": ...}, "per_label": {name: {"auroc": ...}}} as JSON.

    tasks: on the test rows.  drawn: per label; a sentence where no draw could be learnt, which becomes the note of its
    entry.  The spread of the macro is that of its value from draw to draw.
    """
    per_label = {
        name: undefined(int(tasks[name].known.sum()), part).to_json() if isinstance(part, str) else part.to_json()
        for name, part in drawn.items()
    }
    given = {name: part for name, part in drawn.items() if isinstance(part, Drawn)}
    rows = np.any([tasks[name].known for name in given or drawn], axis=0).sum() if drawn else 0
    macro = macro_estimate({name: given[name].mean if name in given else None for name in drawn}, int(rows))
    by_draw = metrics.macro([part.values for part in given.values()], 0)
    return {
        "macro": {"auroc": macro.to_json() | _over(by_draw)},
        "per_label": {name: {"auroc": entry} for name, entry in per_label.items()},
    }


def _resampled(draws: int, replicates: int, key: str, seed: int) -> NDArray[np.int64]:
    """How often each draw counts in each replicate: (d, R)."""
    if draws == 1:
        return np.ones((1, replicates), np.int64)
    random = generator(text_key(key), stream=seed)
    return random.multinomial(draws - 1, np.full(draws, 1 / draws), size=replicates).T


def _support(parts: Sequence[Distribution]) -> float:
    """What the mean over draws rests on: Satterthwaite's freedom of its two variances, as in `joint_support`."""
    support = float(np.median([part.support for part in parts]))
    between = float(np.var([part.value for part in parts], ddof=1)) / len(parts) if len(parts) > 1 else 0.0
    if between == 0:
        return support
    within = float(np.nanvar(np.mean([part.replicates for part in parts], axis=0)))
    freedom = within**2 / max(support - 1, 1) + between**2 / (len(parts) - 1)
    return (within + between) ** 2 / freedom + 1


def _over(values: NDArray[np.float64]) -> dict[str, int | float | None]:
    defined = values[~np.isnan(values)]
    return {"draws": len(defined), "spread": float(defined.std(ddof=1)) if len(defined) > 1 else None}
