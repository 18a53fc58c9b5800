"""The recipe's objective: model, masker and terms as one module whose forward is one step, or a part of one.

The loop sees losses and a report, and knows neither CLIP nor MAE.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskedclip import parts
from maskedclip.data.transforms import normalise
from maskedclip.errors import UserError
from maskedclip.models.decoder import Decoder
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.standardise import statistics_paused
from maskedclip.objectives.base import Batch, Losses, Report, Views
from maskedclip.objectives.contrastive import Contrastive
from maskedclip.objectives.distillation import Distillation, MovingAverageTeacher, TeacherDecay
from maskedclip.objectives.masking import Masker, visible_patches
from maskedclip.objectives.reconstruction import Reconstruction
from maskedclip.objectives.running_mean import RunningMean
from maskedclip.recipe import Recipe


@dataclass(frozen=True)
class Weight:
    """Weight of a term: `value`, reached linearly over the first `ramp` of the run."""

    value: float
    ramp: float = 0.0

    def at(self, progress: float) -> float:
        """The weight at a place of the run in [0, 1]."""
        return self.value if self.ramp <= 0 else self.value * min(1.0, progress / self.ramp)


# Named tuples: Fabric takes apart what a module is given and puts it together again, which frozen dataclasses forbid.


class Pool(NamedTuple):
    """Ask for pooled features alone: of the paired images (B_p, D) and of the distinct texts (U, W)."""


class Contrast(NamedTuple):
    """Ask for the gradient that the losses which span the batch send to pooled features that were computed in parts.

    image: (B_p, D).  text: (U, W).  Both of the whole batch of this rank.
    """

    image: Tensor
    text: Tensor


class Part(NamedTuple):
    """Ask for one part of a batch that is computed in parts.

    whole: the pooled features of the whole batch, detached.  batch: the whole batch, its images unread.
    image_gradient, text_gradient: of the losses that span the batch by this part's features, (b_p, D) and (u, W).
    parts: how many there are.  last: whether this one trains what comes after the pooled features.
    """

    whole: Contrast | None
    batch: Batch
    image_gradient: Tensor | None
    text_gradient: Tensor | None
    parts: int
    last: bool


Task = Pool | Contrast | Part


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
        decoded_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(mean), persistent=False)
        self.std = nn.Buffer(torch.tensor(std), persistent=False)
        self.model = model
        self.terms = nn.ModuleDict(terms)
        self.weights, self.mask_ratio = weights, mask_ratio
        self.masker = masker
        self.decoded_share = decoded_share
        self._owner: dict[str, str] = {}
        self.max_log_scale = math.log(max_logit_scale)
        self.teacher = teacher

    def recompute_blocks(self) -> None:
        """Keep only the inputs of all transformer blocks for the backward pass (gradient checkpointing)."""
        for module in self.modules():
            if hasattr(module, "recompute"):
                module.recompute = True  # type: ignore[assignment]
        if self.model.text_encoder is not None:
            options = {"use_reentrant": False}
            self.model.text_encoder.bert.gradient_checkpointing_enable(options)  # type: ignore[operator]

    @property
    def spans_batch(self) -> bool:
        """Whether a loss needs the features of the whole batch at once."""
        return any(term.spans_batch for term in self.terms.values())

    def forward(self, batch: Batch, progress: float, task: Task | None = None) -> Any:
        """One step, or what a task asks for; all ways through the module are here, since wrappers see no other.

        Args:
            batch: this rank's samples.
            progress: place of the step in the run, in [0, 1].
            task: None is the whole step.

        Returns: the weighted sum, () with gradient; each term's own loss and report, detached.  For `Pool` the pooled
            features of the paired images and of the distinct texts; for `Contrast` a gradient for each of
            them, float32.
        """
        if isinstance(task, Contrast):
            return self._feature_gradients(batch, progress, task)
        views = self._views(batch, progress)
        if isinstance(task, Pool):
            return views.pooled_image, views.pooled_text
        if task is None:
            return self._sum(views, progress, spanning=True, others=True)
        return self._part(views, progress, task)

    def _views(self, batch: Batch, progress: float) -> Views:
        image = normalise(batch.image, self.mean, self.std, batch.colour)
        return Views(self.model, batch, image, self.masker, self.mask_ratio, progress, self.teacher, self.decoded_share)

    def _of_features(self, batch: Batch, progress: float, features: Contrast) -> Views:
        views = Views(self.model, batch, batch.image, self.masker, self.mask_ratio, progress)
        vars(views).update(pooled_image=features.image, pooled_text=features.text)
        return views

    def _feature_gradients(self, batch: Batch, progress: float, features: Contrast) -> tuple[Tensor, Tensor]:
        """Gradient of the losses that span the batch by its pooled features: (B_p, D) and (U, W), float32.

        Taken here, inside the module: Fabric lets nobody but its own `backward` go back through what it returns.
        """
        image, text = (tensor.detach().requires_grad_() for tensor in features)
        with torch.enable_grad(), statistics_paused(self):
            views = self._of_features(batch, progress, Contrast(image, text))
            total, _, _ = self._sum(views, progress, spanning=True, others=False)
        with torch.autocast(image.device.type, enabled=False):  # as in any backward pass
            to_image, to_text = torch.autograd.grad(total, (image, text))
        return to_image.float(), to_text.float()

    def _part(self, views: Views, progress: float, task: Part) -> tuple[Tensor, Losses, Report]:
        """Losses of this part's samples, and the gradient that the losses of the whole batch send through it."""
        if task.whole is not None:
            whole = self._of_features(task.batch, progress, task.whole)
            with torch.no_grad(), statistics_paused(self):
                vars(views).update(prototypes=whole.prototypes)
        total, losses, report = self._sum(views, progress, spanning=False, others=True)
        total = total / task.parts
        if task.image_gradient is not None and task.text_gradient is not None:
            total = total + (views.pooled_image.float() * task.image_gradient).sum()
            total = total + (views.pooled_text.float() * task.text_gradient).sum()
        if task.last and task.whole is not None:
            whole = self._of_features(task.batch, progress, task.whole)
            spanning, its_losses, its_report = self._sum(whole, progress, spanning=True, others=False)
            total, losses, report = total + spanning, losses | its_losses, report | its_report
        return total, losses, report

    def _sum(self, views: Views, progress: float, *, spanning: bool, others: bool) -> tuple[Tensor, Losses, Report]:
        total = self.mean.new_zeros(())
        losses: Losses = {}
        report: Report = {}
        for name, term in self.terms.items():
            if not (spanning if term.spans_batch else others):
                continue
            term_losses, term_report = term(views)
            for key, value in term_losses.items():
                total = total + self.weights[name].at(progress) * value
                losses[key] = value.detach()
                self._owner[key] = name
            report |= {key: value.detach() for key, value in term_report.items()}
        if others and (feedback := getattr(self.masker, "feedback", None)) is not None and "mask" in vars(views):
            its_losses, its_report = feedback(views)
            for key, value in its_losses.items():
                total = total + value
                losses[key] = value.detach()
            report |= {key: value.detach() for key, value in its_report.items()}
        return total, losses, report

    def weight_of(self, loss: str, progress: float) -> float:
        """The weight of a loss of the last step, by its name in the report; a masker's own loss counts as it is."""
        return self.weights[self._owner[loss]].at(progress) if loss in self._owner else 1.0

    @torch.no_grad()
    def after_step(self, skipped: Tensor | None = None, progress: float = 0.0) -> None:
        """Clamp the temperature and let the teacher follow, after each optimizer step.

        Args:
            skipped: 1.0 where the step left the weights as they were, (); the teacher then stays too.
            progress: place of the step in the run, in [0, 1].
        """
        if self.model.logit_scale is not None:
            self.model.logit_scale.clamp_(max=self.max_log_scale)
        if self.teacher is not None:
            self.teacher.follow(self.model, skipped, progress)
        for part in (*self.terms.values(), self.masker):
            if (after_step := getattr(part, "after_step", None)) is not None:
                after_step(self.model, skipped)


