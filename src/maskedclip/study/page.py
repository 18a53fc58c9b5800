"""A study as one page of HTML, and its tables in Markdown, LaTeX and JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from maskedclip.errors import UserError
from maskedclip.evaluation.compare_read import MACRO
from maskedclip.evaluation.compare_sheets import Sheet
from maskedclip.evaluation.compare_table import to_latex, to_markdown
from maskedclip.evaluation.report_names import row_name
from maskedclip.html import Section, Table, escape, figure, grid, page, paragraph, picture
from maskedclip.study.cells import cell_folder, read_failure, read_result
from maskedclip.study.checks import changed_data, chosen_on_reported
from maskedclip.study.definition import Cell, Choice, Study
from maskedclip.study.figures import fraction_chart, validation_charts
from maskedclip.study.results import (
    SECTIONS,
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
    tables = [
        sheet for budget in budgets for sheet in (means_sheet(study, budget), chain_sheet(study, budget)) if sheet
    ]
    said = [line for budget in budgets for line in verdicts(study, budget)]
    progress = f"{finished} of {len(cells)} cells are finished"
    failed = [f"{cell.name} failed: {reason}" for cell in cells if (reason := read_failure(out, cell)) is not None]
    changed = [f"Warning: {line}" for line in changed_data(study, out, cells)]
    chosen = chosen_on_reported(study)
    warnings = [*failed, *changed, *([f"Warning: {chosen}"] if chosen else []), *best_step_notes(study)]
    warnings += _leakage(out, cells)
    told = said or [why_no_verdict(study, finished, len(cells))]
    sections = [Section(anchor="answer", title="What came out", body=_answer(study, told, progress, warnings))]
    for budget in budgets:
        sections.append(Section(anchor=budget.name, title=budget.title, body=_budget(study, budget)))
    sections.append(Section(anchor="how", title="How it was done", body=_how(study, out)))
    html = page(title=f"Study: {study.name.replace('_', ' ')}", subtitle=progress, sections=sections)
    write_whole(out / "study.html", html)
    write_whole(out / "study.md", to_markdown(tables))
    write_whole(out / "study.tex", to_latex(tables))
    write_whole(out / "results.json", json.dumps(_as_json(study, budgets, said, progress), indent=1) + "\n")
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
    notes = "".join(paragraph(line, "note") for line in warnings)
    return (paragraph(study.about) if study.about else "") + paragraph(f"{progress}.") + f"<ul>{lines}</ul>" + notes


def _budget(study: Study, budget: Budget) -> str:
    charts = []
    for section in SECTIONS:
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
    chain = chain_sheet(study, budget)
    return (
        _table(means_sheet(study, budget))
        + (grid(charts, "charts") if charts else "")
        + "".join(curves)
        + (_table(chain) if chain is not None else "")
    )


def _table(sheet: Sheet) -> str:
    rows = []
    for heading, entries in sheet.sections:
        for name, cells in entries:
            said = [f"<strong>{escape(c.words())}</strong>" if c.bold else escape(c.words()) for c in cells]
            rows.append([f"{escape(name)}<br><small>{escape(heading)}</small>", *said])
    return Table(caption=sheet.caption, columns=sheet.columns, rows=rows).render() + "".join(
        paragraph(note, "note") for note in sheet.notes
    )


def _how(study: Study, out: Path) -> str:
    given = json.loads((out / "study.json").read_text()) if (out / "study.json").is_file() else {}
    fields = given.pop("fields", {})
    entries: dict[str, object] = {
        **given,
        "protocols": ", ".join(study.protocols),
        "reference": study.reference,
        "chain": ", ".join(study.chain) or "none",
        **fields,
        **{f"size {name}": _choice(choice) for name, choice in study.sizes.items()},
        **{f"method {name}": _choice(choice) for name, choice in study.methods.items()},
    }
    rows = [[escape(name), escape(value)] for name, value in entries.items()]
    return Table(caption="The study's settings", columns=("what", "value"), rows=rows).render()


def _choice(choice: Choice) -> str:
    """The recipes that a method or size stacks, and the fields that it sets."""
    return " + ".join(choice.config) + (f" with {json.dumps(choice.fields)}" if choice.fields else "")


def _as_json(study: Study, budgets: Sequence[Budget], said: Sequence[str], progress: str) -> dict:
    result: dict = {"progress": progress, "reference": study.reference, "verdicts": list(said)}
    for budget in budgets:
        groups = []
        for group, found in budget.groups.items():
            reference = Group(size=group.size, text_fraction=group.text_fraction, method=study.reference)
            values, differences = {}, {}
            for section in SECTIONS:
                key = (*section, MACRO)
                if (value := budget.value(group, key)) is not None:
                    values["/".join(section)] = value.to_json()
                if group != reference and (lead := budget.difference(group, reference, key)) is not None:
                    differences["/".join(section)] = lead.to_json()
            recall = {
                "/".join(key[1:]): value.to_json()
                for key in budget.comparison.distributions[group.name]
                if key[0] == "retrieval" and (value := budget.value(group, key)) is not None
            }
            cells = [{name: value for name, value in entry.items() if name != "recipe"} for _, entry in found]
            figures = {"auroc": values, "minus_reference": differences, "recall": recall, "cells": cells}
            groups.append(vars(group) | figures)
        result[budget.name] = groups
    return result
