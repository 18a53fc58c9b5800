"""A run from its start to its end: checks what is given, runs the stages of the recipe, leaves a run directory."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from maskedclip.data.label_columns import resolve_labels
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.saving import read_model
from maskedclip.objectives.pretraining import BuildObjective, build_objective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.rundir import RunDirectory
from maskedclip.training.trainer import Finished, Trainer


def pretrain(
    recipe: Recipe,
    data: Path | str | Sequence[Path | str],
    out: Path,
    *,
    resume: bool = False,
    command: Sequence[str] | None = None,
    build: BuildObjective = build_objective,
) -> Finished:
    """Train a recipe on one store or several, and leave a run directory.

    Args:
        recipe: what to do.
        data: stores.
        out: the run directory; must be new or empty unless `resume`.
        resume: go on from the newest whole checkpoint in `out`, or start when there is none.
        command: recorded in environment.json.
        build: makes the objective; give your own to try another masking, target or loss (see docs/extending.md).

    Raises:
        UserError: what was given cannot be used, or the run cannot go on.
    """
    run = RunDirectory(out)
    store = open_store(data)
    recipe = resolve_labels(recipe, store)
    if run.is_used() and not resume:
        raise UserError(f"--out {out}: exists and is not empty; go on with --resume true, or choose another folder")
    if run.recipe_file.is_file() and run.environment_file.is_file():
        run.check_resumable(recipe, store)
    elif run.is_used() and not (out / "first_stage").is_dir():
        raise UserError(f"--out {out}: holds something that is no run; choose another folder")
    encoder_weights = None
    if recipe.training.first_stage is not None:
        first = pretrain(_first_stage(recipe), data, out / "first_stage", resume=True, command=command, build=build)
        if not first.complete:
            return replace(first, run=out, reason=f"the first stage ended early: {first.reason}")
        encoder_weights = read_model(first.run / "model").model.encoder.state_dict()
    return Trainer(recipe, store, run, command or sys.argv, encoder_weights, build).train()


def _first_stage(recipe: Recipe) -> Recipe:
    """The recipe that trains the image encoder first, by another method, for its share of the steps."""
    training = recipe.training
    assert training.first_stage is not None
    method = load_recipe([training.first_stage])
    return replace(
        recipe,
        data=replace(
            recipe.data,
            pool=method.data.pool,
            texts=None,
            batch_texts=0,
            labels=(),
            pairs=None,
            images_per_document=1,
        ),
        model=replace(recipe.model, bridge=method.model.bridge, lora_rank=0),
        objective=method.objective,
        training=replace(training, first_stage=None, steps=round(training.steps * training.first_stage_share)),
    )
