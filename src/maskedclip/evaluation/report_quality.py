"""The parts of a report that say what a model is good and bad at, how true its probabilities are, and for whom."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.evaluation.calibration import reliability_curve
from maskedclip.evaluation.compare import MACRO
from maskedclip.evaluation.draws_table import DRAWS_TABLE, DrawnKey, read_draws
from maskedclip.evaluation.report_figures import interval_chart, reliability_chart, share_chart
from maskedclip.evaluation.report_names import PROTOCOLS, label_name, row_name
from maskedclip.evaluation.report_scores import (
    LabelScores,
    gives_probabilities,
    label_scores,
    main_part,
    scored_parts,
)
from maskedclip.evaluation.report_subject import Evaluation, Subject
from maskedclip.evaluation.scoring import macro_distribution
from maskedclip.evaluation.statistics import Distribution
from maskedclip.html import (
    LeftOut,
    Table,
    escape,
    estimate,
    figure,
    grid,
    numbers,
    paragraph,
    picture,
    shorten,
)

# Bands of the AUROC in words, [ours]; the lower end of the interval decides.
_BANDS = ((0.9, "very good"), (0.8, "good"), (0.7, "moderate"), (0.6, "weak"), (0.5, "poor"))
_NAMES = {"encoder": "f (encoder)", "bridge": "g(f) (bridge)"}


def strengths(subject: Subject) -> str:
    """Every label from the best to the worst, in words and with intervals; those with too few images to say last.

    Raises:
        LeftOut: nothing was scored.
    """
    shown = main_part(subject.main)
    having = _having(subject, shown)
    part: Mapping[str, Any] = subject.main.section(*shown) or {}
    entries = {
        label: entry
        for label, entry in part["per_label"].items()
        if (entry.get("auroc") or {}).get("value") is not None
    }
    undefined = [label for label in part["per_label"] if label not in entries]
    if not entries:
        raise LeftOut("no label has an AUROC on the test split; see the tables for the reasons")
    ranked = sorted(
        entries, key=lambda label: (not _bounded(entries[label]["auroc"]), -entries[label]["auroc"]["value"])
    )
    rows = []
    for label in ranked:
        entry = entries[label]
        at = entry.get("sensitivity_at_90_specificity")
        rows.append(
            [
                escape(label_name(label)),
                escape(_band(entry["auroc"])),
                estimate(entry["auroc"]),
                estimate(at),
                escape(having.get(label, "–")),
                escape(f"{entry['auroc']['n']:,}"),
            ]
        )
    areas = [entries[label]["auroc"] for label in ranked]
    chart = interval_chart([label_name(label) for label in ranked], {"": areas}, what="AUROC")
    said = "; ".join(f"{label_name(label)} {numbers(entries[label]['auroc'])}" for label in ranked)
    table = Table(
        caption=f"{row_name(*shown)}, from the best label to the worst",
        columns=("label", "in words", "AUROC", "sensitivity at 90 % specificity", "with the finding", "n"),
        rows=rows,
    )
    note = paragraph(f"Undefined: {', '.join(map(label_name, undefined))}.", "note") if undefined else ""
    return (
        paragraph(
            "The words follow the lower end of the interval: 0.9 very good, 0.8 good, 0.7 moderate, 0.6 weak, "
            "0.5 poor. They are this project's, not a clinical standard. Where there is no interval, too few images "
            "have the finding, or lack it, to say anything."
        )
        + figure(
            picture(chart, "svg+xml", f"AUROC by label. {said}"),
            f"{row_name(*shown)}: AUROC by label, 95 % intervals; dotted: chance.",
        )
        + table.render()
        + note
    )


def calibration(subject: Subject) -> str:
    """A reliability plot for each label whose scores are probabilities.

    Raises:
        LeftOut: there are none.
    """
    part = _probability_part(subject)
    per_label = (subject.main.section(*part) or {})["per_label"]
    charts = []
    for scores in label_scores(subject.main, part):
        drawn = _reliability(scores, per_label.get(scores.label, {}).get("calibration_error"))
        if drawn is not None:
            charts.append(drawn)
    if not charts:
        raise LeftOut(f"{row_name(*part)}: no label has probabilities on a test row (see the tables for the reasons)")
    above = main_part(subject.main)
    instead = "" if above == part else f" (the scores of {row_name(*above)}, shown above, are no probabilities)"
    return paragraph(
        f"{row_name(*part)}{instead}. Test rows in bins of equally many: the share that has the finding, with its "
        "95 % interval, over the probability that the model gave. On the dotted line a probability means what it "
        "says. For labels of several classes: the likeliest class. Calibration error: mean distance from the line. "
        "Its interval allows for what chance adds to it, so it may lie below the value. The bars of the bins take the "
        "images as independent (Wilson's interval), unlike the other intervals on this page."
    ) + grid(charts, "charts")


def subgroups(subject: Subject) -> str:
    """AUROC by group of patients, and the difference of each group from the rest.

    Raises:
        LeftOut: none were asked for.
    """
    found = subject.main.results.get("subgroups")
    if not found:
        raise LeftOut("no column was named; `maskedclip evaluate ... --subgroups age,sex` scores the groups of columns")
    parts = []
    for protocol, columns in found.items():
        for column, groups in columns.items():
            rows = [
                [
                    escape(group),
                    escape(f"{entry['n']:,}"),
                    escape(f"{entry['patients']:,}"),
                    estimate(entry["macro"]["auroc"]),
                    estimate(entry["difference"]["macro"]["auroc"], signed=True),
                ]
                for group, entry in groups.items()
            ]
            name = row_name(protocol, "projected" if protocol == "zero_shot" else "encoder")
            caption = f"{name} by {label_name(column)}: macro AUROC"
            columns_shown = ("group", subject.unit, "patients", "AUROC", "minus the rest")
            parts.append(Table(caption=caption, columns=columns_shown, rows=rows).render())
    return "".join(parts) + paragraph(
        "A macro AUROC is the mean over the labels that are defined in a group, so groups with other labels are not "
        "quite alike; many groups are looked at, and some intervals leave 0 by chance.",
        "note",
    )


def few_labels(subject: Subject) -> str:
    """k-shot and label efficiency: curves over the labels that have a value at every point, and a table of all.

    Raises:
        LeftOut: neither was evaluated.
    """
    charts, listed = [], []
    for protocol, x_name, percent in (
        ("fewshot", f"training {subject.unit} of each class", False),
        ("label_efficiency", "training patients with labels", True),
    ):
        section = {
            feature: points
            for feature, points in subject.main.results.get(protocol, {}).items()
            if feature != "skipped"
        }
        if not section:
            continue
        lines, over = _alike(subject.main, protocol, section)
        if lines:
            said = "; ".join(
                f"{name}: " + ", ".join(f"{x:g}: {numbers(entry)}" for x, entry in points)
                for name, points in lines.items()
            )
            caption = f"{PROTOCOLS[protocol]}: macro AUROC over {x_name}; mean over draws, 95 % intervals.{over}"
            drawn = share_chart(lines, x_name, percent=percent)  # type: ignore[arg-type]
            charts.append(figure(picture(drawn, "svg+xml", f"{caption} {said}"), caption))
        listed.append(_curve_table(protocol, x_name, section, percent=percent))
    if not listed:
        raise LeftOut("`--protocols fewshot,label_efficiency` was not asked for")
    return (grid(charts, "charts") if charts else "") + "".join(listed)


def _alike(main: Evaluation, protocol: str, section: Mapping[str, Any]) -> tuple[dict[str, list], str]:
    """Points (x, estimate) of each feature's curve, and over which labels they are, as a sentence; '' for all.

    With few rows some labels have no value.  The means of others at another point would bend the curve by what they
    are of, so it is drawn over the labels that have a value at every point where any has one.
    """
    labels, common = set(), None
    for points in section.values():
        for part in points.values():
            labels |= set(part["per_label"])
            defined = _defined(part)
            common = common if not defined else defined if common is None else common & defined
    if not common:
        return {}, ""
    means = _means(main) if len(common) < len(labels) else {}
    lines = {
        _NAMES.get(feature, feature): [
            (
                float(x),
                _mean_of(part, common, {label: means.get((protocol, f"{feature}, {x}", label)) for label in common}),
            )
            for x, part in points.items()
            if _defined(part)
        ]
        for feature, points in section.items()
        if any(map(_defined, points.values()))
    }
    if len(common) == len(labels):
        return lines, ""
    named = shorten(", ".join(label_name(label) for label in sorted(common)))
    return lines, f" Over the {len(common)} of {len(labels)} labels that have a value at every point: {named}."


def _mean_of(part: Mapping[str, Any], labels: set[str], means: Mapping[str, Distribution | None]) -> Mapping[str, Any]:
    """The mean AUROC over some labels: without an interval where the evaluation kept no replicates."""
    if labels == _defined(part):
        return part[MACRO]["auroc"]
    entries = [part["per_label"][label]["auroc"] for label in sorted(labels)]
    mean, missing = macro_distribution(dict(sorted(means.items())), max(entry["n"] for entry in entries))
    if mean is None or missing:
        return {"value": float(np.mean([entry["value"] for entry in entries])), "low": None, "high": None}
    return mean.estimate().to_json()


def _means(main: Evaluation) -> Mapping[DrawnKey, Distribution]:
    """The means over draws with their replicates; none where an earlier version kept none."""
    try:
        return read_draws(pq.read_table(main.folder / DRAWS_TABLE)).means
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return {}


def _defined(part: Mapping[str, Any]) -> set[str]:
    """The labels that have an AUROC."""
    return {label for label, entry in part["per_label"].items() if entry["auroc"]["value"] is not None}


def _curve_table(protocol: str, x_name: str, section: Mapping[str, Any], *, percent: bool) -> str:
    """Every point's mean over all the labels that have a value there, whose number is in its note."""
    points: Sequence[str] = list(dict.fromkeys(x for part in section.values() for x in part))
    rows = [
        [
            escape(f"{100 * float(x):g} %" if percent else x),
            *(estimate(part[x][MACRO]["auroc"] if x in part else None) for part in section.values()),
        ]
        for x in points
    ]
    return Table(
        caption=f"{PROTOCOLS[protocol]}: macro AUROC over all labels that have a value at a point",
        columns=(x_name, *(_NAMES.get(feature, feature) for feature in section)),
        rows=rows,
    ).render()


