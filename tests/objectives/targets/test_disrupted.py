"""DAE: what is disrupted, what is asked for, and the contrast between modalities."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.supervised_contrast import literal_contrast, supervised_contrast
from maskedclip.objectives.targets.disrupted import Disrupted, Options
from maskedclip.recipe import load_recipe
from tests.stores import TINY, make_store
from tests.volume_case import VOLUME_TINY, make_volume_store

TERM = "objective.terms"


def options(**values: Any) -> list[str]:
    return ["--objective.terms", str({"disrupted": values}).replace("'", '"').replace("True", "true")]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_volume_store(tmp_path_factory.mktemp("dae") / "volumes")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("dae") / "pictures")


def parts(folder: Path, *overrides: str) -> tuple[PretrainingObjective, Batch]:
    store = open_store(folder)
    own, sizes = (VOLUME_TINY, "volume_tiny") if store.kind == "volumes" else (TINY, "tiny")
    recipe = load_recipe(["dae", sizes], [*own, "--data.pool", "all", *overrides])
    batch = Batch.from_host(StepDataset(store, make_pools(store, recipe), recipe, None)[0])
    return build_objective(recipe, build_model(recipe, [])[0]), batch


def reordered(batch: Batch, order: torch.Tensor) -> Batch:
    modality = None if batch.modality is None else batch.modality[order]
    return replace(batch, image=batch.image[order], keys=batch.keys[order], modality=modality)


def naive(features: np.ndarray, groups: list[int], temperature: float) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = []
    for anchor, group in enumerate(groups):
        if group < 0:
            continue
        others = [place for place in range(len(groups)) if place != anchor and groups[place] >= 0]
        positives = [place for place in others if groups[place] == group]
        if not positives:
            continue
        total = sum(np.exp(unit[anchor] @ unit[place] / temperature) for place in others)
        found.append(
            -np.mean([np.log(np.exp(unit[anchor] @ unit[place] / temperature) / total) for place in positives])
        )
    return float(np.mean(found)) if found else 0.0


@pytest.mark.parametrize("groups", [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5], [0, 0, -1, 1, -1, 1], [0, 0, 0, 0, 0, 1]])
def test_supervised_contrast__is_the_naive_one(groups: list[int]) -> None:
    features = np.random.default_rng(0).normal(size=(6, 16))
    loss = supervised_contrast(torch.from_numpy(features), torch.tensor(groups), 0.5)
    assert float(loss) == pytest.approx(naive(features, groups, 0.5), abs=1e-5)


def test_supervised_contrast__does_not_know_the_order_while_the_literal_one_does() -> None:
    features, groups = torch.randn(8, 16), torch.tensor([0, 1, 0, 1, 2, 0, 1, 2])
    order = torch.tensor([5, 0, 7, 2, 4, 1, 6, 3])
    own = supervised_contrast(features, groups, 0.5)
    assert torch.allclose(own, supervised_contrast(features[order], groups[order], 0.5), atol=1e-6)
    literal = literal_contrast(features, groups, 0.5)
    scores = (features @ features.T * np.exp(0.5)).double().log_softmax(dim=1)
    expected = -sum(scores[row, int(group)] for row, group in enumerate(groups)) / 8
    assert float(literal) == pytest.approx(float(expected), rel=1e-5)
    assert not torch.allclose(literal, literal_contrast(features[order], groups[order], 0.5), rtol=1e-2)


def test_supervised_contrast__falls_as_one_modality_grows_alike() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    centres, noise = torch.randn(2, 16)[groups], torch.randn(6, 16)
    losses = [float(supervised_contrast(share * centres + (1 - share) * noise, groups, 0.5)) for share in (0, 0.5, 1)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("groups", [[0, 0, 0, 1], [0, 1, 2, 3], [-1, -1, -1, -1], [-1, -1, -1, 2]])
def test_supervised_contrast__is_finite_when_a_modality_has_one_sample(groups: list[int]) -> None:
    features = torch.randn(4, 8, requires_grad=True)
    loss = supervised_contrast(features, torch.tensor(groups), 0.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_term__asks_for_the_clean_volume_and_leaves_it_as_it_is(volumes: Path) -> None:
    objective, batch = parts(volumes)
    term: Any = objective.terms["disrupted"]
    clean = batch.image.clone()
    _, losses, report = objective(batch, 0.5)
    assert torch.equal(batch.image, clean)
    assert set(losses) == {"disrupted", "modality"}
    image = batch.image.float()
    disrupted = term.disrupt(image, batch.keys)
    assert float(report["disrupted_input"]) == pytest.approx(float((disrupted - image).abs().mean()), rel=1e-5)
    with torch.no_grad():
        from maskedclip.objectives.corruption import channel_mask

        channels = channel_mask(batch.keys, 48, 0.6)
        restored, tokens = term.restore(objective.model.encoder, disrupted, channels)
        pooled = objective.model.pool(tokens).double().numpy()
    assert float(losses["disrupted"]) == pytest.approx(float((restored - image).abs().mean()), rel=1e-5)
    assert batch.modality is not None
    expected = 0.03 * naive(pooled, batch.modality.tolist(), 0.5)
    assert float(losses["modality"]) == pytest.approx(expected, rel=1e-4)


def test_term__noise_and_cells_of_a_volume_are_those_of_the_paper(volumes: Path) -> None:
    objective, batch = parts(volumes, "--data.size", "20")
    term: Any = objective.terms["disrupted"]
    image = batch.image.float()
    disrupted = term.disrupt(image, batch.keys)
    cells = disrupted.view(6, 1, 5, 4, 5, 4, 5, 4)
    assert torch.equal(cells, cells[:, :, :, :1, :, :1, :, :1].expand_as(cells))
    noise = (disrupted - image)[..., ::4, ::4, ::4]
    assert float(noise.var()) == pytest.approx(0.1, rel=0.15)  # 750 numbers; test_corruption.py has the narrow bound


@pytest.mark.parametrize(
    ("mode", "noise", "factor", "ratio"),
    [("denoise", 0.1, 1, 0.0), ("superres", 0.0, 4, 0.0), ("channels", 0.0, 1, 0.6), ("all", 0.1, 4, 0.6)],
)
def test_term__single_modes_disrupt_one_thing(
    volumes: Path, mode: str, noise: float, factor: int, ratio: float
) -> None:
    objective, batch = parts(volumes, *options(mode=mode))
    term = objective.terms["disrupted"]
    assert isinstance(term, Disrupted)
    assert (term.options.noise, term.options.factor, term.options.ratio) == (noise, factor, ratio)
    _, losses, report = objective(batch, 0.5)
    assert torch.isfinite(losses["disrupted"])
    assert (float(report["disrupted_input"]) > 0) == (mode != "channels")


@pytest.mark.parametrize("kind", ["volumes", "pictures"])
def test_term__trains_encoder_and_decoder_and_does_not_know_the_order(
    kind: str, request: pytest.FixtureRequest
) -> None:
    more = [] if kind == "volumes" else options(contrast_weight=0.0)
    objective, batch = parts(request.getfixturevalue(kind), *more)
    total, losses, _ = objective(batch, 0.5)
    total.backward()
    trained = {name.split(".")[1] for name, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"encoder", "disrupted"}
    order = torch.randperm(len(batch.keys), generator=torch.Generator().manual_seed(1))
    _, again, _ = objective(reordered(batch, order), 0.5)
    for name, value in losses.items():
        assert torch.allclose(value, again[name], rtol=1e-5), name


def test_term__literal_knows_the_order(volumes: Path) -> None:
    objective, batch = parts(volumes, *options(literal=True))
    assert batch.modality is not None
    order = torch.argsort(batch.modality, stable=True).flip(0)
    _, losses, _ = objective(batch, 0.5)
    _, again, _ = objective(reordered(batch, order), 0.5)
    assert torch.allclose(losses["disrupted"], again["disrupted"], rtol=1e-5)
    assert not torch.allclose(losses["modality"], again["modality"], rtol=1e-3)


def test_term__refuses_in_one_line(volumes: Path, pictures: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"channel_ratio": 1.0}, "channel_ratio"),
        ({"noise_variance": -1.0}, "noise_variance"),
        ({"downsample": 0}, "downsample"),
        ({"temperature": 0.0}, "temperature"),
        ({"contrast_weight": -0.1}, "contrast_weight"),
        ({"skip_width": -1}, "skip_width"),
    ]
    for values, told in wrong:
        with pytest.raises(UserError, match=f"objective.terms.disrupted.{told}"):
            Options(**values)
    objective, batch = parts(pictures)
    with pytest.raises(UserError, match="fewer than two modalities"):
        objective(batch, 0.5)
    with pytest.raises(UserError, match=r"training\.micro_batches"):
        parts(volumes, "--training.micro_batches", "2")
    parts(volumes, "--training.micro_batches", "2", *options(contrast_weight=0.0, channel_draw="sample"))


def test_term__decodes_a_swin_pyramid(tmp_path: Path) -> None:
    pytest.importorskip("monai.networks.nets")
    folder = make_volume_store(tmp_path / "s", rows=4)
    overrides = [
        *("--model.image_encoder", "volume_swin_unetr", "--data.size", "64", "--data.batch_unpaired", "1"),
        *("--model.image_encoder_options", '{"feature_size": 12, "window_size": 4}'),
    ]
    objective, batch = parts(folder, *overrides)
    total, losses, _ = objective(batch, 0.5)
    total.backward()
    assert torch.isfinite(losses["disrupted"])
    assert float(losses["modality"]) == 0  # one sample has no other of its modality
    embedding: Any = objective.model.encoder.swinViT
    assert bool(embedding.patch_embed.proj.weight.grad.any())
    masked, _ = parts(folder, *overrides, "--objective.mim_weight", "1")
    with pytest.raises(UserError, match="visible patches alone"):
        masked(batch, 0.5)
