"""A run from its start to its end: checks what is given, runs the stages of the recipe, leaves a run directory."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from maskedclip.data.label_columns import resolve_labels
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.lora import add_lora
from maskedclip.models.maskedclip import build_model
from maskedclip.models.saving import read_model
from maskedclip.objectives.pretraining import BuildObjective, PretrainingObjective, build_objective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.optimizer import freeze
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
        resume: go on from the newest whole checkpoint in `out`, or start anew when there is none.
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
    if run.is_used() and not run.has_barely_begun():
        if run.recipe_file.is_file() and run.environment_file.is_file():
            run.check_resumable(recipe, store)
        elif not (out / "first_stage").is_dir():
            raise UserError(f"--out {out}: holds something that is no run; choose another folder")
    encoder_weights = None
    if recipe.training.first_stage is not None:
        first = pretrain(
            _first_stage(recipe, build), data, out / "first_stage", resume=True, command=command, build=build
        )
        if not first.complete:
            return replace(first, run=out, reason=f"the first stage ended early: {first.reason}")
        encoder_weights = read_model(first.run / "model").model.encoder.state_dict()
    return Trainer(recipe, store, run, command or sys.argv, encoder_weights, build).train()


def _first_stage(recipe: Recipe, build: BuildObjective) -> Recipe:
    """The recipe that trains the image encoder first, by another method, for its share of the steps.

    Its losses are the method's; how patches are hidden, shown and painted is the user's.

    Raises:
        UserError: an entry of training.lr_factors matches no parameter of the second stage.
    """
    training, objective = recipe.training, recipe.objective
    assert training.first_stage is not None
    method = load_recipe([training.first_stage])
    kept = ["mask_ratio", "decoded_share", "normalise_pixels", "ema_decay"]
    if not objective.chosen_masking.reads_text:  # texts are not read yet
        kept += ["masking", "masking_options"]
    first = replace(
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
        objective=replace(method.objective, **{name: getattr(objective, name) for name in kept}),
        training=replace(training, first_stage=None, steps=round(training.steps * training.first_stage_share)),
    )
    if not training.lr_factors:
        return first
    freeze(_untrained(recipe, build), recipe)  # a mistyped name shall not wait for the second stage
    names = [name for name, _ in _untrained(first, build).named_parameters()]
    factors = {
        pattern: factor
        for pattern, factor in training.lr_factors.items()
        if any(re.search(pattern, name) for name in names)
    }
    return first.replace(training={"lr_factors": factors})


def _untrained(recipe: Recipe, build: BuildObjective) -> PretrainingObjective:
    """The objective of a recipe with fresh weights and a small vocabulary: its parameters have the names of a run's."""
    model, _ = build_model(recipe.replace(model={"image_weights": None}), ["a text"])
    add_lora(model, recipe)
    return build(recipe, model)
