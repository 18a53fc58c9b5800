"""The part of a report that holds every figure with its interval."""

from collections.abc import Mapping
from typing import Any

from maskedclip.evaluation.compare import MACRO
from maskedclip.evaluation.report_names import DIRECTIONS, PROTOCOLS, label_name, row_name, verdict
from maskedclip.evaluation.report_subject import Evaluation, Subject, measured_keys
from maskedclip.evaluation.retrieval import RECALL_AT
from maskedclip.html import Table, escape, estimate, paragraph, reason

_METRICS = {"auprc": "AUPRC", "balanced_accuracy": "balanced accuracy"}  # beside AUROC, for every label
_FURTHER = {
    "sensitivity_at_90_specificity": "sensitivity at 90 % specificity",
    "sensitivity_at_95_specificity": "at 95 %",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
_MORE_METRICS = {"accuracy": "accuracy", "quadratic_kappa": "quadratic kappa"}  # for labels of several classes


def tables(subject: Subject) -> str:
    """Every figure of every evaluation with its interval, and why a protocol is missing.

    Raises:
        LeftOut: there is no evaluation.
    """
    main = subject.main
    parts = [
        _counts(main, subject.unit),
        *_macro(subject),
        *_further(subject),
        *_differences(subject),
        *_retrieval(subject),
        *_per_label(subject),
    ]
    return "".join(parts) + "".join(reason(fault) for fault in subject.faults.values())


def _counts(main: Evaluation, unit: str) -> str:
    about = main.about
    rows = about.get("rows", {})
    learnt = about.get("rows_used", {})
    labels = about.get("labels", {})
    listed = [
        [
            escape(label_name(name)),
            escape(entry.get("kind", "")),
            escape(", ".join(f"{value}: {count:,}" for value, count in entry.get("test", {}).items())),
        ]
        for name, entry in labels.items()
    ]
    left_out = [f"{label_name(name)} {why}" for name, why in about.get("labels_left_out", {}).items()]
    sentence = (
        f"{rows.get('test', 0):,} test {unit} of {about.get('test_patients', 0):,} patients"
        + (f"; learnt on {learnt['train']:,} training {unit} with labels" if learnt.get("train") else "")
        + (f"; settings chosen on {learnt['val']:,} validation {unit} with labels" if learnt.get("val") else "")
        + f". Intervals: 95 %, {about.get('replicates', 0):,} bootstrap replicates that resample whole patients."
    )
    table = Table(
        caption=f"Labels and their test {unit}", columns=("label", "kind", f"test {unit} by value"), rows=listed
    )
    return (
        paragraph(sentence)
        + (table.render() if listed else "")
        + (reason(f"labels that are no task: {'; '.join(left_out)}") if left_out else "")
    )


def _macro(subject: Subject) -> list[str]:
    entries = (subject.main, *subject.others)
    rows = []
    for key in measured_keys(entries):
        for entry in entries:
            if (part := entry.section(*key)) is not None:
                name = f"{row_name(*key)}: {entry.name}" if len(entries) > 1 else row_name(*key)
                rows.append([escape(name), *_macro_cells(part["macro"])])
    columns = ("protocol", "AUROC", *_METRICS.values(), "n", "over")
    shown = [Table(caption="Mean over the labels (macro)", columns=columns, rows=rows).render()] if rows else []
    for entry in entries:
        for protocol, section in entry.results.items():
            if protocol != "about" and "skipped" in section:
                shown.append(reason(f"{PROTOCOLS.get(protocol, protocol)}, {entry.name}: {section['skipped']}"))
    return shown


def _further(subject: Subject) -> list[str]:
    """Means over the labels of what only some protocols have: sensitivities, and how true probabilities are."""
    entries = (subject.main, *subject.others)
    rows = []
    for key in measured_keys(entries):
        for entry in entries:
            part = entry.section(*key) or {}
            of = f": {entry.name}" if len(entries) > 1 else ""
            parts = {
                row_name(*key) + of: part,
                f"{row_name(*key)}, calibrated on validation rows{of}": part.get("calibrated"),
            }
            for name, found in parts.items():
                macro = (found or {}).get("macro", {})
                if any(metric in macro for metric in _FURTHER):
                    rows.append([escape(name), *(estimate(macro.get(metric)) for metric in _FURTHER)])
    columns = ("protocol", *_FURTHER.values())
    caption = "Further means over the labels; Brier score and calibration error: the lower the better"
    return [Table(caption=caption, columns=columns, rows=rows).render()] if rows else []


def _macro_cells(macro: Mapping[str, Any]) -> list[str]:
    """AUROC and the other metrics, n, and their note: once where all have the same."""
    entries = [macro.get(name) for name in ("auroc", *_METRICS)]
    notes = {entry.get("note", "") for entry in entries if entry is not None and entry.get("value") is not None}
    common = notes.pop() if len(notes) == 1 else ""
    bare = [
        entry and {key: value for key, value in entry.items() if key != "note" or value != common} for entry in entries
    ]
    return [*map(estimate, bare), escape(macro.get("auroc", {}).get("n", "")), escape(common)]


def _differences(subject: Subject) -> list[str]:
    shown = []
    for other, found in subject.differences.items():
        caption = f"Macro AUROC, {subject.main.name} minus {other}, paired on the same patients"
        if isinstance(found, str):
            shown.append(reason(f"{caption}: {found}"))
            continue
        rows = [
            [
                escape(row_name(protocol, feature)),
                estimate(entry.to_json(), signed=True),
                str(entry.n),
                escape(verdict(entry)),
            ]
            for (protocol, feature, label), entry in found.items()
            if label == MACRO
        ]
        shown.append(Table(caption=caption, columns=("protocol", "difference", "n", "reading"), rows=rows).render())
    return shown


def _retrieval(subject: Subject) -> list[str]:
    rows, metrics = [], [*(f"recall_at_{k}" for k in RECALL_AT), "median_rank"]
    for direction, name in DIRECTIONS.items():
        for entry in (subject.main, *subject.others):
            figures = entry.results.get("retrieval", {}).get(direction)
            if figures:
                cells = [_against_chance(metric, figures[metric]) if metric in figures else "–" for metric in metrics]
                count = next(iter(figures.values())).get("n", "")
                rows.append([escape(f"{name}: {entry.name}" if subject.others else name), *cells, escape(count)])
    columns = ["direction", *(metric.replace("_", " ") for metric in metrics), "n"]
    return [Table(caption="Retrieval among distinct texts", columns=columns, rows=rows).render()] if rows else []


def _against_chance(metric: str, figures: Mapping[str, Any]) -> str:
    digits = 1 if metric == "median_rank" else 3
    of = f" of {figures['candidates']:,}" if "candidates" in figures else ""
    chance = f"chance {figures['chance']:.{digits}f}{of}" if "chance" in figures else ""
    chance += f", commonest first {figures['fixed_order']:.3f}" if "fixed_order" in figures else ""
    return f'{estimate(figures, digits=digits)} <small class="note">{escape(chance)}</small>'


def _per_label(subject: Subject) -> list[str]:
    shown, several = [], []
    paired = {other: found for other, found in subject.differences.items() if not isinstance(found, str)}
    for protocol, feature, part in subject.main.measured():
        chosen, rows = part.get("chosen", {}), []
        further = [name for name in _FURTHER if any(name in entry for entry in part.get("per_label", {}).values())]
        for label, entry in part.get("per_label", {}).items():
            differences = [found.get((protocol, feature, label)) for found in paired.values()]
            rows.append(
                [
                    escape(label_name(label)),
                    estimate(entry.get("auroc")),
                    *(estimate(found and found.to_json(), signed=True) for found in differences),
                    *(estimate(entry.get(name)) for name in (*_METRICS, *further)),
                    *([escape(f"{chosen[label]:g}" if chosen.get(label) is not None else "–")] if chosen else []),
                    escape(entry.get("auroc", {}).get("n", "")),
                ]
            )
            if any(name in entry for name in _MORE_METRICS):
                name = f"{label_name(label)}: {row_name(protocol, feature)}"
                several.append([escape(name), *(estimate(entry.get(metric)) for metric in _MORE_METRICS)])
        setting = [{"linear": "C", "knn": "k"}.get(protocol, "setting")] if chosen else []
        columns = ["label", "AUROC", *(f"AUROC minus {other}" for other in paired), *_METRICS.values()]
        columns += [*(_FURTHER[name] for name in further), *setting, "n"]
        if rows:
            caption = f"{row_name(protocol, feature)}, label by label"
            shown.append(Table(caption=caption, columns=columns, rows=rows).render())
    if several:
        columns = ("label", *_MORE_METRICS.values())
        shown.append(Table(caption="Labels of several classes", columns=columns, rows=sorted(several)).render())
    return shown
