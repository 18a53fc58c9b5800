"""Maps of likeness and of contributions: what they sum to, where they point, and what tiles do."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from maskedclip.data.store import open_store
from maskedclip.data.transforms import resize
from maskedclip.deployment.maps import (
    Target,
    contribution_maps,
    label_prompts,
    magnified,
    similarity_maps,
    text_directions,
    text_target,
)
from maskedclip.deployment.maps_dense import dense_features, projected_patches
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.pooling import AttentivePooling

TEXTS = ["A red lesion.", ["Normal fundus.", "A green lesion; mild."]]


@pytest.fixture(scope="module")
def images(trained_store) -> Tensor:
    store = open_store(trained_store)
    return torch.stack([resize(store.image(row), 32) for row in range(5)])


def test_similarity_maps__are_cosines_of_the_projected_patches(trained_model: Model, images: Tensor) -> None:
    maps = similarity_maps(trained_model, images, TEXTS, mixed=True)
    assert maps.shape == (5, 2, 4, 4)
    assert maps.dtype == np.float32
    clip = trained_model.patch_features(images)["bridge"].astype(np.float64)  # (B, L, D)
    module = trained_model.module
    standard, weight = module.standardise, module.image_projection.weight.detach().numpy()  # type: ignore[union-attr]
    if hasattr(standard, "mean"):
        clip = (clip - standard.mean.numpy()) / np.sqrt(standard.variance.numpy() + 1e-5)  # type: ignore[union-attr]
    projected = clip @ weight.T.astype(np.float64)
    projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
    first = trained_model.encode_text("A red lesion.")[0].astype(np.float64)
    second = trained_model.encode_text(["Normal fundus.", "A green lesion; mild."]).astype(np.float64).mean(axis=0)
    for place, text in enumerate((first / np.linalg.norm(first), second / np.linalg.norm(second))):
        assert np.allclose(maps[:, place].reshape(5, 16), projected @ text, atol=2e-5)


def test_similarity_maps__a_patch_alone_on_the_bridge(trained_model: Model, images: Tensor) -> None:
    """Unmixed, each patch's embedding is what the bridge makes of that token where it reads nothing else."""
    _, found = projected_patches(trained_model, images[:2], mixed=False)
    module = trained_model.module
    tokens = torch.from_numpy(trained_model.patch_features(images[:2])["encoder"])
    with torch.inference_mode():
        alone = module.bridge(tokens.reshape(32, 1, 48)).reshape(2, 16, 48)
        assert module.image_projection is not None
        expected = module.image_projection(module.standardise(alone))
    assert torch.allclose(found, expected, atol=1e-4)


def test_similarity_maps__against_is_a_difference(trained_model: Model, images: Tensor) -> None:
    alone = similarity_maps(trained_model, images, ["A red lesion.", "Normal fundus."])
    against = similarity_maps(trained_model, images, ["A red lesion."], against="Normal fundus.")
    assert np.allclose(against[:, 0], alone[:, 0] - alone[:, 1], atol=1e-6)


def test_similarity_maps__the_batch_changes_nothing(trained_model: Model, images: Tensor) -> None:
    together = similarity_maps(trained_model, images, TEXTS)
    alone = np.concatenate([similarity_maps(trained_model, image[None], TEXTS) for image in images])
    assert np.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("output", ["encoder", "bridge", "projected"])
def test_contribution_maps__sum_to_the_score(trained_model: Model, images: Tensor, output: str) -> None:
    width = 16 if output == "projected" else 48
    direction = np.random.default_rng(0).normal(size=width).astype(np.float32)
    maps = contribution_maps(trained_model, images, [Target(output=output, direction=direction)])  # type: ignore[arg-type]
    score = trained_model.encode_image(images, output) @ direction
    assert maps.shape == (5, 1, 4, 4)
    assert np.allclose(maps.sum(axis=(1, 2, 3)), score, atol=1e-4)


def test_contribution_maps__sum_to_the_score_under_attention_pooling(trained_model: Model, images: Tensor) -> None:
    model = copy.deepcopy(trained_model)
    model.module.attention = AttentivePooling(model.module.encoder.width)
    torch.nn.init.normal_(model.module.attention.query)
    target = text_target(model, "A red lesion.")
    maps = contribution_maps(model, images, [target])
    cosine = model.encode_images(images)["projected"] @ model.encode_text(["A red lesion."]).T
    assert np.allclose(maps.sum(axis=(2, 3)), cosine, atol=1e-5)
    assert not np.allclose(maps, contribution_maps(trained_model, images, [target]), atol=1e-4)


