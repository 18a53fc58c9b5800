"""Where an image looks at itself, and where a text looks at an image: attention read on demand, never trained.

Nothing here is called unless a masking or a term asks; the encoder's own forward pass knows nothing of it.
B images, L patches, D encoder width, T tokens of a text, W text width, E shared width, H heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.standardise import running_statistics
from maskedclip.models.text import TextTokenizer
from maskedclip.models.vit import ImageEncoder

_HEAD_WIDTH = 64
"""[ours]  Width of the heads that the shared space is cut into, that of the usual vision transformers."""


def summed_attention(encoder: ImageEncoder, image: Tensor) -> Tensor:
    """Softmax attention between patches, summed over layers and averaged over heads (EPM, CVPR 2023; 2504.09155).

    The pass sees all patches.  Columns of class and register tokens are left out after the softmax, so a row sums to
    the number of layers or less.  The numbers are the same whichever kernel the encoder trains with: the fused one
    never shows its attention, so this pass takes the plain one, uncompiled, without dropout.

    Args:
        encoder: whose blocks hold timm's attention.
        image: normalised, (B, 3, S, S).

    Returns: float32, without gradient, (B, L, L); row i is what patch i attends to.

    Raises:
        UserError: the encoder's attention is of another kind, so it cannot be read.
    """
    layers = _attention_layers(encoder)
    prefix = encoder.vit.num_prefix_tokens
    total = image.new_zeros(len(image), encoder.num_patches, encoder.num_patches, dtype=torch.float32)

    def add(_layer: nn.Module, inputs: tuple[Tensor]) -> None:
        total.add_(inputs[0][:, :, prefix:, prefix:].mean(dim=1, dtype=torch.float32))

    with torch.no_grad(), _plain(encoder, layers), without_weight_cache(image.device):
        hooks = [layer.attn_drop.register_forward_pre_hook(add) for layer in layers]
        try:
            encoder(image)
        finally:
            for hook in hooks:
                hook.remove()
    return total


@torch.no_grad()
def text_response(model: MaskedCLIP, clip_patches: Tensor, text_hidden: Tensor, text_mask: Tensor) -> Tensor:
    """How strongly each patch responds to a text: softmax over patches of Q(token) K(patch)' / sqrt(d_h).

    The mean over heads and over the text's own tokens, those that mark its beginning and end left out (AttMIM of
    MMCLIP, arXiv 2407.19546; the formula is [inferred]).  [ours]: there are no extra weights.  Q and K are the two
    projections into the shared space, which the image-text loss trains to agree, cut into heads of 64 channels.

    Args:
        model: with texts.
        clip_patches: patch tokens of the CLIP space, (B, L, D).
        text_hidden: last hidden states of each image's text, (B, T, W).
        text_mask: 1 at real tokens, 0 at padding, (B, T).

    Returns: float32, without gradient, (B, L); a row sums to 1.

    Raises:
        UserError: the model has no texts.
    """
    text_encoder, projection = model.text_encoder, model.image_projection
    if text_encoder is None or projection is None:
        raise UserError(
            "objective.masking: a response to texts needs a model with texts; set objective.clip_weight above 0"
        )
    with torch.autocast(clip_patches.device.type, enabled=False), running_statistics(model):
        keys = projection(model.standardise(clip_patches.float()))  # (B, L, E)
        queries = text_encoder.projection(text_encoder.standardise(text_hidden.float()))  # (B, T, E)
        heads = shared_heads(keys.shape[-1])
        keys = keys.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, L, E / H)
        queries = queries.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, T, E / H)
        scores = queries @ keys.transpose(-2, -1) / keys.shape[-1] ** 0.5
        attention = scores.softmax(dim=-1).mean(dim=1)  # (B, T, L)
        weight = own_tokens(text_mask, _marks(model.tokenizer)).float()
        return (attention * weight[:, :, None]).sum(dim=1) / weight.sum(dim=1, keepdim=True)


def without_weight_cache(device: torch.device) -> torch.autocast:
    """The autocast that is on, without its cache.

    A half-precision weight that a pass without gradient put there would be found by the passes that train, and would
    have no gradient for them.
    """
    dtype, enabled = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, dtype=dtype, enabled=enabled, cache_enabled=False)


def shared_heads(width: int) -> int:
    """Heads that a shared space of `width` channels is cut into: as near to 64 channels each as divides it."""
    return next(heads for heads in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % heads == 0)


def own_tokens(mask: Tensor, marks: tuple[int, int] = (1, 1)) -> Tensor:
    """Tokens that belong to the text itself, bool (B, T): real, without those that mark its beginning and its end.

    A text of nothing but its marks keeps them.

    Args:
        mask: 1 at real tokens, 0 at padding, (B, T).
        marks: how many tokens mark the beginning and the end; BERT's tokenizers put one at each.
    """
    real = mask > 0
    place = real.cumsum(dim=1)
    count = place[:, -1:]
    inner = real & (place > marks[0]) & (place <= count - marks[1])
    return torch.where(count > sum(marks), inner, real)


def _marks(tokenizer: TextTokenizer | None) -> tuple[int, int]:
    """How many tokens a tokenizer puts before and after a text."""
    if tokenizer is None:
        return 1, 1
    entry = tokenizer.tokenizer.encode("a")
    special = [bool(mark) for mark, real in zip(entry.special_tokens_mask, entry.attention_mask, strict=True) if real]
    if all(special):
        return 1, 1
    return special.index(False), special[::-1].index(False)


def _attention_layers(encoder: ImageEncoder) -> list[Attention]:
    found = [(block, getattr(block, "attn", None)) for block in encoder.vit.blocks]
    known = [layer for _, layer in found if type(layer) is Attention]
    if len(known) < len(found):
        kind = next(type(layer or block).__name__ for block, layer in found if type(layer) is not Attention)
        raise UserError(
            f"model.image_encoder: its blocks hold {kind}, whose attention cannot be read; "
            "take a plain vit_ or deit_ model, or another objective.masking"
        )
    return known


@contextmanager
def _plain(encoder: nn.Module, layers: list[Attention]) -> Iterator[None]:
    """The kernel that shows its attention, uncompiled, without dropout or stochastic depth, for a while."""
    fused = [layer.fused_attn for layer in layers]
    training = [module for module in encoder.modules() if module.training]
    for layer in layers:
        layer.fused_attn = False  # type: ignore[misc]
    for module in training:
        module.training = False
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer, before in zip(layers, fused, strict=True):
            layer.fused_attn = before  # type: ignore[misc]
        for module in training:
            module.training = True