@dataclass(frozen=True)
class BuildContext:
    """What a part may be built from."""

    recipe: Recipe
    model: MaskedCLIP

    def decoder(
        self, *, out: int, width: int | None = None, depth: int | None = None, heads: int | None = None
    ) -> Decoder:
        """A decoder from the tokens of visible patches to `out` numbers a patch; sizes are h_x's unless given."""
        sizes, encoder = self.recipe.model, self.model.encoder
        return Decoder(
            encoder_width=encoder.width,
            class_tokens=encoder.num_class_tokens,
            grid=encoder.grid,
            width=width or sizes.image_decoder_width,
            depth=sizes.image_decoder_depth if depth is None else depth,
            heads=heads or sizes.image_decoder_heads,
            out=out,
        )


BuildObjective = Callable[[Recipe, MaskedCLIP], PretrainingObjective]
"""How a run gets its objective: a pure function of both, since a resumed run calls it again."""


def build_objective(recipe: Recipe, model: MaskedCLIP) -> PretrainingObjective:
    """Make the terms that a recipe weights above 0, with decoders that depend on its seed alone."""
    chosen, training = recipe.objective, recipe.training
    encoder, context = model.encoder, BuildContext(recipe, model)
    terms: dict[str, nn.Module] = {}
    weights: dict[str, Weight] = {}
    if chosen.needs_hidden and visible_patches(encoder.num_patches, chosen.mask_ratio) == encoder.num_patches:
        raise UserError(
            f"objective.mask_ratio: {chosen.mask_ratio:g} hides none of the {encoder.num_patches} patches, so masked "
            "losses have no patch to learn from; give 0.75"
        )

    with torch.random.fork_rng(devices=[]):
        if chosen.clip_weight > 0:
            terms["clip"] = Contrastive(soft_targets=chosen.soft_targets)
            weights["clip"] = Weight(chosen.clip_weight)
        if chosen.mim_weight > 0:
            torch.manual_seed(recipe.seed + 3)
            pixels = context.decoder(out=encoder.patch_values)
            terms["mim"] = Reconstruction(pixels, encoder.patch_size, normalise=chosen.normalise_pixels)
            weights["mim"] = Weight(chosen.mim_weight)
        if chosen.mkd_weight > 0:
            torch.manual_seed(recipe.seed + 4)
            sizes = recipe.model
            out = sizes.embed_dim if chosen.mkd_target == "projected" else encoder.width
            features = context.decoder(
                out=out,
                width=sizes.feature_decoder_width,
                depth=sizes.feature_decoder_depth,
                heads=sizes.feature_decoder_heads,
            )
            terms["mkd"] = Distillation(
                features,
                loss=chosen.mkd_loss,
                patches=chosen.mkd_patches,
                target=chosen.mkd_target,
                temperatures=chosen.prototype_temperatures,
                teacher=chosen.mkd_teacher,
                centre=RunningMean(out, chosen.mkd_centre_decay) if chosen.mkd_centre else None,
            )
            ramp = training.warmup if chosen.mkd_ramp is None else chosen.mkd_ramp
            weights["mkd"] = Weight(chosen.mkd_weight, ramp)
        for name, options in chosen.term_options.items():
            torch.manual_seed(_seed_of(recipe.seed, name))
            terms[name] = parts.find("terms", name).build(options, context)
            weights[name] = Weight(options.weight, options.ramp)
            _check_parts(f"objective.terms.{name}", terms[name], recipe)
        torch.manual_seed(_seed_of(recipe.seed, "masking"))
        masker = parts.find("masking", chosen.masking).build(chosen.chosen_masking, context)
        _check_parts(f"objective.masking {chosen.masking}", masker, recipe)
    _freeze_idle(model, recipe)
    decay = TeacherDecay(chosen.ema_decay, chosen.ema_decay_end)
    teacher = MovingAverageTeacher(model, decay) if chosen.needs_teacher else None
    return PretrainingObjective(
        model,
        terms,
        weights,
        masker=masker,
        mask_ratio=chosen.mask_ratio,
        max_logit_scale=chosen.max_logit_scale,
        mean=recipe.data.mean,
        std=recipe.data.std,
        teacher=teacher,
        decoded_share=chosen.decoded_share,
    )


def _seed_of(seed: int, name: str) -> int:
    """A seed of a part's own, so that one part more or less changes no other part's first weights."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big")


def _check_parts(field: str, part: object, recipe: Recipe) -> None:
    if recipe.training.micro_batches > 1 and getattr(part, "whole_batch", False):
        raise UserError(
            f"training.micro_batches: {recipe.training.micro_batches}, but {field} needs the whole batch at once; "
            "give 1"
        )


def _freeze_idle(model: MaskedCLIP, recipe: Recipe) -> None:
    """Without a loss in the shared space its projections have no work, which data-parallel training forbids."""
    if recipe.objective.shares_space:
        return
    if model.text_encoder is not None:
        model.text_encoder.projection.requires_grad_(False)
    if model.image_projection is not None:
        model.image_projection.requires_grad_(False)
    if model.logit_scale is not None:
        model.logit_scale.requires_grad_(False)
