"""Causal language modelling: the text tower predicts each next token, of paired texts and of texts without images.

The text objective of LCL (arXiv 2406.07543) by itself.  U distinct texts, N loose ones, T tokens, W width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.texts._next_token import LanguageHead, causal_tower
from maskedclip.parts import TermOptions
from maskedclip.ranks import mean_over_ranks
from maskedclip.recipe_sections import require

if TYPE_CHECKING:
    from maskedclip.objectives.pretraining import BuildContext


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.causal`."""

    paired: bool = True
    """Learn from the texts of the paired images."""
    loose: bool = True
    """Learn from the texts of data.texts, where the recipe names them."""
    reads_text: ClassVar[bool] = True
    reads_loose: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        require(
            self.paired or self.loose,
            "objective.terms.causal: paired and loose are both false, so there is no text to learn from; set one true",
        )


class Causal(nn.Module):
    """Mean over all predicted tokens of the step; a text that several images have counts as often."""

    whole_batch = True
    """Its mean is over tokens, and distinct texts belong to no part of a batch."""
    spans_batch = False

    def __init__(self, options: Options, head: LanguageHead) -> None:
        super().__init__()
        self.options, self.head = options, head

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """Nats a token, and the perplexity that they are."""
        batch, tower = views.batch, views.model.text_encoder
        assert tower is not None
        read: list[tuple[Tensor, Tensor]] = []
        if self.options.paired:
            assert batch.text_ids is not None
            assert batch.text_mask is not None
            images = images_of_texts(batch.text_index, len(batch.text_ids), batch.image.device)
            read.append(self._sums(views.text_hidden, batch.text_ids, batch.text_mask * images[:, None]))
        if self.options.loose and batch.loose_ids is not None and batch.loose_mask is not None:
            hidden = tower.hidden(batch.loose_ids, batch.loose_mask)
            read.append(self._sums(hidden, batch.loose_ids, batch.loose_mask))
        totals, counts = zip(*read, strict=True)
        loss = mean_over_ranks(torch.stack(totals).sum(), torch.stack(counts).sum())
        return {"causal": loss}, {"causal_perplexity": loss.detach().exp()}

    def _sums(self, hidden: Tensor, ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Each real token after the first is a label: [CLS] is none, [SEP] is one, padding is none."""
        return self.head.surprise(hidden[:, :-1], ids[:, 1:], weight[:, 1:]), weight[:, 1:].sum().float()


def images_of_texts(index: Tensor | None, count: int, device: torch.device) -> Tensor:
    """How many images have each distinct text, 0 for a row that pads the batch, int64 (U,)."""
    ones = torch.ones(count if index is None else len(index), dtype=torch.int64, device=device)
    return ones if index is None else ones.new_zeros(count).index_add(0, index, ones)


def build(options: Options, context: "BuildContext") -> Causal:
    """The term of a recipe.

    Raises:
        UserError: the text tower reads both ways, or there is no text to learn from.
    """
    tower = causal_tower(context.model, "causal")
    require(
        options.paired or (options.loose and bool(context.recipe.data.texts)),
        "objective.terms.causal.paired: false, but data.texts names no texts without images; name some, or set true",
    )
    return Causal(options, LanguageHead(tower.config["hidden_size"], tower.config["vocab_size"]))
