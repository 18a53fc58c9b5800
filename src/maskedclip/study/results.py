"""What the finished cells of a study say: means over seeds, paired differences, and answers in sentences."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.evaluation.compare_groups import GroupComparison, compare_groups
from maskedclip.evaluation.compare_read import MACRO, Key
from maskedclip.evaluation.compare_seeds import LEAST_FREEDOM
from maskedclip.evaluation.compare_sheets import Cell as TableCell
from maskedclip.evaluation.compare_sheets import Sheet
from maskedclip.evaluation.report_names import label_name, row_name
from maskedclip.evaluation.retrieval import PER_TEXT
from maskedclip.evaluation.statistics import Estimate
from maskedclip.study.cells import cell_folder, read_finished
from maskedclip.study.checks import chosen_on_reported
from maskedclip.study.definition import DEFAULT_SIZE, Cell, Study
from maskedclip.study.evaluated_step import VALIDATION

Section = tuple[str, str]  # protocol, feature
SECTIONS: tuple[Section, ...] = (("linear", "encoder"), ("linear", "bridge"), ("zero_shot", "projected"))
_LEADS = {SECTIONS[0]: "encoder", SECTIONS[2]: "zero-shot"}  # what is told of every method beside the reference
_RETRIEVAL: Key = ("retrieval", PER_TEXT, "recall_at_10")
_NAMED = 20  # more labels than these are counted in a note, and named in results.json alone


@dataclass(frozen=True, kw_only=True, order=True)
class Group:
    """Cells that differ in their seed alone."""

    size: str
    text_fraction: float
    method: str

    @property
    def name(self) -> str:
        """For a reader."""
        return f"{self.method}, {self.texts}"

    @property
    def texts(self) -> str:
        """The share of the texts, and the size where a study has several."""
        size = "" if self.size == DEFAULT_SIZE else f", {self.size}"
        return f"{100 * self.text_fraction:.3g} % of the texts{size}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Budget:
    """One of a study's comparisons: every method at the same number of steps, or in the same time.

    Attributes:
        name: an identifier; title: for a reader.
        groups: the finished cells of each group with their results.
        comparison: of the groups' evaluations.
    """

    name: str
    title: str
    groups: Mapping[Group, Sequence[tuple[Cell, dict[str, Any]]]]
    comparison: GroupComparison

    @property
    def sections(self) -> list[Section]:
        """Every protocol and feature of which some group has a mean over the labels."""
        return list(dict.fromkeys(key[:2] for key in self.comparison.keys if key[2] == MACRO))

    @property
    def told(self) -> list[Section]:
        """Those of `SECTIONS` that some group has; where none has any of them, all that there are."""
        found = self.sections
        return [section for section in SECTIONS if section in found] or found

    def labels(self, section: Section) -> list[str]:
        """The labels whose mean is the macro of a protocol and feature: defined, and had by all evaluations with it."""
        comparison, macro = self.comparison, (*section, MACRO)
        holders = [name for name, parts in comparison.distributions.items() if macro in parts]
        keys = [key for key in comparison.keys if key[:2] == section and key != macro]
        return [
            key[2]
            for key in keys
            if all(comparison.counts[name].get(key) == comparison.counts[name][macro] for name in holders)
            and not np.isnan(comparison.distributions[holders[0]][key].value)
        ]

    def reference(self, study: Study, group: Group) -> Group:
        """The group that `group` is compared with: of its size and share of the texts."""
        return Group(size=group.size, text_fraction=group.text_fraction, method=study.reference)

    def row(self, group: Group) -> str:
        """The method and how many seeds it has, for a table whose sections tell the rest."""
        count = len(self.groups[group])
        return f"{group.method} ({count} seed{'s' * (count > 1)})"

    def value(self, group: Group, key: Key) -> Estimate | None:
        """Mean over the seeds; None where the group lacks it."""
        return self.comparison.value(group.name, key) if key in self.comparison.distributions[group.name] else None

    def difference(self, first: Group, second: Group, key: Key) -> Estimate | None:
        """`first` minus `second`, paired; None where one of them lacks it, or is not finished."""
        if first not in self.groups or second not in self.groups:
            return None
        return self.comparison.difference(first.name, second.name, key)


def read_budgets(study: Study, out: Path, cells: Sequence[Cell]) -> list[Budget]:
    """The comparison at equal time, where the study has one, and that at equal steps; none without a finished cell.

    A comparison in which only one method is finished is left out beside another one.
    """
    count = len(study.combinations)
    parts = {
        "steps": (f"Equal steps: {study.steps:,} optimizer steps each", [c for c in cells if c.steps == study.steps])
    }
    if study.equal_time:
        title = f"Equal time: each as long as {study.steps:,} steps of {study.equal_time} take"
        parts = {"time": (title, list(cells[:count])), **parts}
    found = {name: _groups(study, out, wanted) for name, (_, wanted) in parts.items()}
    found = {name: groups for name, groups in found.items() if groups}
    comparing = {name: groups for name, groups in found.items() if len({group.method for group in groups}) > 1}
    return [
        Budget(name=name, title=parts[name][0], groups=groups, comparison=_compare(study, out, groups))
        for name, groups in (comparing or dict(list(found.items())[:1])).items()
    ]


def _groups(study: Study, out: Path, cells: Sequence[Cell]) -> dict[Group, list[tuple[Cell, dict[str, Any]]]]:
    """The finished ones among some cells, by size, share of the texts, and the study's order of methods."""
    groups: dict[Group, list[tuple[Cell, dict[str, Any]]]] = {}
    for cell in cells:
        if (result := read_finished(study, out, cell)) is not None:
            group = Group(size=cell.size, text_fraction=cell.text_fraction, method=cell.method)
            groups.setdefault(group, []).append((cell, result))
    order = list(study.methods)
    return dict(
        sorted(groups.items(), key=lambda part: (part[0].size, part[0].text_fraction, order.index(part[0].method)))
    )


