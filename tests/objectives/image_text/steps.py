"""A first step of a recipe with one more loss: whole, in parts, and on two ranks over gloo."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.recipe import Recipe, load_recipe
from tests.stores import SENTENCES, TINY

EXACT = ["--training.precision", "32-true", "--data.batch_paired", "8", "--data.batch_unpaired", "4"]


def recipe_with(name: str, options: dict[str, Any] | None = None, *more: str, clip_weight: float = 0.0) -> Recipe:
    """`clip` at the size of `TINY` with a term beside it, or instead of it."""
    terms = ["--objective.terms", json.dumps({name: options or {}}), "--objective.clip_weight", str(clip_weight)]
    return load_recipe(["clip", "tiny"], [*TINY, *EXACT, *terms, *more])


def first_step(
    folder: Path, recipe: Recipe, rank: int = 0, world: int = 1, step: int = 0
) -> tuple[PretrainingObjective, Batch]:
    """The objective of a recipe and what a rank sees in a step."""
    store = open_store(folder)
    model, tokenizer = build_model(recipe, SENTENCES)
    host = StepDataset(store, make_pools(store, recipe), recipe, tokenizer, rank, world)[step]
    return build_objective(recipe, model), Batch.from_host(host)


def term_of(objective: PretrainingObjective, name: str) -> Any:
    """One of its terms, with attributes of its own."""
    return objective.terms[name]


def gradients(objective: PretrainingObjective, batch: Batch, module: Any = None) -> dict[str, Tensor]:
    """The gradient of every trained parameter after one backward pass, and the loss as `loss`."""
    total, _, _ = (module or objective)(batch, 0.5)
    total.backward()
    found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
    return found | {"loss": total.detach()}


def of_two_ranks(folder: Path, recipe: Recipe, scratch: Path) -> dict[str, Tensor]:
    """`gradients` of DDP on two forked processes, the loss their mean; a parameter without work would be an error."""

    def work(rank: int) -> dict[str, Tensor]:
        objective, batch = first_step(folder, recipe, rank, 2)
        return gradients(objective, batch, DistributedDataParallel(objective))

    found = _on_two_ranks(work, scratch)
    for name, value in found[0].items():
        if name != "loss":
            torch.testing.assert_close(found[1][name], value)
    return found[0] | {"loss": (found[0]["loss"] + found[1]["loss"]) / 2}


def _on_two_ranks(work: Callable[[int], dict[str, Tensor]], scratch: Path) -> list[dict[str, Tensor]]:
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                place, patience = f"file://{scratch / 'store'}", timedelta(seconds=60)
                dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2, timeout=patience)
                torch.save(work(rank), scratch / f"{rank}.pt")
                dist.barrier()
                code = 0
            except BaseException as error:
                (scratch / f"{rank}.txt").write_text(repr(error))
            finally:
                os._exit(code)
        children.append(child)
    ended = time.monotonic() + 90
    for child in children:
        while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < ended:
            time.sleep(0.02)
        if status[0] == 0:
            os.kill(child, 9)
            os.waitpid(child, 0)
    told = [path.read_text() for path in scratch.glob("*.txt")]
    assert not told, told
    return [torch.load(scratch / f"{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Equal names; values equal to `tolerance` of the largest gradient."""
    assert found.keys() == expected.keys()
    scale = max(float(value.abs().max()) for name, value in expected.items() if name != "loss")
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}"
        )
