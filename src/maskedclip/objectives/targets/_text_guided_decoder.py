"""The image decoder of `text_guided_pixels`: from visible patches and a text to the hidden patches.

B images, L patches, K of them visible, H' predicted, C class tokens, D encoder width, W decoder width, T tokens of a
text.
"""

from typing import Any

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from maskedclip.models.initialisation import initialise
from maskedclip.models.vit import gather_patches, sincos_positions
from maskedclip.objectives.masking import Mask


class _CrossAttention(nn.Module):
    """Patches look at the tokens of their text."""

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(text_width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, patches: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        """(B, N, W), (B, T, text's width) and what is added to the scores, (B, T) -> (B, N, W)."""

        def split(tokens: Tensor) -> Tensor:
            return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

        key, value = self.key_value(text).chunk(2, dim=2)
        query, key, value = split(self.query(patches)), split(key), split(value)
        seen = functional.scaled_dot_product_attention(query, key, value, bias[:, None, None, :].to(query.dtype))
        return self.output(seen.transpose(1, 2).flatten(2))


class _Block(Block):
    """A pre-norm block with cross-attention to a text between attention and MLP."""

    attn: Attention

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__(width, heads, qkv_bias=True)
        self.norm_cross = nn.LayerNorm(width, eps=1e-6)
        self.cross = _CrossAttention(width, text_width, heads)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:  # type: ignore[override]
        """(B, N, W) -> (B, N, W)."""
        x = x + self.attn(self.norm1(x))
        x = x + self.cross(self.norm_cross(x), text, bias)
        return x + self.mlp(self.norm2(x))


class TextGuidedDecoder(nn.Module):
    """Blocks with self-attention and cross-attention to a text, over visible features and a learned token elsewhere."""

    def __init__(
        self,
        *,
        encoder_width: int,
        text_width: int,
        class_tokens: int,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        out: int,
    ) -> None:
        super().__init__()
        self.class_tokens, self.recompute = class_tokens, False
        self.embed = nn.Linear(encoder_width, width)
        self.blocks = nn.ModuleList(_Block(width, heads, text_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, out)
        initialise(self)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.positions = nn.Buffer(sincos_positions(grid, width), persistent=False)  # (1, L, W)

    def forward(self, tokens: Tensor, mask: Mask, text: Tensor, bias: Tensor) -> Tensor:
        """Predict hidden patches.

        Args:
            tokens: of the visible patches in the order of `mask.keep`, (B, C + K, D), or of whole images, whose hidden
                patches are not looked at, (B, C + L, D).
            mask: of the images.
            text: (B, T, text's width).
            bias: added to the attention scores of the text's tokens, (B, T).

        Returns: (B, H', out), in the order of `mask.decoded`.
        """
        embedded = self.embed(tokens)
        front, patches = embedded[:, : self.class_tokens], embedded[:, self.class_tokens :]
        hidden = self.mask_token.to(patches.dtype)
        visible = mask.keep.shape[1]
        if patches.shape[1] == visible:
            missing = hidden.expand(len(patches), mask.restore.shape[1] - visible, -1)
            patches = gather_patches(torch.cat([patches, missing], dim=1), mask.restore)
        else:
            patches = torch.where(mask.is_hidden()[:, :, None], hidden, patches)
        x = torch.cat([front, patches + self.positions.to(patches.dtype)], dim=1)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                result: Any = checkpoint(block, x, text, bias, use_reentrant=False)
                x = result
            else:
                x = block(x, text, bias)
        return self.head(self.norm(gather_patches(x[:, self.class_tokens :], mask.decoded)))
