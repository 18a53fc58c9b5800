"""What `maskedclip compare` tells of several evaluations: values, paired differences, tests, and what is missing."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.errors import UserError
from maskedclip.evaluation.compare_groups import GroupComparison, check_folders, compare_evaluations
from maskedclip.evaluation.compare_read import (
    MACRO,
    Key,
    Predictions,
    damaged,
    on_rows_of,
    read_predictions,
    read_results,
)
from maskedclip.evaluation.compare_settings import unlike_settings
from maskedclip.evaluation.compare_unpaired import own_replicates, unpaired_reasons
from maskedclip.evaluation.compare_warnings import leakage_warnings, unlike_labels
from maskedclip.evaluation.delong import delong_difference
from maskedclip.evaluation.holm import holm
from maskedclip.evaluation.report_names import DIRECTIONS, label_name, row_name
from maskedclip.evaluation.retrieval import RECALL_AT
from maskedclip.evaluation.statistics import Estimate, json_number

RETRIEVAL = "retrieval"
Section = tuple[str, str]  # protocol, feature; for retrieval the direction


@dataclass(frozen=True, kw_only=True)
class LabelTest:
    """DeLong's test of a model against the reference on one label, clustered by patient.

    p_value: two-sided; corrected: by Holm over the labels of the protocol and feature; NaN where undefined.
    """

    p_value: float
    corrected: float

    def to_json(self) -> dict[str, float | None]:
        """{"p_value", "corrected"}; null stands for undefined."""
        return {"p_value": json_number(self.p_value), "corrected": json_number(self.corrected)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Several models on the same test rows; a model is one evaluation, or several seeds of one method.

    Attributes:
        folders: of each model.
        auroc, auprc: with paired differences, from the scores that the evaluations kept.  Recall is in `auroc`.
        others: by model and key, what only results.json has: other metrics, and protocols whose scores weren't kept.
        tests: by model (but the reference) and key of a label; of several seeds there are none.
        chance: recall of a random order, by key; fixed_order: of the order by frequency, the same for all images.
        missing: a line for everything that some models have and others lack.
        unlike: a line for every setting of a protocol, and for the labels, where they were not the same for all.
        warnings: a line for test images that models have seen.
        unpaired: by protocol and feature, why models that have it have no difference from the reference.
        own_replicates: by model, those of its evaluations, from which the intervals of `others` are.
        store, replicates, seed: of the comparison.
    """

    folders: Mapping[str, Sequence[Path]]
    auroc: GroupComparison
    auprc: GroupComparison
    others: Mapping[str, Mapping[Key, Mapping[str, Estimate]]]
    tests: Mapping[str, Mapping[Key, LabelTest]]
    chance: Mapping[Key, float]
    fixed_order: Mapping[Key, float]
    missing: Sequence[str]
    unlike: Sequence[str]
    warnings: Sequence[str]
    unpaired: Mapping[Section, Sequence[str]]
    own_replicates: Mapping[str, Sequence[int]]
    store: str
    replicates: int
    seed: int

    @property
    def names(self) -> list[str]:
        """The models in their order."""
        return list(self.folders)

    @property
    def reference(self) -> str:
        """The model that the others are compared with."""
        return self.auroc.reference

    @property
    def sections(self) -> list[Section]:
        """Every protocol and feature that some model has, retrieval last."""
        keys = [*self.auroc.keys, *(key for part in self.others.values() for key in part)]
        found = list(dict.fromkeys(key[:2] for key in keys))
        return sorted(found, key=lambda section: section[0] == RETRIEVAL)

    def labels(self, section: Section) -> list[str]:
        """The labels of a protocol and feature, in order."""
        keys = [*self.auroc.keys, *(key for part in self.others.values() for key in part)]
        return list(dict.fromkeys(key[2] for key in keys if key[:2] == section and key[2] != MACRO))

    def value(self, name: str, key: Key, metric: str = "auroc") -> Estimate | None:
        """A model's value with its interval; None where it has none."""
        paired = {"auroc": self.auroc, "recall": self.auroc, "auprc": self.auprc}.get(metric)
        if paired is not None and key in paired.distributions[name]:
            return paired.value(name, key)
        return self.others[name].get(key, {}).get(metric)

    def difference(self, name: str, key: Key) -> Estimate | None:
        """Model minus reference; None for the reference itself, and where no scores allow a paired difference."""
        return None if name == self.reference else self.auroc.difference(name, self.reference, key)

    def to_json(self) -> dict[str, Any]:
        """Everything, for a program."""
        return {
            "models": {
                name: {
                    "folders": [str(folder) for folder in folders],
                    "seeds": len(folders),
                    "replicates": list(self.own_replicates[name]),
                }
                for name, folders in self.folders.items()
            },
            "reference": self.reference,
            "about": {
                "store": self.store,
                "test": self.auroc.n_test,
                "test_patients": self.auroc.patients,
                "replicates": self.replicates,
                "seed": self.seed,
            },
            "chance": _levelled(self.chance),
            "fixed_order": _levelled(self.fixed_order),
            "values": self._merged("values"),
            "differences": self._merged("differences"),
            "tests": {
                name: _nested({key: {"delong": test.to_json()} for key, test in tests.items()})
                for name, tests in self.tests.items()
            },
            "warnings": list(self.warnings),
            "missing": list(self.missing),
            "unlike": list(self.unlike),
            "unpaired": [f"{section_name(section)}: {why}" for section, told in self.unpaired.items() for why in told],
        }

    def _merged(self, part: str) -> dict[str, dict]:
        """Both metrics with differences and, for "values", the others, by model."""
        merged = {}
        for name in self.names:
            if part == "differences" and name == self.reference:
                continue
            entries: dict[Key, dict[str, Any]] = {}
            for group in (self.auroc, self.auprc):
                for key, estimate in getattr(group, part)[name].items():
                    metric = "recall" if key[0] == RETRIEVAL else group.metric
                    entries.setdefault(key, {})[metric] = estimate.to_json()
            for key, metrics in (self.others[name] if part == "values" else {}).items():
                for metric, estimate in metrics.items():
                    entries.setdefault(key, {}).setdefault(metric, estimate.to_json())
            merged[name] = _nested(entries)
        return merged


