"""Why models that stand side by side have no paired difference, in words that say what to do about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskedclip.evaluation.compare_groups import GroupComparison
from maskedclip.evaluation.compare_read import Key, Predictions
from maskedclip.evaluation.draws_table import DRAWS_TABLE
from maskedclip.evaluation.report_names import label_name
from maskedclip.evaluation.statistics import Estimate

# What `evaluate` keeps for pairing; of the other protocols predictions.parquet.
_TABLES = {
    "retrieval": "retrieval.parquet",
    "dense": "dense.parquet",
    "fewshot": DRAWS_TABLE,
    "label_efficiency": DRAWS_TABLE,
}


def own_replicates(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[int]]:
    """By model, how many bootstrap replicates its evaluations had; none where an earlier version did not say it."""
    found = {name: [part["about"].get("replicates") for part in parts] for name, parts in results.items()}
    return {name: [count for count in dict.fromkeys(own) if isinstance(count, int)] for name, own in found.items()}


def unpaired_reasons(
    groups: Mapping[str, Sequence[Predictions]],
    auroc: GroupComparison,
    others: Mapping[str, Mapping[Key, Mapping[str, Estimate]]],
    bootstrap: tuple[int, int],
) -> dict[tuple[str, str], list[str]]:
    """By protocol and feature, why models have no difference from the reference there; nothing where all have theirs.

    A model without a value needs no reason: no row shows it, or the value itself says why it is undefined.

    Args:
        groups: by model, what its evaluations kept.
        auroc: what could be paired.
        others: by model and key, what the results say.
        bootstrap: replicates and seed of the comparison.
    """
    known = {name: _known(auroc.distributions[name], others[name]) for name in groups}
    case = _Case(groups=groups, auroc=auroc, known=known, bootstrap=bootstrap)
    found: dict[tuple[str, str], list[str]] = {}
    for name in groups:
        for key, defined in known[name].items():
            if name != auroc.reference and defined and case.lacking(name, key):
                why = case.why(name, key)
                told = found.setdefault(key[:2], [])
                told += [why] if why and why not in told else []
    return {section: told for section, told in found.items() if told}


def _known(paired: Mapping[Key, object], others: Mapping[Key, Mapping[str, Estimate]]) -> dict[Key, bool]:
    """Every key of a model, and whether it has a value that a difference could be of."""
    known = dict.fromkeys(paired, True)
    for key, metrics in others.items():
        estimate = metrics.get("recall" if key[0] == "retrieval" else "auroc")
        known.setdefault(key, estimate is not None and not np.isnan(estimate.value))
    return known


@dataclass(frozen=True, kw_only=True, eq=False)
class _Case:
    groups: Mapping[str, Sequence[Predictions]]
    auroc: GroupComparison
    known: Mapping[str, Mapping[Key, bool]]
    bootstrap: tuple[int, int]

    def lacking(self, name: str, key: Key) -> list[str]:
        """Those of a model and the reference that have nothing to be paired."""
        pair = (name, self.auroc.reference)
        return [model for model in pair if key not in self.auroc.distributions[model]]

    def why(self, name: str, key: Key) -> str:
        reference = self.auroc.reference
        defined = self.known[reference].get(key)
        if defined is None:
            whole = all(other[:2] != key[:2] for other in self.known[reference])
            return f"{reference}, the reference, has none" + ("" if whole else f" for {label_name(key[2])}")
        if not defined:
            return ""
        kept = self._draws(key)
        if any(own != self.bootstrap for own in kept):
            return _other_draws(kept, self.bootstrap)
        table = _TABLES.get(key[0], "predictions.parquet")
        return f"{' and '.join(self.lacking(name, key))} kept no scores for it ({table}); evaluate again"

    def _draws(self, key: Key) -> dict[tuple[int, int], list[str]]:
        """Replicates and seed with which means over draws of the key's protocol and feature were kept, and by whom."""
        kept: dict[tuple[int, int], list[str]] = {}
        for name, parts in self.groups.items():
            for part in parts:
                if any(drawn[:2] == key[:2] for drawn in part.drawn.means):
                    own = kept.setdefault(part.drawn.bootstrap, [])
                    own += [] if name in own else [name]
        return kept


def _other_draws(kept: Mapping[tuple[int, int], Sequence[str]], bootstrap: tuple[int, int]) -> str:
    """Means over draws are kept replicate by replicate, so they pair with the same replicates and seed alone."""
    seeds = len({seed for _, seed in [*kept, bootstrap]}) > 1

    def words(own: tuple[int, int]) -> str:
        return f"{own[0]:,} replicates" + (f" and seed {own[1]}" if seeds else "")

    if len(kept) > 1:
        told = "; ".join(f"{', '.join(names)}: {words(own)}" for own, names in kept.items())
        return f"means over draws were kept with other replicates ({told}); evaluate all with the same"
    own = next(iter(kept))
    options = f"--replicates {own[0]}" + (f" --seed {own[1]}" if seeds else "")
    return f"means over draws were kept with {words(own)}, this comparison has {words(bootstrap)}; give {options}"
