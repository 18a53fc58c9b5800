"""AdamW's parameter groups and the learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from maskedclip.recipe import Recipe

# Tokens, positions and the temperature are no matrices that decay should shrink.
_NO_DECAY = ("cls_token", "reg_token", "pos_embed", "mask_token", "logit_scale", "position_embeddings", "gamma")


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


def parameter_groups(module: nn.Module, recipe: Recipe) -> list[Group]:
    """Groups by part (image encoder, text encoder, rest) and decay, in a fixed order, without frozen parameters."""
    training = recipe.training
    factors = {"image_encoder": training.image_lr_factor, "text_encoder": training.text_lr_factor, "others": 1.0}
    found: dict[tuple[str, bool], dict[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            part = next((key for key, mark in _PARTS.items() if name.startswith(mark)), "others")
            decays = parameter.ndim >= 2 and not any(mark in name for mark in _NO_DECAY)
            found.setdefault((part, decays), {})[name] = parameter
    return [
        Group(
            name=part + ("" if decays else " (no decay)"),
            lr=effective_lr(recipe) * factors[part],
            weight_decay=training.weight_decay if decays else 0.0,
            parameters=found[part, decays],
        )
        for part in factors
        for decays in (True, False)
        if (part, decays) in found
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
