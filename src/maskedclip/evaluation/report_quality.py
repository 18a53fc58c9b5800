"""The parts of a report that say what a model is good and bad at, how true its probabilities are, and for whom."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskedclip.evaluation.calibration import calibration_section
from maskedclip.evaluation.compare import MACRO
from maskedclip.evaluation.report_figures import interval_chart, reliability_chart, share_chart
from maskedclip.evaluation.report_names import PROTOCOLS, label_name
from maskedclip.evaluation.report_scores import LabelScores, label_scores
from maskedclip.evaluation.report_subject import Subject
from maskedclip.evaluation.statistics import cluster_weights
from maskedclip.evaluation.tasks import Prediction, Task
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
)

# Bands of the AUROC in words, [ours]; the lower end of the interval decides.
_BANDS = ((0.9, "very good"), (0.8, "good"), (0.7, "moderate"), (0.6, "weak"), (0.5, "poor"))
_NAMES = {"encoder": "f (encoder)", "bridge": "g(f) (bridge)"}
_MAIN = (("finetune", "encoder"), ("linear", "encoder"), ("zero_shot", "projected"))


def strengths(subject: Subject) -> str:
    """Every label from the best to the worst, in words and with intervals.

    Raises:
        LeftOut: nothing was scored.
    """
    protocol, _, part = _main_part(subject)
    entries = {
        label: entry
        for label, entry in part["per_label"].items()
        if (entry.get("auroc") or {}).get("value") is not None
    }
    undefined = [label for label in part["per_label"] if label not in entries]
    if not entries:
        raise LeftOut("no label has an AUROC on the test split; see the tables for the reasons")
    ranked = sorted(entries, key=lambda label: -entries[label]["auroc"]["value"])
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
                escape(f"{entry['auroc']['n']:,}"),
            ]
        )
    areas = [entries[label]["auroc"] for label in ranked]
    chart = interval_chart([label_name(label) for label in ranked], {"": areas}, what="AUROC")
    said = "; ".join(f"{label_name(label)} {numbers(entries[label]['auroc'])}" for label in ranked)
    table = Table(
        caption=f"{PROTOCOLS.get(protocol, protocol)}, from the best label to the worst",
        columns=("label", "in words", "AUROC", "sensitivity at 90 % specificity", "n"),
        rows=rows,
    )
    note = paragraph(f"Undefined: {', '.join(map(label_name, undefined))}.", "note") if undefined else ""
    return (
        paragraph(
            "The words follow the lower end of the interval: 0.9 very good, 0.8 good, 0.7 moderate, 0.6 weak, "
            "0.5 poor. They are this project's, not a clinical standard."
        )
        + figure(
            picture(chart, "svg+xml", f"AUROC by label. {said}"), "AUROC by label, 95 % intervals; dotted: chance."
        )
        + table.render()
        + note
    )


def calibration(subject: Subject) -> str:
    """A reliability plot for each label whose scores are probabilities.

    Raises:
        LeftOut: there are none.
    """
    charts = []
    for scores in label_scores(subject.main, _probability_part(subject)):
        drawn = _reliability(scores)
        if drawn is not None:
            charts.append(drawn)
    if not charts:
        raise LeftOut("no protocol with probabilities was evaluated (linear, finetune)")
    return paragraph(
        "Test rows in bins of equally many: the share that has the finding, with its 95 % interval, over the "
        "probability that the model gave. On the dotted line a probability means what it says. For labels of "
        "several classes: the "
        "likeliest class. Calibration error: mean distance from the line."
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
            caption = f"{PROTOCOLS.get(protocol, protocol)} by {label_name(column)}: macro AUROC"
            columns_shown = ("group", subject.unit, "patients", "AUROC", "minus the rest")
            parts.append(Table(caption=caption, columns=columns_shown, rows=rows).render())
    return "".join(parts) + paragraph(
        "A macro AUROC is the mean over the labels that are defined in a group, so groups with other labels are not "
        "quite alike; many groups are looked at, and some intervals leave 0 by chance.",
        "note",
    )


def few_labels(subject: Subject) -> str:
    """k-shot and label efficiency as curves.

    Raises:
        LeftOut: neither was evaluated.
    """
    charts = []
    for protocol, x_name, percent in (
        ("fewshot", f"training {subject.unit} of each class", False),
        ("label_efficiency", "training patients with labels", True),
    ):
        section = subject.main.results.get(protocol, {})
        lines = {
            _NAMES.get(feature, feature): [
                (float(x), part[MACRO]["auroc"])
                for x, part in points.items()
                if part[MACRO]["auroc"]["value"] is not None
            ]
            for feature, points in section.items()
            if feature != "skipped"
        }
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            said = "; ".join(
                f"{name}: " + ", ".join(f"{x:g}: {numbers(entry)}" for x, entry in points)
                for name, points in lines.items()
            )
            caption = f"{PROTOCOLS[protocol]}: macro AUROC over {x_name}; mean over draws, 95 % intervals."
            drawn = share_chart(lines, x_name, percent=percent)  # type: ignore[arg-type]
            charts.append(figure(picture(drawn, "svg+xml", f"{caption} {said}"), caption))
    if not charts:
        raise LeftOut("`--protocols fewshot,label_efficiency` was not asked for")
    return grid(charts, "charts")


def _main_part(subject: Subject) -> tuple[str, str, Mapping[str, Any]]:
    for protocol, feature in _MAIN:
        part = subject.main.section(protocol, feature)
        if part is not None:
            return protocol, feature, part
    raise LeftOut("no protocol that scores labels was evaluated")


def _probability_part(subject: Subject) -> tuple[str, str]:
    for protocol, feature in _MAIN[:2]:
        part = subject.main.section(protocol, feature)
        # Scores that are no probabilities, as of a network trained with smoothed labels, have no such metric.
        if part is not None and any("calibration_error" in entry for entry in part["per_label"].values()):
            return protocol, feature
    raise LeftOut("no protocol with probabilities was evaluated (linear)")


def _band(auroc: Mapping[str, Any]) -> str:
    low = auroc["low"] if auroc.get("low") is not None else auroc["value"]
    return next((word for edge, word in _BANDS if low >= edge), "not shown to be above chance")


def _reliability(scores: LabelScores) -> str | None:
    classes = tuple(range(scores.score.shape[1])) if scores.score.ndim == 2 else (0, 1)
    kind = "nominal" if scores.score.ndim == 2 else "binary"
    task = Task(name=scores.label, kind=kind, classes=classes, truth=scores.truth)
    answer = Prediction(scores=scores.score, predicted=np.zeros(len(scores.truth), np.int64), probabilities=True)
    section = calibration_section(task, answer, cluster_weights(scores.patients, replicates=200))
    if not section.get("bins"):
        return None
    error = numbers(section["calibration_error"], digits=3)
    name = label_name(scores.label)
    alt = f"Reliability of {name}. Calibration error {error}."
    drawn = picture(reliability_chart(section["bins"]), "svg+xml", alt)
    return figure(f"<h3>{escape(name)}</h3>{drawn}", f"calibration error {error}; n {len(scores.truth):,}", "chart")
