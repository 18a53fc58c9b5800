"""A comparison laid out in tables, before it is known whether a terminal, Markdown or LaTeX will show them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskedclip.evaluation.compare_models import RETRIEVAL, Comparison, Section, section_name
from maskedclip.evaluation.compare_read import MACRO, Key
from maskedclip.evaluation.report_names import DIRECTIONS, PROTOCOLS, label_name, row_name
from maskedclip.evaluation.retrieval import RECALL_AT
from maskedclip.evaluation.statistics import Estimate

NOTHING = "–"
_TELLING = (" classes", " of the replicates", "undefined: ")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """An estimate, or a text where there is none.  signed: a difference, with its sign; bold: clearly the best."""

    estimate: Estimate | None = None
    text: str = NOTHING
    signed: bool = False
    bold: bool = False

    def words(self, between: str = "–", minus: str = "−") -> str:
        """0.814 (0.791–0.838), or +0.049 (+0.036 to +0.062), or why there is nothing."""
        estimate = self.estimate
        if estimate is None:
            return self.text
        if np.isnan(estimate.value):
            return estimate.note or "undefined"
        shape = "+.3f" if self.signed else ".3f"
        value, low, high = (
            format(number + 0.0 if abs(number) >= 5e-4 else 0.0, shape).replace("-", minus)
            for number in (estimate.value, estimate.low, estimate.high)
        )
        if np.isnan(estimate.low):
            return f"{value} (no interval)"
        return f"{value} ({low} to {high})" if self.signed else f"{value} ({low}{between}{high})"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table.

    name: an identifier; columns: the first is that of the rows' names; sections: a heading, and rows of a name and
    its cells; notes: what a reader must know to read it.
    """

    name: str
    caption: str
    columns: Sequence[str]
    sections: Sequence[tuple[str, Sequence[tuple[str, Sequence[Cell]]]]]
    notes: Sequence[str]

    @property
    def rows(self) -> int:
        """Rows without the headings."""
        return sum(len(rows) for _, rows in self.sections)


def sheets(comparison: Comparison, *, labels: Sequence[Section] | None = None) -> list[Sheet]:
    """The means over the labels; retrieval; then the labels of some protocols and features (None for all)."""
    found = []
    if learnt := [section for section in comparison.sections if section[0] != RETRIEVAL]:
        found.append(_means(comparison, learnt))
    if directions := [section for section in comparison.sections if section[0] == RETRIEVAL]:
        found.append(_retrieval(comparison, directions))
    wanted = learnt if labels is None else [section for section in learnt if section in labels]
    return found + [_labels(comparison, section) for section in wanted if comparison.labels(section)]


def _means(comparison: Comparison, sections: Sequence[Section]) -> Sheet:
    # Of several seeds there are no predictions to give it an interval.
    accuracy = all(count == 1 for count in comparison.auroc.seeds.values())
    columns = ["model", "AUROC", f"AUROC minus {comparison.reference}", "AUPRC"]
    columns += ["balanced accuracy"] if accuracy else []
    layout = []
    for section in sections:
        key = (*section, MACRO)
        rows = []
        for name in comparison.names:
            if comparison.value(name, key) is not None:
                cells = [_value(comparison, name, key), _difference(comparison, name, key)]
                cells += [_value(comparison, name, key, metric) for metric in ("auprc", "balanced_accuracy")]
                rows.append((name, cells[: len(columns) - 1]))
        layout.append((_heading(comparison, key), rows))
    notes = [*comparison.warnings, *_rows_note(comparison, sections, accuracy=accuracy)]
    notes += [_difference_note(comparison), _bold_note()]
    notes += _value_notes(comparison, [(*section, MACRO) for section in sections])
    notes += unpaired_notes(comparison, sections)
    notes += [f"Missing: {line}." for line in comparison.missing]
    notes += [f"Not made alike: {line}." for line in comparison.unlike]
    return Sheet(
        name="means", caption="Means over the labels, on the test split", columns=columns, sections=layout, notes=notes
    )


