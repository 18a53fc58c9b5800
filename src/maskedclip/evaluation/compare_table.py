"""The tables of a comparison for a terminal, in Markdown, and in LaTeX with booktabs."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from maskedclip.evaluation.compare_sheets import Cell, Sheet

# A table of more rows does not fit a page.
LONGEST_TABLE = 40
# Columns that a terminal shows only where it is wide enough.
_WIDE = ("AUPRC", "balanced accuracy")
_WIDE_ENOUGH = 118
# Characters of all columns of figures in one LaTeX table, of which four with their intervals have 80 to 100: a wider
# sheet becomes several tables.  Behind that, a table that is still wider than the page is scaled down to it; one that
# breaks over pages can't be, so it gets fewer and smaller columns.  The brace is closed behind the notes.
_WIDEST, _WIDEST_LONG = 100, 70
_FITTING = r"{\small\setlength{\tabcolsep}{4pt}"
_FITTING_LONG = r"{\footnotesize\setlength{\tabcolsep}{3pt}"
_SCALED = r"\ifdim\wd2>\linewidth\resizebox{\linewidth}{!}{\usebox2}\else\usebox2\fi"

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\rightarrow$",
    "−": "$-$",
    "–": "--",
}


def print_tables(tables: Sequence[Sheet], console: Console) -> None:
    """Show tables on a terminal; on a narrow one without the metrics that have no difference."""
    for sheet in tables:
        shown = [
            place for place, column in enumerate(sheet.columns) if column not in _WIDE or console.width >= _WIDE_ENOUGH
        ]
        table = Table(title=sheet.caption, title_justify="left", title_style="bold", box=None, pad_edge=False)
        for place in shown:
            table.add_column(sheet.columns[place], justify="left" if place == 0 else "right", overflow="fold")
        for heading, rows in sheet.sections:
            table.add_row(Text(heading, style="italic"))
            for name, cells in rows:
                every = [Text(f"  {name}"), *(_coloured(cell) for cell in cells)]
                table.add_row(*(every[place] for place in shown))
        notes = [Text(note, style="dim") for note in sheet.notes]
        if len(shown) < len(sheet.columns):
            notes.append(Text(f"{' and '.join(_WIDE)}: in a wider terminal, --markdown, --json", style="dim"))
        console.print(Group(table, *notes, Text("")))


def to_markdown(tables: Sequence[Sheet]) -> str:
    """Tables that GitHub and mkdocs render; the heading of a section is the first column."""
    parts = []
    for sheet in tables:
        columns = ["", *sheet.columns]
        lines = [
            f"### {_markdown(sheet.caption)}",
            "",
            _markdown_row([_markdown(column) for column in columns]),
            _markdown_row(["---", "---", *["---:"] * (len(columns) - 2)]),
        ]
        for heading, rows in sheet.sections:
            for name, cells in rows:
                lines.append(_markdown_row([_markdown(heading), _markdown(name), *map(_markdown_cell, cells)]))
        parts.append("\n".join([*lines, "", *(f"- {_markdown(note)}" for note in sheet.notes)]))
    return "\n\n".join(parts) + "\n"


def to_latex(tables: Sequence[Sheet]) -> str:
    """Tables for a paper that loads booktabs and graphicx, and longtable where one is longer than a page.

    None is wider than the page: of many columns become several tables, and what is still too wide is scaled.
    """
    long = [sheet.rows > LONGEST_TABLE for sheet in tables]
    packages = ["booktabs", *["graphicx"] * (not all(long)), *["longtable"] * any(long)]
    head = [f"% \\usepackage{{{package}}}" for package in packages]
    parts = [part for sheet in tables for part in _narrow(sheet)]
    return "\n".join([*head, *(_latex_table(sheet) for sheet in parts)]) + "\n"


def _narrow(sheet: Sheet) -> list[Sheet]:
    """A sheet, or where its columns are too many for a page, sheets of as many of them as fit, with the same rows."""
    widest = _WIDEST_LONG if sheet.rows > LONGEST_TABLE else _WIDEST
    widths = [_width(sheet, place) for place in range(len(sheet.columns))]
    runs: list[list[int]] = [[]]
    for place in range(1, len(sheet.columns)):
        if runs[-1] and sum(widths[other] for other in [*runs[-1], place]) > widest:
            runs.append([])
        runs[-1].append(place)
    if len(runs) == 1:
        return [sheet]
    return [
        replace(
            sheet,
            name=sheet.name if number == 1 else f"{sheet.name}-{number}",
            caption=f"{sheet.caption} ({number} of {len(runs)})",
            columns=[sheet.columns[0], *(sheet.columns[place] for place in run)],
            sections=[
                (heading, [(name, [cells[place - 1] for place in run]) for name, cells in rows])
                for heading, rows in sheet.sections
            ],
            notes=sheet.notes if number == 1 else [f"Notes: below the first of these {len(runs)} tables."],
        )
        for number, run in enumerate(runs, start=1)
    ]


def _width(sheet: Sheet, place: int) -> int:
    """Characters of a column of figures: its cells, and the longest word of its name, which is set in lines."""
    if place == 0:
        return 0  # of the names, which every table has
    cells = (cells[place - 1].words() for _, rows in sheet.sections for _, cells in rows)
    return max(map(len, [*cells, *sheet.columns[place].split()]), default=0)


def _latex_columns(sheet: Sheet) -> str:
    """The names of the columns, each in as many lines as keep it about as narrow as its cells."""
    names = []
    for place, column in enumerate(sheet.columns):
        lines = [column] if place == 0 else textwrap.wrap(column, max(_width(sheet, place), 9)) or [""]
        escaped = [latex_escape(line) for line in lines]
        names.append(escaped[0] if len(escaped) == 1 else r"\shortstack[r]{" + r"\\".join(escaped) + "}")
    return _latex_row(names)


def _latex_table(sheet: Sheet) -> str:
    width = len(sheet.columns)
    shape = "l" + "r" * (width - 1)
    caption = (
        f"\\caption{{{latex_escape(sheet.caption)}}}\\label{{tab:compare-{re.sub(r'[^a-z0-9]+', '-', sheet.name)}}}"
    )
    columns = _latex_columns(sheet)
    body = []
    for place, (heading, rows) in enumerate(sheet.sections):
        body += [r"\addlinespace"] if place else []
        body.append(f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{latex_escape(heading)}}}}} \\\\*")  # no page ends here
        body += [_latex_row([f"\\quad {latex_escape(name)}", *map(_latex_cell, cells)]) for name, cells in rows]
    notes = "\\par\\smallskip\\footnotesize\\raggedright " + " ".join(latex_escape(note) for note in sheet.notes)
    if sheet.rows > LONGEST_TABLE:
        return "\n".join(
            [
                _FITTING_LONG,
                f"\\begin{{longtable}}{{{shape}}}",
                f"{caption} \\\\",
                r"\toprule",
                columns,
                r"\midrule",
                r"\endfirsthead",
                r"\toprule",
                columns,
                r"\midrule",
                r"\endhead",
                *body,
                r"\bottomrule",
                r"\end{longtable}",
                f"{notes}\\par}}",
            ]
        )
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            caption,
            _FITTING,
            f"\\sbox2{{\\begin{{tabular}}{{{shape}}}",
            r"\toprule",
            columns,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            _SCALED,
            f"{notes}\\par}}",
            r"\end{table}",
        ]
    )


def latex_escape(text: str) -> str:
    """Plain text as LaTeX shows it."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    words = latex_escape(cell.words())
    return f"\\textbf{{{words}}}" if cell.bold else words


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(text.split()))


def _markdown_cell(cell: Cell) -> str:
    words = _markdown(cell.words())
    return f"**{words}**" if cell.bold else words


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _coloured(cell: Cell) -> Text:
    """Green where an interval of a difference is above 0, red where it is below."""
    style = "bold" if cell.bold else ""
    if cell.signed and cell.estimate is not None and not np.isnan(cell.estimate.low):
        style = "green" if cell.estimate.low > 0 else "red" if cell.estimate.high < 0 else ""
    return Text(cell.words(), style=style)
