"""The Q-agent: acts as its Q values say, learns from errors alone, and keeps what it learnt in the checkpoints."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.masking import MaskContext, RandomMasker, mask_from_scores
from maskedclip.objectives.masking.q_agent import Agent, AgentMasker, Options
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.parts import read_options
from maskedclip.recipe import load_recipe
from maskedclip.training.checkpoint import list_checkpoints
from maskedclip.training.pretrain import pretrain
from tests.objectives.masking.agent_run import examine, hardness, hides, make_objective, train
from tests.objectives.masking.photographs import digits, keys_of, photographs
from tests.stores import TINY, make_store


class _Known(nn.Module):
    """An agent whose Q values are given, (B, h, w)."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.grid, self.values = tuple(values.shape[1:]), values

    def forward(self, image: Tensor) -> Tensor:
        return self.values[: len(image)]


def _masker(values: Tensor, **options: Any) -> AgentMasker:
    masker = AgentMasker(values.shape[1:], Options(**{"epsilon": 0.0, **options}))  # type: ignore[arg-type]
    masker.agent = _Known(values)  # type: ignore[assignment]
    return masker


def _context(count: int, patches: int, progress: float) -> MaskContext:
    views: Any = SimpleNamespace(image=torch.zeros(count, 3, 8, 8))
    return MaskContext(keys_of(count), patches, progress, views)


@pytest.mark.parametrize("progress", [0.0, 0.5])
@pytest.mark.parametrize(("block", "anchors"), [(1, "equal"), (2, "equal"), (3, "clipped")])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 0.75])
def test_q_agent__ratio_is_exact(progress: float, block: int, anchors: str, ratio: float) -> None:
    for values in (torch.rand(40, 5, 7), torch.zeros(40, 5, 7)):
        scores = _masker(values, block=block, anchors=anchors).score(_context(40, 35, progress))
        hidden = mask_from_scores(scores, ratio).is_hidden().sum(dim=1)
        assert (hidden == 35 - round((1 - ratio) * 35)).all()


@pytest.mark.parametrize("anchors", ["equal", "clipped"])
def test_q_agent__hides_the_block_of_the_highest_value(anchors: str) -> None:
    values = torch.rand(30, 6, 6)
    hidden = mask_from_scores(_masker(values, anchors=anchors).score(_context(30, 36, 1.0)), 4 / 36).is_hidden()
    for image, row in enumerate(hidden.unflatten(1, (6, 6))):
        allowed = values[image, :5, :5] if anchors == "equal" else values[image]
        top, left = divmod(int(allowed.argmax()), allowed.shape[1])
        assert row[top : top + 2, left : left + 2].all()  # clipped at the border, where it is fewer than four


def test_q_agent__equal_values_do_not_hide_by_place() -> None:
    hidden = mask_from_scores(_masker(torch.zeros(400, 6, 6)).score(_context(400, 36, 1.0)), 0.5).is_hidden()
    assert (hidden.float().mean(dim=0) - 0.5).abs().max() < 0.12  # five standard deviations


@pytest.mark.parametrize("block", [1, 2])
def test_q_agent__acts_uniformly_in_the_warm_up(block: int) -> None:
    """Chi-square over which block is hidden first."""
    masker, count = _masker(torch.rand(1, 6, 6).expand(3000, 6, 6), block=block), 3000
    context = MaskContext(keys_of(count), 36, 0.19)  # no views: the images are not looked at
    first = masker._actions(torch.zeros(1, 6, 6))
    actions = mask_from_scores(masker.score(context), block**2 / 36).is_hidden().unflatten(1, (6, 6))
    corners = [tuple((row.nonzero().amin(dim=0)).tolist()) for row in actions]
    counts = np.zeros(first.shape[1:])
    for corner in corners:
        counts[corner] += 1
    assert stats.chisquare(counts.flatten()).pvalue > 0.001
    greedy = mask_from_scores(masker.score(_context(count, 36, 0.2)), block**2 / 36).is_hidden()
    assert (greedy == greedy[:1]).all()


