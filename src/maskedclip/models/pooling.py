"""Attentive pooling of patch tokens, as LCL has it (arXiv 2406.07543), reduced to what pools.

There, one learnt query attends with 8 heads to normalised tokens, and values go through two matrices.  Here [ours]
there is one head, so that the query and its matrices are one vector, and the two matrices of the values are the
model's projection: a patch's projection is then its share of the image's, in maps and exports too.
"""

import torch
from torch import Tensor, nn


class AttentivePooling(nn.Module):
    """The mean of tokens weighted by softmax(u . LayerNorm(x)): (B, L, D) -> (B, D).  It begins as the plain mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Parameter(torch.zeros(width))

    def weights(self, tokens: Tensor) -> Tensor:
        """How much each token counts, (B, L, D) -> float32 (B, L), rows sum to 1."""
        scores: Tensor = self.norm(tokens) @ self.query
        return scores.float().softmax(dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """The weighted mean."""
        return torch.einsum("bl,bld->bd", self.weights(tokens).to(tokens.dtype), tokens)
