"""Intelligent-Masking-style: an agent learns which patches are hard to restore, and hides them (2203.13865).

[paper]: a small convolutional agent gives a map of Q values; an action is the top left cell of a block of 2 x 2 cells;
the first fifth of the run acts at random, the rest greedily; the agent regresses Q(s, a) to the reconstructor's error,
a bandit of one step.  [inferred], and options here: random actions after the warm-up, the reward, blocks of equal area,
the map on the grid of the vision transformer, where the best blocks are hidden until the ratio is reached.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.masking import MaskContext, _noise
from maskedclip.parts import MaskingOptions
from maskedclip.recipe_sections import require

_WIDTHS = (16, 32, 64, 64, 128, 128)  # [paper]
_SAMPLES = 8  # pixels that the agent sees on a patch's side; three strides lead from there to the grid


@dataclass(frozen=True, kw_only=True)
class Options(MaskingOptions):
    """How the agent acts and what it is rewarded by; the paper's choices are named where they differ."""

    warmup: float = 0.2
    """Share of the run that acts at random.  [paper]"""
    epsilon: float = 0.1
    """Share of the images that are masked at random afterwards; the paper's is 0.  [inferred]"""
    block: int = 2
    """Patches on the side of a block that an action hides; the paper's cells are ninths of the image's side."""
    anchors: Literal["equal", "clipped"] = "equal"
    """Whether blocks lie inside the image, so that all actions hide as much; or are clipped at its border, as in the
    paper, where actions at the border hide less.  [inferred]"""
    reward: Literal["masked", "whole"] = "masked"
    """Mean error of the block; or the error of the whole image, one reward for all of its blocks, as in the paper (of
    the patches that are decoded: visible ones have no error here).  [inferred]"""
    reward_scale: float = 1.0
    """Factor of the reward, so that its size suits fresh weights: 10 for pixels in [0, 1], 1 for those of a step, which
    are in standard deviations.  [inferred]"""
    loss_weight: float = 0.1
    """Of the agent's loss.  AdamW's steps do not depend on it; the norm of the gradients, which clipping shares between
    agent and encoder, does.  [ours]"""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        where = "objective.masking_options"
        for name in ("warmup", "epsilon"):
            require(0 <= getattr(self, name) <= 1, f"{where}.{name}: {getattr(self, name)} is outside [0, 1]")
        require(self.block >= 1, f"{where}.block: {self.block}; give 1 or more patches, e.g. 2")
        for name in ("reward_scale", "loss_weight"):
            require(getattr(self, name) > 0, f"{where}.{name}: {getattr(self, name)}; give a value above 0")


class Agent(nn.Module):
    """A convolutional network from images to one Q value a patch.

    What it computes is the same at every place: borders are replicated, and norms are over channels, so an image of one
    colour has one Q value.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        layers: list[nn.Module] = []
        for place, (before, width) in enumerate(zip((3, *_WIDTHS[:-1]), _WIDTHS, strict=True)):
            stride = 2 if place < _SAMPLES.bit_length() - 1 else 1
            layers += [
                nn.Conv2d(before, width, 3, stride=stride, padding=1, padding_mode="replicate"),
                LayerNorm2d(width),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(_WIDTHS[-1], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> float32 (B, h, w)."""
        with torch.autocast(image.device.type, enabled=False):
            small = functional.adaptive_avg_pool2d(image.float(), (_SAMPLES * self.grid[0], _SAMPLES * self.grid[1]))
            return self.head(self.layers(small))[:, 0]


