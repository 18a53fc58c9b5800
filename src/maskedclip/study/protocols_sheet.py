"""The protocols of a study that its sentences are not about: k-NN, few-shot, fine-tuning, the dense probe, ..."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskedclip.evaluation.compare_models import RETRIEVAL
from maskedclip.evaluation.compare_read import MACRO
from maskedclip.evaluation.compare_sheets import Cell as TableCell
from maskedclip.evaluation.compare_sheets import Sheet
from maskedclip.evaluation.report_names import PROTOCOLS, row_name
from maskedclip.study.cells import cell_folder, read_result
from maskedclip.study.definition import Cell, Study
from maskedclip.study.results import SECTIONS, Budget, common_notes, lead_cell

_DENSE = "dense"


def protocols_sheet(study: Study, budget: Budget) -> Sheet | None:
    """Every further protocol and feature, by the names that `compare` gives them, with the leads on the reference.

    None where the evaluations hold none but those of the first table.
    """
    others = [section for section in budget.sections if section not in SECTIONS]
    if not others:
        return None
    sections: dict[str, list[tuple[str, list[TableCell]]]] = {}
    for section in others:
        key = (*section, MACRO)
        for group in budget.groups:
            lead = lead_cell(budget, group, budget.reference(study, group), key)
            row = (budget.row(group), [TableCell(estimate=budget.value(group, key)), lead])
            sections.setdefault(f"{row_name(*section)}; {group.texts}", []).append(row)
    notes = common_notes(study, budget, others)
    if any(section[0] == _DENSE for section in others):
        notes.append(
            f"{PROTOCOLS[_DENSE]}: the mean over the test images of the AUROC over the pixels of each, of every mask; "
            "its labels are the masks."
        )
    return Sheet(
        name=f"protocols-{budget.name}",
        caption=f"{budget.title.split(':')[0]}: the other protocols, macro AUROC with 95 % intervals",
        columns=["method", "AUROC", f"AUROC minus {study.reference}"],
        sections=list(sections.items()),
        notes=notes,
    )


def silent_protocols(study: Study, out: Path, cells: Sequence[Cell], budgets: Sequence[Budget]) -> list[str]:
    """The study's protocols of which no table tells anything, each with its reason as the evaluations give it."""
    told = {key[0] for budget in budgets for key in budget.comparison.keys if key[2] == MACRO or key[0] == RETRIEVAL}
    silent = [protocol for protocol in study.protocols if protocol not in told]
    evaluations = [_results(out, cell) for cell in cells] if silent else []
    lines = []
    for protocol in silent:
        found = [part[protocol] for part in evaluations if isinstance(part.get(protocol), dict)]
        reasons = dict.fromkeys(str(part["skipped"]) for part in found if "skipped" in part)
        why = "; ".join(reasons) or (
            "the evaluations kept no scores that can be paired (another version made them?); their own figures are in "
            "cells/*/evaluation/results.json"
        )
        lines.append(f"{PROTOCOLS[protocol]}: in no table: {why}.")
    return lines


def _results(out: Path, cell: Cell) -> dict[str, Any]:
    """What a finished cell's evaluation wrote; empty where there is nothing."""
    path = cell_folder(out, cell) / "evaluation" / "results.json"
    return json.loads(path.read_text()) if read_result(out, cell) is not None and path.is_file() else {}
