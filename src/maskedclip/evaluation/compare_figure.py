"""Forest plot of a comparison as SVG: every model's value, and its difference from the reference, with intervals."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from maskedclip.errors import UserError
from maskedclip.evaluation import report_figures
from maskedclip.evaluation.compare_models import RETRIEVAL, Comparison, Section
from maskedclip.evaluation.compare_read import MACRO, Key
from maskedclip.evaluation.compare_sheets import Cell, interval_words, unpaired_notes
from maskedclip.evaluation.report_figures import BLUE, GREY, VERMILION
from maskedclip.evaluation.report_names import label_name, row_name
from maskedclip.evaluation.statistics import Estimate

_LINE = 0.19  # inches of a line
_MOST_LINES = 64  # in a column; more blocks stand beside
_WIDTH = 7.6  # inches of a column in which names are short
_SHORT, _LONGEST = 12, 64  # letters of a name that such a column has room for; longer than the second it is cut
_LETTER = 0.075  # inches of a letter of a name
_LABEL = 32  # letters below an axis, in a line
_CAPTION = 130  # letters of a line of the caption, in a column


@dataclass(frozen=True, kw_only=True)
class Block:
    """A heading, and what stands below it: every model that has the key."""

    heading: str
    key: Key


def macro_blocks(comparison: Comparison) -> list[Block]:
    """A block for each protocol and feature: the means over the labels."""
    return [
        Block(heading=row_name(*section), key=(*section, MACRO))
        for section in comparison.sections
        if section[0] != RETRIEVAL
    ]


def label_blocks(comparison: Comparison, section: Section) -> list[Block]:
    """A block for each label of a protocol and feature."""
    return [Block(heading=label_name(label), key=(*section, label)) for label in comparison.labels(section)]


def forest_plot(comparison: Comparison, blocks: Sequence[Block], *, title: str = "") -> bytes:
    """SVG of the blocks from the top; long ones stand in several columns.  Same comparison, same bytes.

    Raises UserError: there is no block.

    A filled mark: the interval of the difference lies above (blue) or below 0 (vermilion); a hollow one: it includes 0.
    """
    if not blocks:
        raise UserError("figure: no label was evaluated, so there is no AUROC to draw; leave the figure out")
    buffer = io.BytesIO()
    with mpl.rc_context(report_figures._STYLE | {"axes.grid.axis": "x"}):
        drawn = _drawn(comparison, blocks, title)
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return buffer.getvalue()


def _drawn(comparison: Comparison, blocks: Sequence[Block], title: str) -> Figure:
    columns = _columns(comparison, blocks)
    lines = max(sum(_height(comparison, block) for block in column) for column in columns)
    below = _below(comparison)
    caption = _caption(comparison, blocks, len(columns))
    # Names take their room from the axes, and further lines below them from the blocks, unless the figure grows.
    longest = max(len(_shortened(name)) for name in comparison.names)
    width = _WIDTH + _LETTER * max(0, longest - _SHORT)
    height = _LINE * lines + (1.15 if title else 0.95) + 0.14 * (below.count("\n") + caption.count("\n") - 1)
    drawn = Figure(figsize=(width * len(columns), height))
    # Without the space the figures beside a column touch the names of the next.
    drawn.set_layout_engine("constrained", w_pad=0.12)
    panels = drawn.subplots(1, 2 * len(columns), squeeze=False)[0]
    for place, column in enumerate(columns):
        _draw(comparison, column, panels[2 * place], panels[2 * place + 1], lines)
        panels[2 * place + 1].set_xlabel(below)
    for side in (0, 1):
        _share_limits(panels[side::2])
    if title:
        drawn.suptitle(title, x=0.005, ha="left", fontsize=9.5, fontweight="bold")
    drawn.supxlabel(caption, x=0.005, ha="left", fontsize=7.5, color=GREY)
    return drawn


def _columns(comparison: Comparison, blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks in order, in as few columns of about the same height as keep each readable."""
    total = sum(_height(comparison, block) for block in blocks)
    wanted = -(-total // _MOST_LINES)
    columns: list[list[Block]] = [[]]
    filled = 0
    for block in blocks:
        if columns[-1] and filled >= total * len(columns) / wanted:
            columns.append([])
        columns[-1].append(block)
        filled += _height(comparison, block)
    return columns


def _models(comparison: Comparison, block: Block) -> list[str]:
    return [name for name in comparison.names if comparison.value(name, block.key) is not None]


def _height(comparison: Comparison, block: Block) -> int:
    """Lines of a block: its heading, its models, and a space."""
    return len(_models(comparison, block)) + 2


def _draw(comparison: Comparison, blocks: Sequence[Block], values: Axes, differences: Axes, lines: int) -> None:
    y = 0.0
    ticks: list[tuple[float, str]] = []
    for block in blocks:
        # Left of the axes, where the models' names end.
        where = blended_transform_factory(values.transAxes, values.transData)
        values.text(0.0, y, block.heading, transform=where, ha="left", va="center", fontweight="bold", fontsize=8.5)
        for name in _models(comparison, block):
            y += 1
            ticks.append((y, name))
            value, difference = comparison.value(name, block.key), comparison.difference(name, block.key)
            assert value is not None
            colour, filled = _look(name == comparison.reference, difference)
            _mark(values, value, y, colour, filled)
            _beside(differences, y, comparison, name, difference)
            if difference is not None:
                _mark(differences, difference, y, colour, filled)
        y += 2
    for axes in (values, differences):
        axes.set_ylim(lines - 1.2, -0.8)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    values.set_yticks([place for place, _ in ticks], [_shortened(name) for _, name in ticks])
    differences.set_yticks([])
    differences.axvline(0, color=GREY, linewidth=1)
    values.set_xlabel("AUROC, 95 % interval")


def _look(reference: bool, difference: Estimate | None) -> tuple[str, bool]:
    """Colour, and whether the mark is filled."""
    if reference:
        return GREY, True
    if difference is None or np.isnan(difference.low) or difference.low <= 0 <= difference.high:
        return GREY, False
    return (BLUE, True) if difference.low > 0 else (VERMILION, True)


def _mark(axes: Axes, estimate: Estimate, y: float, colour: str, filled: bool) -> None:
    if np.isnan(estimate.value):
        return
    if not np.isnan(estimate.low):
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.3, solid_capstyle="butt")
    axes.plot(
        [estimate.value],
        [y],
        marker="o" if filled else "D",
        markersize=4.6 if filled else 4,
        color=colour,
        markerfacecolor=colour if filled else "white",
    )