def compare_models(
    folders: Mapping[str, Sequence[Path]],
    reference: str,
    *,
    protocols: Collection[str] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    shown: bool = False,
) -> Comparison:
    """Compare evaluations.

    Args:
        folders: by model, one folder that `evaluate` wrote, or the folders of several seeds.
        reference: a model that the others are compared with.
        protocols: only these; None for all.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        shown: whether to show a progress bar.

    Raises:
        UserError: as `compare_groups`; a protocol that no evaluation has.
    """
    check_folders([folder for group in folders.values() for folder in group])
    results = {name: [_chosen(read_results(folder), protocols) for folder in group] for name, group in folders.items()}
    _check_protocols(results, protocols)
    read = {name: [read_predictions(folder) for folder in group] for name, group in folders.items()}
    auroc, auprc = (
        compare_evaluations(
            read,
            reference,
            metric=metric,
            protocols=protocols,
            replicates=replicates,
            seed=seed,
            shown=shown,
        )
        for metric in ("auroc", "auprc")
    )
    others = _alike({name: _others(folders[name], parts) for name, parts in results.items()})
    has = {name: [*auroc.distributions[name], *others[name]] for name in folders}
    _check_common(has, reference, folders)
    return Comparison(
        folders=folders,
        auroc=auroc,
        auprc=auprc,
        others=others,
        tests={
            name: _tests(group[0], read[reference][0], protocols) if len(group) == len(read[reference]) == 1 else {}
            for name, group in read.items()
            if name != reference
        },
        chance=_levels(results, "chance"),
        fixed_order=_levels(results, "fixed_order"),
        missing=_missing(has, results),
        unlike=[*unlike_labels(results), *unlike_settings(results)],
        warnings=leakage_warnings(results),
        unpaired=unpaired_reasons(read, auroc, others, (replicates, seed)),
        own_replicates=own_replicates(results),
        store=next(iter(results.values()))[0]["about"]["store"],
        replicates=replicates,
        seed=seed,
    )