def test_q_agent__single_patches_in_the_warm_up_are_random_masking() -> None:
    context = MaskContext(keys_of(20), 36, 0.0)
    mine = mask_from_scores(_masker(torch.rand(20, 6, 6), block=1).score(context), 0.5)
    assert torch.equal(mine.hidden, mask_from_scores(RandomMasker().score(context), 0.5).hidden)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_q_agent__explores_as_often_as_it_is_told(epsilon: float) -> None:
    masker = _masker(torch.rand(1, 6, 6).expand(2000, 6, 6), epsilon=epsilon)
    hidden = mask_from_scores(masker.score(_context(2000, 36, 0.9)), 4 / 36).is_hidden()
    usual = hidden.unique(dim=0, return_counts=True)[1].max().item()
    assert usual == pytest.approx(2000 * (1 - epsilon + epsilon / 25), abs=60)  # one block of 25 is the greedy one


@pytest.mark.parametrize("reward", ["masked", "whole"])
@pytest.mark.parametrize("anchors", ["equal", "clipped"])
def test_q_agent__loss_is_that_of_the_blocks_that_were_hidden(reward: str, anchors: str) -> None:
    torch.manual_seed(0)  # of some draws no block is hidden whole
    values = torch.rand(3, 4, 5, requires_grad=True)
    masker = _masker(values, reward=reward, anchors=anchors, reward_scale=3.0, loss_weight=0.5)
    mask = mask_from_scores(torch.rand(3, 20), 0.6)
    error = torch.rand(3, mask.decoded.shape[1], requires_grad=True)
    views: Any = SimpleNamespace(image=torch.zeros(3, 3, 8, 8), mask=mask, patch_error=error)
    losses, report = masker.feedback(views)
    expected = []
    for image in range(3):
        table = {int(place): error[image, n].item() for n, place in enumerate(mask.decoded[image])}
        squares = []
        for top in range(3 if anchors == "equal" else 4):
            for left in range(4 if anchors == "equal" else 5):
                places = [r * 5 + c for r in (top, top + 1) for c in (left, left + 1) if r < 4 and c < 5]
                if all(place in table for place in places):
                    block = sum(table[place] for place in places) / len(places)
                    target = 3.0 * (block if reward == "masked" else sum(table.values()) / 20)
                    squares.append((values[image, top, left].item() - target) ** 2)
        expected.append(sum(squares) / max(1, len(squares)))
    assert losses["q_agent"].item() == pytest.approx(0.5 * sum(expected) / 3, rel=1e-5)
    assert sum(expected) > 0
    losses["q_agent"].backward()
    assert values.grad is not None
    assert error.grad is None
    assert -1 <= report["q_correlation"] <= 1


def test_q_agent__neither_side_s_step_changes_the_other_s_weights() -> None:
    objective = make_objective()
    batch = Batch((photographs(6, 32) * 255).round().byte(), keys_of(6), 0)
    for side in ("mim", "q_agent"):
        optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2, weight_decay=0.0)
        before = {name: value.detach().clone() for name, value in objective.named_parameters()}
        views = objective._views(batch, 0.5)
        pixels = objective.terms["mim"](views)[0]["mim"]
        assert isinstance(objective.masker, AgentMasker)
        agent = objective.masker.feedback(views)[0]["q_agent"]
        optimizer.zero_grad()
        (pixels if side == "mim" else agent).backward()
        optimizer.step()
        moved = {name for name, value in objective.named_parameters() if not torch.equal(value, before[name])}
        assert moved
        assert {name.startswith("masker.") for name in moved} == {side == "q_agent"}


def test_q_agent__micro_batches_add_up() -> None:
    objective = make_objective()
    images, keys = (photographs(6, 32) * 255).round().byte(), keys_of(6)
    with torch.no_grad():
        whole = objective(Batch(images, keys, 0), 0.5)[1]["q_agent"].item()
        parts = [objective(Batch(images[p], keys[p], 0), 0.5)[1]["q_agent"].item() for p in (slice(3), slice(3, 6))]
    assert whole == pytest.approx(sum(parts) / 2, rel=1e-5)


@pytest.fixture(scope="module")
def learnt() -> tuple[PretrainingObjective, Tensor]:
    """Reconstructor and agent after 150 steps of random actions on 96 phantom photographs of 32 px, and 32 others.

    Greedy actions make hard places easier and others harder, so what is hard is judged without them; the benchmark
    judges agents that acted greedily in the same way, after more steps, and measures how much contrast they hide.
    """
    images = (photographs(128, 32) * 255).round().byte()
    objective = make_objective(warmup=1.0)
    train(objective, images[:96], 150)
    return objective, images[96:]


