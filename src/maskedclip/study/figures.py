"""Charts of a study: what texts are worth, and how the methods learn over time."""

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from maskedclip.evaluation.compare_read import MACRO
from maskedclip.evaluation.report_figures import COLOURS, DASHES, GREY, chart
from maskedclip.evaluation.statistics import Estimate
from maskedclip.study.definition import DEFAULT_SIZE, Study
from maskedclip.study.evaluated_step import VALIDATION, training_shares
from maskedclip.study.results import Budget, Group

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
    apart = min(0.06, 0.4 / len(points))
    with chart(3.6, 2.7) as (axes, buffer):
        for place, (method, found) in enumerate(points.items()):
            x = np.asarray([fraction for fraction, _ in found]) * (1 + apart * (place - (len(points) - 1) / 2))
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


def validation_charts(study: Study, budget: Budget) -> list[tuple[str, bytes]]:
    """The online probe of every cell over its training: pairs of a chart's methods in words, and its SVG.

    The reference stands in each chart, with as many others as there are colours left.  Empty where nothing was
    validated.
    """
    lines: dict[str, list[tuple[Group, list[float], list[float]]]] = {}
    for group, found in budget.groups.items():
        for cell, result in found:
            curve = result["validation"]
            if len(curve) > 1:
                values = [entry[VALIDATION] for entry in curve]
                lines.setdefault(group.method, []).append((group, training_shares(cell.steps, curve), values))
    if not lines:
        return []
    first = [method for method in (study.reference,) if method in lines]
    others = [method for method in study.methods if method in lines and method not in first]
    room = len(COLOURS) - len(first)
    parts = [first + others[begin : begin + room] for begin in range(0, max(len(others), 1), room)]
    values = [value for found in lines.values() for _, _, curve in found for value in curve]
    margin = 0.05 * (max(values) - min(values)) or 0.01
    fractions = sorted({group.text_fraction for found in lines.values() for group, _, _ in found})
    drawn = []
    for methods in parts:
        with chart(4.6, 2.9) as (axes, buffer):
            for place, method in enumerate(methods):
                for group, x, y in lines[method]:
                    dash = DASHES[fractions.index(group.text_fraction) % len(DASHES)]
                    axes.plot(x, y, color=COLOURS[place], linestyle=dash, linewidth=1.1, markersize=3.5)
                    axes.lines[-1].set_marker(_MARKERS[place])
                axes.plot([], [], color=COLOURS[place], marker=_MARKERS[place], markersize=3.5, label=method)
            if len(fractions) > 1:
                for dash, fraction in zip(cycle(DASHES), fractions, strict=False):
                    axes.plot([], [], color=GREY, linestyle=dash, label=f"{fraction:.0%} of the texts")
            axes.set_ylim(min(values) - margin, max(values) + margin)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_xlabel("share of the training")
            axes.set_ylabel("macro AUROC, validation")
            _legend(axes)
        drawn.append((", ".join(methods), buffer.getvalue()))
    return drawn


def _legend(axes: Any) -> None:
    """The methods above the chart, in as many columns as their names leave room for."""
    longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
    axes.figure.legend(loc="outside upper left", ncols=3 if longest <= 10 else 2, fontsize="small", handlelength=2.8)
