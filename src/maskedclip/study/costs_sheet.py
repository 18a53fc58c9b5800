"""What the groups of a study cost, and of which step the evaluated weights are."""

import statistics
from collections.abc import Sequence
from typing import Any

from maskedclip.evaluation.compare_sheets import NOTHING, Sheet
from maskedclip.evaluation.compare_sheets import Cell as TableCell
from maskedclip.study.definition import Cell, Study
from maskedclip.study.evaluated_step import at_the_start, best_trained, looks_at
from maskedclip.study.results import Budget, best_step_notes

_COLUMNS = ("method", "steps", "step evaluated", "minutes", "images/s", "memory, GB", "validation, start and best")


def costs_sheet(study: Study, budget: Budget) -> Sheet:
    """Of every group its steps, the step of each seed's evaluated weights, its cost, and the online probe."""
    sections: dict[str, list[tuple[str, list[TableCell]]]] = {}
    for group, found in budget.groups.items():
        row = (budget.row(group), [TableCell(text=text) for text in _costs(found)])
        sections.setdefault(group.texts, []).append(row)
    rates = "; the steps of the comparison at equal time follow from rates measured beforehand in alternation"
    rates = f"{rates} (rates.json)" if study.equal_time else ""
    return Sheet(
        name=f"costs-{budget.name}",
        caption=f"{budget.title.split(':')[0]}: what each method cost",
        columns=_COLUMNS,
        sections=list(sections.items()),
        notes=[
            *_choice_notes(study, budget),
            "Minutes: of training steps, mean over the seeds, on a machine that may have been shared" + rates + ".",
            "Memory: at the peak of training, of tensors on a GPU or of the process without its loaders on a "
            "processor.",
            "Validation, start and best: the online probe's AUROC before the first step and at its best after it, "
            "mean over the seeds.",
        ],
    )


def _costs(found: Sequence[tuple[Cell, dict[str, Any]]]) -> list[str]:
    seconds = statistics.mean(result["seconds"] for _, result in found)
    rate = statistics.mean(result["images_per_second"] or 0.0 for _, result in found)
    taken = [value for _, result in found if (value := result.get("peak_memory_bytes"))]
    evaluated = (
        NOTHING if result["evaluated_step"] is None else f"{result['evaluated_step']:,}" for _, result in found
    )
    validated = [
        [value for _, result in found if (value := figure(result["validation"])) is not None]
        for figure in (at_the_start, best_trained)
    ]
    return [
        f"{found[0][0].steps:,}",
        ", ".join(evaluated),
        f"{seconds / 60:.1f}",
        f"{rate:.0f}",
        f"{max(taken) / 1e9:.1f}" if taken else NOTHING,
        ", ".join(f"{statistics.mean(values):.3f}" if values else NOTHING for values in validated),
    ]


def _choice_notes(study: Study, budget: Budget) -> list[str]:
    """What chose the step of the evaluated weights, and of how many, where anything did."""
    if not (notes := best_step_notes(study)):
        return []
    looks: dict[str, set[int]] = {}
    for group, found in budget.groups.items():
        looks.setdefault(group.method, set()).update(looks_at(result["validation"]) for _, result in found)
    counts = ", ".join(f"{method} {'-'.join(map(str, sorted(found)))}" for method, found in looks.items())
    return [*notes, f"Step evaluated: of each seed; the best of so many validations: {counts}."]
