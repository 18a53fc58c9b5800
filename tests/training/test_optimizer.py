"""Learning rates are a pure function of the step, and nothing decays that should not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.pretraining import build_objective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.optimizer import (
    effective_lr,
    freeze,
    lr_factor,
    make_optimizer,
    parameter_groups,
    set_learning_rates,
)
from tests.stores import SENTENCES, TINY


def test_effective_lr__dae_learns_at_the_rate_of_its_size() -> None:
    assert effective_lr(load_recipe(["dae", "volume_swin_unetr"], [])) == pytest.approx(1e-4)  # paper
    for size in ("tiny", "vits14_dinov2"):
        batch = ["--data.batch_paired", "16", "--data.batch_unpaired", "16"]
        assert effective_lr(load_recipe(["dae", size], batch)) == effective_lr(load_recipe(["mae", size], batch))


def test_effective_lr__is_base_times_batch_over_256() -> None:  # P27
    assert effective_lr(Recipe()) == pytest.approx(1.5e-4)
    halved = Recipe().replace(data={"batch_paired": 64, "batch_unpaired": 64})
    assert effective_lr(halved) == pytest.approx(0.75e-4)
    assert effective_lr(halved.replace(training={"scale_lr": False})) == pytest.approx(1.5e-4)
    assert effective_lr(halved.replace(data={"pool": "paired"})) == pytest.approx(1.5e-4 / 4)


@given(steps=st.integers(1, 3000), warmup=st.floats(0, 0.9))
def test_lr_factor__rises_then_falls_to_nothing(steps: int, warmup: float) -> None:
    recipe = Recipe().replace(training={"steps": steps, "warmup": warmup})
    factors = [lr_factor(step, recipe) for step in range(steps)]
    peak = max(0, round(warmup * steps) - 1)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert (
        factors[-1] <= 0.5 * (1 + math.cos(math.pi * (1 - 1 / max(1, steps - round(warmup * steps))))) + 1e-9
        or peak == steps - 1
    )


def test_parameter_groups__decay_matrices_only_and_cover_everything() -> None:
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, "--training.text_lr_factor", "0.2"])
    model, _ = build_model(recipe, SENTENCES)
    objective = build_objective(recipe, model)
    groups = parameter_groups(objective, recipe)
    named = {name: (group, parameter) for group in groups for name, parameter in group.parameters.items()}
    assert set(named) == {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    for name, (group, parameter) in named.items():
        if parameter.ndim < 2 or any(mark in name for mark in ("cls_token", "mask_token", "pos", "logit_scale")):
            assert group.weight_decay == 0, name
        elif "embeddings" not in name:
            assert group.weight_decay == 0.05, name
        assert group.lr == pytest.approx(effective_lr(recipe) * (0.2 if "text_encoder.bert" in name else 1)), name
    optimizer = make_optimizer(groups, recipe)
    factor = set_learning_rates(optimizer, groups, 3, recipe)
    assert [entry["lr"] for entry in optimizer.param_groups] == pytest.approx([group.lr * factor for group in groups])


def _objective(*options: str) -> tuple[Recipe, torch.nn.Module]:
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, *options])
    model, _ = build_model(recipe, SENTENCES)
    return recipe, build_objective(recipe, model)


def test_lr_factors__freeze_and_scale_by_name() -> None:  # P28
    table = '{"encoder.vit.blocks.0\\\\.": 0, "bridge": 2.0, "bert.embeddings": 0}'
    recipe, module = _objective("--training.lr_factors", table)
    fixed = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    frozen = freeze(module, recipe)
    still = [name for name, p in module.named_parameters() if not p.requires_grad and name not in fixed]
    assert frozen == sum(module.get_parameter(name).numel() for name in still)
    assert any("vit.blocks.0." in name for name in still)
    assert any("bert.embeddings" in name for name in still)
    assert not any("vit.blocks.1." in name for name in still)
    groups = parameter_groups(module, recipe)
    held = {name: group for group in groups for name in group.parameters}
    assert not set(held) & set(still)
    rate = effective_lr(recipe)
    assert held["model.bridge.blocks.0.mlp.fc1.weight"].lr == 2 * rate
    assert held["model.encoder.vit.blocks.1.mlp.fc1.weight"].lr == rate
    assert sum(len(group.parameters) for group in groups) + len(still) == len(list(module.named_parameters())) - len(
        fixed
    )


def test_lr_factors__what_matches_nothing_is_one_line() -> None:
    recipe, module = _objective("--training.lr_factors", '{"brigde": 0}')
    with pytest.raises(UserError, match="brigde matches no parameter; their names are like"):
        freeze(module, recipe)
    with pytest.raises(UserError, match="no regular expression"):
        load_recipe(["tiny"], ["--training.lr_factors", '{"block(": 0}'])
    with pytest.raises(UserError, match="is negative"):
        load_recipe(["tiny"], ["--training.lr_factors", '{"block": -1}'])


def test_parameter_groups__biases_of_relative_positions_do_not_decay() -> None:
    pytest.importorskip("monai")
    options = ["--data.size", "64", "--model.image_encoder_options", '{"feature_size": 12}']
    recipe = load_recipe(["dae", "volume_swin_unetr"], options)
    model, _ = build_model(recipe, [])
    groups = parameter_groups(build_objective(recipe, model), recipe)
    decay = {name: group.weight_decay for group in groups for name in group.parameters}
    tables = [name for name in decay if name.endswith("relative_position_bias_table")]
    assert tables
    assert all(decay[name] == 0 for name in tables)
    assert decay["model.encoder.swinViT.layers1.0.blocks.0.attn.qkv.weight"] > 0
