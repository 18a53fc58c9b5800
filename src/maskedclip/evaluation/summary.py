"""Results in a few lines for a terminal, each number with its interval."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskedclip.evaluation.compare import MACRO, compare_results
from maskedclip.evaluation.report_names import DIRECTIONS

_NAMES = {"linear": "linear probe", "knn": "k-NN", "finetune": "fine-tuning", "lora": "LoRA fine-tuning"}
_DENSE = {"auroc": "AUROC", "auprc": "AUPRC", "dice": "Dice"}
_CURVES = {"fewshot": "{:.0f} of each class", "label_efficiency": "{:.0%} of the training patients"}
# Reasons that results.json gives in a few words, in full.
_REASONS = {
    "one class only": "the test split has one class only",
    "no row with a known value": "no test row has a value",
}


def summary_lines(results: dict[str, Any]) -> list[str]:
    """One line a protocol and feature: macro AUROC, or recall at 5; a section or label that was left out says why."""
    lines = []
    rows = results.get("about", {}).get("rows", {}).get("test")
    for protocol, name in _NAMES.items():
        section = results.get(protocol)
        if section is None:
            continue
        if "skipped" in section:
            lines.append(f"{name}: left out, {section['skipped']}")
            continue
        for feature in ("encoder", "bridge"):
            if feature in section:
                lines.append(f"{name}, {feature}: macro AUROC {_macro(section[feature], rows)}")
    for protocol, place in _CURVES.items():
        section = results.get(protocol)
        if section is not None and "skipped" in section:
            lines.append(f"{protocol.replace('_', ' ')}: left out, {section['skipped']}")
        elif section is not None:
            for feature, points in section.items():
                ends = dict.fromkeys((next(iter(points)), next(reversed(points))))
                # Means over other labels cannot be set side by side, so each says over how many it is.
                alike = len({_defined(points[x]) for x in ends} - {()}) == 1
                told = [f"{_macro(points[x], rows, alike=alike)} with {place.format(float(x))}" for x in ends]
                lines.append(f"linear probe, {feature}: macro AUROC {', '.join(told)}")
    section = results.get("dense")
    if section is not None and "skipped" in section:
        lines.append(f"dense probe: left out, {section['skipped']}")
    elif section is not None:
        for feature, part in section.items():
            told = ", ".join(f"{name} {_macro(part, rows, key)}" for key, name in _DENSE.items())
            lines.append(f"dense probe at {part['size']} px, {feature}: {told}")
    section = results.get("zero_shot")
    if section is not None:
        text = f"left out, {section['skipped']}" if "skipped" in section else f"macro AUROC {_macro(section, rows)}"
        lines.append(f"zero-shot: {text}")
    section = results.get("retrieval")
    if section is not None and "skipped" in section:
        lines.append(f"retrieval: left out, {section['skipped']}")
    elif section is not None:
        for way, name in DIRECTIONS.items():
            if way not in section:  # of an evaluation from before it was measured
                continue
            entry = section[way]["recall_at_5"]
            fixed = f"; the commonest texts first {entry['fixed_order']:.3f}" if "fixed_order" in entry else ""
            lines.append(f"retrieval, {name}: recall at 5 {interval(entry)}{fixed}")
    return lines + _left_out(results)


def interval(estimate: dict[str, Any]) -> str:
    """0.812 (0.790-0.833, n 1021), or the reason why there is no value."""
    if estimate["value"] is None:
        return str(estimate.get("note", "undefined"))
    if estimate["low"] is None:
        return f"{estimate['value']:.3f} (no interval, n {estimate['n']})"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f}-{estimate['high']:.3f}, n {estimate['n']})"


def _left_out(results: Mapping[str, Any]) -> list[str]:
    """The label columns that are no task, where there is a mean over the others."""
    sections = [results[name] for name in (*_NAMES, *_CURVES, "zero_shot") if name in results]
    if all("skipped" in section for section in sections):
        return []
    left_out = results.get("about", {}).get("labels_left_out", {})
    return [f"label.{name}: left out, it {why}" for name, why in left_out.items()]


def _macro(part: Mapping[str, Any], rows: int | None, metric: str = "auroc", *, alike: bool = True) -> str:
    """A mean over the labels, with how many they are where some lack a value or not `alike`; or why none has one.

    part: {"macro", "per_label"} of results.json.  rows: of the test split.
    """
    estimate, entries = part["macro"][metric], part.get("per_label", {})
    defined = _defined(part, metric)
    if estimate["value"] is None:
        if not entries:
            return interval(estimate)
        return f"undefined (n={estimate['n'] if rows is None else rows}, no label is defined{_why(entries, metric)})"
    if alike and len(defined) == len(entries):
        return interval(estimate)
    of = "" if len(defined) == len(entries) else f" of {len(entries)}"
    return f"{interval(estimate).removesuffix(')')}, mean of {len(defined)}{of} labels)"


def _defined(part: Mapping[str, Any], metric: str = "auroc") -> tuple[str, ...]:
    """The labels that have a value."""
    entries = part.get("per_label", {})
    return tuple(name for name, entry in entries.items() if (entry.get(metric) or {}).get("value") is not None)


def _why(entries: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """The commonest reason of labels without a value, as a clause; '' where none says one."""
    reasons = Counter(_reasons(entry.get(metric) or {} for entry in entries.values()))
    if not reasons:
        return ""
    reason, times = reasons.most_common(1)[0]
    return f": {reason}" if times == len(entries) else f"; of {times} of {len(entries)}: {reason}"


def _reasons(estimates: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """What `statistics.undefined` was given."""
    for estimate in estimates:
        before, note = f"undefined (n={estimate.get('n')}, ", str(estimate.get("note", ""))
        if note.startswith(before):
            reason = note.removeprefix(before).removesuffix(")")
            yield _REASONS.get(reason, reason)


def difference_line(first: Path, second: Path) -> str:
    """The paired difference in macro AUROC of the encoder's linear probe, first minus second."""
    estimate = compare_results(first, second).get(("linear", "encoder", MACRO))
    if estimate is None:
        return f"{first.name} minus {second.name}: no linear probe in both"
    return (
        f"{first.name} minus {second.name}, linear probe on the encoder: macro AUROC {estimate.value:+.3f} "
        f"({estimate.low:+.3f} to {estimate.high:+.3f}, paired, n {estimate.n})"
    )