def _compare(study: Study, out: Path, groups: Mapping[Group, Sequence[tuple[Cell, dict[str, Any]]]]) -> GroupComparison:
    folders = {
        group.name: [cell_folder(out, cell) / "evaluation" for cell, _ in found] for group, found in groups.items()
    }
    # One seed draws other texts where it keeps another share of them.
    blocks = {
        group.name: [(cell.size, cell.text_fraction, cell.seed) for cell, _ in found] for group, found in groups.items()
    }
    return compare_groups(folders, next(iter(folders)), blocks=blocks, replicates=study.replicates)


def means_sheet(study: Study, budget: Budget) -> Sheet | None:
    """Every group: macro AUROC of `SECTIONS`, recall, and the leads on the reference; None where no group has any."""
    present = [section for section in SECTIONS if section in budget.sections]
    retrieves = any(_RETRIEVAL in parts for parts in budget.comparison.distributions.values())
    if not present and not retrieves:
        return None
    leads = [part for part in _LEADS if part in present]
    columns = ["method", *(row_name(*part) for part in present)]
    columns += ["Image to text, recall at 10, mean over texts"] * retrieves
    columns += [f"{_LEADS[part]} minus {study.reference}" for part in leads]
    sections: dict[str, list[tuple[str, list[TableCell]]]] = {}
    for group in budget.groups:
        reference = budget.reference(study, group)
        cells = [TableCell(estimate=budget.value(group, (*part, MACRO))) for part in present]
        cells += [TableCell(estimate=budget.value(group, _RETRIEVAL))] * retrieves
        cells += [lead_cell(budget, group, reference, (*part, MACRO)) for part in leads]
        sections.setdefault(group.texts, []).append((budget.row(group), cells))
    return Sheet(
        name=f"study-{budget.name}",
        caption=f"{budget.title}: " + ("macro AUROC" if present else "recall") + " with 95 % intervals",
        columns=columns,
        sections=list(sections.items()),
        notes=_notes(study, budget, present),
    )


def lead_cell(budget: Budget, group: Group, reference: Group, key: Key) -> TableCell:
    """A group minus the reference, or that it is the reference."""
    if group == reference:
        return TableCell(text="reference")
    return TableCell(estimate=budget.difference(group, reference, key), signed=True)


def chain_sheet(study: Study, budget: Budget) -> Sheet | None:
    """Each method of the chain minus the one before it; None where no two of them are finished."""
    told = budget.told
    columns = ["step", *(row_name(*part) for part in told)]
    sections = []
    steps = list(zip(study.chain, study.chain[1:], strict=False))
    for size, fraction in dict.fromkeys((group.size, group.text_fraction) for group in budget.groups):
        rows = []
        for before, after in steps:
            first, second = (Group(size=size, text_fraction=fraction, method=method) for method in (after, before))
            if first in budget.groups and second in budget.groups:
                found = [budget.difference(first, second, (*part, MACRO)) for part in told]
                rows.append((f"{after} minus {before}", [TableCell(estimate=entry, signed=True) for entry in found]))
        if rows:
            sections.append((Group(size=size, text_fraction=fraction, method="").texts, rows))
    if not sections or not told:
        return None
    caption = f"What each part adds ({budget.title.split(':')[0].lower()}): paired differences in macro AUROC"
    present = {group.method for group in budget.groups}
    lacking = [name for name in study.chain if name not in present]
    notes = [*common_notes(study, budget, told), *_seed_notes(study, budget)]
    if lacking:
        left_out = ", ".join(f"{after} minus {before}" for before, after in steps if {before, after} & set(lacking))
        notes.append(f"Left out: {left_out}; no cell of {', '.join(lacking)} is finished here.")
    return Sheet(name=f"chain-{budget.name}", caption=caption, columns=columns, sections=sections, notes=notes)


def verdicts(study: Study, budget: Budget) -> list[str]:
    """The two questions of the experiment, by probe and by words, answered in sentences, also where it is no.

    Of the method that the study is about (equal_time, or the end of the chain), or of all where it is about none.
    """
    said = []
    about = study.equal_time or (study.chain[-1] if study.chain else study.reference)
    for group in sorted(budget.groups, key=lambda group: -len(budget.groups[group])):  # what most trainings tell, first
        if group.method == study.reference or about not in (group.method, study.reference):
            continue
        same = Group(size=group.size, text_fraction=group.text_fraction, method=study.reference)
        full = Group(size=group.size, text_fraction=1.0, method=study.reference)
        for other in dict.fromkeys((same, full)):
            for name, section in (("linear probe on f", SECTIONS[0]), ("zero-shot", SECTIONS[2])):
                found = budget.difference(group, other, (*section, MACRO))
                if found is not None:
                    varies = bool(budget.comparison.variances[(*section, MACRO)].freedom)
                    said.append(_verdict(budget, group, other, name, found, varies))
    return said