class AgentMasker(nn.Module):
    """Hides the blocks with the highest Q values, and learns them from the errors that follow."""

    def __init__(self, grid: tuple[int, int], options: Options) -> None:
        super().__init__()
        self.options = options
        self.agent = Agent(grid)

    def score(self, context: MaskContext) -> Tensor:
        """The highest value among the blocks that a patch lies in, float64 (B, L).

        Values are Q values, or uniform noise where the policy acts at random.

        Raises:
            UserError: there is no step whose images could be seen.
        """
        options, keys = self.options, context.keys
        values = self._actions(_noise.uniform(keys, context.num_patches).unflatten(1, self.agent.grid))  # (B, h', w')
        if context.progress >= options.warmup:
            if context.views is None:
                raise UserError("objective.masking: q_agent looks at the images; it needs the views of a step")
            with torch.no_grad():
                greedy = self._actions(self.agent(context.views.image))
            explores = _noise.uniform(keys, 1, stream=1) < options.epsilon
            values = torch.where(explores[:, :, None], values, greedy)
        before, after = options.block - 1, options.block - 1 if options.anchors == "equal" else 0
        padded = functional.pad(values, (before, after, before, after), value=-torch.inf)
        scores = functional.max_pool2d(padded[:, None], options.block, stride=1).flatten(1).double()
        return scores + 1e-12 * _noise.uniform(keys, context.num_patches, stream=2)  # ties are broken at random

    def feedback(self, views: Views) -> tuple[Losses, Report]:
        """The agent's loss: squared difference of Q and reward over the blocks that were hidden and decoded in full.

        The errors carry no gradient, so the reconstructor learns nothing from it.

        Raises:
            UserError: no loss of the recipe predicts pixels.
        """
        if views.patch_error is None:
            raise UserError(
                "objective.masking: q_agent learns from the error of predicted pixels, and no loss of this recipe "
                "predicts any; raise objective.mim_weight"
            )
        options, grid, decoded = self.options, self.agent.grid, views.mask.decoded
        value = self._actions(self.agent(views.image))  # (B, h', w')
        error = torch.zeros(len(decoded), grid[0] * grid[1], device=decoded.device)
        hidden = torch.zeros_like(error).scatter_(1, decoded, 1.0).unflatten(1, grid)
        error = error.scatter_(1, decoded, views.patch_error.detach().float()).unflatten(1, grid)
        size = self._block_sums(torch.ones_like(hidden))
        taken = (self._block_sums(hidden) >= size - 0.5).float()
        reward = self._block_sums(error) / size
        if options.reward == "whole":
            reward = error.mean(dim=(1, 2), keepdim=True).expand_as(reward)
        reward = options.reward_scale * reward
        square = ((value - reward).square() * taken).sum(dim=(1, 2)) / taken.sum(dim=(1, 2)).clamp(min=1)
        report = {"q_correlation": _correlation(value.detach(), reward, taken), "q_taken": taken.mean()}
        return {"q_agent": options.loss_weight * square.mean()}, report

    def _actions(self, values: Tensor) -> Tensor:
        """Values of the blocks by their top left patch, those that may be chosen: (B, h, w) -> (B, h', w')."""
        outside = self.options.block - 1 if self.options.anchors == "equal" else 0
        return values[:, : values.shape[1] - outside, : values.shape[2] - outside]

    def _block_sums(self, values: Tensor) -> Tensor:
        """Sums over the blocks that may be chosen, (B, h, w) -> (B, h', w')."""
        block = self.options.block
        if self.options.anchors == "clipped":
            values = functional.pad(values, (0, block - 1, 0, block - 1))
        return functional.avg_pool2d(values[:, None], block, stride=1)[:, 0] * block**2


def _correlation(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Pearson's correlation where the weight is 1, (); 0 where either is constant."""
    total = weight.sum().clamp(min=1)
    first = (first - (first * weight).sum() / total) * weight
    second = (second - (second * weight).sum() / total) * weight
    return (first * second).sum() / (first.square().sum() * second.square().sum()).sqrt().clamp(min=1e-12)


def build(options: Options, context: Any) -> AgentMasker:
    """The masker with a fresh agent.

    Raises:
        UserError: the model reads volumes, or a block is larger than the grid.
    """
    grid = tuple(context.model.encoder.grid)
    if len(grid) != 2:
        raise UserError("objective.masking: q_agent looks at photographs, not at volumes; take random, block or ehm")
    if options.block > min(grid):
        raise UserError(
            f"objective.masking_options.block: {options.block} is more than the grid of {grid[0]} x {grid[1]} patches; "
            "give less"
        )
    return AgentMasker(grid, options)
