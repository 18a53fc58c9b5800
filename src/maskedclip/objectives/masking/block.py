"""Block-wise masking: neighbouring patches are hidden together, as rectangles (BEiT, 2106.08254; I-JEPA, 2301.08243).

Both papers stop at about the ratio; here it is exact, so the last rectangle is shrunk to what is still missing.
I-JEPA's targets are `{smallest: 0.15, largest: 0.2, flattest: 0.75, tallest: 1.5}`.
"""

from dataclasses import dataclass
from math import log, prod
from typing import Any

import torch
from torch import Tensor

from maskedclip.objectives.masking import MaskContext, _noise
from maskedclip.parts import MaskingOptions
from maskedclip.recipe_sections import require

_BLOCKS = 48  # rectangles that are drawn; the first few cover the ratio, the rest is for ratios near 1


@dataclass(frozen=True, kw_only=True)
class Options(MaskingOptions):
    """Size and shape of the rectangles; the defaults are BEiT's, but for `largest`, which is ours."""

    smallest: float = 0.08
    """Least share of the patches in a rectangle; BEiT's 16 of 196."""
    largest: float = 0.25
    """Greatest share; BEiT allows all that is missing, which makes one rectangle of a ratio below a half."""
    flattest: float = 0.3
    """Least ratio of height to width, drawn evenly on a logarithmic scale."""
    tallest: float = 3.33
    """Greatest ratio of height to width."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        require(
            0 < self.smallest <= self.largest <= 1,
            f"objective.masking_options.smallest: {self.smallest} and largest {self.largest} must be shares of the "
            "patches, 0 < smallest <= largest <= 1",
        )
        require(
            0 < self.flattest <= self.tallest,
            f"objective.masking_options.flattest: {self.flattest} and tallest {self.tallest} must be height by width, "
            "0 < flattest <= tallest",
        )


class BlockMasker:
    """Scores that fall from one rectangle to the next, and within each from its middle to its rim."""

    def __init__(self, grid: tuple[int, ...], options: Options) -> None:
        self.grid, self.options = grid, options

    def score(self, context: MaskContext) -> Tensor:
        """How early a patch is covered: whole numbers by rectangle, plus nearness to its middle, (B, L)."""
        axes, keys = len(self.grid), context.keys
        noise = _noise.uniform(keys, _BLOCKS * (2 + axes), stream=1).unflatten(1, (_BLOCKS, -1))  # (B, n, 2 + axes)
        sides = self._sides(noise[:, :, 0], noise[:, :, 1])  # (B, n, axes)
        extent = torch.tensor(self.grid, device=keys.device)
        corner = (noise[:, :, 2:] * (extent - sides + 1)).floor()
        # Distance from the middle in units of the side: at most a half inside, and more outside.
        distance = keys.new_zeros((), dtype=torch.float32)
        for axis, size in enumerate(self.grid):
            place = torch.arange(size, device=keys.device) + 0.5
            middle, side = (corner + sides / 2)[:, :, axis, None], sides[:, :, axis, None]
            along = (place - middle).abs() / side  # (B, n, size)
            distance = torch.maximum(distance[..., None], along.reshape(*along.shape[:2], *(1,) * axis, size))
        distance = distance.flatten(2)  # (B, n, L)
        order = torch.arange(_BLOCKS, 0, -1, device=keys.device, dtype=torch.float32)[:, None]
        score = torch.where(distance < 0.5, order + 0.5 - distance, 0.0).amax(dim=1)
        return score + 1e-3 * _noise.uniform(keys, prod(self.grid))

    def _sides(self, share: Tensor, shape: Tensor) -> Tensor:
        """Whole sides of rectangles from two uniform numbers each, (B, n) -> float (B, n, axes).

        The first axis is longer or shorter than the others, which are alike; in two dimensions that is height over
        width.
        """
        options, axes = self.options, len(self.grid)
        share = options.smallest + (options.largest - options.smallest) * share
        aspect = log(options.flattest) + (log(options.tallest) - log(options.flattest)) * shape
        mean = (share * prod(self.grid)) ** (1 / axes)
        first, others = mean * torch.exp(aspect * (axes - 1) / axes), mean * torch.exp(-aspect / axes)
        sides = torch.stack([first, *[others] * (axes - 1)], dim=-1).round()
        return torch.minimum(sides, torch.tensor(self.grid, device=share.device)).clamp(min=1)


def build(options: Options, context: Any) -> BlockMasker:
    """The masker of the model's patch grid, in two or three dimensions."""
    return BlockMasker(tuple(context.model.encoder.grid), options)