def test_q_agent__hides_what_is_hard_to_restore(learnt: tuple[PretrainingObjective, Tensor]) -> None:
    objective, images = learnt
    found = examine(objective, images, hardness(objective, images))
    assert found.agent >= 1.5 * found.uniform
    assert found.correlation >= 0.3


def test_q_agent__of_the_recipe_hides_the_foreground() -> None:
    """With greedy actions after the warm-up; judged by the reconstructor that it worked against.

    Measured: error 2.8 times the mean, correlation 0.90, foreground 0.98 of what it hides and 0.16 of all.
    """
    images = digits(256)
    objective = make_objective()
    train(objective, images[:192], 120)
    found = examine(objective, images[192:], hardness(objective, images[192:]))
    assert found.agent >= 1.5 * found.uniform
    assert found.correlation >= 0.3
    strokes = functional.avg_pool2d(images[192:, :1].float(), 4)[:, 0].flatten(1) > 30
    foreground = strokes[hides(objective, images[192:], 1 / 16)].float().mean()
    assert foreground >= 2 * strokes.float().mean()
    assert foreground >= 0.7


def test_q_agent__an_image_of_one_colour_has_one_value(learnt: tuple[PretrainingObjective, Tensor]) -> None:
    assert isinstance(learnt[0].masker, AgentMasker)
    agent = learnt[0].masker.agent
    plain = torch.tensor([0.0, 1.5, -2.0])[:, None, None, None].expand(3, 3, 32, 32)
    with torch.no_grad():
        flat, drawn = agent(plain), agent(learnt[0]._views(Batch(learnt[1][:3], keys_of(3), 0), 1.0).image)
    assert flat.std(dim=(1, 2)).max() < 1e-4
    assert drawn.std(dim=(1, 2)).min() > 100 * flat.std(dim=(1, 2)).max()


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (3, 5)])
def test_agent__its_map_has_the_patch_grid(grid: tuple[int, int]) -> None:
    assert Agent(grid)(torch.randn(2, 3, 14 * grid[0], 14 * grid[1])).shape == (2, *grid)


def test_q_agent__resumed_is_uninterrupted_to_the_bit(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    recipe = load_recipe(["intelligent_masking_style", "tiny"], TINY)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert pretrain(recipe, store, whole).complete
    shutil.copytree(whole, parts)
    for folder in ("model", "checkpoints/step-00000006"):
        shutil.rmtree(parts / folder)
    assert pretrain(recipe, store, parts, resume=True).complete
    states = [load_file(list_checkpoints(run / "checkpoints")[-1] / "state.safetensors") for run in (whole, parts)]
    assert states[0].keys() == states[1].keys()
    assert any("masker.agent" in name and "exp_avg" not in name for name in states[0])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": 1.5}, "warmup: 1.5 is outside"),
        ({"epsilon": -0.1}, "epsilon: -0.1 is outside"),
        ({"block": 0}, "block: 0"),
        ({"reward_scale": 0.0}, "reward_scale: 0.0"),
        ({"eps": 0.1}, "eps: no such option"),
    ],
)
def test_q_agent__refuses_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_options("masking", "q_agent", values)


def test_q_agent__refuses_what_it_cannot_learn_from() -> None:
    recipe = load_recipe(["clip", "tiny"], [*TINY, "--objective.masking", "q_agent", "--objective.mkd_weight", "1"])
    model, _ = build_model(recipe, ["A red lesion."])
    masker = build_objective(recipe, model).masker
    assert isinstance(masker, AgentMasker)
    views: Any = SimpleNamespace(patch_error=None)
    with pytest.raises(UserError, match=r"no loss of this recipe predicts any; raise objective\.mim_weight"):
        masker.feedback(views)
    with pytest.raises(UserError, match="needs the views of a step"):
        masker.score(MaskContext(keys_of(2), 16, 0.5))
    large = load_recipe(
        ["mae", "tiny"], [*TINY, "--objective.masking", "q_agent", "--objective.masking_options", "{block: 5}"]
    )
    with pytest.raises(UserError, match="block: 5 is more than the grid of 4 x 4"):
        build_objective(large, model)
