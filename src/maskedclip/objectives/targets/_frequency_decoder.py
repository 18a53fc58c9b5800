"""The frequency decoder of `frequency`: from visible patches to all pixels, through the spectrum of the patch grid.

B images, L patches on a grid of h x w, K visible ones, C class tokens, D the encoder's width, W the decoder's, V
numbers in a patch.
"""

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from maskedclip.models.bridge import run_blocks
from maskedclip.models.initialisation import initialise
from maskedclip.models.vit import gather_patches, sincos_positions


class FrequencyBlock(nn.Module):
    """x + filter(LayerNorm(x)) with a learned complex filter of the patch grid's spectrum, then x + MLP(LayerNorm(x)).

    The filter is GFNet's (arXiv 2107.00645): one complex number for each frequency and channel.
    """

    def __init__(self, grid: tuple[int, int], width: int) -> None:
        super().__init__()
        self.grid = grid
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        # Real and imaginary part apart: optimizers, sharding and checkpoints know no complex weights.
        self.filter = nn.Parameter(torch.randn(grid[0], grid[1] // 2 + 1, width, 2) * 0.02)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, W)."""
        with torch.autocast(tokens.device.type, enabled=False):
            planes = self.norm1(tokens.float()).unflatten(1, self.grid)
            spectrum = torch.fft.rfft2(planes, dim=(1, 2), norm="ortho")
            spectrum = spectrum * torch.view_as_complex(self.filter.float().contiguous())
            mixed = torch.fft.irfft2(spectrum, s=self.grid, dim=(1, 2), norm="ortho").flatten(1, 2)
        tokens = tokens + mixed.to(tokens.dtype)
        return tokens + self.mlp(self.norm2(tokens))


class FrequencyDecoder(nn.Module):
    """From the tokens of visible patches to the pixels of all patches, through the patch grid's spectrum."""

    def __init__(
        self, *, encoder_width: int, class_tokens: int, grid: tuple[int, int], width: int, depth: int, out: int
    ) -> None:
        super().__init__()
        self.class_tokens, self.recompute = class_tokens, False
        self.embed = nn.Linear(encoder_width, width)
        self.blocks = nn.Sequential(*(FrequencyBlock(grid, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, out)
        initialise(self)
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Buffer(sincos_positions(grid, width), persistent=False)  # (1, L, W)

    def forward(self, tokens: Tensor, restore: Tensor) -> Tensor:
        """Predict every patch: (B, C + K, D) and places in the order (visible, hidden), int64 (B, L) -> (B, L, V)."""
        visible = self.embed(tokens[:, self.class_tokens :])
        count = restore.shape[1] - visible.shape[1]
        hidden = self.mask_token.to(visible.dtype).expand(len(visible), count, -1)
        patches = gather_patches(torch.cat([visible, hidden], dim=1), restore)
        patches = patches + self.positions.to(patches.dtype)
        return self.head(self.norm(run_blocks(self.blocks, patches, recompute=self.recompute)))
