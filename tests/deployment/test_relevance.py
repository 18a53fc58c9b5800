"""Relevance: the written-out forward pass, both rules against slow references, and deletion where it is exact."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskedclip.data.store import open_store
from maskedclip.data.transforms import resize
from maskedclip.deployment.maps import Target, contribution_maps, scores_of, text_target
from maskedclip.deployment.model import Model
from maskedclip.deployment.relevance import followed, relevance_map, relevance_maps, visible_scores
from maskedclip.errors import UserError
from maskedclip.models.features import to_input
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import SavedModel
from maskedclip.models.standardise import BatchStandardise


@pytest.fixture(scope="module")
def images(trained_store) -> Tensor:
    store = open_store(trained_store)
    return torch.stack([resize(store.image(row), 32) for row in range(4)])


@pytest.fixture(scope="module")
def separate(trained_model: Model) -> Model:
    """The model with blocks that add nothing, so that no patch hears of another one."""
    module = copy.deepcopy(trained_model.module)
    blocks: list[Any] = [*module.encoder.vit.blocks, *module.bridge.blocks]
    for block in blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return Model(SavedModel(module.eval(), None, trained_model.preprocessing, "separate"), torch.device("cpu"))


def _targets(model: Model) -> list[Target]:
    random = np.random.default_rng(0)
    directions = {name: random.normal(size=size).astype(np.float32) for name, size in (("d", 48), ("e", 16))}
    norm = (random.normal(1, 0.1, 48), random.normal(size=48))
    return [
        Target(output="projected", direction=directions["e"]),
        Target(output="encoder", direction=directions["d"]),
        Target(output="bridge", direction=directions["d"], unit=True),
        Target(output="encoder", direction=directions["d"], norm=norm),
    ]


def test_forward__is_the_models_own(trained_model: Model, images: Tensor) -> None:
    module = trained_model.module
    inputs = to_input(images, trained_model.preprocessing)
    tokens, attentions = followed(module, inputs, bridged=True)
    expected = module.bridge(module.encoder(inputs))
    assert torch.allclose(tokens, expected, atol=1e-5)
    assert [len(stage) for stage in attentions] == [2, 1]
    assert torch.allclose(attentions[0][0].sum(dim=-1), torch.ones(()), atol=1e-5)


def test_target__score_and_its_linear_form(trained_model: Model, images: Tensor) -> None:
    """A map sums to the score, but for a head's own constant, also behind a LayerNorm or a unit length."""
    for target in _targets(trained_model):
        total = contribution_maps(trained_model, images, [target]).sum(axis=(1, 2, 3))
        constant = 0.0 if target.norm is None else float(target.norm[1] @ target.direction)
        assert np.allclose(total + constant, scores_of(trained_model, images, [target])[:, 0], atol=1e-4)
        assert np.allclose(visible_scores(trained_model, images, [target])[:, 0], total + constant, atol=1e-4)


def test_relevance_map__rollout_is_the_product_of_attentions(trained_model: Model, images: Tensor) -> None:
    found = relevance_map(trained_model, images, _targets(trained_model)[0], method="rollout")
    module = trained_model.module
    _, stages = followed(module, to_input(images, trained_model.preprocessing), bridged=True)
    for place in range(len(images)):
        product = np.eye(stages[0][0].shape[-1])
        for attention in (attention for stage in stages for attention in stage):
            mean = attention[place].mean(dim=0).detach().numpy().astype(np.float64)
            product = (0.5 * mean + 0.5 * np.eye(len(mean))) @ product
        rows = product[-16:, -16:].mean(axis=0)
        assert np.allclose(found[place].ravel(), rows / rows.sum(), atol=1e-5)


