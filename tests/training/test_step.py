"""A step in parts equals a whole one; a bad step leaves no trace; a step never waits for the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.optimizer import make_optimizer, parameter_groups, set_learning_rates
from maskedclip.training.parallel import precise_fabric
from maskedclip.training.step import Outcome, Stepper
from maskedclip.training.weights import WeightAverage
from tests.stores import SENTENCES, TINY, make_store

EXACT = ["--data.batch_paired", "16", "--data.batch_unpaired", "8", "--training.precision", "32-true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("step") / "s", rows=96)


class World:
    """A run without its loop."""

    def __init__(self, folder: Path, recipe: Recipe, *, on_device: bool = False, average: bool = False) -> None:
        self.recipe = recipe
        store = open_store(folder)
        model, tokenizer = build_model(recipe, SENTENCES if recipe.reads_text else [])
        self.objective: PretrainingObjective = build_objective(recipe, model)
        self.data = StepDataset(store, make_pools(store, recipe), recipe, tokenizer)
        fabric = precise_fabric(recipe.replace(training={"accelerator": "cpu"}).training, devices=1)
        module = fabric.setup_module(self.objective)
        self.groups = parameter_groups(self.objective, recipe)
        self.optimizer = make_optimizer(self.groups, recipe)
        self.average = WeightAverage(model, 0.9) if average else None
        wrapped: Any = fabric.setup_optimizers(self.optimizer)
        self.stepper = Stepper(
            fabric,
            module,
            self.objective,
            self.optimizer,
            wrapped,
            clip_norm=1.0,
            parts=recipe.training.micro_batches,
            average=self.average,
            skip_on_device=on_device,
        )

    def batch(self, step: int) -> Batch:
        return Batch.from_host(self.data[step])

    def step(self, step: int) -> Outcome:
        set_learning_rates(self.optimizer, self.groups, step, self.recipe)
        return self.stepper(self.batch(step), 0.5)

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.objective.state_dict().items()}


def _gradients(world: World, step: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    losses, report = world.stepper._gradients(world.batch(step), 0.5)
    named = world.objective.named_parameters()
    return losses | report, {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model.projection_norm", "none"],
        ["--model.projection_norm", "none", "--objective.mkd_loss", "prototype_kl"],
        ["--objective.mkd_teacher", "ema", "--data.colour_jitter", "0.3", "--objective.decoded_share", "0.5"],
    ],
)
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_stepper__parts_equal_the_whole_batch(folder: Path, options: list[str], parts: int) -> None:  # P6
    whole = World(folder, load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT, *options]))
    split = ["--training.micro_batches", str(parts)]
    pieces = World(folder, load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT, *options, *split]))
    expected, gradients = _gradients(whole)
    told, sums = _gradients(pieces)
    assert {"clip", "mim", "mkd", "loss", "clip_accuracy"} <= set(told)
    for name, value in expected.items():
        if name != "target_spread":  # a standard deviation, told for each part
            assert told[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert sums.keys() == gradients.keys()
    scale = max(float(value.abs().max()) for value in gradients.values())
    for name, value in gradients.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")
    statistics = {name: value for name, value in whole.state().items() if "standardise" in name}
    for name, value in statistics.items():  # a batch that is looked at twice is followed once
        torch.testing.assert_close(pieces.state()[name], value)


@pytest.mark.parametrize("method", ["maskedclip", "clip"])
@pytest.mark.parametrize("parts", [2, 4])
def test_stepper__parts_in_bfloat16_equal_the_whole_batch_but_for_rounding(
    folder: Path, method: str, parts: int
) -> None:
    mixed = [*TINY, *EXACT[:-1], "bf16-mixed"]
    whole = World(folder, load_recipe([method, "tiny"], mixed))
    pieces = World(folder, load_recipe([method, "tiny"], [*mixed, "--training.micro_batches", str(parts)]))
    expected, gradients = _gradients(whole)
    told, sums = _gradients(pieces)
    assert told["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-2)
    assert sums.keys() == gradients.keys()
    scale = max(float(value.norm()) for value in gradients.values())
    for name, value in gradients.items():
        away = float((sums[name] - value).norm())
        assert away < 0.05 * float(value.norm()) + 1e-3 * scale, f"{name}: {away:g} of {float(value.norm()):g}"
    assert not bool(pieces.step(0).skipped)


@pytest.mark.parametrize("method", ["mae", "clip"])
def test_stepper__parts_of_methods_with_fewer_losses(folder: Path, method: str) -> None:
    whole = World(folder, load_recipe([method, "tiny"], [*TINY, *EXACT]))
    pieces = World(folder, load_recipe([method, "tiny"], [*TINY, *EXACT, "--training.micro_batches", "4"]))
    expected, gradients = _gradients(whole)
    told, sums = _gradients(pieces)
    assert told["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    scale = max(float(value.abs().max()) for value in gradients.values())
    for name, value in gradients.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-4, atol=1e-5 * scale)


def test_stepper__gradient_checkpointing_changes_no_bit(folder: Path) -> None:
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT])
    plain, frugal = World(folder, recipe), World(folder, recipe)
    frugal.objective.recompute_blocks()
    frugal.objective.train()  # transformers recomputes in training only
    saved: dict[str, int] = {}
    found = []
    for name, world in (("plain", plain), ("frugal", frugal)):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            found.append(_gradients(world)[1])
        saved[name] = sum(sizes)
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert saved["frugal"] < saved["plain"] / 2


@pytest.mark.parametrize("on_device", [False, True])
def test_stepper__a_bad_step_leaves_no_trace(folder: Path, on_device: bool) -> None:  # P1
    options = ["--objective.mkd_teacher", "ema"]
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT, *options])
    world = World(folder, recipe, on_device=on_device, average=True)
    world.step(0)
    before, average = world.state(), {k: v.clone() for k, v in world.average.tensors.items()}  # type: ignore[union-attr]
    healthy = world.objective.mean.clone()
    world.objective.mean.fill_(float("nan"))
    assert world.step(1).skipped.item() == 1
    world.objective.mean.copy_(healthy)
    after = world.state()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(torch.equal(value, world.average.tensors[name]) for name, value in average.items())  # type: ignore[union-attr]
    steps = {float(state["step"]) for state in world.optimizer.state.values()}
    assert steps == {1.0}
    if on_device:  # until somebody has looked, later steps change nothing either
        assert world.step(2).skipped.item() == 1
        world.stepper.resume_updates()
    assert world.step(2).skipped.item() == 0
    assert any(not torch.equal(value, world.state()[name]) for name, value in before.items())


def test_stepper__skipping_on_the_device_is_the_same_step(folder: Path) -> None:
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT])
    worlds = [World(folder, recipe, on_device=on_device) for on_device in (False, True)]
    for world in worlds:
        for step in range(3):
            world.step(step)
    assert all(torch.equal(value, worlds[1].state()[name]) for name, value in worlds[0].state().items())


@pytest.mark.parametrize("parts", ["1", "2"])
def test_stepper__never_waits_for_the_device(folder: Path, parts: str) -> None:
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT, "--training.micro_batches", parts])
    world = World(folder, recipe, on_device=True, average=True)
    world.step(0)  # what is made once is made now
    batch = world.batch(1)
    waits: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            name = str(function)
            if any(mark in name for mark in ("_local_scalar_dense", "nonzero", "unique", "masked_select")):
                waits.append(name)
            return function(*args, **(kwargs or {}))

    with Watch():
        world.stepper(batch, 0.5)
    assert waits == []
