"""A short training of reconstructor and Q-agent on phantom photographs, and what the agent knows of held-out ones."""

import json
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.masking import MaskContext, mask_from_scores
from maskedclip.objectives.masking.q_agent import AgentMasker
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.recipe import load_recipe
from tests.objectives.masking.photographs import keys_of
from tests.stores import TINY


def make_objective(size: int = 32, patch: int = 4, ratio: float = 0.25, **options: object) -> PretrainingObjective:
    """The shipped recipe with a tiny encoder; options are the masking's."""
    vit = {"patch_size": patch, "depth": 2, "embed_dim": 48, "num_heads": 3}
    overrides = ["--data.size", str(size), "--model.image_encoder_options", json.dumps(vit)]
    overrides += ["--objective.mask_ratio", str(ratio)]
    overrides += ["--objective.masking_options", json.dumps(options)] if options else []
    recipe = load_recipe(["intelligent_masking_style", "tiny"], [*TINY, *overrides])
    return build_objective(recipe, build_model(recipe, [])[0])


def train(objective: PretrainingObjective, images: Tensor, steps: int, batch: int = 16, lr: float = 2e-3) -> None:
    """Steps of AdamW over uint8 images (N, 3, S, S), all weights together, at a falling rate, as the trainer does."""
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        rows = torch.randint(len(images), (batch,), generator=draw)
        total, _, _ = objective(Batch(images[rows], keys_of(batch, step), 0), step / steps)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


@torch.no_grad()
def hardness(objective: PretrainingObjective, images: Tensor, draws: int = 12) -> Tensor:
    """Mean squared error of each patch when it is hidden among blocks at random, uint8 (B, 3, S, S) -> (B, L)."""
    total = count = torch.zeros(len(images), objective.model.encoder.num_patches)
    for draw in range(draws):
        views = objective._views(Batch(images, keys_of(len(images), 100 + draw), 0), 0.0)  # within the warm-up
        objective.terms["mim"](views)
        assert views.patch_error is not None
        total = total + torch.zeros_like(total).scatter_(1, views.mask.decoded, views.patch_error)
        count = count + views.mask.is_hidden()
    return total / count.clamp(min=1)


@torch.no_grad()
def hides(objective: PretrainingObjective, images: Tensor, ratio: float) -> Tensor:
    """Which patches the agent hides where it never acts at random, uint8 (B, 3, S, S) -> bool (B, L)."""
    masker = objective.masker
    assert isinstance(masker, AgentMasker)
    greedy = AgentMasker(masker.agent.grid, replace(masker.options, epsilon=0.0))
    greedy.agent = masker.agent
    views = objective._views(Batch(images, keys_of(len(images), 99), 0), 1.0)
    scores = greedy.score(MaskContext(views.batch.keys, objective.model.encoder.num_patches, 1.0, views))
    return mask_from_scores(scores, ratio).is_hidden()


@dataclass
class Learnt:
    """Mean error of the patches that the agent hides, of all, and of the hardest; correlation of Q with the error of a
    block; share of the agent's patches among the quarter with most contrast."""

    agent: float
    uniform: float
    hardest: float
    correlation: float
    contrast: float


@torch.no_grad()
def examine(objective: PretrainingObjective, images: Tensor, error: Tensor, ratio: float = 1 / 16) -> Learnt:
    """What the agent has learnt, on uint8 images (B, 3, S, S), judged by `hardness` (B, L).

    `ratio` is what the agent hides here; the paper's block is a twentieth of its image.
    """
    masker = objective.masker
    assert isinstance(masker, AgentMasker)
    views = objective._views(Batch(images, keys_of(len(images), 99), 0), 1.0)
    hidden = hides(objective, images, ratio)
    hardest = mask_from_scores(error, ratio).is_hidden()
    deviation = objective.model.encoder.patchify(views.image).std(dim=-1)
    contrasted = mask_from_scores(deviation, 0.25).is_hidden()
    values = masker._actions(masker.agent(views.image))
    blocks = masker._block_sums(error.unflatten(1, masker.agent.grid))
    return Learnt(
        agent=error[hidden].mean().item(),
        uniform=error.mean().item(),
        hardest=error[hardest].mean().item(),
        correlation=torch.corrcoef(torch.stack([values.flatten(), blocks.flatten()]))[0, 1].item(),
        contrast=contrasted[hidden].float().mean().item(),
    )