def test_relevance_map__gradient_against_a_slow_reference(trained_model: Model, images: Tensor) -> None:
    """Gradients by differences of the score when one attention changes, float64."""
    module = copy.deepcopy(trained_model.module).double()
    target = text_target(trained_model, "A red lesion.", "Normal fundus.")
    inputs = to_input(images[:1], trained_model.preprocessing).double()
    _, attentions = followed(module, inputs, bridged=True)
    blocks: list[Any] = [*module.encoder.vit.blocks, *module.bridge.blocks]
    depth = len(attentions[0])
    flat = [attention.detach() for stage in attentions for attention in stage]

    def score(changed: int, delta: Tensor) -> float:
        """The score where the attention of one layer has `delta` added; written out again, head by head."""
        x = module.encoder.vit.norm_pre(module.encoder._with_prefix(module.encoder._embed(inputs, None), None))
        for number, block in enumerate(blocks):
            layer, y = block.attn, block.norm1(x)
            parts = layer.qkv(y).reshape(1, y.shape[1], 3, layer.num_heads, -1)
            heads = []
            for head in range(layer.num_heads):
                q, k, v = (parts[:, :, part, head] for part in range(3))
                a = (q @ k.transpose(1, 2) * layer.scale).softmax(dim=-1)
                heads.append((a + delta[:, head] if number == changed else a) @ v)
            x = x + layer.proj(torch.cat(heads, dim=-1))
            x = x + block.mlp(block.norm2(x))
            if number == depth - 1:
                x = module.encoder.vit.norm(x)
        pooled = module.encoder.patches(module.bridge.norm(x)).mean(dim=1)
        projected = _projected(module, pooled)
        return float((projected / projected.norm()) @ torch.from_numpy(target.direction).double())

    relevance = np.eye(flat[0].shape[-1])
    random = np.random.default_rng(0)
    exact, last = _gradients(module, inputs, target)
    for number, (attention, gradient) in enumerate(zip(flat, exact, strict=True)):
        for cell in random.choice(attention.numel(), size=8, replace=False):
            delta = torch.zeros_like(attention)
            delta.view(-1)[cell] = 1e-4
            with torch.no_grad():
                slope = (score(number, delta) - score(number, -delta)) / 2e-4
            assert slope == pytest.approx(gradient.reshape(-1)[cell].item(), rel=1e-2, abs=1e-6)
        weighted = (attention * gradient).clamp_min(0).mean(dim=1)[0].numpy()
        relevance = relevance + weighted @ relevance
    rows = np.maximum(last, 0) @ relevance[-16:, -16:]
    found = relevance_map(trained_model, images[:1], target)[0].ravel()
    assert np.allclose(found, rows / rows.sum(), atol=1e-4)


def _projected(module: MaskedCLIP, pooled: Tensor) -> Tensor:
    """In float64, which the model's own standardising leaves."""
    assert module.image_projection is not None
    if isinstance(module.standardise, BatchStandardise):
        pooled = (pooled - module.standardise.mean) / (module.standardise.variance + 1e-5).sqrt()
    return module.image_projection(pooled)


def _gradients(module: MaskedCLIP, inputs: Tensor, target: Target) -> tuple[tuple[Tensor, ...], np.ndarray]:
    """Of the score with respect to each attention, and gradient x token of the last patches, (L,)."""
    tokens, attentions = followed(module, inputs.clone().requires_grad_(), bridged=True)
    flat = [attention for stage in attentions for attention in stage]
    patches = module.encoder.patches(tokens)
    pooled = patches.mean(dim=1)
    projected = _projected(module, pooled)
    score = (projected / projected.norm()) @ torch.from_numpy(target.direction).double()
    *gradients, last = torch.autograd.grad(score.sum(), [*flat, patches])
    return tuple(gradients), (patches * last).sum(dim=-1)[0].detach().numpy()


