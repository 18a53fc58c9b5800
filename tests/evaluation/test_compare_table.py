import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from maskedclip.evaluation.compare_groups import GroupComparison
from maskedclip.evaluation.compare_models import Comparison, compare_models
from maskedclip.evaluation.compare_sheets import Cell, Sheet, sheets
from maskedclip.evaluation.compare_table import LONGEST_TABLE, latex_escape, print_tables, to_latex, to_markdown
from maskedclip.evaluation.statistics import Estimate
from tests.evaluation.compare_case import MODEL, blurred, evaluated

NASTY = r"50% & m_{a}$k^2 #1 \o/ ~|<b>*"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    root = tmp_path_factory.mktemp("table")
    models = {"clear": MODEL, NASTY: blurred(2.0), "twin": blurred(2.0, 3, text=False)}
    folders = {name: [evaluated(model, root / str(place))] for place, (name, model) in enumerate(models.items())}
    return compare_models(folders, NASTY, replicates=100)


def _shown(tables: list[Sheet], width: int) -> str:
    buffer = io.StringIO()
    print_tables(tables, Console(file=buffer, width=width))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("numbers", "signed", "words"),
    [
        ((0.8137, 0.791, 0.8384), False, "0.814 (0.791–0.838)"),
        ((0.0492, 0.0292, 0.0721), True, "+0.049 (+0.029 to +0.072)"),
        ((-0.0131, -0.0252, 0.0019), True, "−0.013 (−0.025 to +0.002)"),
        ((-0.0001, -0.0004, 0.0002), True, "+0.000 (+0.000 to +0.000)"),
        ((0.5, np.nan, np.nan), False, "0.500 (no interval)"),
    ],
)
def test_cell__words(numbers: tuple[float, float, float], signed: bool, words: str) -> None:
    estimate = Estimate(value=numbers[0], low=numbers[1], high=numbers[2], n=9)
    assert Cell(estimate=estimate, signed=signed).words() == words


def test_cell__an_undefined_value_says_why() -> None:
    nothing = Estimate(value=np.nan, low=np.nan, high=np.nan, n=9, note="undefined (n=9, one class only)")
    assert Cell(estimate=nothing).words() == "undefined (n=9, one class only)"
    assert Cell().words() == "–"


def test_sheets__every_model_stands_in_every_section_that_it_has(compared: Comparison) -> None:
    means, retrieval, *labels = sheets(compared)
    assert means.sections[0][0] == "Linear probe on f (encoder), mean of 5 labels"
    assert [len(rows) for _, rows in means.sections] == [3, 2, 3, 2, 2]
    assert [len(rows) for _, rows in retrieval.sections] == [2, 2, 2]
    assert len(labels) == 5
    assert [heading for heading, _ in labels[0].sections] == ["glaucoma", "drusen", "normal", "dr grade", "camera"]
    assert labels[0].columns[-2:] == ["p (DeLong)", "p (Holm)"]
    assert any("corrected over the 3 tests of a model" in note for note in labels[0].notes)
    assert sum(note.startswith("Missing: twin has no") for note in means.notes) == 2


def test_sheets__bold_only_where_the_interval_against_the_second_is_above_0(compared: Comparison) -> None:
    means = sheets(compared)[0]
    for section, (_, rows) in zip(compared.sections, means.sections, strict=False):
        key = (*section, "macro")
        ranked = sorted((name for name, _ in rows), key=lambda name: -compared.auroc.value(name, key).value)
        lead = compared.auroc.difference(ranked[0], ranked[1], key)
        assert lead is not None
        bold = {name for name, cells in rows if cells[0].bold}
        assert bold == ({ranked[0]} if lead.low > 0 else set())
    assert any(cells[0].bold for _, rows in means.sections for _, cells in rows)
    twins = replace(compared, auroc=_without(compared.auroc, "clear"), folders=_rest(compared.folders, "clear"))
    assert not any(cells[0].bold for cells in dict(sheets(twins)[0].sections[0][1]).values())


def _rest(parts: Mapping, name: str) -> dict:
    return {key: part for key, part in parts.items() if key != name}


def _without(groups: GroupComparison, name: str) -> GroupComparison:
    return replace(groups, distributions=_rest(groups.distributions, name), counts=_rest(groups.counts, name))


def test_sheets__seeds_have_neither_tests_nor_accuracy(tmp_path: Path) -> None:
    folders = {
        name: [evaluated(blurred(noise, seed), tmp_path / f"{name}{seed}") for seed in (0, 1)]
        for name, noise in (("a", 0.5), ("b", 2.0))
    }
    means, _, *labels = sheets(compare_models(folders, "a", replicates=20))
    assert means.columns == ["model", "AUROC", "AUROC minus a", "AUPRC"]
    assert labels[0].columns == ["model", "AUROC", "AUROC minus a"]
    assert any("Means over training seeds (2 a model)" in note for note in means.notes)


