"""Masked language modelling as MaskCLIP has it (arXiv 2208.12262): 20 % of a text's tokens, filled in from text alone.

The text encoder reads the corrupted text, a four-layer decoder predicts the chosen tokens; no image is looked at.
[paper]  Texts without images take part like the others.  [ours]

B_p paired images, N texts without images, U = B_p + N, T tokens, M places to fill in, W the text encoder's width.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.models.text import TextTokenizer
from maskedclip.objectives.base import Batch, Losses, Report, Views
from maskedclip.objectives.pretraining import BuildContext
from maskedclip.objectives.texts._masked_tokens import (
    TextDecoder,
    choose_share,
    chosen_places,
    corrupt,
    loose_keys,
    mask_token_id,
    maskable,
    special_ids,
    token_accuracy,
    token_losses,
)
from maskedclip.parts import TermOptions
from maskedclip.ranks import mean_over_ranks
from maskedclip.recipe_sections import require


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.mlm`."""

    reads_text: ClassVar[bool] = True
    reads_loose: ClassVar[bool] = True

    share: float = 0.2
    """Share of a text's tokens that are chosen; of these 80 % are masked, 10 % replaced, 10 % kept.  [paper]"""
    depth: int = 4
    """Blocks of the text decoder.  [paper]"""
    heads: int | None = None
    """Its attention heads; null takes the text encoder's."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        where = "objective.terms.mlm"
        require(0 < self.share <= 1, f"{where}.share: {self.share} is outside (0, 1]; 0.2 is a fifth of the tokens")
        require(self.depth >= 0, f"{where}.depth: {self.depth} is negative; 0 is the linear head alone")
        require(self.heads is None or self.heads >= 1, f"{where}.heads: {self.heads} is too few; give 1 or more")


def texts_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
    """Each paired image's own text, then the texts without images; None where there are neither.

    A text that belongs to several images is masked anew for each of them, by the image's key.

    Returns: ids and mask, int64 (U, T), T the wider of both kinds; keys, int64 (U,).
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    if batch.text_ids is not None and batch.text_mask is not None and batch.num_paired:
        ids, mask, index = batch.text_ids, batch.text_mask, batch.text_index
        if index is not None:
            ids, mask = ids[index], mask[index]
        found.append((ids, mask, batch.keys[: batch.num_paired]))
    if batch.loose_ids is not None and batch.loose_mask is not None and len(batch.loose_ids):
        ids, mask = batch.loose_ids, batch.loose_mask
        found.append((ids, mask, loose_keys(ids, mask, batch.keys)))
    if not found:
        return None
    widest = max(ids.shape[1] for ids, _, _ in found)
    padded = [
        (functional.pad(ids, (0, widest - ids.shape[1])), functional.pad(mask, (0, widest - mask.shape[1])), keys)
        for ids, mask, keys in found
    ]
    ids, mask, keys = (torch.cat(list(parts)) for parts in zip(*padded, strict=True))
    return ids, mask, keys


class MaskedLanguageModelling(nn.Module):
    """Cross-entropy of the chosen tokens: the mean over each text's, then over texts."""

    spans_batch = False
    whole_batch = True  # a part of a batch holds texts that belong to no image of it, so they have no keys

    def __init__(self, options: Options, text_decoder: TextDecoder, tokenizer: TextTokenizer, vocabulary: int) -> None:
        super().__init__()
        self.share, self.text_decoder, self.vocabulary = options.share, text_decoder, vocabulary
        self.mask_id, self.special = mask_token_id(tokenizer), special_ids(tokenizer)

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The loss over the batch's texts; nothing where it has none."""
        texts = texts_of(views.batch)
        if texts is None:
            return {}, {}
        ids, mask, keys = texts
        chosen = choose_share(maskable(ids, mask, self.special), keys, self.share)
        corrupted = corrupt(ids, chosen, keys, self.mask_id, self.vocabulary, self.special)
        assert views.model.text_encoder is not None
        hidden = views.model.text_encoder.hidden(corrupted, mask)  # (U, T, W)
        places, real = chosen_places(chosen, math.ceil(self.share * ids.shape[1]))
        logits = self.text_decoder(hidden, mask, places)  # (U, M, vocabulary)
        target = ids.gather(1, places)
        each = token_losses(logits, target, real)
        loss = mean_over_ranks(each.sum(), real.any(dim=1).sum())
        return {"mlm": loss}, {"mlm_accuracy": token_accuracy(logits, target, real)}


def build(options: Options, context: BuildContext) -> MaskedLanguageModelling:
    """A decoder of the text encoder's width.

    Raises:
        UserError: there is no text encoder, its tokenizer has no mask token, or the heads do not divide its width.
    """
    encoder, tokenizer = context.model.text_encoder, context.model.tokenizer
    if encoder is None or tokenizer is None:
        raise UserError("objective.terms.mlm: the model has no text encoder; use a recipe that reads texts")
    width, heads = encoder.config["hidden_size"], options.heads or encoder.config["num_attention_heads"]
    if width % heads:
        raise UserError(f"objective.terms.mlm.heads: {heads} does not divide the text encoder's width {width}")
    decoder = TextDecoder(width, options.depth, heads, encoder.config["vocab_size"], None)
    drawn = min(encoder.config["vocab_size"], tokenizer.tokenizer.get_vocab_size())
    return MaskedLanguageModelling(options, decoder, tokenizer, drawn)
