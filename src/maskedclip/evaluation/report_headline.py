"""The first part of a report: the few figures that a hurried reader needs, and how they compare."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskedclip.evaluation.compare import MACRO
from maskedclip.evaluation.leakage import is_warning
from maskedclip.evaluation.report_figures import interval_chart
from maskedclip.evaluation.report_names import DIRECTIONS, PROTOCOLS, SCORED, few, row_name, verdict
from maskedclip.evaluation.report_scores import scored_parts
from maskedclip.evaluation.report_subject import Evaluation, Subject, measured_keys
from maskedclip.html import escape, figure, grid, numbers, paragraph, picture, reason, shorten


def headline(subject: Subject) -> str:
    """The few figures that a hurried reader needs, and how they compare.

    Raises:
        LeftOut: there is no evaluation.
    """
    main = subject.main
    parts = [paragraph(note, "warning") for note in _mismatches(subject)]
    leakage = main.about.get("seen_in_pretraining")
    if leakage is not None:
        said = leakage.get("sentence") or leakage.get("reason", "")
        parts.append(paragraph(said, "warning" if is_warning(leakage) else "note"))
    files = main.about.get("same_files")
    if files and files["n"]:
        said = f"{files['n']:,} test images are training or validation images of the labels too (the same file)."
        parts.append(paragraph(said, "warning"))
    parts.append(grid(_cards(main), "cards"))
    keys = measured_keys((main, *subject.others))
    if keys:
        parts.append(_overview(subject, keys))
    parts.append(_verdicts(subject))
    parts += [reason(fault) for fault in subject.faults.values()]
    return "".join(parts)


def _cards(main: Evaluation) -> list[str]:
    cards = []
    for protocol, feature in few(scored_parts(main)):
        part = main.section(protocol, feature)
        if part is not None:
            cards.append(_card(row_name(protocol, feature), part["macro"].get("auroc"), "macro AUROC; chance 0.5"))
    for direction, name in DIRECTIONS.items():
        entry = main.results.get("retrieval", {}).get(direction, {}).get("recall_at_5")
        if entry is not None:
            levels = f"recall at 5; chance {entry.get('chance', float('nan')):.3f}"
            if "fixed_order" in entry:
                levels += f"; the commonest texts first {entry['fixed_order']:.3f}"
            cards.append(_card(f"Retrieval, {name}", entry, levels))
    for protocol, section in main.results.items():
        if protocol != "about" and "skipped" in section:
            name = PROTOCOLS.get(protocol, protocol)
            cards.append(f'<div class="card"><h3>{escape(name)}</h3>{reason(str(section["skipped"]))}</div>')
    return cards


def _card(title: str, entry: Mapping[str, Any] | None, unit: str) -> str:
    shown = numbers(entry)
    value, _, interval = shown.partition(" ") if entry and entry.get("value") is not None else ("–", "", shown)
    n = f"n = {entry['n']:,}" if entry and entry.get("n") is not None else ""
    note = f"; {entry['note']}" if entry and entry.get("note") and value != "–" else ""
    return (
        f'<div class="card"><h3>{escape(title)}</h3><p class="big">{escape(value)}</p>'
        f'<p class="interval">{escape(interval)}</p><p class="unit">{escape(f"{unit}; {n}{note}")}</p></div>'
    )


def _overview(subject: Subject, keys: Sequence[tuple[str, str]]) -> str:
    names = [row_name(*key) for key in keys]
    sections = {entry.name: [entry.section(*key) for key in keys] for entry in (subject.main, *subject.others)}
    estimates = {name: [part and part["macro"].get("auroc") for part in parts] for name, parts in sections.items()}
    said = "; ".join(
        f"{model}: " + ", ".join(f"{name} {numbers(entry)}" for name, entry in zip(names, entries, strict=True))
        for model, entries in estimates.items()
    )
    shown = {shorten(model, 30): entries for model, entries in estimates.items()}
    chart = picture(interval_chart(names, shown), "svg+xml", f"Macro AUROC with 95 % intervals. {said}")
    return figure(
        chart,
        "Macro AUROC on the test split: the mean over the labels, with 95 % intervals over patients; dotted: chance.",
        "wide",
    )


def _verdicts(subject: Subject) -> str:
    """A sentence for each comparison: the paired difference, and what its interval allows one to say."""
    lines, reasons = [], []
    for other, found in subject.differences.items():
        if isinstance(found, str):
            reasons.append(reason(f"the difference to {other}: {found}"))
            continue
        for part in few(part for part in SCORED if (*part, MACRO) in found):
            entry = found[*part, MACRO]
            what = f"{row_name(*part)}: {subject.main.name} minus {other}"
            lines.append((what, numbers(entry.to_json(), signed=True), f" – {verdict(entry)}"))
    for direction, name in DIRECTIONS.items():
        for entry in subject.others:
            pair = [
                each.results.get("retrieval", {}).get(direction, {}).get("recall_at_5")
                for each in (subject.main, entry)
            ]
            if None not in pair:
                what = f"Retrieval, {name}, recall at 5: {subject.main.name}"
                lines.append((what, numbers(pair[0]), f"; {entry.name} {numbers(pair[1])}, each by itself"))
    if not lines:
        return "".join(reasons)
    listed = "".join(
        f"<li>{escape(what)} <strong>{escape(figures)}</strong>{escape(reading)}</li>"
        for what, figures, reading in lines
    )
    title = "<h3>Compared (macro AUROC: paired differences on the same patients)</h3>"
    return f"{title}<ul>{listed}</ul>" + "".join(reasons)


def _mismatches(subject: Subject) -> list[str]:
    """Where the evaluation is not of this run's weights, or not of the store shown."""
    notes, about = [], subject.main.about
    if subject.store is not None and about.get("store") not in (None, subject.store.fingerprint):
        notes.append(f"The evaluation “{subject.main.name}” was made on another store than the one shown here.")
    if about.get("model") is not None and subject.model_fingerprint not in (None, about["model"]):
        notes.append(f"The evaluation “{subject.main.name}” was made with other weights than this run's model.")
    return notes
