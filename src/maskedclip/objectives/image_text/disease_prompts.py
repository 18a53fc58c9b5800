"""Images without texts against disease prompts: the part of MMCLIP's image-text loss for unpaired images (2407.19546).

[paper]: such images get disease-kind prompts instead of a report.  [inferred]: every kind is a candidate, an image's
positives are the kinds that its labels say it has, and images of one kind share that positive.  Images whose labels say
nothing positive are left out: a target made of the model's own guess would only sharpen the guess.

B_u images without texts, K kinds, E shared width.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.models.attention_maps import running_statistics
from maskedclip.objectives._disease_prompts import DiseasePrompts, sentences
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.pretraining import BuildContext
from maskedclip.parts import TermOptions
from maskedclip.ranks import mean_over_ranks
from maskedclip.recipe_sections import require


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.disease_prompts`."""

    reads_text: ClassVar[bool] = True

    prompts: dict[str, str] = field(default_factory=dict)
    """A sentence for each kind of disease; empty makes "a {modality} image of {disease}" of each label."""
    modality: str = "fundus"
    """Of the images, for prompts that are made of labels."""


def prompt_loss(image: Tensor, prompts: Tensor, truth: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy over the kinds to a target that an image's positives share evenly.

    Args:
        image: unit length, (B_u, E).
        prompts: unit length, (K, E).
        truth: 1 where the image is known to have the kind, (B_u, K); an image without any counts not.
        scale: inverse temperature, ().

    Returns: mean over the images that count, 0 where there are none, float32 ().
    """
    has = (truth == 1).float()
    count = has.sum(dim=1)
    logits = scale.float() * image.float() @ prompts.float().T
    each = -(has * functional.log_softmax(logits, dim=1)).sum(dim=1) / count.clamp(min=1)
    return mean_over_ranks(each.sum(), (count > 0).sum())


class DiseasePromptContrast(nn.Module):
    """The prompts and their loss."""

    spans_batch = False
    whole_batch = True  # the mean is over images with a positive, and parts have different numbers of them

    def __init__(self, prompts: DiseasePrompts) -> None:
        super().__init__()
        self.prompts = prompts

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The loss of the images without texts."""
        model, paired = views.model, views.batch.num_paired
        if len(views.image) == paired:
            return {}, {}
        pooled = model.pool_clip(model.bridge(model.encoder(views.image[paired:])))
        hidden = self.prompts.hidden(model)
        truth = self.prompts.truth(views.batch)
        with torch.autocast(pooled.device.type, enabled=False), running_statistics(model):
            image, prompts = model.project_pooled(pooled.float()), self.prompts.embed(model, hidden.float())
            value = prompt_loss(image, prompts, truth, model.scale)
        return {"disease_prompts": value}, {"images_with_disease": (truth == 1).any(dim=1).float().mean()}


def build(options: Options, context: BuildContext) -> DiseasePromptContrast:
    """The term of a recipe."""
    where = "objective.terms.disease_prompts"
    data = context.recipe.data
    require(context.recipe.batch_sizes[1] > 0, f"{where}: there are no images without texts; raise data.batch_unpaired")
    labels = data.labels
    require(bool(labels), f"{where}: its positives are labels; name them in data.labels, or leave the term out")
    said = sentences(options.prompts, labels, options.modality, where)
    return DiseasePromptContrast(DiseasePrompts(said, labels, context.model, temperature=1.0))
