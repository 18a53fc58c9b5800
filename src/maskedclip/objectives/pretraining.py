"""The recipe's objective: model, masker and terms as one module whose forward is one step.

The loop sees losses and a report, and knows neither CLIP nor MAE.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskedclip.data.transforms import normalise
from maskedclip.models.decoder import Decoder
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.objectives.base import Batch, Losses, Report, Views
from maskedclip.objectives.contrastive import Contrastive
from maskedclip.objectives.distillation import Distillation, MovingAverageTeacher
from maskedclip.objectives.masking import Masker, RandomMasker
from maskedclip.objectives.reconstruction import Reconstruction
from maskedclip.recipe import Recipe


@dataclass(frozen=True)
class Weight:
    """Weight of a term: `value`, reached linearly over the first `ramp` of the run."""

    value: float
    ramp: float = 0.0

    def at(self, progress: float) -> float:
        """The weight at a place of the run in [0, 1]."""
        return self.value if self.ramp <= 0 else self.value * min(1.0, progress / self.ramp)


class PretrainingObjective(nn.Module):
    """Weighted sum of terms over the shared views of a step."""

    def __init__(
        self,
        model: MaskedCLIP,
        terms: dict[str, nn.Module],
        weights: dict[str, Weight],
        *,
        masker: Masker,
        mask_ratio: float,
        max_logit_scale: float,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        teacher: MovingAverageTeacher | None = None,
    ) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(mean), persistent=False)
        self.std = nn.Buffer(torch.tensor(std), persistent=False)
        self.model = model
        self.terms = nn.ModuleDict(terms)
        self.weights, self.masker, self.mask_ratio = weights, masker, mask_ratio
        self.max_logit_scale = max_logit_scale
        self.teacher = teacher

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, Losses, Report]:
        """One step.

        Args:
            batch: this rank's samples.
            progress: place of the step in the run, in [0, 1].

        Returns: the weighted sum, () with gradient; each term's own loss and report, detached.
        """
        image = normalise(batch.image, self.mean, self.std, batch.colour)
        views = Views(self.model, batch, image, self.masker, self.mask_ratio, progress, self.teacher)
        total = image.new_zeros(())
        losses: Losses = {}
        report: Report = {}
        for name, term in self.terms.items():
            term_losses, term_report = term(views)
            for key, value in term_losses.items():
                total = total + self.weights[name].at(progress) * value
                losses[key] = value.detach()
            report |= {key: value.detach() for key, value in term_report.items()}
        return total, losses, report

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the temperature and let the teacher follow, after each optimizer step."""
        if self.model.logit_scale is not None:
            limit = torch.tensor(self.max_logit_scale, device=self.model.logit_scale.device).log()
            self.model.logit_scale.clamp_(max=limit)
        if self.teacher is not None:
            self.teacher.follow(self.model)


def build_objective(recipe: Recipe, model: MaskedCLIP) -> PretrainingObjective:
    """Make the terms that a recipe weights above 0, with decoders that depend on its seed alone."""
    chosen, training = recipe.objective, recipe.training
    encoder = model.encoder
    terms: dict[str, nn.Module] = {}
    weights: dict[str, Weight] = {}

    def decoder(prefix: str, out: int) -> Decoder:
        return Decoder(
            encoder_width=encoder.width,
            class_tokens=encoder.num_class_tokens,
            grid=encoder.grid,
            width=getattr(recipe.model, f"{prefix}_width"),
            depth=getattr(recipe.model, f"{prefix}_depth"),
            heads=getattr(recipe.model, f"{prefix}_heads"),
            out=out,
        )

    with torch.random.fork_rng(devices=[]):
        if chosen.clip_weight > 0:
            terms["clip"] = Contrastive(soft_targets=chosen.soft_targets)
            weights["clip"] = Weight(chosen.clip_weight)
        if chosen.mim_weight > 0:
            torch.manual_seed(recipe.seed + 3)
            pixels = decoder("image_decoder", encoder.patch_size**2 * 3)
            terms["mim"] = Reconstruction(pixels, encoder.patch_size, normalise=chosen.normalise_pixels)
            weights["mim"] = Weight(chosen.mim_weight)
        if chosen.mkd_weight > 0:
            torch.manual_seed(recipe.seed + 4)
            out = recipe.model.embed_dim if chosen.mkd_target == "projected" else encoder.width
            terms["mkd"] = Distillation(
                decoder("feature_decoder", out),
                loss=chosen.mkd_loss,
                patches=chosen.mkd_patches,
                target=chosen.mkd_target,
                temperatures=chosen.prototype_temperatures,
            )
            ramp = training.warmup if chosen.mkd_ramp is None else chosen.mkd_ramp
            weights["mkd"] = Weight(chosen.mkd_weight, ramp)
    teacher = None
    if chosen.mkd_weight > 0 and chosen.mkd_teacher == "ema":
        teacher = MovingAverageTeacher(model, chosen.ema_decay)
    return PretrainingObjective(
        model,
        terms,
        weights,
        masker=RandomMasker(),
        mask_ratio=chosen.mask_ratio,
        max_logit_scale=chosen.max_logit_scale,
        mean=recipe.data.mean,
        std=recipe.data.std,
        teacher=teacher,
    )
