"""A study as one page of HTML, and its tables in Markdown, LaTeX and JSON."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskedclip.errors import UserError
from maskedclip.evaluation.compare_models import RETRIEVAL
from maskedclip.evaluation.compare_read import MACRO
from maskedclip.evaluation.compare_sheets import Cell as TableCell
from maskedclip.evaluation.compare_sheets import Sheet
from maskedclip.evaluation.compare_table import to_latex, to_markdown
from maskedclip.evaluation.report_names import row_name
from maskedclip.html import Section, Table, escape, figure, grid, page, paragraph, picture
from maskedclip.study.cells import cell_folder, read_failure, read_result
from maskedclip.study.checks import changed_data, chosen_on_reported
from maskedclip.study.costs_sheet import costs_sheet
from maskedclip.study.definition import Cell, Study
from maskedclip.study.figures import fraction_chart, validation_charts
from maskedclip.study.protocols_sheet import protocols_sheet, silent_protocols
from maskedclip.study.provenance import how_it_was_done
from maskedclip.study.results import (
    Budget,
    Group,
    best_step_notes,
    chain_sheet,
    means_sheet,
    read_budgets,
    verdicts,
    why_no_verdict,
)
from maskedclip.whole_files import write_whole

_FEW = 4  # columns that leave room on the page for another one


def write_page(study: Study, out: Path, cells: Sequence[Cell]) -> tuple[Path, list[str]]:
    """Write OUT/study.html, study.md, study.tex and results.json from the cells that are finished.

    Returns: the page, and its main sentences.

    Raises:
        UserError: no cell is finished.
    """
    finished = sum(read_result(out, cell) is not None for cell in cells)
    if not finished:
        raise UserError(f"{out}: no cell is finished yet; run the study first")
    budgets = read_budgets(study, out, cells)
    tables = {budget.name: _sheets(study, budget) for budget in budgets}
    every = [sheet for found in tables.values() for sheet in found.values()]
    said = [line for budget in budgets for line in verdicts(study, budget)]
    progress = f"{finished} of {len(cells)} cells are finished"
    failed = [f"{cell.name} failed: {reason}" for cell in cells if (reason := read_failure(out, cell)) is not None]
    changed = [f"Warning: {line}" for line in changed_data(study, out, cells)]
    chosen = chosen_on_reported(study)
    warnings = [*failed, *changed, *([f"Warning: {chosen}"] if chosen else []), *best_step_notes(study)]
    warnings += [*silent_protocols(study, out, cells, budgets), *_leakage(out, cells)]
    told = said or [why_no_verdict(study, finished, len(cells))]
    sections = [Section(anchor="answer", title="What came out", body=_answer(study, told, progress, warnings))]
    for budget in budgets:
        sections.append(
            Section(anchor=budget.name, title=budget.title, body=_budget(study, budget, tables[budget.name]))
        )
    how = how_it_was_done(study, out, cells)
    sections.append(Section(anchor="how", title="How it was done", body=_how(how)))
    html = page(title=f"Study: {study.name.replace('_', ' ')}", subtitle=progress, sections=sections)
    write_whole(out / "study.html", html)
    write_whole(out / "study.md", to_markdown(every))
    write_whole(out / "study.tex", to_latex(every))
    write_whole(
        out / "results.json", json.dumps(_as_json(study, budgets, said, progress) | {"how": how}, indent=1) + "\n"
    )
    return out / "study.html", [progress, *told, *failed, *changed]


def _leakage(out: Path, cells: Sequence[Cell]) -> list[str]:
    """What the evaluations found of their test images in the training data, with the number of cells that say it."""
    told: Counter[str] = Counter()
    for cell in cells:
        path = cell_folder(out, cell) / "evaluation" / "results.json"
        if read_result(out, cell) is None or not path.is_file():
            continue
        found = json.loads(path.read_text()).get("about", {}).get("seen_in_pretraining")
        if found is not None:
            told[found.get("sentence") or found["reason"]] += 1
    return [f"{sentence} ({count} cell{'s' * (count > 1)})" for sentence, count in sorted(told.items())]


def _answer(study: Study, said: Sequence[str], progress: str, warnings: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in said)
    notes = "".join(
        paragraph(line, "warning" if line.startswith(("Warning", "Leakage")) else "note") for line in warnings
    )
    return (paragraph(study.about) if study.about else "") + paragraph(f"{progress}.") + f"<ul>{lines}</ul>" + notes


def _sheets(study: Study, budget: Budget) -> dict[str, Sheet]:
    """The tables of a comparison that it has, by what they tell, in their order in a paper."""
    found = {
        "means": means_sheet(study, budget),
        "chain": chain_sheet(study, budget),
        "protocols": protocols_sheet(study, budget),
        "costs": costs_sheet(study, budget),
    }
    return {name: sheet for name, sheet in found.items() if sheet is not None}


def _budget(study: Study, budget: Budget, sheets: Mapping[str, Sheet]) -> str:
    charts = []
    for section in budget.told:
        drawn = fraction_chart(study, budget, section)
        if drawn is not None:
            svg, said = drawn
            caption = (
                f"{row_name(*section)}: macro AUROC over the share of patients whose texts are kept, 95 % intervals."
            )
            charts.append(figure(picture(svg, "svg+xml", f"{caption} {said}"), caption))
    curves = []
    for methods, svg in validation_charts(study, budget):
        caption = f"Linear probe on validation rows during training: {methods}. One line a seed."
        curves.append(figure(picture(svg, "svg+xml", caption), caption, "wide"))
    parts = {name: _table(sheet) for name, sheet in sheets.items()}
    parts |= {"charts": grid(charts, "charts") if charts else "", "curves": "".join(curves)}
    return "".join(parts.get(name, "") for name in ("means", "charts", "chain", "protocols", "curves", "costs"))


def _table(sheet: Sheet) -> str:
    """With the heading of a section in a column of its own where there is room, which makes rows half as high."""
    apart = len(sheet.columns) <= _FEW
    rows = []
    for heading, entries in sheet.sections:
        for name, cells in entries:
            head = [_in_pieces(name), escape(heading)]
            head = head if apart else [f"{head[0]}<br><small>{head[1]}</small>"]
            rows.append([*head, *map(_cell, cells)])
    first, *rest = sheet.columns
    table = Table(caption=sheet.caption, columns=[first, *["with"] * apart, *rest], rows=rows)
    return table.render() + "".join(paragraph(note, "note") for note in sheet.notes)


def _cell(cell: TableCell) -> str:
    said = escape(cell.words()) if cell.estimate is None else _in_pieces(cell.words())
    return f"<strong>{said}</strong>" if cell.bold else said


def _in_pieces(words: str) -> str:
    """A value and what stands in brackets behind it: a narrow column breaks between them, and not inside."""
    value, bracket, rest = words.partition(" (")
    piece = f' <span class="estimate">({escape(rest)}</span>' if bracket else ""
    return f'<span class="estimate">{escape(value)}</span>{piece}'


def _how(entries: Mapping[str, str]) -> str:
    rows = [[escape(name), escape(value)] for name, value in entries.items()]
    return Table(caption="The study's settings", columns=("what", "value"), rows=rows).render()


def _as_json(study: Study, budgets: Sequence[Budget], said: Sequence[str], progress: str) -> dict:
    """All that the comparisons hold: every protocol, feature and label, not only what the tables show."""
    result: dict = {"progress": progress, "reference": study.reference, "verdicts": list(said), "labels": {}}
    for budget in budgets:
        result["labels"][budget.name] = {
            "/".join(section): {"n": len(labels), "names": labels}
            for section in budget.sections
            for labels in [budget.labels(section)]
        }
        result[budget.name] = [_group_as_json(study, budget, group) for group in budget.groups]
    return result


def _group_as_json(study: Study, budget: Budget, group: Group) -> dict:
    reference = budget.reference(study, group)
    keys = list(budget.comparison.distributions[group.name])
    values = {key: budget.value(group, key) for key in keys}
    leads = {key: budget.difference(group, reference, key) if group != reference else None for key in keys}
    cells = [{name: value for name, value in entry.items() if name != "recipe"} for _, entry in budget.groups[group]]
    parts: dict[str, dict] = {}
    for found, ending in ((values, ""), (leads, "_minus_reference")):
        macros, labels, recall = {}, {}, {}
        for key, estimate in found.items():
            section = "/".join(key[:2])
            if estimate is None:
                continue
            if key[0] == RETRIEVAL:
                recall["/".join(key[1:])] = estimate.to_json()
            elif key[2] == MACRO:
                macros[section] = estimate.to_json()
            else:
                labels.setdefault(section, {})[key[2]] = estimate.to_json()
        parts["minus_reference" if ending else "auroc"] = macros
        parts |= {f"recall{ending}": recall, f"per_label{ending}": labels}
    return vars(group) | parts | {"cells": cells}
