"""Replay a captured step alone: `python -m maskedclip.training.replay RUN/bad_steps/step-00000012`.

A step is a pure function of (seed, step, sample) and the weights before it; the capture holds the weights.
"""

import sys
from pathlib import Path

import torch

from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.lora import add_lora
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import build_objective
from maskedclip.training.checkpoint import read_checkpoint
from maskedclip.training.describe import training_texts
from maskedclip.training.optimizer import freeze, make_optimizer, parameter_groups
from maskedclip.training.rundir import RunDirectory
from maskedclip.training.weights import restore_tensors


def replay(capture: Path) -> dict[str, float]:
    """Run the captured step on the processor in float32.

    Args:
        capture: a folder below RUN/bad_steps.

    Returns: each loss, and the gradient norm of each module.

    Raises:
        UserError: the capture, its run or its store is missing.
    """
    run = RunDirectory(capture.parents[1])
    recipe = run.read_recipe()
    store = open_store(run.environment()["data"]["stores"])
    pools = make_pools(store, recipe)
    texts = training_texts(store, pools, recipe)
    model, tokenizer = build_model(recipe, texts)
    add_lora(model, recipe)
    objective = build_objective(recipe, model)
    freeze(objective, recipe)
    groups = parameter_groups(objective, recipe)
    tensors, progress = read_checkpoint(capture)
    try:
        restore_tensors(tensors, objective, make_optimizer(groups, recipe), groups)
    except ValueError as error:
        raise UserError(f"{capture}: does not fit its run ({error})") from None
    host = StepDataset(store, pools, recipe, tokenizer)[progress.step]
    batch = Batch.from_host(host)
    total, losses, _ = objective(batch, progress.step / max(1, recipe.training.steps))
    total.backward()
    figures = {name: float(value) for name, value in losses.items()}
    for group in groups:
        gradients = [p.grad.flatten() for p in group.parameters.values() if p.grad is not None]
        figures[f"gradient norm of {group.name}"] = float(torch.cat(gradients).norm()) if gradients else 0.0
    return figures


if __name__ == "__main__":
    try:
        for label, value in replay(Path(sys.argv[1]).resolve()).items():
            print(f"{label}: {value:g}")
    except (UserError, IndexError) as error:
        sys.exit(f"error: {error}; give a folder below RUN/bad_steps")
