"""The running mean of targets against a float64 loop; its place in the distillation."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskedclip.errors import UserError
from maskedclip.objectives.running_mean import RunningMean
from maskedclip.recipe import load_recipe
from maskedclip.recipe_objective import ObjectiveRecipe
from maskedclip.training.pretrain import pretrain
from tests.stores import TINY, make_store


def test_running_mean__is_the_discounted_mean_of_the_steps_before() -> None:
    generator = np.random.default_rng(0)
    steps = [generator.normal(3.0, 1.0, (4, 5, 7)) for _ in range(6)]
    centre = RunningMean(7, 0.8)
    for now, features in enumerate(steps):
        total, weight = np.zeros(7), 0.0
        for before in range(now):
            share = 0.8 ** (now - 1 - before)
            total, weight = total + share * steps[before].reshape(-1, 7).mean(axis=0), weight + share
        expected = features - (total / weight if weight else 0.0)
        assert centre(torch.tensor(features)).double().numpy() == pytest.approx(expected, abs=1e-5)
        centre.after_step()


def test_running_mean__in_parts_is_that_of_the_whole_and_a_skipped_step_leaves_it() -> None:
    features = torch.randn(8, 3, 5) + 2
    whole, parts = RunningMean(5, 0.9), RunningMean(5, 0.9)
    for _ in range(2):
        expected = whole(features)
        assert torch.allclose(torch.cat([parts(part) for part in features.chunk(4)]), expected, atol=1e-6)
        whole.after_step()
        parts.after_step()
    before = whole.total.clone(), whole.weight.clone()
    whole(features * 100)
    whole.after_step(torch.tensor(1.0))
    assert torch.equal(whole.total, before[0])
    assert torch.equal(whole.weight, before[1])
    whole(features * torch.nan)
    whole.after_step(torch.tensor(1.0))
    assert torch.equal(whole.total, before[0]), "a step that was skipped for NaN leaves none behind"
    whole.eval()
    whole(features * 100)
    whole.train()
    whole.after_step()
    assert torch.equal(whole.total, before[0]), "what is only looked at leaves no trace"


def test_centred_target__resumes_bitwise(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", rows=24)
    recipe = load_recipe(
        ["maskedclip"],
        [
            *TINY,
            "--objective.mkd_centre=true",
            "--objective.mkd_ramp=0",
            "--training.steps=6",
            "--training.checkpoint_every=3",
        ],
    )
    for run in ("whole", "half"):
        pretrain(recipe, store, tmp_path / run)
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "step-00000006")
    pretrain(recipe, store, tmp_path / "half", resume=True)
    whole, half = (load_file(tmp_path / run / "model" / "decoders.safetensors") for run in ("whole", "half"))
    assert "mkd.centre.total" in whole
    assert whole["mkd.centre.weight"] > 1
    assert all(torch.equal(value, half[name]) for name, value in whole.items())


def test_centred_target__is_refused_over_prototypes() -> None:
    with pytest.raises(UserError, match=r"objective.mkd_centre: .*prototypes"):
        dataclasses.replace(ObjectiveRecipe(), mkd_centre=True, mkd_loss="prototype_kl")