def _chosen(results: dict[str, Any], protocols: Collection[str] | None) -> dict[str, Any]:
    wanted = results if protocols is None else ("about", *protocols)
    return {name: section for name, section in results.items() if name in wanted}


def _check_protocols(results: Mapping[str, Sequence[dict]], protocols: Collection[str] | None) -> None:
    had = {name for group in results.values() for part in group for name in part}
    unknown = [name for name in protocols or () if name not in had]
    if unknown:
        raise UserError(f"--protocols: no evaluation has {', '.join(unknown)}; evaluate with --protocols, or leave it")


def _alike(others: Mapping[str, Mapping[Key, dict[str, Estimate]]]) -> dict[str, dict[Key, dict[str, Estimate]]]:
    """Without the means of protocols and features in which the models have not the same labels."""
    labels: dict[Section, set[frozenset[str]]] = {}
    for entries in others.values():
        for section in {key[:2] for key in entries}:
            had = frozenset(key[2] for key in entries if key[:2] == section)
            labels.setdefault(section, set()).add(had)
    return {
        name: {key: entry for key, entry in entries.items() if key[2] != MACRO or len(labels[key[:2]]) == 1}
        for name, entries in others.items()
    }


def _others(folders: Sequence[Path], results: Sequence[dict[str, Any]]) -> dict[Key, dict[str, Estimate]]:
    """What the results of a model say of every key; of several seeds the mean and range, without an interval."""
    parts = []
    for folder, part in zip(folders, results, strict=True):
        try:
            parts.append(_entries(part))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise damaged(folder, f"{type(error).__name__}: {error}") from error
    if len(parts) == 1:
        return parts[0]
    merged: dict[Key, dict[str, Estimate]] = {}
    for key, metrics in parts[0].items():
        for metric in metrics:
            seeds = [part[key][metric] for part in parts if metric in part.get(key, {})]
            values = np.array([estimate.value for estimate in seeds])
            note = f"mean of {len(seeds)} seeds, {values.min():.3f} to {values.max():.3f}; no interval"
            merged.setdefault(key, {})[metric] = Estimate(
                value=float(values.mean()), low=np.nan, high=np.nan, n=seeds[0].n, note=note
            )
    return merged


def _entries(results: dict[str, Any]) -> dict[Key, dict[str, Estimate]]:
    """The estimates of a results.json by key and metric."""
    found: dict[Key, dict[str, Estimate]] = {}
    for protocol, section in results.items():
        if protocol in ("about", "subgroups") or not isinstance(section, dict) or "skipped" in section:
            continue
        if protocol == RETRIEVAL:
            for direction, figures in section.items():
                for k in RECALL_AT:
                    entry = figures[f"recall_at_{k}"]
                    found[protocol, direction, f"recall_at_{k}"] = {"recall": _estimate(entry)}
            continue
        for feature, part in _parts(section, ""):
            for label, metrics in {MACRO: part[MACRO], **part.get("per_label", {})}.items():
                estimates = {name: _estimate(entry) for name, entry in metrics.items() if _is_estimate(entry)}
                found[protocol, feature, label] = estimates
    return found


