"""Masked modelling of medical entities, with the image's help: EntMLM in the style of MMCLIP (arXiv 2407.19546).

The paper masks entities that a recogniser finds and rebuilds the text with visual support; the recogniser, here a
dictionary, the shares and the decoder are ours [inferred].  Texts without images take part without that support.

B_p paired images, N texts without images, T tokens, M places to fill in.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from maskedclip import randomness
from maskedclip.data.entities import load_entities
from maskedclip.data.entity_tokens import EntityTokens
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.pretraining import BuildContext
from maskedclip.objectives.texts._masked_tokens import (
    TextDecoder,
    chosen_places,
    corrupt,
    loose_keys,
    mask_token_id,
    maskable,
    special_ids,
    token_losses,
)
from maskedclip.parts import TermOptions
from maskedclip.ranks import mean_over_ranks
from maskedclip.recipe_sections import require

_SPANS, _FILL = 0x1F3A, 0x2C71  # each use of a text's key takes its own numbers


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.entity_mlm`."""

    reads_text: ClassVar[bool] = True
    reads_loose: ClassVar[bool] = True

    dictionary: str | None = None
    """A text file with one term a line; null is the shipped one, of retinal and chest terms."""
    probability: float = 0.5
    """Of each entity to be masked, as a whole."""
    fill_to: float = 0.15
    """Where entities give fewer, tokens outside them are masked at random up to this share of a text; 0 masks entities
    alone."""
    depth: int = 2
    """Blocks of the text decoder."""
    heads: int | None = None
    """Its attention heads; null takes the text encoder's."""
    image: bool = True
    """Let the decoder look at the image's tokens."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        where = "objective.terms.entity_mlm"
        require(0 < self.probability <= 1, f"{where}.probability: {self.probability} is outside (0, 1]; e.g. 0.5")
        require(0 <= self.fill_to < 1, f"{where}.fill_to: {self.fill_to} is outside [0, 1); e.g. 0.15, 0 is none")
        require(self.depth >= 1, f"{where}.depth: {self.depth}; give 1 or more blocks")


def choose_spans(spans: Tensor, candidates: Tensor, keys: Tensor, probability: float) -> Tensor:
    """Choose whole entities, each with the same probability.

    Args:
        spans: place of the first token of each token's entity, -1 outside, int64 (U, T).
        candidates: tokens that may be masked, bool (U, T).
        keys: of the texts at their step, int64 (U,).
        probability: in (0, 1].

    Returns: bool (U, T).
    """
    draw = randomness.uniform(keys ^ _SPANS, spans.shape[1])
    return (spans >= 0) & candidates & (draw.gather(1, spans.clamp(min=0)) < probability)


def fill_up(chosen: Tensor, candidates: Tensor, spans: Tensor, keys: Tensor, share: float) -> Tensor:
    """Choose tokens outside entities as well, until round(share x candidates), at least one, are chosen.

    Entities stay whole: an entity that was not chosen gives no token, unless a text has nothing else.

    Args:
        chosen: bool (U, T).
        candidates: tokens that may be masked, bool (U, T).
        spans: as in `choose_spans`.
        keys: of the texts at their step, int64 (U,).
        share: in [0, 1); 0 chooses nothing more.

    Returns: bool (U, T).
    """
    if share == 0:
        return chosen
    free = candidates & ~chosen
    outside = free & (spans < 0)
    nothing_else = ~outside.any(dim=1, keepdim=True) & ~chosen.any(dim=1, keepdim=True)
    free = torch.where(nothing_else, free, outside)
    wanted = (share * candidates.sum(dim=1, keepdim=True)).round().clamp(min=1) - chosen.sum(dim=1, keepdim=True)
    noise = randomness.uniform(keys ^ _FILL, chosen.shape[1]).masked_fill(~free, 2.0)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return chosen | (free & (rank < wanted))


class EntityMLM(nn.Module):
    """Recogniser, text decoder and their loss: cross-entropy at the masked tokens, the mean of each text's mean."""

    spans_batch = False
    whole_batch = True  # parts of a batch don't know which text belongs to which image

    def __init__(self, entities: EntityTokens, decoder: TextDecoder, model: MaskedCLIP, options: Options) -> None:
        super().__init__()
        assert model.tokenizer is not None
        assert model.text_encoder is not None
        self.entities, self.text_decoder, self.options = entities, decoder, options
        self.special, self.mask_id = special_ids(model.tokenizer), mask_token_id(model.tokenizer)
        self.vocabulary: int = model.text_encoder.config["vocab_size"]

    def choose(self, ids: Tensor, mask: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens to mask, and the entities: ids and mask int64 (U, T), keys (U,) -> bool (U, T), int64 (U, T)."""
        candidates = maskable(ids, mask, self.special)
        spans = self.entities(ids)
        chosen = choose_spans(spans, candidates, keys, self.options.probability)
        return fill_up(chosen, candidates, spans, keys, self.options.fill_to), spans

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The loss of the paired images' texts with their images, and of texts without images."""
        batch = views.batch
        parts = []
        if batch.text_ids is not None and batch.text_mask is not None and batch.num_paired:
            ids, mask = batch.text_ids, batch.text_mask
            if batch.text_index is not None:
                ids, mask = ids[batch.text_index], mask[batch.text_index]
            image = views.paired_tokens if self.options.image else None
            parts.append(self._predict(views.model, ids, mask, batch.keys[: batch.num_paired], image))
        if batch.loose_ids is not None and batch.loose_mask is not None and len(batch.loose_ids):
            ids, mask = batch.loose_ids, batch.loose_mask
            parts.append(self._predict(views.model, ids, mask, loose_keys(ids, mask, batch.keys), None))
        if not parts:
            return {}, {}
        losses, masked, in_entity, right = (torch.cat(column) for column in zip(*parts, strict=True))
        count = (masked > 0).sum().clamp(min=1)
        report = {
            "entity_share": in_entity.sum() / masked.sum().clamp(min=1),
            "entity_accuracy": right.sum() / count,
        }
        return {"entity_mlm": mean_over_ranks(losses.sum(), (masked > 0).sum())}, report

    def _predict(
        self, model: MaskedCLIP, ids: Tensor, mask: Tensor, keys: Tensor, image: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each text's loss, masked tokens, those of them in entities, and share of right guesses, each (U,)."""
        chosen, spans = self.choose(ids, mask, keys)
        assert model.text_encoder is not None
        corrupted = corrupt(ids, chosen, keys, self.mask_id, self.vocabulary, self.special)
        hidden = model.text_encoder.hidden(corrupted, mask)
        tokens = ids.shape[1]
        places, real = chosen_places(chosen, min(tokens, max(64, tokens // 2)))
        logits = self.text_decoder(hidden, mask, places, image)
        target = ids.gather(1, places)
        right = ((logits.detach().argmax(dim=-1) == target) & real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        return token_losses(logits, target, real), chosen.sum(dim=1), (chosen & (spans >= 0)).sum(dim=1), right


def build(options: Options, context: BuildContext) -> EntityMLM:
    """The term of a recipe.

    Raises:
        UserError: the dictionary cannot be read, the tokenizer has no mask token.
    """
    model = context.model
    assert model.text_encoder is not None
    assert model.tokenizer is not None
    text: dict[str, int] = model.text_encoder.config
    heads = options.heads or text["num_attention_heads"]
    where = "objective.terms.entity_mlm"
    require(text["hidden_size"] % heads == 0, f"{where}.heads: {heads} does not divide the width {text['hidden_size']}")
    decoder = TextDecoder(
        text["hidden_size"],
        options.depth,
        heads,
        text["vocab_size"],
        model.encoder.width if options.image else None,
    )
    dictionary = load_entities(options.dictionary, field=f"{where}.dictionary")
    return EntityMLM(EntityTokens(dictionary, model.tokenizer.tokenizer), decoder, model, options)
