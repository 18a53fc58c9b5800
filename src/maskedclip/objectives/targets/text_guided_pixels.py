"""Paint hidden patches with the report's help: AttMIM in the style of MMCLIP (arXiv 2407.19546).

The paper hides the image features that answer most to the text and rebuilds the image from the others and the text;
decoder, ratio and weights are ours [inferred].  Which patches are hidden is the masking's affair: `text_guided` for the
paper's way.

Whole-image features know what is hidden, so by default the visible patches are encoded anew (`reencode`); the paper's
literal form puts a learned token in the place of hidden features of the whole image.

B images of which B_u have no text, L patches, K of them visible, H' predicted, C class tokens, D encoder width, W
decoder width, T tokens of a text, V numbers in a patch.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.models.vit import gather_patches
from maskedclip.objectives._disease_prompts import DiseasePrompts, sentences
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.masking import Mask
from maskedclip.objectives.pretraining import BuildContext
from maskedclip.objectives.reconstruction import pixel_target
from maskedclip.objectives.targets._text_guided_decoder import TextGuidedDecoder
from maskedclip.parts import TermOptions
from maskedclip.recipe_sections import require


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.text_guided_pixels`."""

    reads_text: ClassVar[bool] = True
    masks: ClassVar[bool] = True

    reencode: bool = True
    """Encode the visible patches alone; false is the paper's literal form, in which hidden content leaks."""
    unpaired: Literal["prompts", "none"] = "prompts"
    """Images without texts take disease prompts, or are left out."""
    prompts: dict[str, str] = field(default_factory=dict)
    """A sentence for each kind of disease, as in masking_options; empty makes "a {modality} image of {disease}" of each
    label in data.labels.  An image takes those of the labels that it is known to have, or else all, weighted."""
    modality: str = "fundus"
    """Of the images, for prompts that are made of labels."""
    prompt_temperature: float = 0.07
    """Of the softmax over kinds, for images whose labels say nothing."""
    width: int | None = None
    """Of the decoder; null takes model.image_decoder_width."""
    depth: int = 2
    """Its blocks."""
    heads: int | None = None
    """Its attention heads; null takes model.image_decoder_heads."""
    normalise_pixels: bool = True
    """Target: pixels normalised within each patch."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        where = "objective.terms.text_guided_pixels"
        require(self.depth >= 1, f"{where}.depth: the text enters in a block; give 1 or more")
        require(self.prompt_temperature > 0, f"{where}.prompt_temperature: must be above 0, e.g. 0.07")


class TextGuidedPixels(nn.Module):
    """The decoder and its loss: mean squared error over the hidden patches of images that have a text or prompts."""

    spans_batch = False
    whole_batch = True  # parts of a batch don't know which text belongs to which image

    def __init__(
        self, decoder: TextGuidedDecoder, prompts: DiseasePrompts | None, *, reencode: bool, normalise: bool
    ) -> None:
        super().__init__()
        self.decoder, self.prompts = decoder, prompts
        self.reencode, self.normalise = reencode, normalise

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The loss of paired images with their reports, and of the others with their prompts."""
        paired, total = views.batch.num_paired, len(views.image)
        mask = views.mask
        report: Report = {}
        predictions, targets = [], []
        with torch.autocast(views.image.device.type, enabled=False):
            every = views.model.encoder.patchify(views.image).float()
            target = pixel_target(gather_patches(every, mask.decoded), normalise=self.normalise)
        for begin, end, read in ((0, paired, self._report), (paired, total, self._prompts)):
            if begin == end or (read == self._prompts and self.prompts is None):
                continue
            text, bias, told = read(views)
            rows = _rows(mask, begin, end)
            predictions.append(self.decoder(self._tokens(views, begin, end), rows, text, bias))
            targets.append(target[begin:end])
            report |= told
        if not predictions:  # nothing but images without texts, and no prompts for them
            return {"text_guided_pixels": self.decoder.mask_token.sum() * 0.0}, report
        prediction, target = torch.cat(predictions), torch.cat(targets)
        with torch.autocast(prediction.device.type, enabled=False):
            if len(prediction) == total:
                views.keep_patch_error(prediction, target)
            return {"text_guided_pixels": functional.mse_loss(prediction.float(), target)}, report

    def _tokens(self, views: Views, begin: int, end: int) -> Tensor:
        """Features of the paired images or of the others, (b, C + K, D) or, literally, (b, C + L, D)."""
        if self.reencode:
            return views.masked_tokens[begin:end]
        return views.encoded_paired if end <= views.batch.num_paired else views.model.encoder(views.image[begin:end])

    def _report(self, views: Views) -> tuple[Tensor, Tensor, Report]:
        """Tokens of the paired images' texts, (B_p, T, .), and their bias: padding is not looked at."""
        batch = views.batch
        assert batch.text_mask is not None
        hidden, real = views.text_hidden, batch.text_mask
        if batch.text_index is not None:
            hidden, real = hidden[batch.text_index], real[batch.text_index]
        return hidden, (1.0 - real.float()) * -1e4, {}

    def _prompts(self, views: Views) -> tuple[Tensor, Tensor, Report]:
        """All prompts as one text of each image without its own, weighted, (B_u, K T, .)."""
        assert self.prompts is not None
        hidden = self.prompts.hidden(views.model)
        weights = self.prompts.weights(
            views.model, views.model.encoder.patches(views.unpaired_tokens), hidden, views.batch
        )
        text, bias = self.prompts.as_text(hidden, weights)
        return text, bias, {"prompt_weight": weights.max(dim=1).values.mean()}


def _rows(mask: Mask, begin: int, end: int) -> Mask:
    """The mask of some of the images."""
    return Mask(mask.keep[begin:end], mask.hidden[begin:end], mask.restore[begin:end], mask.decoded[begin:end])


def build(options: Options, context: BuildContext) -> TextGuidedPixels:
    """The term of a recipe."""
    model, sizes = context.model, context.recipe.model
    assert model.text_encoder is not None
    width, heads = options.width or sizes.image_decoder_width, options.heads or sizes.image_decoder_heads
    where = "objective.terms.text_guided_pixels"
    require(
        width % heads == 0 and width % 4 == 0, f"{where}.width: {width} must be a multiple of 4 and of {heads} heads"
    )
    decoder = TextGuidedDecoder(
        encoder_width=model.encoder.width,
        text_width=model.text_encoder.config["hidden_size"],
        class_tokens=model.encoder.num_class_tokens,
        grid=model.encoder.grid,
        width=width,
        depth=options.depth,
        heads=heads,
        out=model.encoder.patch_values,
    )
    prompts = None
    if options.unpaired == "prompts" and context.recipe.batch_sizes[1] > 0:
        labels = context.recipe.data.labels
        said = sentences(options.prompts, labels, options.modality, where)
        prompts = DiseasePrompts(said, labels, model, options.prompt_temperature)
    return TextGuidedPixels(decoder, prompts, reencode=options.reencode, normalise=options.normalise_pixels)
