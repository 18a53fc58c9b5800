"""SigLIP against a double loop in float64; over ranks, in parts, in any order; its temperature and bias."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.objectives.image_text.siglip import siglip_loss
from maskedclip.recipe import load_recipe
from maskedclip.training.optimizer import parameter_groups
from tests.objectives.image_text.steps import (
    EXACT,
    assert_same_gradients,
    first_step,
    gradients,
    of_two_ranks,
    recipe_with,
    term_of,
)
from tests.stores import TINY, make_store
from tests.training.test_step import World


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("siglip") / "s", rows=96)


def _naive(image: Tensor, text: Tensor, keys: list[int], scale: Tensor, bias: Tensor) -> Tensor:
    """Each pair by itself."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(keys)):
        for j in range(len(keys)):
            sign = 1.0 if keys[i] == keys[j] else -1.0
            total = total + (1 + (-sign * (scale * image[i] @ text[j] + bias)).exp()).log()
    return total / len(keys)


@settings(max_examples=30, deadline=None)
@given(keys=st.lists(st.integers(0, 3), min_size=1, max_size=9), block=st.integers(1, 10), seed=st.integers(0, 10**6))
def test_siglip_loss__equals_double_loop_in_float64(keys: list[int], block: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pairs = [functional.normalize(torch.randn(len(keys), 8, generator=generator), dim=-1) for _ in range(2)]
    given_ = [*pairs, torch.tensor(10.0), torch.tensor(-3.0)]
    doubles = [value.double().requires_grad_() for value in given_]
    expected = _naive(doubles[0], doubles[1], keys, doubles[2], doubles[3])
    singles = [value.clone().requires_grad_() for value in given_]
    loss = siglip_loss(singles[0], singles[1], torch.tensor(keys), singles[2], singles[3], block=block)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    wanted = torch.autograd.grad(expected, doubles)
    for found, value in zip(torch.autograd.grad(loss, singles), wanted, strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-4, atol=1e-5)


def test_siglip_loss__stays_in_float32_under_autocast() -> None:
    image, text = (functional.normalize(torch.randn(16, 64), dim=-1) for _ in range(2))
    given_ = image, text, torch.arange(16), torch.tensor(100.0), torch.tensor(-10.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = siglip_loss(*given_)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, siglip_loss(*given_))


def test_siglip_loss__does_not_depend_on_the_order() -> None:
    image, text = (functional.normalize(torch.randn(12, 8), dim=-1) for _ in range(2))
    keys, order = torch.arange(12) // 2, torch.randperm(12)
    scale, bias = torch.tensor(10.0), torch.tensor(-10.0)
    there = siglip_loss(image[order], text[order], keys[order], scale, bias)
    assert there.item() == pytest.approx(siglip_loss(image, text, keys, scale, bias).item(), rel=1e-6)


def test_siglip__equal_texts_are_negatives_on_demand(folder: Path) -> None:
    found = {}
    for equal in (True, False):
        objective, batch = first_step(folder, recipe_with("siglip", {"equal_texts": equal}))
        assert batch.text_key is not None
        assert len(set(batch.text_key.tolist())) < batch.num_paired  # some texts repeat
        views = objective._views(batch, 0.5)
        image, text = views.paired_embedding, views.text_embedding
        keys = batch.text_key.tolist() if equal else list(range(batch.num_paired))
        ten = torch.tensor(10.0, dtype=torch.float64)
        expected = _naive(image.double(), text.double(), keys, ten, -ten)
        found[equal] = objective(batch, 0.5)[1]["siglip"].item()
        assert found[equal] == pytest.approx(expected.item(), rel=1e-5)
    assert found[True] != pytest.approx(found[False], rel=1e-2)


@pytest.mark.parametrize("clip_weight", [0.0, 1.0])
def test_siglip__two_ranks_equal_one(folder: Path, tmp_path: Path, clip_weight: float) -> None:
    recipe = recipe_with("siglip", clip_weight=clip_weight)
    assert_same_gradients(of_two_ranks(folder, recipe, tmp_path), gradients(*first_step(folder, recipe)))


def test_siglip__parts_equal_the_whole_batch(folder: Path) -> None:
    found = []
    for parts in ("1", "4"):
        world = World(folder, recipe_with("siglip", None, "--training.micro_batches", parts))
        losses, _ = world.stepper._gradients(world.batch(0), 0.5)
        named = world.objective.named_parameters()
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None} | {"loss": losses["loss"]})
    assert_same_gradients(found[1], found[0])


def test_siglip__learns_its_temperature_and_bias_and_lends_the_temperature(folder: Path) -> None:
    world = World(folder, recipe_with("siglip", None, "--training.lr", "0.5"))
    term, model = term_of(world.objective, "siglip"), world.objective.model
    assert model.logit_scale is not None
    before = term.logit_scale.item(), term.bias.item()
    assert before == (pytest.approx(math.log(10.0)), -10.0)
    world.step(3)
    assert abs(term.logit_scale.item() - before[0]) > 1e-4
    assert abs(term.bias.item() - before[1]) > 1e-4
    assert torch.equal(model.logit_scale, term.logit_scale)
    with torch.no_grad():
        term.logit_scale.fill_(9.0)
    world.objective.after_step()
    assert model.scale.item() == pytest.approx(100.0, rel=1e-5)
    plain = next(
        group for group in parameter_groups(world.objective, world.recipe) if group.name == "others (no decay)"
    )
    assert {"terms.siglip.logit_scale", "terms.siglip.bias"} <= set(plain.parameters)


@pytest.mark.parametrize("pairs", [2, 16])
def test_siglip__bias_null_is_the_log_odds_of_a_positive_in_this_batch(folder: Path, pairs: int) -> None:
    recipe = recipe_with("siglip", {"bias": None}, "--data.batch_paired", str(pairs))
    objective, _ = first_step(folder, recipe)
    bias = term_of(objective, "siglip").bias
    assert torch.sigmoid(bias).item() == pytest.approx(1 / pairs)  # of a pair whose cosine is 0


def test_siglip__beside_clip_leaves_the_model_its_own_temperature(folder: Path) -> None:
    world = World(folder, recipe_with("siglip", None, clip_weight=1.0))
    world.step(3)
    model = world.objective.model
    assert model.logit_scale is not None
    assert model.logit_scale.requires_grad
    assert model.scale.item() == pytest.approx(1 / 0.07, rel=0.1)


def test_siglip__its_recipe_steps_and_trains_everything(folder: Path) -> None:
    recipe = load_recipe(["siglip", "tiny"], [*TINY, *EXACT])
    objective, batch = first_step(folder, recipe)
    found = gradients(objective, batch)
    assert torch.isfinite(found["loss"])
    assert not [name for name, p in objective.named_parameters() if p.requires_grad and name not in found]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"inverse_temperature": 0}, "inverse_temperature: 0"), ({"scale": 3}, "siglip.scale: no such option")],
)
def test_siglip__wrong_options_are_told_in_a_line(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        recipe_with("siglip", options)
    assert "\n" not in str(caught.value)
