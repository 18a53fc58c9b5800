"""AdamW's parameter groups and the learning rate as a pure function of the step."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from maskedclip.errors import UserError
from maskedclip.recipe import Recipe

# Tokens, positions and the temperature are no matrices that decay should shrink.
_NO_DECAY = (
    *("cls_token", "reg_token", "mask_token", "logit_scale", "gamma"),
    *("pos_embed", "position_embeddings", "relative_position_bias_table"),
)


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and a decay.  lr: effective peak learning rate."""

    name: str
    lr: float
    weight_decay: float
    parameters: dict[str, nn.Parameter]


def effective_lr(recipe: Recipe) -> float:
    """The peak learning rate: base x batch / 256 where the recipe scales it."""
    training = recipe.training
    return training.lr * sum(recipe.batch_sizes) / 256 if training.scale_lr else training.lr


def freeze(module: nn.Module, recipe: Recipe) -> int:
    """Freeze the parameters whose learning rate `training.lr_factors` sets to 0; returns how many numbers they hold.

    Raises:
        UserError: a regular expression matches no parameter.
    """
    factors = recipe.training.lr_factors
    names = [name for name, _ in module.named_parameters()]
    for pattern in factors:
        if not any(re.search(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, 1, cutoff=0.0)
            raise UserError(
                f"training.lr_factors: {pattern} matches no parameter; their names are like {', '.join(near)}"
            )
    frozen = [parameter for name, parameter in module.named_parameters() if _own_factor(name, factors) == 0]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(parameter.numel() for parameter in frozen)


def _own_factor(name: str, factors: Mapping[str, float]) -> float:
    return next((factor for pattern, factor in factors.items() if re.search(pattern, name)), 1.0)


def parameter_groups(module: nn.Module, recipe: Recipe) -> list[Group]:
    """Groups by part (image encoder, text encoder, rest), decay and own factor, in a fixed order; no frozen ones."""
    training = recipe.training
    factors = {"image_encoder": training.image_lr_factor, "text_encoder": training.text_lr_factor, "others": 1.0}
    found: dict[tuple[str, bool, float], dict[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            part = next((key for key, mark in _PARTS.items() if name.startswith(mark)), "others")
            decays = parameter.ndim >= 2 and not any(mark in name for mark in _NO_DECAY)
            found.setdefault((part, decays, _own_factor(name, training.lr_factors)), {})[name] = parameter
    parts = list(factors)
    return [
        Group(
            name=part + ("" if own == 1 else f" x {own:g}") + ("" if decays else " (no decay)"),
            lr=effective_lr(recipe) * factors[part] * own,
            weight_decay=training.weight_decay if decays else 0.0,
            parameters=found[part, decays, own],
        )
        for part, decays, own in sorted(found, key=lambda key: (parts.index(key[0]), not key[1], key[2] != 1, key[2]))
    ]


_PARTS = {"image_encoder": "model.encoder.", "text_encoder": "model.text_encoder.bert."}


def make_optimizer(groups: list[Group], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over the groups, one fused kernel a group."""
    listed = [
        {"params": list(group.parameters.values()), "lr": group.lr, "weight_decay": group.weight_decay}
        for group in groups
    ]
    return torch.optim.AdamW(listed, lr=effective_lr(recipe), betas=recipe.training.betas, fused=True)


def lr_factor(step: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then cosine to 0."""
    steps = recipe.training.steps
    warmup = round(recipe.training.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_learning_rates(optimizer: torch.optim.Optimizer, groups: list[Group], step: int, recipe: Recipe) -> float:
    """Give each group its learning rate for a step; returns the share of the peak."""
    factor = lr_factor(step, recipe)
    for entry, group in zip(optimizer.param_groups, groups, strict=True):
        entry["lr"] = group.lr * factor
    return factor