def test_contribution_maps__of_a_text_sum_to_its_cosine(trained_model: Model, images: Tensor) -> None:
    targets = [text_target(trained_model, text, "Normal fundus.") for text in TEXTS]
    maps = contribution_maps(trained_model, images, targets)
    cosine = trained_model.encode_image(images, "projected") @ text_directions(trained_model, TEXTS, "Normal fundus.").T
    assert np.allclose(maps.sum(axis=(2, 3)), cosine, atol=1e-5)


def test_dense_features__tiles_of_a_picture_of_equal_tiles(trained_model: Model) -> None:
    """Where all tiles look alike, the blend is each of them, whatever its weights."""
    flat = torch.full((1, 3, 96, 96), 90, dtype=torch.uint8)
    fine = dense_features(trained_model, flat)
    one = dense_features(trained_model, flat[:, :, :32, :32])
    assert fine.tokens.shape == (1, 12, 12, 48)
    assert fine.embeddings.shape == (1, 12, 12, 16)
    assert np.allclose(fine.tokens[0, :2, :2], one.tokens[0, :2, :2], atol=1e-5)  # the corner is read in one tile alone
    assert np.allclose(fine.tokens[0, -2:, -2:], one.tokens[0, -2:, -2:], atol=1e-5)
    weights = np.minimum(np.arange(4) + 1, 4 - np.arange(4))
    row = (one.tokens[0, 0, 2] * weights[2] + one.tokens[0, 0, 0] * weights[0]) / (weights[2] + weights[0])
    assert np.allclose(fine.tokens[0, 0, 2], row, atol=1e-5)


def test_dense_features__scales_are_averaged(trained_model: Model, images: Tensor) -> None:
    large = torch.stack([resize(image, 64) for image in images[:2]])
    both = dense_features(trained_model, large, (1, 2))
    fine = dense_features(trained_model, large)
    coarse = dense_features(trained_model, torch.stack([resize(image, 32) for image in large]))
    for name in ("tokens", "embeddings"):
        table = getattr(coarse, name).transpose(0, 3, 1, 2)
        grown = magnified(table, 8, 8).transpose(0, 2, 3, 1)
        assert np.allclose(getattr(both, name), (getattr(fine, name) + grown) / 2, atol=1e-5)


def test_dense_features__at_another_size(trained_model: Model, images: Tensor) -> None:
    large = torch.stack([resize(image, 48) for image in images[:2]])
    found = dense_features(trained_model.at_size(48), large)
    assert found.embeddings.shape == (2, 6, 6, 16)
    assert np.allclose(np.linalg.norm(found.embeddings, axis=-1), 1, atol=1e-5)
    tokens, _ = projected_patches(trained_model.at_size(48), large)
    assert np.array_equal(tokens.numpy().reshape(found.tokens.shape), found.tokens)


def test_maps__refuse_what_does_not_fit(trained_model: Model, images: Tensor) -> None:
    with pytest.raises(UserError, match="whole multiple of 32"):
        similarity_maps(trained_model, images[:, :, :30, :30], ["a"])
    with pytest.raises(UserError, match="at most 1"):
        dense_features(trained_model, images, (2,))
    with pytest.raises(UserError, match="is empty"):
        similarity_maps(trained_model, images, [" "])
    with pytest.raises(UserError, match="at least one"):
        similarity_maps(trained_model, images, [])


def test_label_prompts__take_the_users(trained_model: Model) -> None:
    ensembles, normal = label_prompts(["drusen", "x"], {"x": ["own"], "normal": ["quiet"]})
    assert len(ensembles[0]) > 1
    assert ensembles[1] == ["own"]
    assert normal == ["quiet"]


def test_magnified__keeps_a_mean_and_a_place() -> None:
    maps = np.zeros((2, 3, 4, 4), np.float32)
    maps[1, 2, 0, 3] = 1
    grown = magnified(maps, 32, 32)
    assert grown.shape == (2, 3, 32, 32)
    assert grown[:1].max() == 0
    row, column = np.unravel_index(grown[1, 2].argmax(), (32, 32))
    assert row < 8
    assert column >= 24
