"""From a recipe's `training` to a Fabric: one process, DDP, or FSDP2, under torchrun, SLURM or alone."""

import logging
from datetime import timedelta
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from timm.models.vision_transformer import Block
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from maskedclip.errors import UserError
from maskedclip.recipe import Recipe
from maskedclip.recipe_sections import TrainingRecipe


class WholeInputs(MixedPrecision):
    """bf16 autocast of the modules, whose inputs come to them as they are.

    Fabric's own rounds every float that is given to a module: colour factors, labels, scores, features and gradients.
    """

    def __init__(self) -> None:
        super().__init__("bf16-mixed", "cpu")

    def convert_input(self, data: Any) -> Any:
        """Nothing is rounded; modules cast what they multiply."""
        return data


def precise_fabric(training: TrainingRecipe, **options: Any) -> Fabric:
    """A Fabric of a recipe's accelerator and precision; `options` are further ones of Fabric's."""
    if training.precision != "bf16-mixed":
        return Fabric(accelerator=training.accelerator, precision=training.precision, **options)
    mixed = WholeInputs()
    fabric = Fabric(accelerator=training.accelerator, plugins=[mixed], **options)
    mixed.device = fabric.device.type  # known now: the recipe may say `auto`
    return fabric


def make_fabric(recipe: Recipe) -> Fabric:
    """Devices, processes and precision as a recipe wants them; not launched yet.

    Raises:
        UserError: there is no such accelerator, or not so many devices.
    """
    training = recipe.training
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return precise_fabric(
            training, strategy=_strategy(training), devices=training.devices, num_nodes=training.num_nodes
        )
    except (ValueError, RuntimeError, TypeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"training.accelerator {training.accelerator}, training.strategy {training.strategy}, training.devices "
            f"{training.devices}: {line}; `maskedclip doctor` lists this machine's devices"
        ) from None


def _strategy(training: TrainingRecipe) -> Strategy | str:
    timeout = timedelta(minutes=training.timeout_minutes)
    if training.strategy == "fsdp":
        size: Any = "auto" if isinstance(training.devices, str) else training.devices * training.num_nodes
        if size == "auto":
            size = max(1, torch.cuda.device_count()) * training.num_nodes
        return ModelParallelStrategy(_shard, data_parallel_size=size, tensor_parallel_size=1, timeout=timeout)
    many = training.devices not in (1, "1") or training.num_nodes > 1
    if training.strategy == "ddp" or (training.strategy == "auto" and many and not _alone(training)):
        return DDPStrategy(timeout=timeout, gradient_as_bucket_view=True)
    return training.strategy


def _alone(training: TrainingRecipe) -> bool:
    """Whether `auto` means one process: a processor, or one GPU at most."""
    devices = training.devices
    if devices == "auto" and training.num_nodes == 1:
        return training.accelerator == "cpu" or torch.cuda.device_count() <= 1
    return False


def _shard(objective: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """FSDP2: each transformer block is a unit that is gathered when it runs, the rest is one more."""
    mesh = mesh["data_parallel"]
    for module in list(objective.modules()):
        if isinstance(module, Block) or type(module).__name__ == "BertLayer":
            fully_shard(module, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    return objective
