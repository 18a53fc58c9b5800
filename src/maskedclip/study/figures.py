"""Charts of a study: what texts are worth, and how the methods learn over time."""

from typing import Any

import numpy as np

from maskedclip.evaluation.compare_read import MACRO
from maskedclip.evaluation.report_figures import COLOURS, DASHES, chart
from maskedclip.evaluation.statistics import Estimate
from maskedclip.study.definition import DEFAULT_SIZE, Study
from maskedclip.study.evaluated_step import VALIDATION
from maskedclip.study.results import Budget

_MARKERS = "osD^vPX<>hp"  # beside the colours, and not as many as they are: the eighth method has another pair


def fraction_chart(study: Study, budget: Budget, section: tuple[str, str]) -> tuple[bytes, str] | None:
    """Macro AUROC over the share of texts, a line for each method and size, as SVG, and the same in words.

    None where no method has two shares at one size.
    """
    points: dict[str, list[tuple[float, Estimate]]] = {}
    for group in budget.groups:
        estimate = budget.value(group, (*section, MACRO))
        if estimate is not None and not np.isnan(estimate.value):
            name = group.method if group.size == DEFAULT_SIZE else f"{group.method}, {group.size}"
            points.setdefault(name, []).append((group.text_fraction, estimate))
    if max(map(len, points.values()), default=0) < 2:
        return None
    with chart(3.6, 2.7) as (axes, buffer):
        for place, (method, found) in enumerate(points.items()):
            x = np.asarray([fraction for fraction, _ in found]) * (1 + 0.03 * (place - len(points) / 2))
            y = np.asarray([estimate.value for _, estimate in found])
            spans = np.abs([[e.value - e.low for _, e in found], [e.high - e.value for _, e in found]])
            axes.errorbar(
                x,
                y,
                yerr=np.nan_to_num(spans),
                color=COLOURS[place % len(COLOURS)],
                linestyle=DASHES[place % len(DASHES)] if len(found) > 1 else "none",
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=4,
                capsize=2.5,
                label=method,
            )
        ticks = sorted({fraction for found in points.values() for fraction, _ in found})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("patients whose texts are kept")
        axes.set_ylabel("macro AUROC")
        _legend(axes)
    said = "; ".join(
        f"{method}: " + ", ".join(f"{estimate.value:.3f} at {fraction:.0%}" for fraction, estimate in found)
        for method, found in points.items()
    )
    return buffer.getvalue(), said


def validation_chart(study: Study, budget: Budget) -> bytes | None:
    """The online probe of every cell over minutes of training, as SVG; None where nothing was validated."""
    methods = [method for method in study.methods if any(group.method == method for group in budget.groups)]
    lines = []
    for group, found in budget.groups.items():
        for _, result in found:
            if len(result["validation"]) > 1:
                x = [entry["seconds"] / 60 for entry in result["validation"]]
                lines.append((group, x, [entry[VALIDATION] for entry in result["validation"]]))
    if not lines:
        return None
    fractions = sorted({group.text_fraction for group, _, _ in lines})
    with chart(4.6, 2.9) as (axes, buffer):
        named: set[str] = set()
        for group, x, y in lines:
            place = methods.index(group.method)
            name = group.method if group.method not in named else None
            named.add(group.method)
            axes.plot(
                x,
                y,
                color=COLOURS[place % len(COLOURS)],
                linestyle=DASHES[fractions.index(group.text_fraction) % len(DASHES)],
                linewidth=1.1,
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=3.5,
                label=name,
            )
        axes.set_xlabel("minutes of training")
        axes.set_ylabel("macro AUROC, validation")
        _legend(axes)
    return buffer.getvalue()


def _legend(axes: Any) -> None:
    """The methods above the chart, in as many columns as their names leave room for."""
    longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
    axes.figure.legend(loc="outside upper left", ncols=3 if longest <= 10 else 2, fontsize="small")