def _parts(section: Mapping[str, Any], feature: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Everything in a section that has a macro, named by its way there: "encoder", or "encoder, 5" for 5 shots."""
    if MACRO in section:
        yield feature or "projected", section
        return
    for name, part in section.items():
        if isinstance(part, dict):
            yield from _parts(part, f"{feature}, {name}" if feature else name)


def _is_estimate(entry: Any) -> bool:
    return isinstance(entry, dict) and {"value", "low", "high", "n"} <= entry.keys()


def _estimate(entry: Mapping[str, Any]) -> Estimate:
    value, low, high = (np.nan if entry[name] is None else float(entry[name]) for name in ("value", "low", "high"))
    return Estimate(value=value, low=low, high=high, n=int(entry["n"]), note=str(entry.get("note", "")))


def _levels(results: Mapping[str, Sequence[dict]], level: str) -> dict[Key, float]:
    """What recall is worth without a model, "chance" or "fixed_order", where the evaluations say it."""
    found: dict[Key, float] = {}
    for group in results.values():
        for part in group:
            section = part.get(RETRIEVAL, {})
            for direction, figures in {} if "skipped" in section else section.items():
                for name in (f"recall_at_{k}" for k in RECALL_AT):
                    if level in figures[name]:
                        found[RETRIEVAL, direction, name] = float(figures[name][level])
    return found


def _tests(model: Predictions, reference: Predictions, protocols: Collection[str] | None) -> dict[Key, LabelTest]:
    """DeLong's test of every binary label that both have."""
    aligned = on_rows_of(reference, model)
    p_values: dict[Section, dict[Key, float]] = {}
    for key, classes in reference.scores.items():
        first, second = aligned.scores.get(key, {}).get(None), classes.get(None)
        if first is not None and second is not None and (protocols is None or key[0] in protocols):
            clusters = reference.patients[second.rows]
            found = delong_difference(second.truth, first.score, second.score, clusters=clusters)
            p_values.setdefault(key[:2], {})[key] = found.p_value
    return {
        key: LabelTest(p_value=p_value, corrected=float(corrected))
        for family in p_values.values()
        for (key, p_value), corrected in zip(family.items(), holm(list(family.values())), strict=True)
    }


def _check_common(has: Mapping[str, Sequence[Key]], reference: str, folders: Mapping[str, Sequence[Path]]) -> None:
    """Refuse a model that has nothing that the reference has."""
    for name, keys in has.items():
        if not set(keys) & set(has[reference]):
            raise UserError(
                f"{folders[name][0]} and {folders[reference][0]}: no protocol, feature and label in common; "
                "evaluate both alike"
            )


def _missing(has: Mapping[str, Sequence[Key]], results: Mapping[str, Sequence[dict]]) -> list[str]:
    """What a model lacks and another has: a line for each model and reason, and for each label that is not there."""
    everything = list(dict.fromkeys(key for keys in has.values() for key in keys))
    lines: list[str] = []
    for name, keys in has.items():
        sections = {key[:2] for key in keys}
        lacking: dict[str, list[str]] = {}
        for section in dict.fromkeys(key[:2] for key in everything if key[:2] not in sections):
            lacking.setdefault(_reason(section[0], results[name]), []).append(section_name(section))
        lines += [f"{name} has no {'; no '.join(which)}: {why}" for why, which in lacking.items()]
        unknown = [key for key in everything if key[:2] in sections and key not in keys and key[2] != MACRO]
        lines += [f"{name} has no {section_name(key[:2])} for {label_name(key[2])}" for key in unknown]
    return lines


def _reason(protocol: str, results: Sequence[dict]) -> str:
    """Why a model lacks a protocol, or a feature in it."""
    had = [part[protocol] for part in results if protocol in part]
    skipped = [section["skipped"] for section in had if "skipped" in section]
    return skipped[0] if skipped else "the model has no such feature" if had else "not evaluated"


def section_name(section: Section) -> str:
    """A protocol on a feature, or a direction of retrieval, for a reader."""
    if section[0] == RETRIEVAL:
        return f"retrieval, {DIRECTIONS.get(section[1], section[1])}"
    return row_name(*section)


def _levelled(levels: Mapping[Key, float]) -> dict[str, dict[str, float]]:
    """{"image_to_text": {"recall_at_1": ...}} of what recall is worth without a model."""
    nested: dict[str, dict[str, float]] = {}
    for (_, direction, name), level in levels.items():
        nested.setdefault(direction, {})[name] = level
    return nested


def _nested(entries: Mapping[Key, dict[str, Any]]) -> dict[str, Any]:
    """By protocol, feature and label, as in results.json."""
    nested: dict[str, Any] = {}
    for (protocol, feature, label), entry in entries.items():
        part = nested.setdefault(protocol, {}).setdefault(feature, {})
        if protocol == RETRIEVAL:
            part[label] = entry["recall"]
        else:
            (
                part.setdefault(MACRO, {}) if label == MACRO else part.setdefault("per_label", {}).setdefault(label, {})
            ).update(entry)
    return nested