def why_no_verdict(study: Study, finished: int, cells: int) -> str:
    """What the reader of a study without a verdict is told."""
    if len({method for method, *_ in study.combinations}) < 2:
        return "The study has one method, so there is nothing to compare it with."
    if finished < cells:
        return "Too few cells are finished for a comparison."
    if not {"linear", "zero_shot"} & set(study.protocols):
        return (
            f"The protocols ({', '.join(study.protocols)}) give no linear probe and no zero-shot scores, which the "
            "sentences here are about; the tables have what there is."
        )
    return (
        f"No method can be compared with the reference ({study.reference}): none has a size, a share of the texts and "
        "scores in common with it."
    )


def _verdict(budget: Budget, group: Group, other: Group, name: str, found: Estimate, varies: bool) -> str:
    words = "above" if found.low > 0 else "below" if found.high < 0 else "not shown to differ from"
    counts = len(budget.groups[group]), len(budget.groups[other])
    seeds = f"{counts[0]} and {counts[1]} seeds" if max(counts) > 1 else "one seed each"
    if not varies:
        seeds += ": the chance of training is not in the interval"
    return (
        f"{budget.title.split(':')[0]}: {group.name} is {words} {other.name}, {name}: {found.value:+.3f} "
        f"({found.low:+.3f} to {found.high:+.3f}, n {found.n:,}, {seeds})"
    )


def _notes(study: Study, budget: Budget, sections: Sequence[Section]) -> list[str]:
    notes = [*common_notes(study, budget, sections), *best_step_notes(study)]
    notes += [warning] if (warning := chosen_on_reported(study)) is not None else []
    parts = budget.comparison.distributions.values()
    if texts := next((part[_RETRIEVAL].n for part in parts if _RETRIEVAL in part), 0):
        notes.append(
            f"Recall: the mean over {texts:,} distinct texts, each counting alike (chance {min(10 / texts, 1):.3f}); "
            "its intervals hold texts in place of patients."
        )
    elif any(key[0] == "retrieval" for part in parts for key in part):
        notes.append("Recall is left out: the evaluations are of an earlier version, which did not keep the texts.")
    return notes + _seed_notes(study, budget)


def common_notes(study: Study, budget: Budget, sections: Sequence[Section]) -> list[str]:
    """What every table of figures needs: the rows, the intervals, and of which labels a macro is the mean."""
    comparison = budget.comparison
    rows = "validation rows (the test rows were not read)" if study.split == "development" else "test images"
    return [
        f"{comparison.n_test:,} {rows} of {comparison.patients:,} patients. In brackets: 95 % intervals that hold "
        "patients (bootstrap) and, with several seeds, the variance between seeds pooled over the methods. Of one "
        "share of the texts a seed draws the same ones for all methods; differences of methods with the same seeds are "
        f"paired in them where that leaves {LEAST_FREEDOM} degrees of freedom or more.",
        *_label_notes(budget, sections),
    ]


def _label_notes(budget: Budget, sections: Sequence[Section]) -> list[str]:
    """Of how many labels a macro is the mean, and of which: once for all sections that have the same ones."""
    means: dict[tuple[str, ...], list[str]] = {}
    for section in sections:
        means.setdefault(tuple(budget.labels(section)), []).append(row_name(*section))
    said = []
    for labels, names in means.items():
        listed = f" ({', '.join(map(label_name, labels))})" if 0 < len(labels) <= _NAMED else ""
        of = f" of {'; '.join(names)}" if len(means) > 1 else ""
        said.append(f"Macro AUROC{of}: mean of {len(labels)} label{'s' * (len(labels) != 1)}{listed}.")
    return said


def _seed_notes(study: Study, budget: Budget) -> list[str]:
    """Whether seeds are missing, or fewer of some groups by the study's own grid."""
    wanted = Counter(
        Group(size=size, text_fraction=fraction, method=method) for method, size, fraction, _ in study.combinations
    )
    if any(len(found) < wanted[group] for group, found in budget.groups.items()):
        return ["Some groups lack seeds: the study is not finished."]
    unequal = len({len(found) for found in budget.groups.values()}) > 1
    return ["Some groups have fewer seeds than others, as the study's grid says."] if unequal else []


def best_step_notes(study: Study) -> list[str]:
    """What chose the step of the evaluated weights, where anything did: no sentence or one."""
    if not study.best_metrics:
        return []
    metric = "online probe" if study.best_metrics == (VALIDATION,) else " or ".join(study.best_metrics)
    return [
        f"The weights that are evaluated are those of the step with the best {metric} on validation rows "
        "(training.best_metric), which is partly chance."
    ]