def _retrieval(comparison: Comparison, sections: Sequence[Section]) -> Sheet:
    kept = any(key[0] == RETRIEVAL for key in comparison.auroc.keys)
    columns = ["model", *(f"recall at {k}" for k in RECALL_AT)]
    columns += [f"recall at 5 minus {comparison.reference}"] if kept else []
    layout = []
    for section in sections:
        keys: list[Key] = [(*section, f"recall_at_{k}") for k in RECALL_AT]
        rows = []
        for name in comparison.names:
            if comparison.value(name, keys[0], "recall") is not None:
                cells = [_value(comparison, name, key, "recall") for key in keys]
                rows.append((name, cells + ([_difference(comparison, name, keys[1])] if kept else [])))
        heading = DIRECTIONS.get(section[1], section[1]) + f", n {_most(comparison, keys[0]):,}"
        for name, levels in (("chance", comparison.chance), ("commonest first", comparison.fixed_order)):
            level = ", ".join(f"{levels[key]:.3f}" for key in keys if key in levels)
            heading += f"; {name} {level}" if level else ""
        layout.append((heading, rows))
    notes = [
        *comparison.warnings,
        f"{comparison.auroc.n_test:,} test images of {comparison.auroc.patients:,} patients; n: the images or texts "
        f"that are asked for. In brackets: 95 % intervals from {_replicates_words(comparison, sections)}.",
        "Over distinct texts. Intervals: image → text resamples patients, the others the texts. Commonest first: the "
        "texts in order of frequency, the same for every image; the mean over the texts tells if a model does more.",
    ]
    if kept:
        notes += [_difference_note(comparison, "recall at 5"), _bold_note(), *unpaired_notes(comparison, sections)]
    else:
        notes += ["No paired difference: the evaluations kept no ranks (retrieval.parquet)."]
    return Sheet(name=RETRIEVAL, caption="Image-text retrieval", columns=columns, sections=layout, notes=notes)


def _labels(comparison: Comparison, section: Section) -> Sheet:
    tests = max((sum(key[:2] == section for key in part) for part in comparison.tests.values()), default=0)
    columns = ["model", "AUROC", f"AUROC minus {comparison.reference}"]
    columns += ["p (DeLong)", "p (Holm)"] if tests else []
    layout = []
    for label in comparison.labels(section):
        key = (*section, label)
        rows = []
        for name in comparison.names:
            if comparison.value(name, key) is not None:
                test = comparison.tests.get(name, {}).get(key)
                p_values = [NOTHING, NOTHING] if test is None else [_p(test.p_value), _p(test.corrected)]
                cells = [_value(comparison, name, key), _difference(comparison, name, key)]
                rows.append((name, [*cells, *(Cell(text=text) for text in p_values[: len(columns) - 3])]))
        layout.append((_heading(comparison, key), rows))
    notes = [*comparison.warnings, *_rows_note(comparison, [section]), _difference_note(comparison), _bold_note()]
    notes += _value_notes(comparison, [(*section, label) for label in comparison.labels(section)])
    notes += unpaired_notes(comparison, [section])
    if tests:
        notes.append(
            f"p: DeLong's test against {comparison.reference}, clustered by patient; Holm: corrected over the {tests} "
            "tests of a model in this table. Labels of several classes and means over seeds have no test."
        )
    return Sheet(
        name=f"labels-{'-'.join(section)}",
        caption=f"{row_name(*section)}: every label",
        columns=columns,
        sections=layout,
        notes=notes,
    )


def _heading(comparison: Comparison, key: Key) -> str:
    """A protocol on a feature with the number of labels, or a label with its n where that isn't all test images."""
    estimates = [comparison.value(name, key) for name in comparison.names]
    first = next(estimate for estimate in estimates if estimate is not None)
    if key[2] == MACRO:
        said = first.note.split(";")[0]
        return row_name(*key[:2]) + (f", {said}" if said.startswith("mean of") and "labels" in said else "")
    return label_name(key[2]) + (f", n {first.n:,}" if first.n != comparison.auroc.n_test else "")


def _value_notes(comparison: Comparison, keys: Sequence[Key]) -> list[str]:
    """What a reader of an AUROC must know: classes or labels that its mean lacks, replicates that are left out."""
    told: dict[str, dict[str, list[str]]] = {}
    for key in keys:
        where = row_name(*key[:2]) if key[2] == MACRO else label_name(key[2])
        for name in comparison.names:
            estimate = comparison.value(name, key)
            if estimate is not None and not np.isnan(estimate.value):
                parts = [part for part in estimate.note.split("; ") if any(word in part for word in _TELLING)]
                told.setdefault("; ".join(parts), {}).setdefault(where, []).append(name)
    told.pop("", None)
    return [
        "; ".join(
            where if len(names) == len(comparison.names) else f"{where} ({', '.join(names)})"
            for where, names in places.items()
        )
        + f": {said}."
        for said, places in told.items()
    ]


def _most(comparison: Comparison, key: Key) -> int:
    return max(estimate.n for name in comparison.names if (estimate := comparison.value(name, key, "recall")))