def _probability_part(subject: Subject) -> tuple[str, str]:
    for part in scored_parts(subject.main):
        if gives_probabilities(subject.main, part):
            return part
    raise LeftOut("no protocol with probabilities was evaluated (linear, knn)")


def _bounded(auroc: Mapping[str, Any]) -> bool:
    return auroc.get("low") is not None


def _band(auroc: Mapping[str, Any]) -> str:
    if not _bounded(auroc):
        return "too few images to say"
    return next((word for edge, word in _BANDS if auroc["low"] >= edge), "not shown to be above chance")


def _having(subject: Subject, part: tuple[str, str]) -> dict[str, str]:
    """How many test rows have each finding, or each class of a label of several; empty without predictions."""
    try:
        scored = label_scores(subject.main, part)
    except LeftOut:
        return {}
    told = {}
    for scores in scored:
        counts = np.bincount(scores.truth, minlength=max(len(scores.classes), 2)).tolist()
        of_each = zip(scores.truths, counts, strict=True) if scores.classes else ()
        told[scores.label] = "; ".join(f"{name}: {count:,}" for name, count in of_each) or f"{counts[1]:,}"
    return told


def _reliability(scores: LabelScores, error: Mapping[str, Any] | None) -> str | None:
    """A chart; error: of the evaluation, whose replicates the tables are of too."""
    if error is None or not len(scores.truth) or not np.isfinite(scores.score).all():
        return None
    bins = [asdict(entry) for entry in reliability_curve(scores.truth, scores.score)]
    said = numbers(error, digits=3)
    name = label_name(scores.label)
    alt = f"Reliability of {name}. Calibration error {said}."
    drawn = picture(reliability_chart(bins), "svg+xml", alt)
    return figure(f"<h3>{escape(name)}</h3>{drawn}", f"calibration error {said}; n {len(scores.truth):,}", "chart")
