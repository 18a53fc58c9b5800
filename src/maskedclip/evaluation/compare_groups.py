"""Several methods, each trained with several seeds: means, paired differences, and intervals that hold both.

An evaluation is a folder that `evaluate` wrote; a group is a method, its folders are the method's seeds.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maskedclip.errors import UserError
from maskedclip.evaluation.compare import comparison_to_json
from maskedclip.evaluation.compare_many import paired_distributions
from maskedclip.evaluation.compare_read import MACRO, Key, Predictions, read_predictions, read_results
from maskedclip.evaluation.compare_seeds import (
    LEAST_FREEDOM,
    SeedVariance,
    block_variance,
    estimate_with_seeds,
    mean_over_seeds,
    seed_variance,
)
from maskedclip.evaluation.statistics import Distribution, Estimate, difference


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupComparison:
    """A metric of every group, and what can be said of any two of them.

    Attributes:
        metric: "auroc" or "auprc"; recall, under the protocol "retrieval", whatever it is.
        reference: the group that the others are compared with.
        seeds: how many evaluations each group has.
        distributions: by group and key, the mean over its seeds on the replicates of the patients; a key that a group
            lacks is not in it.
        counts: by group and key, the seeds that have it.
        variances: by key, between seeds.
        blocks: by key and group, the trainings by what they share with those of other groups, such as a seed; empty
            where that is not known.
        notes: by key, of how many labels it is the mean.
        n_test, patients: test rows, and patients among them.
    """

    metric: str
    reference: str
    seeds: Mapping[str, int]
    distributions: Mapping[str, Mapping[Key, Distribution]]
    counts: Mapping[str, Mapping[Key, int]]
    variances: Mapping[Key, SeedVariance]
    blocks: Mapping[Key, Mapping[str, Mapping[Hashable, Distribution]]]
    notes: Mapping[Key, str]
    n_test: int
    patients: int

    @property
    def keys(self) -> list[Key]:
        """What any group has: the protocols and features in order, the mean of the labels before the labels."""
        return list(dict.fromkeys(key for part in self.distributions.values() for key in part))

    @property
    def values(self) -> dict[str, dict[Key, Estimate]]:
        """Mean over the seeds of each group, with 95 % interval."""
        return {group: {key: self.value(group, key) for key in parts} for group, parts in self.distributions.items()}

    @property
    def differences(self) -> dict[str, dict[Key, Estimate]]:
        """Each group but the reference: group minus reference, where both have the key."""
        return {
            group: {
                key: estimate for key in parts if (estimate := self.difference(group, self.reference, key)) is not None
            }
            for group, parts in self.distributions.items()
            if group != self.reference
        }

    def value(self, group: str, key: Key) -> Estimate:
        """Mean over the seeds of a group that has the key, with 95 % interval."""
        share = 1 / self.counts[group][key]
        return estimate_with_seeds(self.distributions[group][key], self.variances[key], share, self._note(key, [group]))

    def difference(self, first: str, second: str, key: Key) -> Estimate | None:
        """`first` minus `second`, with 95 % interval; None where one lacks the key.

        Paired in the patients, and in the seeds where both were trained with the same ones and that leaves at least
        `LEAST_FREEDOM` degrees of freedom.
        """
        parts = [self.distributions[group].get(key) for group in (first, second)]
        if parts[0] is None or parts[1] is None:
            return None
        share = sum(1 / self.counts[group][key] for group in (first, second))
        note = self._note(key, [first, second])
        variance = self._paired_variance(first, second, key) or self.variances[key]
        return estimate_with_seeds(difference(parts[0], parts[1]), variance, share, note)

    def _paired_variance(self, first: str, second: str, key: Key) -> SeedVariance | None:
        """Of blocks, where both groups have the same ones, and these leave enough degrees of freedom."""
        groups = self.blocks.get(key, {})
        one, two = groups.get(first, {}), groups.get(second, {})
        if one.keys() != two.keys():
            return None
        variance = block_variance(list(groups.values()), list(one))
        return variance if variance.freedom >= LEAST_FREEDOM else None

    def _note(self, key: Key, groups: Sequence[str]) -> str:
        """Of how many labels and seeds an estimate is the mean."""
        if max(self.seeds.values()) == 1:
            return self.notes.get(key, "")
        said = []
        for group in groups:
            count, wanted = self.counts[group][key], self.seeds[group]
            said.append(f"{count} of {wanted} seeds" if count < wanted else f"{count} seed{'s' * (count > 1)}")
        seeds = " and ".join(said) if len(set(said)) > 1 else said[0]
        lacking = "" if self.variances[key].freedom else "without the variance between seeds"
        return "; ".join(filter(None, [self.notes.get(key, ""), seeds, lacking]))

    def clear_best(self, key: Key) -> str | None:
        """The group with the highest value, if its paired interval against the second highest is above 0."""
        ranked = sorted(
            (group for group, parts in self.distributions.items() if key in parts and not np.isnan(parts[key].value)),
            key=lambda group: -self.distributions[group][key].value,
        )
        if len(ranked) < 2:
            return None
        lead = self.difference(ranked[0], ranked[1], key)
        return ranked[0] if lead is not None and lead.low > 0 else None

    def to_json(self) -> dict:
        """Reference, metric, seeds, and by group "values" and "differences" as `comparison_to_json` shapes them."""
        parts = {"values": self.values, "differences": self.differences}
        return {
            "metric": self.metric,
            "reference": self.reference,
            "seeds": dict(self.seeds),
            **{
                name: {group: comparison_to_json(entries, self.metric) for group, entries in part.items()}
                for name, part in parts.items()
            },
        }


def compare_groups(
    groups: Mapping[str, Sequence[Path]],
    reference: str,
    *,
    metric: str = "auroc",
    protocols: Collection[str] | None = None,
    blocks: Mapping[str, Sequence[Hashable]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    shown: bool = False,
) -> GroupComparison:
    """Means over seeds and paired differences, for every protocol, feature and label, and the mean over the labels.

    Intervals hold patients and seeds, as `compare_seeds` says; with one seed a group, patients alone.  All groups see
    the same replicates of the patients.  A pure function of the files and the arguments.

    Args:
        groups: by name, the folders of its seeds, at least one.
        reference: a name among them.
        metric: "auroc" or "auprc".
        protocols: only these; None for all.
        blocks: by group, of each folder what it shares with the folders of other groups that have the same, such as
            the seed that draws texts, images and first weights for all methods of a study.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        shown: whether to show a progress bar.

    Raises:
        UserError: no such reference, a folder that stands twice, is missing or damaged, other stores, test rows or
            truths, nothing in common; blocks that aren't one a folder, or stand twice in a group.
    """
    folders = [folder for group in groups.values() for folder in group]
    check_folders(folders)
    read = {name: [read_predictions(folder) for folder in group] for name, group in groups.items()}
    compared = compare_evaluations(
        read,
        reference,
        metric=metric,
        protocols=protocols,
        blocks=blocks,
        replicates=replicates,
        seed=seed,
        shown=shown,
    )
    if not compared.keys:
        drawn = next((part.drawn for group in read.values() for part in group if part.drawn.means), None)
        if drawn is not None and drawn.bootstrap != (replicates, seed):
            raise UserError(
                f"replicates: {replicates} with seed {seed}, but means over draws were kept with {drawn.bootstrap[0]} "
                f"and seed {drawn.bootstrap[1]}; give the same"
            )
        raise UserError(f"{folders[0]}: holds no scores of {', '.join(protocols or ['any protocol'])}; evaluate again")
    return compared


def compare_evaluations(
    groups: Mapping[str, Sequence[Predictions]],
    reference: str,
    *,
    metric: str = "auroc",
    protocols: Collection[str] | None = None,
    blocks: Mapping[str, Sequence[Hashable]] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    shown: bool = False,
) -> GroupComparison:
    """`compare_groups` of evaluations that have been read."""
    if reference not in groups:
        raise UserError(f"reference: {reference!r} is none of {', '.join(groups)}")
    evaluations = [evaluation for group in groups.values() for evaluation in group]
    paired = paired_distributions(
        evaluations, metric=metric, protocols=protocols, replicates=replicates, seed=seed, shown=shown
    )
    for name, group in groups.items() if blocks else ():
        own = blocks.get(name, ()) if blocks else ()
        if len(own) != len(group) or len(set(own)) != len(own):
            raise UserError(
                f"blocks: {name}: {len(own)} given, {len(set(own))} of them different, for {len(group)} evaluations; "
                "give each a block of its own, such as its seed"
            )
    owners = [name for name, group in groups.items() for _ in group]
    own_blocks = [block for name in groups for block in blocks[name]] if blocks else [None] * len(owners)
    blocked: dict[Key, dict[str, dict[Hashable, Distribution]]] = {}
    distributions: dict[str, dict[Key, Distribution]] = {name: {} for name in groups}
    counts: dict[str, dict[Key, int]] = {name: {} for name in groups}
    variances: dict[Key, SeedVariance] = {}
    for key in _ordered(paired.distributions):
        methods: dict[str, list[Distribution]] = {}
        for owner, block, part in zip(owners, own_blocks, paired.distributions, strict=True):
            if key in part:
                methods.setdefault(owner, []).append(part[key])
                if blocks:
                    blocked.setdefault(key, {}).setdefault(owner, {})[block] = part[key]
        variances[key] = seed_variance(methods)
        for name, parts in methods.items():
            distributions[name][key] = mean_over_seeds(parts)
            counts[name][key] = len(parts)
    first = evaluations[0]
    known = [patient for patient in first.patients if patient]
    return GroupComparison(
        metric=metric,
        reference=reference,
        seeds={name: len(group) for name, group in groups.items()},
        distributions=distributions,
        counts=counts,
        variances=variances,
        blocks=blocked,
        notes=paired.notes,
        n_test=len(first.ids) or first.drawn.rows,
        patients=len(set(known)) + len(first.ids) - len(known) or first.drawn.patients,
    )


def check_folders(folders: Sequence[Path]) -> None:
    """Refuse, as a UserError, a folder that stands twice, and evaluations of different stores."""
    seen: dict[Path, Path] = {}
    stores: dict[str, Path] = {}
    for folder in folders:
        if (before := seen.setdefault(folder.resolve(), folder)) is not folder:
            raise UserError(f"{folder}: stands twice (as {before}); give each evaluation once")
        stores.setdefault(read_results(folder)["about"]["store"], folder)
    if len(stores) > 1:
        (one, first), (two, second) = list(stores.items())[:2]
        raise UserError(
            f"{first} and {second}: evaluated on different stores ({one} and {two}); evaluate both on the same store"
        )


def _ordered(parts: Sequence[Mapping[Key, Distribution]]) -> list[Key]:
    """All keys: protocols and features as they come, the mean of the labels first."""
    keys = list(dict.fromkeys(key for part in parts for key in part))
    sections = list(dict.fromkeys(key[:2] for key in keys))
    return [key for section in sections for macro in (True, False) for key in keys if _is(key, section, macro)]


def _is(key: Key, section: tuple[str, str], macro: bool) -> bool:
    return key[:2] == section and (key[2] == MACRO) == macro
