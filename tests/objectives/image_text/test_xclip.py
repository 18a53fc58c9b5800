"""nCLIP and xCLIP: the loss against its formula in float64, what keeps clusters apart, ranks, parts, resuming."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from maskedclip.data.pairs import pairs_table
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.standardise import statistics_paused
from maskedclip.objectives.base import Batch
from maskedclip.objectives.image_text.xclip import ClusterHead, cluster_loss, entropy
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.checkpoint import list_checkpoints
from maskedclip.training.pretrain import pretrain
from tests.objectives.image_text.steps import (
    EXACT,
    assert_same_gradients,
    first_step,
    gradients,
    of_two_ranks,
    recipe_with,
    term_of,
)
from tests.stores import SENTENCES, TINY, make_store
from tests.training.test_step import World

SMALL = {"clusters": 8, "hidden": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("xclip") / "s", rows=96)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), sharp=st.floats(0, 2), smooth=st.floats(0, 2), seed=st.integers(0, 10**6))
def test_cluster_loss__equals_its_formula_in_float64(rows: int, sharp: float, smooth: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    p, q = (random.dirichlet(np.ones(5), rows) for _ in range(2))
    across = within = 0.0
    for i in range(rows):
        across -= sum(q[i] * np.log(p[i]) + p[i] * np.log(q[i])) / (2 * rows)
        within -= sum(p[i] * np.log(p[i]) + q[i] * np.log(q[i])) / (2 * rows)
    even = [-sum(mean * np.log(mean)) for mean in (p.mean(axis=0), q.mean(axis=0))]
    expected = across + sharp * within - smooth * sum(even) / 2
    log_p, log_q = (torch.from_numpy(np.log(value)).float() for value in (p, q))
    means = log_p.exp().mean(dim=0), log_q.exp().mean(dim=0)
    found = cluster_loss(log_p, log_q, *means, sharpness=sharp, smoothness=smooth)
    assert found.item() == pytest.approx(expected, abs=1e-4)


def _loss_of_logits(image: Tensor, text: Tensor, sharp: float = 0.2, smooth: float = 1.0) -> Tensor:
    log_p, log_q = image.log_softmax(dim=1), text.log_softmax(dim=1)
    means = log_p.exp().mean(dim=0), log_q.exp().mean(dim=0)
    return cluster_loss(log_p, log_q, *means, sharpness=sharp, smoothness=smooth)


def test_cluster_loss__rests_where_both_sides_are_one_hot_and_even() -> None:
    logits = [(80 * torch.eye(6).repeat(4, 1)).requires_grad_() for _ in range(2)]  # 24 pairs, 4 in each cluster
    loss = _loss_of_logits(logits[0], logits[1])
    assert loss.item() == pytest.approx(-math.log(6), abs=1e-6)  # the least that it can be
    for gradient in torch.autograd.grad(loss, logits):
        assert float(gradient.abs().max()) < 1e-8
    # and it does not rest where the clusters are uneven, or the sides differ
    uneven = [(4 * torch.eye(6)[torch.zeros(24, dtype=torch.int64)]).requires_grad_() for _ in range(2)]
    assert float(torch.autograd.grad(_loss_of_logits(uneven[0], uneven[1]), uneven)[0].abs().max()) > 1e-3
    apart = [logits[0], logits[1].detach().roll(1, dims=1).requires_grad_()]
    assert float(torch.autograd.grad(_loss_of_logits(apart[0], apart[1]), apart)[0].abs().max()) > 1e-3


def test_cluster_loss__finite_where_probabilities_vanish() -> None:
    logits = torch.tensor([[0.0, 300.0, -300.0], [0.0, 300.0, -300.0]], requires_grad=True)
    loss = _loss_of_logits(logits, logits)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert entropy(torch.tensor([0.0, 1.0])).item() == pytest.approx(0.0, abs=1e-30)


def test_cluster_loss__does_not_depend_on_the_order() -> None:
    torch.manual_seed(1)
    image, text, order = torch.randn(12, 7), torch.randn(12, 7), torch.randperm(12)
    assert _loss_of_logits(image[order], text[order]).item() == pytest.approx(
        _loss_of_logits(image, text).item(), rel=1e-6
    )


def test_xclip__does_not_depend_on_the_order_of_the_batch(folder: Path) -> None:
    objective, batch = first_step(folder, recipe_with("xclip", SMALL))
    assert batch.text_index is not None
    assert batch.text_key is not None
    order = torch.randperm(batch.num_paired, generator=torch.Generator().manual_seed(2))
    shuffled = Batch(
        batch.image[order],
        batch.keys[order],
        batch.num_paired,
        text_ids=batch.text_ids,
        text_mask=batch.text_mask,
        text_index=batch.text_index[order],
        text_key=batch.text_key[order],
    )
    with torch.no_grad():
        found, expected = (objective(entry, 0.5)[1]["xclip"].item() for entry in (shuffled, batch))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("clip_weight", "heads"), [(0.0, "shared"), (1.0, "separate")])
def test_xclip__two_ranks_equal_one(folder: Path, tmp_path: Path, clip_weight: float, heads: str) -> None:
    recipe = recipe_with("xclip", {**SMALL, "heads": heads, "running_mean": 0.5}, clip_weight=clip_weight)
    assert_same_gradients(of_two_ranks(folder, recipe, tmp_path), gradients(*first_step(folder, recipe)))


def test_xclip__parts_equal_the_whole_batch(folder: Path) -> None:
    found, states = [], []
    for parts in ("1", "4"):
        world = World(folder, recipe_with("xclip", SMALL, "--training.micro_batches", parts))
        losses, _ = world.stepper._gradients(world.batch(0), 0.5)
        named = world.objective.named_parameters()
        found.append({name: p.grad.clone() for name, p in named if p.grad is not None} | {"loss": losses["loss"]})
        states.append({name: value for name, value in world.state().items() if "standardise" in name})
    assert_same_gradients(found[1], found[0])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value)


def test_xclip__the_running_mean_follows_once_a_step_and_not_in_a_skipped_one(folder: Path) -> None:
    objective, batch = first_step(folder, recipe_with("xclip", {**SMALL, "running_mean": 0.9}))
    term = term_of(objective, "xclip")
    even = torch.full((8,), 1 / 8)
    torch.testing.assert_close(term.image_mean, even)
    objective(batch, 0.5)
    assert term._latest is not None
    latest = term._latest[0]
    assert float((latest - even).abs().max()) > 1e-4
    objective.after_step(torch.tensor(1.0))
    torch.testing.assert_close(term.image_mean, even)
    objective(batch, 0.5)
    objective.after_step(torch.tensor(0.0))
    torch.testing.assert_close(term.image_mean, 0.9 * even + 0.1 * latest)
    before = term.image_mean.clone()
    objective.after_step()  # no step between: nothing to follow
    assert torch.equal(term.image_mean, before)


def test_xclip__the_running_mean_has_the_value_of_the_past_and_the_gradient_of_the_batch(folder: Path) -> None:
    objective, _ = first_step(folder, recipe_with("xclip", {**SMALL, "running_mean": 0.75}))
    mean = torch.full((8,), 0.125, requires_grad=True)
    past = torch.eye(8)[0]
    found = term_of(objective, "xclip")._with_past(mean, past)
    torch.testing.assert_close(found, 0.75 * past + 0.25 * mean)
    assert torch.equal(torch.autograd.grad(found.sum(), mean)[0], torch.ones(8))


def test_xclip__resumed_equals_uninterrupted_bitwise(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_with("xclip", {**SMALL, "running_mean": 0.9}, "--training.steps", "4")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    pretrain(recipe, folder, whole)
    pretrain(recipe, folder, parts)
    newest = list_checkpoints(parts / "checkpoints")[-1]
    for path in newest.iterdir():  # the run is as it was after its second step
        path.unlink()
    newest.rmdir()
    pretrain(recipe, folder, parts, resume=True)
    final = [load_file(list_checkpoints(run / "checkpoints")[-1] / "state.safetensors") for run in (whole, parts)]
    assert final[0].keys() == final[1].keys()
    assert any("image_mean" in name for name in final[0])
    assert all(torch.equal(value, final[1][name]) for name, value in final[0].items())


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    """A text for every other image, whatever they show."""
    store = open_store(folder)
    rows = np.arange(len(store))
    index = np.where(rows % 2 == 1, -1, rows % 3)[:, None]
    path = folder.parent / "pairs.parquet"
    table = pairs_table(store, rows, SENTENCES, index, np.full((len(rows), 1), 0.5, np.float32), {"top": 1})
    pq.write_table(table, path)
    return path


def _with_retrieved(pairs: Path, weight: float = 1.0, *more: str) -> Recipe:
    return recipe_with(
        "xclip",
        {**SMALL, "retrieved": weight},
        *("--data.pairs", str(pairs), "--data.pool", "paired_and_unpaired", "--data.batch_unpaired", "8", *more),
        clip_weight=1.0,
    )


def test_xclip__retrieved_texts_join_their_images(folder: Path, pairs: Path) -> None:
    """The formula in float64 over the images that have one, each with its own text; the others change nothing."""
    recipe = _with_retrieved(pairs, 0.5)
    objective, batch = first_step(folder, recipe)
    assert batch.retrieved_index is not None
    assert batch.retrieved_ids is not None
    assert batch.retrieved_mask is not None
    term, model = term_of(objective, "xclip"), objective.model
    assert model.text_encoder is not None
    text_encoder: Any = model.text_encoder
    for step in range(4):  # so that running statistics are no longer those of the start
        objective(first_step(folder, recipe, step=step)[1], 0.5)
    with torch.no_grad(), statistics_paused(objective):
        views = objective._views(batch, 0.5)
        losses, report = term(views)
    paired = batch.num_paired
    has = [row for row in range(paired, len(batch.image)) if batch.retrieved_index[row] >= 0]
    assert 0 < len(has) < len(batch.image) - paired
    objective.eval()
    probabilities = []
    with torch.no_grad():
        for row in has:
            text = slice(int(batch.retrieved_index[row]), int(batch.retrieved_index[row]) + 1)
            image = model.project(model.bridge(model.encoder(views.image[row : row + 1])))
            words = text_encoder(batch.retrieved_ids[text], batch.retrieved_mask[text])
            heads = ((term.image_head, image), (term.text_head, words))
            probabilities.append([head(side).softmax(dim=1)[0].double().numpy() for head, side in heads])
    across = -np.mean([(q * np.log(p) + p * np.log(q)).sum() / 2 for p, q in probabilities])
    within = -np.mean([(p * np.log(p) + q * np.log(q)).sum() / 2 for p, q in probabilities])
    assert losses["xclip_retrieved"].item() == pytest.approx(0.5 * (across + 0.2 * within), rel=1e-4)
    agreement = np.mean([p.argmax() == q.argmax() for p, q in probabilities])
    assert report["xclip_retrieved_agreement"].item() == pytest.approx(agreement)

    objective.train()
    batch.image = batch.image.clone()
    others = [row for row in range(paired, len(batch.image)) if row not in has]
    batch.image[others] = 255 - batch.image[others]
    with torch.no_grad(), statistics_paused(objective):
        again = term(objective._views(batch, 0.5))[0]
    assert again["xclip_retrieved"].item() == pytest.approx(losses["xclip_retrieved"].item(), rel=1e-6)


def test_xclip__retrieved_texts_move_both_towers_and_are_none_in_a_step_without(folder: Path, pairs: Path) -> None:
    objective, batch = first_step(folder, _with_retrieved(pairs))
    term_of(objective, "xclip")(objective._views(batch, 0.5))[0]["xclip_retrieved"].backward()
    for module in (objective.model.encoder, objective.model.text_encoder):
        assert module is not None
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters())
    assert batch.retrieved_index is not None
    batch.retrieved_index[:] = -1
    loss = term_of(objective, "xclip")(objective._views(batch, 0.5))[0]["xclip_retrieved"]
    assert abs(loss.item()) < 1e-30
    loss.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in objective.parameters())


@pytest.mark.parametrize("more", [(), ("--model.projection_norm", "none", "--model.bridge", "true")])
def test_xclip__retrieved_texts_on_two_ranks_equal_one(
    folder: Path, pairs: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    recipe = _with_retrieved(pairs, 1.0, *more)
    assert_same_gradients(of_two_ranks(folder, recipe, tmp_path), gradients(*first_step(folder, recipe)))


def test_xclip__retrieved_texts_are_asked_for_and_need_the_whole_batch(folder: Path, pairs: Path) -> None:
    with pytest.raises(UserError, match=r"xclip\.retrieved: reads texts that were retrieved; give data\.pairs, or 0"):
        first_step(folder, recipe_with("xclip", {**SMALL, "retrieved": 1.0}))
    with pytest.raises(UserError, match=r"data\.pairs: no loss of this recipe reads retrieved texts"):
        _with_retrieved(pairs, 0.0)
    with pytest.raises(UserError, match=r"micro_batches: 2, but objective\.terms\.xclip needs the whole batch"):
        first_step(folder, _with_retrieved(pairs, 1.0, "--training.micro_batches", "2"))


@pytest.mark.parametrize("name", ["nclip_style", "xclip_style"])
def test_xclip__its_recipes_step_and_train_everything(folder: Path, name: str) -> None:
    recipe = load_recipe([name, "tiny"], [*TINY, *EXACT])
    objective, batch = first_step(folder, recipe)
    found = gradients(objective, batch)
    assert torch.isfinite(found["loss"])
    assert not [name for name, p in objective.named_parameters() if p.requires_grad and name not in found]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clusters": 1}, "xclip.clusters: 1"),
        ({"running_mean": 1.0}, "xclip.running_mean: 1.0"),
        ({"smoothness": -1.0}, "xclip.smoothness: -1.0"),
        ({"temperature": 0}, "xclip.temperature: 0"),
        ({"retrieved": -1.0}, "xclip.retrieved: -1.0"),
    ],
)
def test_xclip__wrong_options_are_told_in_a_line(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        recipe_with("xclip", options)
    assert "\n" not in str(caught.value)


# --- clusters --------------------------------------------------------------------------------------------------------

COLOURS = np.array([[250, 30, 30], [30, 220, 60], [240, 230, 60], [245, 245, 245]])
PLACES = np.array([[-0.25, 0.0], [0.25, 0.0], [0.0, 0.0]])


def discs(count: int, seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Noisy discs with one spot of 4 colours at one of 3 places, (n, 3 S S), and captions as bags of words, (n, 12)."""
    random = np.random.default_rng(seed)
    colour, place, aside = (random.integers(0, most, count) for most in (4, 3, 5))
    y, x = np.mgrid[:size, :size] / size - 0.5
    disc = np.where((x**2 + y**2 < 0.22)[..., None], [120, 70, 40], [0, 0, 0])
    images = disc + random.normal(0, 12, (count, size, size, 3))
    centre = PLACES[place] + random.uniform(-1, 1, (count, 2)) * [0.08, 0.15]
    spot = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2 < 0.012
    images = torch.from_numpy(np.where(spot[..., None], COLOURS[colour][:, None, None], images)).float().flatten(1)
    captions = torch.zeros(count, 12)
    for first, words in ((0, colour), (4, place), (7, aside)):
        captions[torch.arange(count), torch.from_numpy(first + words)] = 1
    return (images - images.mean(dim=0)) / (images.std(dim=0) + 0.3), captions


