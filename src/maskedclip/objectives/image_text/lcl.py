"""Latent compression learning (arXiv 2406.07543): one causal decoder contrasts at soi and generates the text.

Each pair is laid out image first or text first.  Where the text is first, the state at soi has read the text and not
the image: it is drawn to the image's pooled feature.  Where the image is first, the text is predicted from image
tokens, the model's projection of each patch.  With `data.images_per_document` above 1, pairs of a patient make one
interleaved document, and each soi that does not begin one has read all before it.  b pairs, L patches, T tokens, W
width of the text tower, E shared width.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from maskedclip import randomness
from maskedclip.errors import UserError
from maskedclip.models.standardise import BatchStandardise
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.image_text._documents import Documents, lay_out_documents
from maskedclip.objectives.image_text._masked_contrast import masked_contrast
from maskedclip.objectives.image_text._sequences import Sequences, lay_out
from maskedclip.objectives.texts._next_token import LanguageHead, causal_tower
from maskedclip.parts import TermOptions
from maskedclip.ranks import mean_over_ranks
from maskedclip.recipe_sections import require

if TYPE_CHECKING:
    from maskedclip.objectives.pretraining import BuildContext

_STREAM = 0x4C434C
"""Makes the draw of the order another one than the mask's, whose numbers come from the same keys."""


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.lcl`."""

    generation: float = 1.0
    """Weight of next-token prediction [paper]."""
    contrast: float = 0.1
    """Weight of the contrast at soi [paper]."""
    text_first: float = 0.5
    """Probability of the order text first; else the image is first [paper]."""
    loose: bool = True
    """Predict the texts of data.texts too, with the same decoder and head, where the recipe names them."""
    reads_text: ClassVar[bool] = True
    reads_loose: ClassVar[bool] = True
    reads_documents: ClassVar[bool] = True
    shares_space: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        where = "objective.terms.lcl"
        for name in ("generation", "contrast"):
            require(getattr(self, name) >= 0, f"{where}.{name}: {getattr(self, name)} is negative; 0 leaves it out")
        require(0 <= self.text_first <= 1, f"{where}.text_first: {self.text_first} is outside [0, 1]; e.g. 0.5")
        require(self.generation + self.contrast > 0, f"{where}: generation and contrast are both 0; raise one")


class Lcl(nn.Module):
    """The image-text and text objective of a step: one pass of the decoder serves both."""

    whole_batch = True
    """The decoder reads image tokens, so a part of a batch has no features from which the rest could be had."""
    spans_batch = False

    def __init__(
        self,
        options: Options,
        *,
        embed_dim: int,
        width: int,
        vocabulary: int,
        soft_targets: bool,
        images_per_document: int = 1,
    ) -> None:
        super().__init__()
        self.options, self.soft_targets, self.images_per_document = options, soft_targets, images_per_document
        # [ours]: where both are as wide, as in the paper, the projection's tokens are read as they are
        self.widen = nn.Identity() if embed_dim == width else nn.Linear(embed_dim, width, bias=False)
        self.eoi = nn.Parameter(torch.randn(width) * 0.02)
        self.head = LanguageHead(width, vocabulary)

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The weighted sum of both losses; each of them unweighted, and how often the nearest text is right."""
        options, batch, model = self.options, views.batch, views.model
        tower, key = model.text_encoder, batch.text_key
        assert tower is not None
        assert key is not None
        text_first = randomness.uniform(batch.keys[: batch.num_paired] ^ _STREAM, 1)[:, 0] < options.text_first
        rows = self.sequences(views, text_first)
        if isinstance(rows, Documents):
            states = tower.read(rows.embeddings, rows.real, rows.document)  # (R, N, W)
            takes_part, has_read = rows.in_context, rows.has_read
        else:
            states = tower.read(rows.embeddings, rows.real)  # (b, S, W)
            takes_part, has_read = text_first, None
        generation = self._generation(views, states, rows)
        image, text = views.paired_embedding, self._at_soi(views, states, rows)
        contrast = masked_contrast(
            image, text, key, takes_part, model.scale, soft_targets=self.soft_targets, has_read=has_read
        )
        with torch.no_grad():
            cosines = (image @ text.T).masked_fill(~takes_part, -2.0)
            cosines = cosines if has_read is None else cosines.masked_fill(has_read.T, -2.0)
            right = (key[cosines.argmax(dim=1)] == key).float()
            accuracy = (right * takes_part).sum() / takes_part.sum().clamp(min=1)
        report = {"lcl_generation": generation, "lcl_contrast": contrast, "lcl_accuracy": accuracy}
        loss = options.generation * generation + options.contrast * contrast
        return {"lcl": loss}, report | {"logit_scale": model.scale.detach()}

    def sequences(self, views: Views, text_first: Tensor) -> Sequences | Documents:
        """Lay out the step's pairs, or its documents; text_first: bool (b,)."""
        batch, model = views.batch, views.model
        tower, projection = model.text_encoder, model.image_projection
        assert tower is not None
        assert projection is not None
        assert batch.text_ids is not None
        assert batch.text_mask is not None
        ids, mask, index = batch.text_ids, batch.text_mask, batch.text_index
        if index is not None:
            ids, mask = ids[index], mask[index]
        image = self.widen(projection(model.encoder.patches(views.paired_tokens)))
        given = (tower.words, ids, mask, image, self.eoi, text_first, tower.soi)
        if self.images_per_document == 1:
            return lay_out(*given)
        assert batch.document is not None
        assert batch.text_key is not None
        return lay_out_documents(*given, batch.document, batch.text_key, self.images_per_document)

    def _at_soi(self, views: Views, states: Tensor, rows: Sequences | Documents) -> Tensor:
        """The texts' features, unit length, (b, E); where nothing is before soi they mean nothing."""
        tower = views.model.text_encoder
        assert tower is not None
        if isinstance(tower.standardise, BatchStandardise):
            # its statistics shall be those of texts: the same states, but of all rows, from a pass without images
            return views.text_embedding
        pairs = torch.arange(len(rows.soi), device=states.device)
        return tower.project(states[pairs // self.images_per_document, rows.soi])

    def _generation(self, views: Views, states: Tensor, rows: Sequences | Documents) -> Tensor:
        """Nats a token, over both orders and the loose texts."""
        batch, tower = views.batch, views.model.text_encoder
        assert tower is not None
        places = rows.predicting[:, :, None].expand(-1, -1, states.shape[2])
        total = self.head.surprise(states.gather(1, places), rows.following, rows.labelled)
        count = rows.labelled.sum()
        if self.options.loose and batch.loose_ids is not None and batch.loose_mask is not None:
            hidden, following = tower.hidden(batch.loose_ids, batch.loose_mask), batch.loose_ids[:, 1:]
            total = total + self.head.surprise(hidden[:, :-1], following, batch.loose_mask[:, 1:])
            count = count + batch.loose_mask[:, 1:].sum()
        return mean_over_ranks(total, count)


def build(options: Options, context: "BuildContext") -> Lcl:
    """The term of a recipe.

    Raises:
        UserError: the text tower reads both ways, or has too few positions for a text and an image.
    """
    model = context.model
    tower = causal_tower(model, "lcl")
    positions: int = tower.config["max_position_embeddings"]
    images = context.recipe.data.images_per_document
    needed = images * (model.config.text_length + model.encoder.num_patches + 1)
    if needed > positions:
        several = f", {images} times," if images > 1 else ""
        raise UserError(
            f"objective.terms.lcl: a text of {model.config.text_length} tokens and an image of "
            f"{model.encoder.num_patches}{several} need {needed} positions, and the text encoder has {positions}; "
            "lower data.context_length, data.size or data.images_per_document, or take model.text_encoder small"
        )
    if images > 1 and isinstance(tower.standardise, BatchStandardise):
        raise UserError(
            "data.images_per_document: a state within a document cannot be standardised with the texts of a batch; set "
            "model.projection_norm none, or give 1"
        )
    assert model.config.embed_dim is not None
    return Lcl(
        options,
        embed_dim=model.config.embed_dim,
        width=tower.config["hidden_size"],
        vocabulary=tower.config["vocab_size"],
        soft_targets=context.recipe.objective.soft_targets,
        images_per_document=images,
    )
