"""Fixed sine-cosine positions of a grid in space (Vaswani et al. 2017, in three dimensions)."""

import torch
from torch import Tensor

_LONGEST = 10_000.0


def sincos_positions_3d(grid: tuple[int, int, int], width: int) -> Tensor:
    """Positions of a grid of patches, (1, L, D): D // 6 frequencies for each axis, as sines and as cosines.

    Args:
        grid: patches along X, Y, Z; the last one runs fastest.
        width: D, at least 6; channels beyond 6 (D // 6) are 0.
    """
    count = width // 6
    rates = _LONGEST ** (-torch.arange(count, dtype=torch.float64) / max(count, 1))
    axes = [torch.arange(side, dtype=torch.float64) for side in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)  # (L, 3)
    angles = places[:, :, None] * rates  # (L, 3, D // 6)
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return torch.nn.functional.pad(waves, (0, width - waves.shape[1]))[None].float()