def test_to_markdown__has_as_many_cells_in_every_row(compared: Comparison) -> None:
    text = to_markdown(sheets(compared))
    tables = re.findall(r"(?:^\|.*\|$\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 7
    for table in tables:
        cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
        assert len({len(row) for row in cells}) == 1
        assert all(re.fullmatch(r" -+:? ", cell) for cell in cells[1])
    assert r"50% & m\_{a}$k^2 #1 \\o/ ~\|\<b\>\*" in text
    assert "| **0." in text


def _check_latex(text: str) -> None:
    """Braces and environments are balanced; each row has as many cells as its table has columns."""
    plain = re.sub(r"\\[\\&%$#_{}]", "", re.sub(r"^%.*$", "", text, flags=re.MULTILINE))
    depth = 0
    for character in plain:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert not re.search(r"[_^#~]", plain.replace(r"\raggedright", ""))
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert not opened
    for columns, body in re.findall(r"\\begin\{(?:tabular|longtable)\}\{(l?r*)\}(.*?)\\end\{", text, flags=re.DOTALL):
        for line in body.splitlines():
            if line.endswith(r"\\") and not line.startswith((r"\multicolumn", r"\caption")):
                assert len(re.findall(r"(?<!\\)&", line)) + 1 == len(columns), line


def test_to_latex__is_balanced_and_escaped(compared: Comparison) -> None:
    text = to_latex(sheets(compared))
    _check_latex(text)
    assert text.startswith("% \\usepackage{booktabs}\n% \\usepackage{graphicx}\n\\begin{table}")
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 7
    assert r"\quad 50\% \& m\_\{a\}\$k\textasciicircum{}2 \#1 \textbackslash{}o/" in text
    assert r"\textbf{0." in text
    labels = re.findall(r"\\label\{([^}]*)\}", text)
    assert len(set(labels)) == 7


def test_to_latex__a_table_longer_than_a_page_breaks(compared: Comparison) -> None:
    sheet = sheets(compared)[2]
    heading, rows = sheet.sections[0]
    long = replace(sheet, sections=[(heading, [*rows] * (LONGEST_TABLE // len(rows) + 1))])
    text = to_latex([long])
    _check_latex(text)
    assert "% \\usepackage{longtable}" in text
    assert r"\begin{longtable}" in text
    assert r"\begin{tabular}" not in text


def _wide(rows: int = 2) -> Sheet:
    """Six columns of figures with their intervals, and names of columns far longer than these."""
    columns = ["method", *(f"Linear probe number {place} on what the encoder says" for place in range(6))]
    cells = [Cell(estimate=Estimate(value=0.1 * place, low=0.01, high=0.99, n=9)) for place in range(6)]
    named = [(f"m{row}", cells) for row in range(rows)]
    return Sheet(name="wide", caption="All", columns=columns, sections=[("first", named)], notes=["A note."])


def _heads(text: str) -> list[list[str]]:
    return [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.startswith("method & ")]


def test_to_latex__a_sheet_wider_than_a_page_becomes_several_tables_that_fit_it() -> None:
    text = to_latex([_wide()])
    _check_latex(text)
    heads = _heads(text)
    assert [len(head) for head in heads] == [6, 2]
    assert heads[0][1] == r"\shortstack[r]{Linear probe number\\0 on what the\\encoder says}"
    assert r"\quad m1 & 0.500 (0.010--0.990) \\" in text
    assert re.findall(r"\\caption\{(.*?)\}\\label\{(.*?)\}", text) == [
        ("All (1 of 2)", "tab:compare-wide"),
        ("All (2 of 2)", "tab:compare-wide-2"),
    ]
    assert text.count("A note.") == 1
    assert "Notes: below the first of these 2 tables." in text
    assert text.count(r"\ifdim\wd2>\linewidth\resizebox{\linewidth}{!}{\usebox2}") == 2


def test_to_latex__what_breaks_over_pages_cannot_be_scaled_and_has_fewer_columns() -> None:
    text = to_latex([_wide(LONGEST_TABLE + 1)])
    _check_latex(text)
    assert {len(head) for head in _heads(text)} == {4}
    assert text.count(r"\begin{longtable}") == 2
    assert "resizebox" not in text
    assert "graphicx" not in text


def test_latex_escape__keeps_what_needs_no_escape() -> None:
    assert latex_escape("maskedclip 0.8–0.9 →  −1") == r"maskedclip 0.8--0.9 $\rightarrow$ $-$1"


def test_print_tables__narrow_terminal_leaves_out_columns_and_says_so(compared: Comparison) -> None:
    wide, narrow = _shown(sheets(compared)[:1], 140), _shown(sheets(compared)[:1], 90)
    assert "balanced accuracy" in wide.split("Linear probe")[0]
    assert "balanced accuracy" not in narrow.split("Linear probe")[0]
    assert "AUPRC and balanced accuracy: in a wider terminal" in narrow
    assert NASTY in wide
    for text in (wide, narrow):
        assert text.count("reference") == 5
        assert "Bold: the highest" in text
