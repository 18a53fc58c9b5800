"""What the validations of a cell tell: at the start, at their best, and of which step the evaluated weights are.

A curve is the online probe on validation rows over the steps, those of a first stage before those of the last, each
with its own step 0: the weights that the stage begins with, which the trainer never keeps.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskedclip.recipe import Recipe
from maskedclip.training.rundir import RunDirectory

VALIDATION = "probe_auroc"
Curve = Sequence[Mapping[str, Any]]


def at_the_start(curve: Curve) -> float | None:
    """Before the first step of the first stage; None where that was not validated."""
    return curve[0][VALIDATION] if curve and curve[0]["step"] == 0 else None


def best_trained(curve: Curve) -> float | None:
    """The highest of the last stage after its first step; None where nothing was validated."""
    return max((entry[VALIDATION] for entry in _trained(curve)), default=None)


def looks_at(curve: Curve) -> int:
    """Of how many steps the best one is chosen: the last stage's validations after its first step."""
    return len(_trained(curve))


def training_shares(steps: int, curve: Curve) -> list[float]:
    """How much of a cell's training was done at each entry, 0 to 1.

    Args:
        steps: of the cell, both stages together.
        curve: its validations, the last of them after its last step.
    """
    begins = max((place for place, entry in enumerate(curve) if entry["step"] == 0), default=0)
    before = steps - curve[-1]["step"] if begins else 0
    return [(entry["step"] + (before if place >= begins else 0)) / steps for place, entry in enumerate(curve)]


def evaluated_step(recipe: Recipe, curve: Curve, run: Path) -> int | None:
    """The step of the weights in RUN/model, counted from the first step of the first stage.

    As RUN/model/config.json tells it; where an earlier version left it out, with `training.best_metric` that of the
    first highest validation, as the trainer keeps it, else the last.

    Args:
        recipe: of the cell.
        curve: its validations.
        run: its folder; its metrics.jsonl is read for another metric than the curve's.

    Returns: None where what the metric was has not been kept.
    """
    training = recipe.training
    before = round(training.steps * training.first_stage_share) if training.first_stage is not None else 0
    told = run / "model" / "config.json"
    if told.is_file() and (step := json.loads(told.read_text()).get("step")) is not None:
        return before + step
    if training.best_metric is None or not training.validate_every:
        return training.steps
    entries: Curve = _trained(curve)
    if training.best_metric != VALIDATION:
        lines = RunDirectory(run).read_metrics()
        entries = [line for line in lines if line["kind"] == "validation" and line["step"] > 0]
    known = [(entry[training.best_metric], entry["step"]) for entry in entries if training.best_metric in entry]
    if not known:
        return None
    best = max(value for value, _ in known)
    return before + next(step for value, step in known if value == best)


def _trained(curve: Curve) -> list[Mapping[str, Any]]:
    """The entries of the last stage after its step 0."""
    begins = max((place for place, entry in enumerate(curve) if entry["step"] == 0), default=-1)
    return list(curve[begins + 1 :])
