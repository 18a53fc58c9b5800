"""The part of a report with the ROC curves of each label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskedclip.evaluation import metrics
from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.report_figures import roc_chart
from maskedclip.evaluation.report_names import SCORED, few, label_name
from maskedclip.evaluation.report_subject import Evaluation, Subject
from maskedclip.evaluation.statistics import Distribution, class_supports, cluster_weights, with_point
from maskedclip.html import LeftOut, escape, figure, grid, numbers, paragraph, picture

_MOST = 24


def roc_curves(subject: Subject) -> str:
    """A chart for each label, or class of a label, that has both positive and negative test rows.

    Raises:
        LeftOut: there are no predictions to draw.
    """
    main = subject.main
    answered = set(zip(*(main.predictions[name].to_pylist() for name in ("protocol", "feature")), strict=True))
    parts = [part for part in SCORED if part in answered]
    drawn = few(parts)
    scored = _scores(main, drawn)
    if not scored:
        raise LeftOut(
            "no protocol that scores labels was evaluated (see the tables for the reasons), so there are no curves"
        )
    charts, undrawn = [], []
    for (label, value), curves in scored.items():
        name = label_name(label) + ("" if value is None else f" = {value}")
        if any(part.truth.min() == part.truth.max() for part in curves.values()):
            undrawn.append(f"{name} (one class only, n={len(next(iter(curves.values())).truth)})")
        elif len(charts) == _MOST:
            undrawn.append(name)
        else:
            charts.append(_roc(main, label, value, name, curves))
    note = f"Not drawn: {', '.join(undrawn)}." if undrawn else ""
    left_out = [SCORED[part] for part in parts if part not in drawn]
    elsewhere = (
        f" The tables have the figures of {' and '.join(left_out)}, for which there is no room." if left_out else ""
    )
    intro = paragraph(
        "Sensitivity against 1 − specificity on the test split, as the threshold moves. The number is the area under "
        "the curve (AUROC) with its 95 % interval; the dotted diagonal is chance. For labels of several classes, each "
        "class is drawn against the rest; one that no training image has is scored by zero-shot alone, if at all. The "
        f"curves are of {', '.join(SCORED[part] for part in drawn)}, where a label has them.{elsewhere}"
    )
    return intro + grid(charts, "charts") + (paragraph(note, "note") if note else "")


@dataclass(frozen=True, eq=False)
class _Scored:
    """What a protocol says of the test rows of a label, or of a class of it.  truth, score: (n,)."""

    truth: NDArray[np.float64]
    score: NDArray[np.float64]
    patients: list[str]


def _scores(main: Evaluation, parts: Sequence[tuple[str, str]]) -> dict[tuple[str, str | None], dict[str, _Scored]]:
    """By label and class (None for a finding), then by the name of the curve."""
    columns = ("protocol", "feature", "label", "class", "truth", "score", "patient")
    listed = main.predictions.select(columns).to_pydict()
    found: dict[tuple[str, str | None], dict[str, list[tuple[float, float, str]]]] = {}
    for protocol, feature, label, value, *row in zip(*listed.values(), strict=True):
        if (protocol, feature) in parts:
            found.setdefault((label, value), {}).setdefault(SCORED[protocol, feature], []).append(tuple(row))
    labels = list(dict.fromkeys(label for label, _ in found))  # a class of zero-shot alone was found behind all others
    return {
        key: {
            curve: _Scored(
                np.asarray([row[0] for row in rows], np.float64),
                np.asarray([row[1] for row in rows], np.float64),
                [row[2] or "" for row in rows],
            )
            for curve, rows in by_curve.items()
        }
        for key, by_curve in sorted(found.items(), key=lambda entry: labels.index(entry[0][0]))
    }


def _roc(main: Evaluation, label: str, value: str | None, name: str, curves: Mapping[str, _Scored]) -> str:
    legend = {}
    for (protocol, feature), curve in SCORED.items():
        if curve in curves:
            part = main.section(protocol, feature) or {}
            known = part.get("per_label", {}).get(label, {}).get("auroc")
            entry = known if value is None else _class_auroc(main, curves[curve])
            legend[curve] = f"{curve}  {numbers(entry, digits=2)}"
    chart = roc_chart({curve: (part.truth, part.score) for curve, part in curves.items()}, legend)
    truth = next(iter(curves.values())).truth
    positives, n = int(truth.sum()), len(truth)
    alt = f"ROC curves of {name}, {positives} of {n} test images positive. AUROC: {'; '.join(legend.values())}."
    return figure(f"<h3>{escape(name)}</h3>{picture(chart, 'svg+xml', alt)}", f"{positives} of {n} positive", "chart")


def _class_auroc(main: Evaluation, part: _Scored) -> dict:
    """One class against the rest, which results.json only holds as the mean over the classes."""
    about = main.about
    replicates, seed = int(about.get("replicates", 1000)), int(about.get("seed", 0))
    weights = with_point(cluster_weights(part.patients, replicates=replicates, seed=seed))
    support = min(class_supports(part.truth.astype(np.int64), 2, weights))
    values = metrics.auroc(part.truth, part.score, weights)
    return Distribution.from_rows(values, len(part.truth), bounds=SHARE, support=support).estimate().to_json()