def _replicates_words(comparison: Comparison, sections: Sequence[Section]) -> str:
    kept = all(any(key[:2] == section for key in comparison.auroc.keys) for section in sections)
    return (
        f"{comparison.replicates:,} bootstrap replicates" if kept else f"{_own_words(comparison)} bootstrap replicates"
    )


def _value(comparison: Comparison, name: str, key: Key, metric: str = "auroc") -> Cell:
    paired = comparison.auprc if metric == "auprc" else comparison.auroc
    best = metric != "balanced_accuracy" and paired.clear_best(key) == name
    return Cell(estimate=comparison.value(name, key, metric), bold=best)


def _difference(comparison: Comparison, name: str, key: Key) -> Cell:
    if name == comparison.reference:
        return Cell(text="reference")
    return Cell(estimate=comparison.difference(name, key), signed=True)


def _p(value: float) -> str:
    if np.isnan(value):
        return "undefined"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def interval_words(comparison: Comparison, sections: Sequence[Section], *, accuracy: bool = False) -> str:
    """Where the intervals of these protocols and features come from: replicates of this comparison, or of evaluations.

    accuracy: whether balanced accuracy stands beside them, which no comparison resamples.
    """
    own = [section for section in sections if _is_own(comparison, section)]
    if len(own) == len(sections):
        return f"{_own_words(comparison)} bootstrap replicates that resample patients"
    said = f"{comparison.replicates:,} bootstrap replicates that resample patients, the same for all models"
    apart = ["balanced accuracy"] * accuracy + _protocol_words(own, sections)
    alike = all(part == [comparison.replicates] for part in comparison.own_replicates.values())
    return f"{said}; those of {', '.join(apart)} from {_own_words(comparison)}" if apart and not alike else said


def _own_words(comparison: Comparison) -> str:
    counts = {name: " and ".join(f"{count:,}" for count in own) for name, own in comparison.own_replicates.items()}
    told = ", ".join(f"{name} {count or 'unknown'}" for name, count in counts.items())
    if len(set(counts.values())) > 1:
        return f"the evaluations' own ({told})"
    return f"the evaluations' own {next(iter(counts.values()))}".rstrip()


def unpaired_notes(comparison: Comparison, sections: Sequence[Section]) -> list[str]:
    """Why there are cells without a difference, a line for each reason."""
    reasons: dict[str, list[Section]] = {}
    for section in sections:
        for why in comparison.unpaired.get(section, ()):
            reasons.setdefault(why, []).append(section)
    return [
        f"{NOTHING}: no paired difference"
        + (f" in {', '.join(_protocol_words(where, sections))}" if len(sections) > 1 else "")
        + f": {why}."
        for why, where in reasons.items()
    ]


def _is_own(comparison: Comparison, section: Section) -> bool:
    """Whether the AUROC of a protocol and feature has an interval that a model's own evaluation made."""
    return any(
        key[:2] == section and key not in comparison.auroc.distributions[name] and not np.isnan(metrics["auroc"].low)
        for name in comparison.names
        for key, metrics in comparison.others[name].items()
        if "auroc" in metrics
    )


def _protocol_words(some: Sequence[Section], shown: Sequence[Section]) -> list[str]:
    """Names of protocols and features; of a protocol that is there with all of its features and settings its own."""
    whole = {section[0] for section in some} - {section[0] for section in shown if section not in some}
    return list(
        dict.fromkeys(
            PROTOCOLS.get(section[0], section[0]) if section[0] in whole else section_name(section) for section in some
        )
    )


def _rows_note(comparison: Comparison, sections: Sequence[Section], *, accuracy: bool = False) -> list[str]:
    notes = [
        f"{comparison.auroc.n_test:,} test images of {comparison.auroc.patients:,} patients. In brackets: 95 % "
        f"intervals from {interval_words(comparison, sections, accuracy=accuracy)}."
    ]
    seeds = comparison.auroc.seeds
    if max(seeds.values()) > 1:
        counts = set(seeds.values())
        each = f"{max(counts)} a model" if len(counts) == 1 else ", ".join(f"{name} {n}" for name, n in seeds.items())
        notes.append(
            f"Means over training seeds ({each}); the intervals hold patients and seeds, with the variance between "
            "seeds pooled over the models."
        )
    return notes


def _difference_note(comparison: Comparison, metric: str = "AUROC") -> str:
    return f"Difference: {metric} minus that of {comparison.reference}, paired on the same images."


def _bold_note() -> str:
    return "Bold: the highest, where its paired interval against the second highest is above 0."
