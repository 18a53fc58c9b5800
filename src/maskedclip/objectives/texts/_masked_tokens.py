"""What masked text objectives share: which tokens may be masked, BERT's corruption, and a decoder that fills in.

For `mlm` (tokens at random) and `entity_mlm` (spans of a dictionary).  All draws are pure functions of the texts' keys,
and those of a token do not depend on how wide the batch is padded.

U texts, T tokens, M places to fill in, W width, V vocabulary, N image tokens, D their width.
"""

from typing import Any

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from maskedclip import randomness
from maskedclip.errors import UserError
from maskedclip.models.initialisation import initialise
from maskedclip.models.text import SPECIAL_TOKENS, TextTokenizer
from maskedclip.ranks import gather_rows

# BERT, arXiv 1810.04805: of the chosen tokens 80 % become [MASK], 10 % another token, 10 % stay.  [paper]
_MASKED, _REPLACED = 0.8, 0.1

# Each use of a text's key takes its own numbers.
_CHOICE, _KIND, _WORD = 1, 2, 3
_SPREAD, _POSITIVE = 0x2545F4914F6CDD1D, 0x7FFFFFFFFFFFFFFF


def special_ids(tokenizer: TextTokenizer) -> set[int]:
    """Ids that are never chosen, never drawn as a replacement: padding, ends, unknown, mask."""
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    marked = {place for place, token in added.items() if token.special}
    named = {tokenizer.tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    return marked | {place for place in named if place is not None}


def mask_token_id(tokenizer: TextTokenizer) -> int:
    """The id that stands for a hidden token.

    Raises:
        UserError: the tokenizer has none.
    """
    found = (tokenizer.tokenizer.token_to_id(name) for name in ("[MASK]", "<mask>"))
    place = next((place for place in found if place is not None), None)
    if place is None:
        raise UserError("model.text_encoder: its tokenizer has no mask token; take a BERT-type model, or `small`")
    return place


def maskable(ids: Tensor, mask: Tensor, special: set[int]) -> Tensor:
    """True at real tokens that are not special: ids and mask int64 (U, T) -> bool (U, T)."""
    wanted = mask > 0
    for place in special:  # few; a tensor made here would wait for the device
        wanted = wanted & (ids != place)
    return wanted


def choose_share(candidates: Tensor, keys: Tensor, share: float) -> Tensor:
    """Choose round(share x candidates) tokens of each text at random, and at least one where there is any.

    Args:
        candidates: what may be chosen, bool (U, T).
        keys: of the texts at their step, int64 (U,).
        share: in (0, 1].

    Returns: bool (U, T).
    """
    noise = _noise(keys, candidates.shape[1], _CHOICE).masked_fill(~candidates, 2.0)
    count = candidates.sum(dim=1, keepdim=True)
    wanted = torch.minimum((share * count).round().long().clamp(min=1), count)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return rank < wanted


def corrupt(ids: Tensor, chosen: Tensor, keys: Tensor, mask_id: int, vocabulary: int, special: set[int]) -> Tensor:
    """Replace chosen tokens as BERT does: 80 % by the mask, 10 % by a token drawn at random, 10 % stay.

    Args:
        ids: int64 (U, T).
        chosen: which tokens, bool (U, T).
        keys: of the texts at their step, int64 (U,).
        mask_id: of the mask token.
        vocabulary: V; ids run from 0 to V - 1.
        special: ids that are never drawn.

    Returns: int64 (U, T), equal to `ids` where nothing was chosen.
    """
    kind = _noise(keys, ids.shape[1], _KIND)
    barred = sorted(place for place in special if 0 <= place < vocabulary)
    word = (_noise(keys, ids.shape[1], _WORD) * (vocabulary - len(barred))).long()
    for place in barred:  # step over the barred ids, in rising order: all others are equally likely
        word += word >= place
    changed = torch.where(kind < _MASKED, mask_id, torch.where(kind < _MASKED + _REPLACED, word, ids))
    return torch.where(chosen, changed, ids)


def loose_keys(ids: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
    """Keys of texts that belong to no image, from their words and the smallest key of the step's images.

    Args:
        ids: int64 (N, T).
        mask: 1 at real tokens, (N, T).
        keys: of this rank's images at their step, int64 (b,).

    Returns: non-negative int64 (N,), whatever the order of texts and images, the ranks, and the width of the padding.
    """
    place = 2 * torch.arange(ids.shape[1], device=ids.device) + 1
    words = ((ids + 1) * (mask > 0) * (place * _SPREAD)).sum(dim=1)  # int64 arithmetic wraps
    return (words ^ gather_rows(keys).min()) & _POSITIVE


def chosen_places(chosen: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The places of chosen tokens in a static shape, so that only they are led to the vocabulary.

    Args:
        chosen: bool (U, T).
        most: M, no fewer than any text's chosen tokens; further ones would be left out.

    Returns: places int64 (U, M), and which of them are chosen ones, bool (U, M).
    """
    order = torch.argsort(chosen.logical_not().to(torch.uint8), dim=1, stable=True)[:, :most]
    return order, chosen.gather(1, order)


def token_losses(logits: Tensor, target: Tensor, real: Tensor) -> Tensor:
    """Cross-entropy of each text, the mean over its real places; 0 for a text without any.

    Args:
        logits: (U, M, V).
        target: ids, int64 (U, M).
        real: which places count, bool (U, M).

    Returns: float32 (U,).
    """
    with torch.autocast(logits.device.type, enabled=False):
        each = functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
        each = each.view_as(target).masked_fill(~real, 0.0)
        return each.sum(dim=1) / real.sum(dim=1).clamp(min=1)


def token_accuracy(logits: Tensor, target: Tensor, real: Tensor) -> Tensor:
    """Share of the real places whose likeliest token is the true one, without gradient, ()."""
    right = (logits.detach().argmax(dim=-1) == target) & real
    return right.sum() / real.sum().clamp(min=1)


def _noise(keys: Tensor, count: int, use: int) -> Tensor:
    """Uniform numbers for one use of the keys, float32 (U, count)."""
    return randomness.uniform(keys ^ ((use * _SPREAD) & _POSITIVE), count)


class _CrossAttention(nn.Module):
    """Text tokens look at image tokens."""

    def __init__(self, width: int, cross_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(cross_width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        """(U, T, W) and (U, N, D) -> (U, T, W)."""

        def split(tokens: Tensor) -> Tensor:
            return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

        key, value = self.key_value(image).chunk(2, dim=2)
        seen = functional.scaled_dot_product_attention(split(self.query(text)), split(key), split(value))
        return self.output(seen.transpose(1, 2).flatten(2))


class _TextBlock(Block):
    """A pre-norm block over real tokens, with cross-attention to image tokens between attention and MLP if wanted."""

    attn: Attention

    def __init__(self, width: int, heads: int, cross_width: int | None) -> None:
        super().__init__(width, heads, qkv_bias=True)
        if cross_width is not None:
            self.norm_cross = nn.LayerNorm(width, eps=1e-6)
            self.cross = _CrossAttention(width, cross_width, heads)

    def forward(self, x: Tensor, real: Tensor, image: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """(U, T, W), bool (U, 1, 1, T) and (U, N, D) -> (U, T, W)."""
        x = x + self.attn(self.norm1(x), attn_mask=real)
        if image is not None:
            x = x + self.cross(self.norm_cross(x), image)
        return x + self.mlp(self.norm2(x))


class TextDecoder(nn.Module):
    """Blocks over the text encoder's tokens, LayerNorm, Linear to the vocabulary; not causal.

    Its tokens carry their positions already, since the text encoder adds them.  Terms name it `text_decoder`: what they
    name `decoder` is compiled for one shape, and texts come in several.
    """

    def __init__(self, width: int, depth: int, heads: int, vocabulary: int, cross_width: int | None) -> None:
        """Make the layers.

        Args:
            width: W, of the text encoder.
            depth: blocks.
            heads: attention heads; must divide W.
            vocabulary: V.
            cross_width: D, of the image tokens that each block looks at; None is text alone.
        """
        super().__init__()
        self.recompute = False
        self.blocks = nn.ModuleList(_TextBlock(width, heads, cross_width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, vocabulary)
        initialise(self)

    def forward(
        self, hidden: Tensor, mask: Tensor, places: Tensor | None = None, image: Tensor | None = None
    ) -> Tensor:
        """Predict tokens.

        Args:
            hidden: last hidden states of the corrupted texts, (U, T, W).
            mask: 1 at real tokens, (U, T).
            places: where to predict, int64 (U, M); None predicts all T.
            image: tokens of each text's image, (U, N, D); needed with `cross_width`, refused without.

        Returns: logits (U, M, V) or (U, T, V).
        """
        real = mask[:, None, None, :] > 0
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                result: Any = checkpoint(block, hidden, real, image, use_reentrant=False)
                hidden = result
            else:
                hidden = block(hidden, real, image)
        if places is not None:
            hidden = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))
        return self.head(self.norm(hidden))
