"""Tensors of a run under names: whole on one rank, or sharded over many (FSDP2); and their moving average."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from maskedclip.models.lora import lora_scaling, merged
from maskedclip.models.maskedclip import MaskedCLIP, model_from_config
from maskedclip.training.optimizer import Group

AVERAGE = "average/"


def run_tensors(
    objective: nn.Module, optimizer: torch.optim.Optimizer, groups: list[Group], average: "WeightAverage | None" = None
) -> dict[str, Tensor]:
    """All that a run's future depends on: weights, optimizer state, moving average; some may be sharded."""
    tensors: dict[str, Tensor] = {f"objective/{name}": value for name, value in objective.state_dict().items()}
    for group in groups:
        for name, parameter in group.parameters.items():
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{name}/{key}"] = value
    if average is not None:
        tensors |= {AVERAGE + name: value for name, value in average.tensors.items()}
    return tensors


def restore_tensors(
    tensors: dict[str, Tensor],
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: list[Group],
    average: "WeightAverage | None" = None,
) -> None:
    """Put whole tensors back, wherever and however sharded they live now.

    Raises:
        ValueError: names or shapes are not those of this run.
    """
    weights = _below(tensors, "objective/")
    _copy_all(weights, objective.state_dict(), "weights")
    kept: dict[str, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimizer/").items():
        parameter, _, key = name.rpartition("/")
        kept.setdefault(parameter, {})[key] = value
    for group in groups:
        for name, parameter in group.parameters.items():
            if name in kept:
                optimizer.state[parameter] = {
                    key: value.clone() if value.ndim == 0 else _like(parameter, value)
                    for key, value in kept[name].items()
                }
                if parameter.device.type == "cuda":  # the fused kernel keeps its step count beside the weights
                    state = optimizer.state[parameter]
                    state["step"] = state["step"].to(parameter.device)
    if average is not None:
        _copy_all(_below(tensors, AVERAGE), average.tensors, "moving average")


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _copy_all(found: dict[str, Tensor], targets: dict[str, Tensor], what: str) -> None:
    if found.keys() != targets.keys():
        different = sorted(found.keys() ^ targets.keys())
        raise ValueError(f"its {what} are of another model: {', '.join(different[:3])}")
    for name, target in targets.items():
        if found[name].shape != target.shape:
            raise ValueError(f"{name} has the shape {tuple(found[name].shape)}, not {tuple(target.shape)}")
        _copy(found[name], target)


@torch.no_grad()
def _copy(whole: Tensor, target: Tensor) -> None:
    if isinstance(target, DTensor):
        target.to_local().copy_(_own_shard(whole, target))
    else:
        target.copy_(whole)


def _like(parameter: Tensor, whole: Tensor) -> Tensor:
    made = torch.zeros_like(parameter)
    _copy(whole, made)
    return made


def _own_shard(whole: Tensor, target: DTensor) -> Tensor:
    """This rank's rows of a tensor, as FSDP2 deals them out: chunks of the first dimension, the last ones shorter."""
    size = target.to_local().shape[0]
    chunk = -(-whole.shape[0] // dist.get_world_size())
    start = min(dist.get_rank() * chunk, whole.shape[0])
    return whole[start : start + size]


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded, on the processor; all ranks must ask."""
    full: Any = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().contiguous()


def is_sharded(module: nn.Module) -> bool:
    """Whether any weight of a module is sharded over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak and Juditsky 1992), a step: a = d a + (1 - d) w.

    The average is what the run directory's `model` holds and what the online probes score, when the recipe wants it.
    """

    def __init__(self, model: MaskedCLIP, decay: float) -> None:
        self.decay = decay
        self._live = model
        self.tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def follow(self, skipped: Tensor | None = None) -> None:
        """After an optimizer step.

        Args:
            skipped: 1.0 where the step left the weights as they were, ().
        """
        share: Any = 1 - self.decay if skipped is None else (1 - self.decay) * (1 - skipped)
        for name, value in self._live.state_dict().items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, share)
            else:
                self.tensors[name].copy_(value)


def plain_model(model: MaskedCLIP, average: WeightAverage | None) -> MaskedCLIP:
    """The model that is scored and saved: the trained one, or a whole copy when it is sharded, averaged or low-rank.

    All ranks must ask.
    """
    if average is None and not is_sharded(model) and lora_scaling(model) is None:
        return model
    state = model.state_dict() if average is None else average.tensors
    copied = plain_copy(model, {name: whole(value) for name, value in state.items()})
    return copied.to(next(model.parameters()).device)


def plain_copy(model: MaskedCLIP, tensors: dict[str, Tensor], prefix: str = "") -> MaskedCLIP:
    """A copy of a model with the weights that stand under a prefix among whole tensors, on the processor.

    Low-rank additions are merged into the weights that they belong to.
    """
    copied = model_from_config(model.config)
    copied.load_state_dict(merged(_below(tensors, prefix), lora_scaling(model)))
    return copied.train(model.training)
