"""Charts of a report as SVG: curves over steps, ROC curves, estimates with intervals.  Same data, same bytes.

One chart a file, so that a page can set them side by side on a screen and below each other on a telephone.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

# Okabe and Ito's colours (2008), told apart by most colour-blind readers; dashes help on paper.
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#007F5F", "#6B7280"
COLOURS = (BLUE, VERMILION, GREEN, "#8A3FA0", "#946200", "#56B4E9", "#CC3E8E")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
# By the name of a curve (`report_names.SCORED`): it has the same line in every chart, whatever else is drawn there.
ROC_LINES: dict[str, tuple[str, Any]] = {
    "probe on f": (BLUE, "-"),
    "probe on g(f)": (VERMILION, "--"),
    "zero-shot": (GREEN, "-."),
    "fine-tuning": ("#CC3E8E", (0, (9, 2))),
    "LoRA": ("#946200", (0, (5, 1, 1, 1, 1, 1))),
    "k-NN on f": ("#8A3FA0", (0, (2, 1))),
    "k-NN on g(f)": ("#56B4E9", (0, (1, 1))),
}
_INK = "#1f2933"
_MOST_POINTS = 300
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "maskedclip",  # else ids in the file are random
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa5b1",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series: x and y are (n,), n >= 1."""

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]


def curves(
    lines: Sequence[Line], *, percent: bool = False, logarithmic: bool = False, level: tuple[float, str] | None = None
) -> bytes:
    """Lines over optimizer steps, as SVG.

    Args:
        lines: drawn in the order of COLOURS; long ones are averaged down to 300 points.
        percent: y is a share.
        logarithmic: of the y axis; ignored where a value is not positive.
        level: a horizontal line at a height, with its name.
    """
    with chart(3.3, 2.2) as (axes, buffer):
        for line, colour, dash in zip(lines, COLOURS, DASHES, strict=False):
            x, y = thin(line.x), thin(line.y)
            axes.plot(
                x, y, color=colour, linestyle=dash, label=line.name, marker="o" if len(x) < 15 else None, markersize=3
            )
        if level is not None:
            axes.axhline(level[0], color=GREY, linestyle=":", linewidth=1.2, label=level[1])
        if logarithmic and all((line.y > 0).all() for line in lines):
            axes.set_yscale("log")
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        if len(lines) > 1 or level is not None:
            axes.legend(loc="best")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step")
    return buffer.getvalue()


def roc_chart(scored: Mapping[str, tuple[NDArray, NDArray]], legend: Mapping[str, str]) -> bytes:
    """ROC curves of one label, as SVG.

    Args:
        scored: by name of the curve (of ROC_LINES): truth (n,) 0/1 with both values, and score (n,).
        legend: what stands under the chart's curves, by the same names.
    """
    with chart(3.1, 3.25 + 0.17 * max(0, len(scored) - 3)) as (axes, buffer):
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        for name, (truth, score) in scored.items():
            colour, dash = ROC_LINES[name]
            false, true, _ = roc_curve(truth, score)
            axes.plot(false, true, color=colour, linestyle=dash, label=legend[name])
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
        axes.figure.legend(loc="outside lower left", handlelength=2.6)
    return buffer.getvalue()


def interval_chart(
    rows: Sequence[str],
    estimates: Mapping[str, Sequence[Mapping | None]],
    *,
    chance: float = 0.5,
    what: str = "macro AUROC",
) -> bytes:
    """Values with 95 % intervals, one row a measurement, one colour a model, as SVG.

    Args:
        rows: names of the measurements, from the top.
        estimates: by model, for each row an estimate of results.json, or None where it has none.
        chance: where the line of chance stands.
        what: the axis shows.
    """
    models = list(estimates)
    with chart(4.3, 0.75 + (0.26 + 0.16 * len(models)) * len(rows)) as (axes, buffer):
        step = 0.6 / max(len(models), 1)
        for place, (model, colour, marker) in enumerate(
            zip(models, (*COLOURS[:1], GREY, *COLOURS[1:]), "osD^vP", strict=False)
        ):
            y, values, low, high = [], [], [], []
            for row, entry in enumerate(estimates[model]):
                if entry is not None and entry.get("value") is not None:
                    value = entry["value"]
                    y.append(row + (place - (len(models) - 1) / 2) * step)
                    values.append(value)
                    low.append(value - entry["low"] if entry.get("low") is not None else 0)
                    high.append(entry["high"] - value if entry.get("high") is not None else 0)
            spans = np.abs(np.asarray([low, high]))  # rounding can put an end on the wrong side by 1e-17
            axes.errorbar(values, y, xerr=spans, fmt=marker, color=colour, markersize=5, capsize=2.5, label=model)
        axes.axvline(chance, color=GREY, linestyle=":", linewidth=1.2)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel(f"{what}, 95 % interval")
        if len(models) > 1:
            axes.figure.legend(loc="outside upper left", ncols=len(models))
    return buffer.getvalue()


def reliability_chart(bins: Sequence[Mapping[str, float]]) -> bytes:
    """Observed share over mean prediction of the bins of `calibration.calibration_section`, as SVG."""
    predicted, observed = (np.asarray([entry[name] for entry in bins]) for name in ("predicted", "observed"))
    low, high = (np.asarray([entry[name] for entry in bins]) for name in ("low", "high"))
    with chart(2.7, 2.5) as (axes, buffer):
        top = max(1e-6, float(predicted.max()), float(high.max())) * 1.05
        axes.plot([0, top], [0, top], color=GREY, linewidth=0.8, linestyle=":")
        spans = np.abs([observed - low, high - observed])
        axes.errorbar(predicted, observed, yerr=spans, fmt="o-", color=BLUE, markersize=3.5, capsize=2, linewidth=1.1)
        axes.set(xlim=(0, top), ylim=(0, top), xlabel="predicted probability", ylabel="share observed")
    return buffer.getvalue()


def share_chart(lines: Mapping[str, Sequence[tuple[float, Mapping]]], x_name: str, *, percent: bool) -> bytes:
    """Estimates with their intervals over k or a share on a logarithmic axis, a line a feature, as SVG."""
    with chart(3.6, 2.6) as (axes, buffer):
        ticks = sorted({x for points in lines.values() for x, _ in points})
        for place, (name, points) in enumerate(lines.items()):
            x = np.asarray([value for value, _ in points]) * (1 + 0.04 * place)
            y = np.asarray([entry["value"] for _, entry in points])
            ends = np.asarray([[entry["low"], entry["high"]] for _, entry in points], np.float64).T
            style = {"color": COLOURS[place], "linestyle": DASHES[place], "marker": "o", "markersize": 3.5}
            axes.errorbar(x, y, yerr=np.nan_to_num(np.abs(ends - y)), capsize=2, label=name, **style)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:.0%}" if percent else f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel=x_name, ylabel="macro AUROC")
        if len(lines) > 1:
            axes.legend(loc="best")
    return buffer.getvalue()


def thin(values: NDArray, most: int = _MOST_POINTS) -> NDArray[np.float64]:
    """At most `most` values: means over equal runs, so that a long noisy curve stays readable; (n,) -> (<= most,)."""
    if len(values) <= most:
        return np.asarray(values, np.float64)
    return np.asarray([part.mean() for part in np.array_split(np.asarray(values, np.float64), most)])


@contextmanager
def chart(width: float, height: float) -> Iterator[tuple[Axes, io.BytesIO]]:
    """Axes of a new figure (inches), written to the buffer as SVG without date when the block ends."""
    buffer = io.BytesIO()
    with mpl.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn.add_subplot(), buffer
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