def cluster_figures(
    pairs: tuple[Tensor, Tensor], sharp: float, smooth: float, *, seed: int = 0, steps: int = 400
) -> tuple[float, int, float]:
    """Evenness H(mean p) / log K, clusters in use, and agreement of both sides on the pairs from the 1,400th on."""
    torch.manual_seed(seed)
    towers = [nn.Sequential(nn.Linear(side.shape[1], 128), nn.GELU(), nn.Linear(128, 64)) for side in pairs]
    heads = [ClusterHead(64, 128, 64) for _ in pairs]
    module = nn.ModuleList([*towers, *heads])
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3, fused=True)

    def logits(rows: Tensor | slice) -> list[Tensor]:
        return [head(tower(side[rows])) for head, tower, side in zip(heads, towers, pairs, strict=True)]

    for _ in range(steps):
        image, text = logits(torch.randint(1400, (256,)))
        loss = _loss_of_logits(image, text, sharp, smooth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        p, q = (side.softmax(dim=1) for side in logits(slice(1400, None)))
    agreement = float((p.argmax(dim=1) == q.argmax(dim=1)).float().mean())
    return float(entropy(p.mean(dim=0))) / math.log(64), len(p.argmax(dim=1).unique()), agreement


def test_xclip__smoothness_keeps_more_clusters_than_none() -> None:
    """FAMILY.md, G, with its thresholds; measured with seeds 0 and 1: docs/family/xclip_style.md.

    Collapse is partial: nothing here says that plain has one cluster.
    """
    pairs = discs(1797, seed=0)
    plain, sharp, smooth, even = (
        cluster_figures(pairs, *weights) for weights in ((0.0, 0.0), (0.5, 0.0), (0.2, 1.0), (0.5, 2.0))
    )
    assert smooth[0] >= 0.48
    assert smooth[1] >= 8
    assert smooth[2] >= 0.8
    assert plain[0] <= 0.45
    assert plain[1] <= 6
    assert smooth[0] - plain[0] >= 0.08
    assert sharp[0] <= 0.45  # sharpness alone does not stop the collapse
    assert sharp[1] <= 6
    assert even[0] >= 0.8  # and twice the smoothness uses all clusters, but breaks the agreement
    assert even[2] <= 0.5
