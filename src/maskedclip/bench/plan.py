"""What a run will need, from the recipe and from rates that were measured: memory, storage, network, hours.

Operations are counted on this machine with a batch of two and grow with the batch; nothing is trained.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from maskedclip.bench.step import Workbench, make_workbench
from maskedclip.console import minutes
from maskedclip.errors import UserError
from maskedclip.recipe import Recipe

STORED_BYTES = {256: 20_000, 512: 60_000}
"""An image of a store, JPEG at curation's quality: 13.6 kB (ODIR-5K at 256 px) to 20 kB, measured; 512 px by area."""


@dataclass(frozen=True)
class Plan:
    """All in bytes, seconds and numbers.

    weights, gradients, optimizer, activations: memory of one device.  store: on disk.  checkpoint: one of them.
    gradients_sent: by each device a step.  features_sent: by each device a step.  operations: of a step, all devices.
    """

    parameters: int
    images: int
    epochs: float
    steps: int
    batch: int
    devices: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    store: int
    checkpoint: int
    gradients_sent: int
    features_sent: int
    operations: float
    images_per_second: float
    seconds: float
    source: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def make_plan(
    recipe: Recipe,
    *,
    images: int,
    devices: int = 1,
    epochs: float | None = None,
    measured: Mapping[str, Any] | None = None,
    rate: float | None = None,
    operations_per_second: float | None = None,
) -> Plan:
    """Compute what a run needs.

    Args:
        recipe: what is trained.
        images: in the store.
        devices: all machines together.
        epochs: passes over the images; None takes the recipe's steps.
        measured: what `maskedclip bench --json` wrote for the same recipe.
        rate: images a second of one device, measured.
        operations_per_second: that one device reaches in a step, measured.

    Raises:
        UserError: no rate was given, or it belongs to another recipe.
    """
    batch = sum(recipe.batch_sizes)
    if batch % devices:
        raise UserError(f"--devices {devices}: the batch of {batch} does not divide over them; give a divisor")
    steps = recipe.training.steps if epochs is None else max(1, round(images * epochs / batch))
    small = _small(recipe)
    bench = make_workbench(small)
    parameters = sum(p.numel() for p in bench.objective.parameters())
    trained = sum(p.numel() for p in bench.objective.parameters() if p.requires_grad)
    operations = _operations(bench) * batch / len(bench.batch.image)
    speed, source = _speed(recipe, operations / batch, measured, rate, operations_per_second)
    sharded = devices if recipe.training.strategy == "fsdp" else 1
    widths = recipe.model.embed_dim if recipe.reads_text else 0
    per_image = STORED_BYTES.get(256 if recipe.data.size <= 256 else 512, 60_000)
    return Plan(
        parameters=parameters,
        images=images,
        epochs=steps * batch / images,
        steps=steps,
        batch=batch,
        devices=devices,
        weights=4 * parameters // sharded,
        gradients=4 * trained // sharded,
        optimizer=8 * trained // sharded,
        activations=round(_activations(bench) * batch / devices / recipe.training.micro_batches),
        store=images * per_image,
        checkpoint=4 * parameters + 8 * trained,
        gradients_sent=0 if devices == 1 else round(2 * (devices - 1) / devices * 4 * trained),
        features_sent=0 if devices == 1 else 4 * 2 * 2 * widths * recipe.batch_sizes[0] // devices * (devices - 1),
        operations=operations,
        images_per_second=speed * devices,
        seconds=steps * batch / (speed * devices),
        source=source,
    )


def _small(recipe: Recipe) -> Recipe:
    """The same step for two paired and two unpaired images, on the processor."""
    paired, unpaired = recipe.batch_sizes
    data = {"batch_paired": 2 if paired or recipe.data.pool == "all" else 0, "batch_unpaired": 2 if unpaired else 0}
    training = {"accelerator": "cpu", "micro_batches": 1, "compile": False, "strategy": "auto", "devices": 1}
    return recipe.replace(data=data, training=training)


def _operations(bench: Workbench) -> float:
    counter = FlopCounterMode(display=False)
    with counter:
        bench.step()
    return counter.get_total_flops()


def _activations(bench: Workbench) -> float:
    """Bytes an image that the backward pass keeps: distinct storages that autograd saves, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in bench.objective.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    copies = sum(2 * p.numel() for p in bench.objective.parameters() if p.ndim >= 2)  # autocast's bf16 weights
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), bench.fabric.autocast():
        total, _, _ = bench.objective(bench.batch, 0.5)
    del total
    return max(0, sum(kept.values()) - copies) / len(bench.batch.image)


def _speed(
    recipe: Recipe,
    operations: float,
    measured: Mapping[str, Any] | None,
    rate: float | None,
    operations_per_second: float | None,
) -> tuple[float, str]:
    """Images a second of one device, and where the figure is from."""
    if rate is not None:
        return rate, f"--rate {rate:g} images/s a device"
    if operations_per_second is not None:
        return operations_per_second / operations, f"--tflops {operations_per_second / 1e12:g} reached a device"
    if measured is not None:
        step = measured.get("step", {})
        if "operations_per_second" not in step:
            raise UserError("--bench: holds no step; write it with `maskedclip bench --only step --json FILE`")
        reached = step["operations_per_second"]
        name = measured.get("machine", {}).get("gpu") or measured.get("machine", {}).get("processor")
        return reached / operations, f"{reached / 1e12:.3g} TFLOP/s measured in a step on {name}"
    raise UserError(
        "--rate, --tflops or --bench: a rate is needed; `maskedclip bench --only step --json FILE` measures one"
    )


def as_text(plan: Plan) -> str:
    """The plan for a terminal and for the documentation."""
    memory = plan.weights + plan.gradients + plan.optimizer + plan.activations
    sent = plan.gradients_sent + plan.features_sent
    step_seconds = plan.batch / plan.images_per_second
    lines = [
        f"{plan.images:,} images, {plan.epochs:.3g} passes: {plan.steps:,} steps of {plan.batch} on {plan.devices} "
        f"device{'s' if plan.devices > 1 else ''}",
        f"model      {plan.parameters / 1e6:,.1f} million parameters, "
        f"{plan.operations / plan.batch / 1e9:,.0f} GFLOP an image and step",
        f"memory     {_size(memory)} a device: weights {_size(plan.weights)}, gradients {_size(plan.gradients)}, "
        f"optimizer {_size(plan.optimizer)}, activations {_size(plan.activations)}",
        f"storage    store {_size(plan.store)}, {_size(plan.checkpoint)} a checkpoint",
        f"network    {_size(sent)} a step and device"
        + (f", {sent / step_seconds * 8 / 1e9:.2g} Gbit/s while training" if sent else ""),
        f"time       {minutes(plan.seconds)} at {plan.images_per_second:,.0f} images/s ({plan.source})",
    ]
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    return ""
