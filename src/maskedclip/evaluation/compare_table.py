"""The tables of a comparison for a terminal, in Markdown, and in LaTeX with booktabs."""

import re
from collections.abc import Sequence

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
# Of the text of a column and its interval, four fit the width of a page; closed by a brace behind the notes.
_FITTING = r"{\small\setlength{\tabcolsep}{4pt}"

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
    """Tables for a paper that loads booktabs and, where one is longer than a page, longtable."""
    packages = ["booktabs", *(["longtable"] if any(sheet.rows > LONGEST_TABLE for sheet in tables) else [])]
    head = [f"% \\usepackage{{{package}}}" for package in packages]
    return "\n".join([*head, *(_latex_table(sheet) for sheet in tables)]) + "\n"


def _latex_table(sheet: Sheet) -> str:
    width = len(sheet.columns)
    shape = "l" + "r" * (width - 1)
    caption = (
        f"\\caption{{{latex_escape(sheet.caption)}}}\\label{{tab:compare-{re.sub(r'[^a-z0-9]+', '-', sheet.name)}}}"
    )
    columns = _latex_row([latex_escape(column) for column in sheet.columns])
    body = []
    for place, (heading, rows) in enumerate(sheet.sections):
        body += [r"\addlinespace"] if place else []
        body.append(f"\\multicolumn{{{width}}}{{l}}{{\\emph{{{latex_escape(heading)}}}}} \\\\*")  # no page ends here
        body += [_latex_row([f"\\quad {latex_escape(name)}", *map(_latex_cell, cells)]) for name, cells in rows]
    notes = "\\par\\smallskip\\footnotesize\\raggedright " + " ".join(latex_escape(note) for note in sheet.notes)
    if sheet.rows > LONGEST_TABLE:
        return "\n".join(
            [
                _FITTING,
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
            f"\\begin{{tabular}}{{{shape}}}",
            r"\toprule",
            columns,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
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
