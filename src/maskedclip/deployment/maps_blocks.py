"""Transformer blocks written out: with their attention in the open, or without any exchange between tokens.

Nothing of the model is changed and no hook is set, so other threads may use it meanwhile.
B images, N tokens, D width, H heads.
"""

from typing import Any

from einops import rearrange
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maskedclip.errors import UserError


def plain_blocks(parts: nn.Module) -> list[Any]:
    """The blocks of a sequence.

    Raises:
        UserError: a kind of block that is not written out here.
    """
    blocks = list(parts.children())
    for block in blocks:
        if type(block) is not Block or type(block.attn) is not Attention:
            raise UserError(
                f"maps: a {type(block).__name__} keeps its attention in another way than a plain block; "
                "use --method contribution or removal"
            )
    return blocks


def with_attention(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A pre-norm block in evaluation: its output (B, N, D) and its attention (B, H, N, N)."""
    layer, normed = block.attn, block.norm1(tokens)
    query, key, value = _parts(layer, normed)
    query, key = layer.q_norm(query), layer.k_norm(key)
    attention = (query * layer.scale @ key.transpose(-2, -1)).softmax(dim=-1)
    return _finished(block, tokens, normed, attention @ value), attention


def without_exchange(block: Any, tokens: Tensor) -> Tensor:
    """The same block where each token attends to itself alone: (B, N, D) -> (B, N, D)."""
    normed = block.norm1(tokens)
    return _finished(block, tokens, normed, _parts(block.attn, normed)[2])


def _parts(layer: Any, normed: Tensor) -> Tensor:
    """Query, key and value, (3, B, H, N, D / H)."""
    return rearrange(layer.qkv(normed), "b n (t h d) -> t b h n d", t=3, h=layer.num_heads)


def _finished(block: Any, tokens: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
    layer = block.attn
    mixed = layer.norm(rearrange(mixed, "b h n d -> b n (h d)"))
    gate = getattr(layer, "gate", None)
    change = layer.proj(mixed if gate is None else mixed * gate(normed).sigmoid())
    tokens = tokens + block.ls1(change)
    return tokens + block.ls2(block.mlp(block.norm2(tokens)))
