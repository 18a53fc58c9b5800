"""Ranks, devices and precision: what a module is given comes to it as it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch, Views
from maskedclip.objectives.pretraining import Contrast, build_objective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.parallel import make_fabric
from tests.stores import TINY
from tests.volume_case import VOLUME_TINY, make_volume_store


class _Seen(nn.Module):
    def forward(self, *given: object) -> torch.Tensor:
        self.given, self.autocast = given, torch.is_autocast_enabled("cpu")
        return torch.zeros(())


def _recipe(precision: str) -> Recipe:
    return load_recipe(["tiny"], [*TINY, "--training.precision", precision, "--training.accelerator", "cpu"])


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_make_fabric__rounds_nothing_that_a_module_is_given(precision: str) -> None:
    fabric = make_fabric(_recipe(precision))
    third = torch.full((2, 3), 1 / 3)
    batch = Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2), 1, colour=third, labels=third)
    batch.retrieved_score = third[:, 0]
    seen = _Seen()
    module = fabric.setup_module(seen)
    module(batch, 1 / 3, Contrast(third, third))
    assert seen.autocast == (precision == "bf16-mixed")
    found, progress, task = seen.given
    assert isinstance(found, Batch)
    assert isinstance(task, Contrast)
    assert progress == 1 / 3
    for tensor in (found.colour, found.labels, found.retrieved_score, *task):
        assert tensor is not None
        assert tensor.dtype == torch.float32
        assert (tensor == third.flatten()[0]).all()
    assert found.image.dtype == torch.uint8
    assert found.keys.dtype == torch.int64


def test_make_fabric__volumes_become_float32_without_being_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*VOLUME_TINY, "--training.accelerator", "cpu", "--training.precision", "bf16-mixed"]
    recipe = load_recipe(["mae", "volume_tiny"], options)
    store = open_store(make_volume_store(tmp_path / "s"))
    model, _ = build_model(recipe, [])
    objective = build_objective(recipe, model)
    host = StepDataset(store, make_pools(store, recipe), recipe, None)[0]
    assert host.image.dtype == torch.float16
    seen: list[Views] = []
    views = objective._views
    monkeypatch.setattr(objective, "_views", lambda *given: seen.append(views(*given)) or seen[-1])
    make_fabric(recipe).setup_module(objective)(Batch.from_host(host), 0.5)
    assert seen[0].image.dtype == torch.float32
    assert np.array_equal(seen[0].image.numpy(), host.image.float().numpy())
    assert not torch.equal(host.image, host.image.bfloat16().half())  # so that rounding would have been seen
