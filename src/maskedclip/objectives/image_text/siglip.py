"""SigLIP: each pair of an image and a text is a decision of its own (arXiv 2303.15343).

b pairs on this rank, B on all ranks, E shared width.  The matrix of all pairs is never held: its loss and gradient are
summed over blocks of rows, and local rows meet the gathered texts of all ranks.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.image_text._temperature import freeze_idle_temperature
from maskedclip.parts import TermOptions
from maskedclip.ranks import gather_rows, rank_and_world
from maskedclip.recipe_sections import require

if TYPE_CHECKING:
    from maskedclip.objectives.pretraining import BuildContext

_BLOCK_ELEMENTS = 2**23
"""Logits held at a time: 32 MB in float32."""
_ACCURACY_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.siglip`."""

    inverse_temperature: float = 10.0
    """Where the learnt factor of the cosines begins [paper]."""
    bias: float | None = -10.0
    """Where the learnt shift of the logits begins [paper]: most pairs are negative, and so they begin.  -10 is near the
    log odds of a positive in a batch of 32,768 distinct texts; null takes those of this run's, -log(batch_paired - 1)
    [ours], which is still low where texts repeat."""
    equal_texts: bool = True
    """Pairs with equal texts are positives too, since medical texts repeat [ours]; false: an image's own text only."""
    reads_text: ClassVar[bool] = True
    shares_space: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        require(
            self.inverse_temperature > 0,
            f"objective.terms.siglip.inverse_temperature: {self.inverse_temperature}; give a value above 0, e.g. 10",
        )


class _SumOfDecisions(torch.autograd.Function):
    """sum_ij softplus(-y_ij (t a_i . c_j + bias)), y_ij = 1 where the keys are equal and -1 elsewhere, ().

    The gradient of a block is one sigmoid away from its loss, so both are made while the block is there.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        own, other, block = rest
        total = image.new_zeros(())
        to_image, to_text = torch.empty_like(image), torch.zeros_like(text)
        to_bias = image.new_zeros(())
        for start in range(0, len(image), block):
            part = slice(start, start + block)
            equal = own[part, None] == other
            logits = scale * image[part] @ text.T + bias  # (block, B)
            signed = torch.where(equal, -logits, logits)
            total += functional.softplus(signed).sum()
            slope = torch.where(equal, -signed.sigmoid(), signed.sigmoid())  # d loss / d logit
            to_image[part] = slope @ text
            to_text.addmm_(slope.T, image[part])
            to_bias += slope.sum()
        to_scale = (to_image * image).sum()
        ctx.save_for_backward(to_image.mul_(scale), to_text.mul_(scale), to_scale, to_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (gradient,) = gradients
        return (*(gradient * slope for slope in ctx.saved_tensors), None, None, None)


def siglip_loss(
    image: Tensor, text: Tensor, text_key: Tensor, scale: Tensor, bias: Tensor, *, block: int | None = None
) -> Tensor:
    """The sum of -log sigmoid(y_ij (t a_i . c_j + bias)) over all pairs, divided by the number of images.

    Args:
        image: unit length, (b, E).
        text: unit length, (b, E).
        text_key: pairs of equal keys are positive, int64 (b,).
        scale: t, ().
        bias: ().
        block: rows whose logits are held at a time; None takes what fills 32 MB.

    Returns: float32 (): this rank's images against the texts of all ranks; the mean over ranks is the whole.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale, bias = image.float(), text.float(), scale.float(), bias.float()
        texts, keys = gather_rows(text), gather_rows(text_key)
        block = block or max(1, _BLOCK_ELEMENTS // max(1, len(texts)))
        total: Tensor = _SumOfDecisions.apply(image, texts, scale, bias, text_key, keys, block)  # type: ignore[assignment]
        return total / len(image)


class Siglip(nn.Module):
    """The image-text objective of a step, with a temperature and a bias of its own."""

    spans_batch = True
    """The loss is no mean over samples; it reads pooled features only."""

    def __init__(self, options: Options, *, lends_scale: bool, max_logit_scale: float, pairs: int) -> None:
        super().__init__()
        self.equal_texts, self.lends_scale = options.equal_texts, lends_scale
        self.max_log_scale = math.log(max_logit_scale)
        # (1,): sharded training shards no scalars
        self.logit_scale = nn.Parameter(torch.tensor([math.log(options.inverse_temperature)]))
        bias = -math.log(max(pairs - 1, 1)) if options.bias is None else options.bias
        self.bias = nn.Parameter(torch.tensor([bias]))

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The loss over the paired images, and how often the right text is the nearest in this rank's batch."""
        image, text, key = views.paired_embedding, views.text_embedding, views.batch.text_key
        assert key is not None
        own = key if self.equal_texts else _places(key)
        scale = self.logit_scale.exp().squeeze()
        loss = siglip_loss(image, text, own, scale, self.bias.squeeze())
        with torch.no_grad():
            nearest = (image[:_ACCURACY_ROWS] @ text.T).argmax(dim=1)
            accuracy = (key[nearest] == key[:_ACCURACY_ROWS]).float().mean()
        report = {"siglip_accuracy": accuracy, "siglip_scale": scale.detach(), "siglip_bias": self.bias.detach()[0]}
        return {"siglip": loss}, report

    @torch.no_grad()
    def after_step(self, model: MaskedCLIP, skipped: Tensor | None) -> None:
        """Clamp the temperature, and lend it to a model that no other loss gives one: `classify` reads it there."""
        del skipped  # both are functions of the weights alone
        self.logit_scale.clamp_(max=self.max_log_scale)
        if self.lends_scale and model.logit_scale is not None:
            model.logit_scale.copy_(self.logit_scale)


def _places(key: Tensor) -> Tensor:
    """Keys that differ for every pair of all ranks, (b,)."""
    rank, _ = rank_and_world()
    return torch.arange(len(key), device=key.device) + rank * len(key)


def build(options: Options, context: "BuildContext") -> Siglip:
    """The term of a recipe; where no other loss reads the model's temperature, that follows the term's own."""
    idle = freeze_idle_temperature(context)
    chosen = context.recipe
    pairs = chosen.data.batch_paired  # of all ranks together
    return Siglip(options, lends_scale=idle, max_logit_scale=chosen.objective.max_logit_scale, pairs=pairs)
