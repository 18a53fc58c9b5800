"""The decoders h_x and h_z: from the tokens of visible patches to a prediction for every patch.

B images, L patches, K visible ones, C class tokens (1 or 0), D the encoder's width, W the decoder's own.
"""

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskedclip.models.bridge import run_blocks, transformer_blocks
from maskedclip.models.initialisation import initialise
from maskedclip.models.vit import sincos_positions


class LastBlock(Block):
    """A block of which only some tokens' results are read: the others are looked at, and spared its MLP."""

    def forward(self, x: Tensor, count: int | None = None) -> Tensor:  # type: ignore[override]
        """All tokens (B, N, W) -> (B, N, W), or the last `count` of them, (B, count, W)."""
        if count is None:
            return super().forward(x)
        x = (x + self.ls1(self.attn(self.norm1(x))))[:, -count:]
        return x + self.ls2(self.mlp(self.norm2(x)))


class Decoder(nn.Module):
    """Projection, mask token, fixed positions, blocks, LayerNorm, Linear: the decoder of MAE (arXiv 2111.06377)."""

    def __init__(
        self,
        *,
        encoder_width: int,
        class_tokens: int,
        grid: tuple[int, ...],
        width: int,
        depth: int,
        heads: int,
        out: int,
    ) -> None:
        super().__init__()
        self.class_tokens, self.recompute = class_tokens, False
        self.embed = nn.Linear(encoder_width, width)
        self.blocks = transformer_blocks(width, depth, heads)
        if depth:
            self.blocks[-1] = LastBlock(width, heads, qkv_bias=True)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, out)
        initialise(self)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions = nn.Buffer(sincos_positions(grid, width), persistent=False)  # (1, L, W)

    def forward(self, tokens: Tensor, restore: Tensor, decoded: Tensor | None = None) -> Tensor:
        """Predict something of every patch, or of some hidden ones.

        Args:
            tokens: of the visible patches, after the class token if any, (B, C + K, D).
            restore: place of each patch in the order (visible, hidden), int64 (B, L).
            decoded: places of the H' hidden patches to predict, int64 (B, H'); no other hidden patch is looked at.

        Returns: (B, L, out) in image order, or (B, H', out) in the order of `decoded`.
        """
        if decoded is not None:
            return self._some(tokens, restore, decoded)
        embedded = self.embed(tokens)
        front, visible = embedded[:, : self.class_tokens], embedded[:, self.class_tokens :]
        batch, length = restore.shape
        hidden = self.mask_token.to(visible.dtype).expand(batch, length - visible.shape[1], -1)
        shuffled = torch.cat([visible, hidden], dim=1)  # (B, L, W), visible first
        patches = shuffled.gather(1, restore[:, :, None].expand(-1, -1, shuffled.shape[-1]))
        patches = patches + self.positions.to(patches.dtype)
        return self.head(self._transform(torch.cat([front, patches], dim=1))[:, self.class_tokens :])

    def _some(self, tokens: Tensor, restore: Tensor, decoded: Tensor) -> Tensor:
        """Visible patches and some hidden ones alone; a block has no need of an order, only of positions."""
        embedded = self.embed(tokens)
        batch, count = decoded.shape
        visible = embedded.shape[1] - self.class_tokens
        keep = restore.argsort(dim=1)[:, :visible]  # (B, K)
        places = torch.cat([keep, decoded], dim=1)  # (B, K + H')
        positions = self.positions.to(embedded.dtype).expand(batch, -1, -1)
        positions = positions.gather(1, places[:, :, None].expand(-1, -1, positions.shape[-1]))
        hidden = self.mask_token.to(embedded.dtype).expand(batch, count, -1)
        patches = torch.cat([embedded[:, self.class_tokens :], hidden], dim=1) + positions
        return self.head(self._transform(torch.cat([embedded[:, : self.class_tokens], patches], dim=1), count))

    def _transform(self, tokens: Tensor, count: int | None = None) -> Tensor:
        """All blocks and the norm, (B, N, W); of the last `count` tokens alone, where only they are asked for."""
        if count is None or len(self.blocks) == 0:
            return self.norm(run_blocks(self.blocks, tokens, recompute=self.recompute))[:, -(count or 0) :]
        tokens = run_blocks(self.blocks[:-1], tokens, recompute=self.recompute)
        last: Any = self.blocks[-1]
        return self.norm(last(tokens, count))