@pytest.mark.parametrize("method", ["gradient", "rollout", "removal"])
def test_relevance_map__has_the_grid_and_repeats(trained_model: Model, images: Tensor, method: str) -> None:
    for target in _targets(trained_model):
        first = relevance_map(trained_model, images[:2], target, method=method, draws=20)  # type: ignore[arg-type]
        assert first.shape == (2, 4, 4)
        assert first.dtype == np.float32
        assert np.array_equal(first, relevance_map(trained_model, images[:2], target, method=method, draws=20))  # type: ignore[arg-type]
        alone = relevance_map(trained_model, images[1:2], target, method=method, draws=20)  # type: ignore[arg-type]
        assert np.allclose(first[1:], alone, atol=1e-5)
        if method == "removal":
            assert np.allclose(first.mean(axis=(1, 2)), 0, atol=1e-5)
        else:
            assert first.min() >= 0
            assert np.allclose(first.sum(axis=(1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("method", ["gradient", "rollout", "removal"])
def test_relevance_maps__are_those_of_each_target_alone(trained_model: Model, images: Tensor, method: str) -> None:
    targets = _targets(trained_model)
    together = relevance_maps(trained_model, images[:2], targets, method=method, draws=20)  # type: ignore[arg-type]
    for place, target in enumerate(targets):
        alone = relevance_map(trained_model, images[:2], target, method=method, draws=20)  # type: ignore[arg-type]
        assert np.allclose(together[:, place], alone, atol=1e-6)


def test_relevance_map__leaves_the_model_as_it_was(trained_model: Model, images: Tensor) -> None:
    before = trained_model.encode_image(images, "projected")
    target = _targets(trained_model)[0]
    relevance_map(trained_model, images, target)
    assert all(parameter.grad is None for parameter in trained_model.module.parameters())
    assert np.array_equal(trained_model.encode_image(images, "projected"), before)


def test_removal__of_patches_that_do_not_hear_each_other_is_their_contribution(separate: Model, images: Tensor) -> None:
    target = _targets(separate)[1]
    contributions = contribution_maps(separate, images, [target])[:, 0]
    found = relevance_map(separate, images, target, method="removal")
    assert np.allclose(found, contributions - contributions.mean(axis=(1, 2), keepdims=True), atol=1e-4)


def test_deletion__of_the_most_relevant_patches_lowers_a_linear_score_most(separate: Model, images: Tensor) -> None:
    """Exact where patches do not hear each other: no other choice of four patches lowers the score further."""
    target = _targets(separate)[1]
    for name, maps in (
        ("contribution", contribution_maps(separate, images, [target])[:, 0]),
        ("removal", relevance_map(separate, images, target, method="removal")),
    ):
        order = torch.from_numpy(maps.reshape(len(images), -1).argsort(axis=1).copy())  # least first
        without_most = visible_scores(separate, images, [target], order[:, :-4].sort(dim=1).values)[:, 0]
        without_least = visible_scores(separate, images, [target], order[:, 4:].sort(dim=1).values)[:, 0]
        random = torch.from_numpy(
            np.random.default_rng(0).permuted(np.tile(np.arange(16), (4, 50, 1)), axis=2)[..., 4:]
        )
        for draw in range(50):
            other = visible_scores(separate, images, [target], random[:, draw].sort(dim=1).values)[:, 0]
            assert (without_most <= other + 1e-5).all(), name
            assert (without_least >= other - 1e-5).all(), name
    gradient = relevance_map(separate, images, target)
    positive = contribution_maps(separate, images, [target])[:, 0].clip(0)
    assert np.allclose(gradient, positive / positive.sum(axis=(1, 2), keepdims=True), atol=1e-5)


def test_relevance_map__refuses_what_it_cannot_follow(trained_model: Model, separate: Model, images: Tensor) -> None:
    target = _targets(trained_model)[0]
    with pytest.raises(UserError, match="none of gradient, rollout, removal"):
        relevance_map(trained_model, images, target, method="magic")  # type: ignore[arg-type]
    module = copy.deepcopy(trained_model.module)
    module.encoder.vit.blocks[0] = torch.nn.Identity()  # type: ignore[index]
    strange = Model(SavedModel(module, None, trained_model.preprocessing, "x"), torch.device("cpu"))
    with pytest.raises(UserError, match="Identity"):
        relevance_map(strange, images, target)
