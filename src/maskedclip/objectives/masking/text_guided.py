"""Text-guided masking: hide the patches that respond most to the image's text (AttMIM of MMCLIP, 2407.19546).

[paper]: what is masked are "image features that are highly responsive to textual features".  [inferred]: the response,
the noise, and what images without texts do.  Hidden patches are encoded nowhere in the masked pass, so nothing of them
leaks into it, as would where the features of the whole image are masked.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from maskedclip.errors import UserError
from maskedclip.models.attention_maps import text_response, without_weight_cache
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.standardise import running_statistics
from maskedclip.objectives._disease_prompts import DiseasePrompts
from maskedclip.objectives.base import Views
from maskedclip.objectives.masking import MaskContext, _noise
from maskedclip.parts import MaskingOptions
from maskedclip.recipe_sections import require

_SHARPNESS = 0.07  # temperature of the choice among prompts, [inferred]


@dataclass(frozen=True, kw_only=True)
class Options(MaskingOptions):
    """The noise, and what plays the text of an image that has none."""

    reads_text: ClassVar[bool] = True
    noise: float = 0.1
    """tau: Gumbel noise that is added to the logarithm of the response, which is brought to unit deviation over the
    patches first, so that tau means the same for a flat response and a sharp one; 0 hides the top.  [inferred]"""
    unpaired: Literal["noise", "prompts", "retrieved"] = "noise"
    """What masks images without texts: plain noise, as random masking; `prompts`; or the texts that were retrieved for
    them (data.pairs), and noise where none was."""
    prompts: dict[str, str] = field(default_factory=dict)
    """A sentence for each finding, e.g. {drusen: "a fundus photograph with drusen"}.  An image takes those of its
    positive labels (data.labels); or else those that its labels do not deny, weighted by softmax(cos / 0.07)."""

    @property
    def reads_pairs(self) -> bool:
        """With `unpaired: retrieved`."""
        return self.unpaired == "retrieved"

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        require(self.noise >= 0, f"objective.masking_options.noise: {self.noise} is negative; give 0 (none) or more")
        require(
            (self.unpaired == "prompts") == bool(self.prompts),
            "objective.masking_options.prompts: give a sentence for each finding with `unpaired: prompts`, and none "
            "without it",
        )


def response_scores(response: Tensor, noise: Tensor | None = None) -> Tensor:
    """Logarithm of the response at unit deviation over an image's patches, plus noise: (B, L) -> float32 (B, L)."""
    log = response.float().clamp(min=1e-30).log()
    log = log - log.mean(dim=1, keepdim=True)
    scores = log / log.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
    return scores if noise is None else scores + noise


class TextGuidedMasker(nn.Module):
    """Hides what the text is about."""

    whole_batch = True  # a part of a batch does not know which text belongs to which image

    def __init__(self, options: Options, model: MaskedCLIP, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.options = options
        names = [label.removeprefix("label.") for label in labels]
        self.prompts = DiseasePrompts(options.prompts, names, model, _SHARPNESS) if options.prompts else None

    def score(self, context: MaskContext) -> Tensor:
        """Scores by response where there is a text, and by noise elsewhere, (B, L).

        Raises:
            UserError: no image of the batch has a text or a prompt.
        """
        views, keys = context.views, context.keys
        if views is None or (views.batch.num_paired == 0 and self.options.unpaired == "noise"):
            raise UserError(
                "objective.masking: text_guided needs texts, and no image of this batch has one; raise "
                "data.batch_paired, or give prompts (objective.masking_options)"
            )
        paired = views.batch.num_paired
        scores = _noise.uniform(keys, context.num_patches)
        response = keys.new_zeros(len(keys), context.num_patches, dtype=torch.float32)
        known = torch.zeros_like(keys, dtype=torch.bool)
        if paired:
            response[:paired], known[:paired] = views.text_response, True
        if len(keys) > paired and self.options.unpaired != "noise":
            by = self._by_prompts if self.options.unpaired == "prompts" else self._by_retrieved
            with torch.no_grad(), without_weight_cache(keys.device), running_statistics(views.model):
                response[paired:], known[paired:] = by(views)
        noise = None
        if self.options.noise > 0:
            noise = self.options.noise * _noise.gumbel(keys, context.num_patches, stream=1)
        return torch.where(known[:, None], response_scores(response, noise), scores)

    def _by_prompts(self, views: Views) -> tuple[Tensor, Tensor]:
        """Response (b, L) of the images without texts to the prompts, and for which of them it holds (b,)."""
        model, prompts = views.model, self.prompts
        assert prompts is not None
        hidden = prompts.hidden(model)  # (P, T, W)
        patches = model.encoder.patches(views.unpaired_tokens)
        weights = prompts.weights(model, patches, hidden, views.batch)  # (b, P)
        response = patches.new_zeros(patches.shape[:2], dtype=torch.float32)
        for prompt, weight in enumerate(weights.T):
            words, real = (part[prompt].expand(len(patches), *part.shape[1:]) for part in (hidden, prompts.mask))
            response += weight[:, None] * text_response(model, patches, words, real)
        return response, torch.ones(len(patches), dtype=torch.bool, device=patches.device)

    def _by_retrieved(self, views: Views) -> tuple[Tensor, Tensor]:
        """Response (b, L) of the images without texts to their retrieved ones, and which have one (b,)."""
        batch, model = views.batch, views.model
        if batch.retrieved_index is None or batch.retrieved_ids is None or batch.retrieved_mask is None:
            raise UserError(
                "objective.masking_options.unpaired: `retrieved` needs texts that were retrieved; give data.pairs"
            )
        assert model.text_encoder is not None
        index = batch.retrieved_index[batch.num_paired :]
        chosen = index.clamp(min=0)
        hidden = model.text_encoder.hidden(batch.retrieved_ids, batch.retrieved_mask)
        patches = model.encoder.patches(views.unpaired_tokens)
        return text_response(model, patches, hidden[chosen], batch.retrieved_mask[chosen]), index >= 0


def build(options: Options, context: Any) -> TextGuidedMasker:
    """The masker, its prompts tokenised."""
    return TextGuidedMasker(options, context.model, tuple(getattr(context.recipe.data, "labels", ())))