def _beside(axes: Axes, y: float, comparison: Comparison, name: str, difference: Estimate | None) -> None:
    """The difference in figures, right of its panel."""
    said = "reference" if name == comparison.reference else Cell(estimate=difference, signed=True).words()
    where = blended_transform_factory(axes.transAxes, axes.transData)
    axes.text(
        1.02, y, said, transform=where, ha="left", va="center", fontsize=7, color=GREY if said[0] == "r" else None
    )


def _share_limits(panels: Sequence[Axes]) -> None:
    """The same scale in every column."""
    limits = np.array([axes.get_xlim() for axes in panels])
    for axes in panels:
        axes.set_xlim(limits[:, 0].min(), limits[:, 1].max())


def _shortened(name: str) -> str:
    """A name of any length, the middle of a long one left out: what tells two apart stands at either end."""
    kept = (_LONGEST - 1) // 2
    return name if len(name) <= _LONGEST else f"{name[:kept]}…{name[-kept:]}"


def _below(comparison: Comparison) -> str:
    """What the differences are, in lines that leave the axis beside its own."""
    name = f"{_shortened(comparison.reference)}, paired"
    said = f"AUROC minus {name}"
    return said if len(said) <= _LABEL else f"AUROC minus\n{textwrap.fill(name, _LABEL)}"


def _caption(comparison: Comparison, blocks: Sequence[Block], columns: int) -> str:
    sections = list(dict.fromkeys(block.key[:2] for block in blocks))
    seeds = ", means over seeds with intervals of both" if max(comparison.auroc.seeds.values()) > 1 else ""
    paragraphs = [
        *comparison.warnings,
        f"{comparison.auroc.n_test:,} test images of {comparison.auroc.patients:,} patients; 95 % intervals from "
        f"{interval_words(comparison, sections)}{seeds}.",
        "Filled: the interval of the difference excludes 0 (blue above, red below); hollow: it includes 0.",
        *unpaired_notes(comparison, sections),
    ]
    return "\n".join(textwrap.fill(paragraph, _CAPTION * columns) for paragraph in paragraphs)
