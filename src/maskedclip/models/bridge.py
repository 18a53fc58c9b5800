"""The bridge g: transformer blocks that lead from the masked to the CLIP feature space (MaskedCLIP, arXiv 2507.17239).

The paper names the module; its depth and width are ours, fields of the recipe.
"""

from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskedclip.models.initialisation import initialise


def transformer_blocks(width: int, depth: int, heads: int) -> nn.Sequential:
    """Pre-norm blocks as timm's ViT has them, without dropout or stochastic depth."""
    return nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))


def run_blocks(blocks: nn.Module, tokens: Tensor, *, recompute: bool) -> Tensor:
    """Blocks one after the other, (B, N, D) -> (B, N, D).

    Args:
        blocks: a sequence of blocks.
        tokens: (B, N, D).
        recompute: keep only each block's input for the backward pass and compute the block again there.
    """
    if not (recompute and torch.is_grad_enabled()):
        return blocks(tokens)
    for block in blocks.children():
        result: Any = checkpoint(block, tokens, use_reentrant=False)
        tokens = result
    return tokens


class Bridge(nn.Module):
    """`depth` pre-norm blocks of the encoder's width and a final LayerNorm, without positions of its own.

    Depth 0 is no bridge: the masked and the CLIP space are one.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.depth, self.recompute = depth, False
        self.blocks = transformer_blocks(width, depth, heads)
        self.norm = nn.LayerNorm(width, eps=1e-6) if depth else nn.Identity()
        initialise(self)

    def start_as_identity(self) -> None:
        """Make every block return its input, by zeroing what it adds, so that g begins as the final norm alone.

        [ours]  A bridge of random blocks hides a pretrained encoder's features from the image-text loss until it has
        learnt to pass them on; blocks that begin as nothing (ReZero, arXiv 2003.04887; SkipInit, 2002.10444) do not.
        """
        for name, parameter in self.blocks.named_parameters():
            if name.split(".", 1)[1].startswith(("attn.proj.", "mlp.fc2.")):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Lead tokens (B, C + L, D) of the masked space to the CLIP space, (B, C + L, D)."""
        return self.norm(run_blocks(self.blocks, tokens, recompute=self.recompute))
