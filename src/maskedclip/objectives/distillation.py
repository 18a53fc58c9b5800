"""L_mkd, masked knowledge distillation: predict CLIP-space features of hidden patches from the masked image.

The direction is the paper's (arXiv 2507.17239), the form ours, hence the options.  b images on this rank, L patches,
H of them in the loss, D encoder width, E shared width, M texts.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.models.decoder import Decoder
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.vit import gather_patches
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.running_mean import RunningMean


def cosine_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cos over the patches (b, H, D), float32 ()."""
    return 1 - functional.cosine_similarity(prediction.float(), target.float(), dim=-1).mean()


def smooth_l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 to the target normalised over its channels (b, H, D), float32 (); as data2vec, arXiv 2202.03555."""
    target = functional.layer_norm(target.float(), target.shape[-1:])
    return functional.smooth_l1_loss(prediction.float(), target)


def mse_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error to the target as it is (b, H, D), float32 ()."""
    return functional.mse_loss(prediction.float(), target.float())


def prototype_loss(
    prediction: Tensor, target: Tensor, text: Tensor, text_key: Tensor, temperatures: tuple[float, float]
) -> Tensor:
    """KL divergence from the target's to the prediction's distribution over text prototypes (RILS, arXiv 2301.06958).

    Args:
        prediction: unit length, (b, H, E).
        target: unit length, (b, H, E).
        text: embeddings of the step's texts, unit length, (M, E).
        text_key: equal where texts are equal, (M,): a repeated text counts as one prototype.
        temperatures: of the target and of the prediction.

    Returns: mean over the patches, float32 ().
    """
    copies = (text_key[:, None] == text_key[None, :]).sum(dim=1).float()  # (M,)
    shared = copies.log()
    teacher = functional.log_softmax(target.float() @ text.float().T / temperatures[0] - shared, dim=-1)
    student = functional.log_softmax(prediction.float() @ text.float().T / temperatures[1] - shared, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(dim=-1).mean()


def spread(target: Tensor) -> Tensor:
    """Standard deviation over patches of the unit-length target, averaged over channels, times sqrt(D).

    About 1 when directions fill the space, 0 when the target is constant (collapse).

    Args:
        target: (b, L, D).
    """
    unit = functional.normalize(target.float().flatten(0, 1), dim=-1)
    return unit.std(dim=0).mean() * unit.shape[-1] ** 0.5


class Distillation(nn.Module):
    """h_z and its loss over all images; trains the encoder and h_z only, whatever its options."""

    spans_batch = False

    def __init__(
        self,
        decoder: Decoder,
        *,
        loss: Literal["cosine", "smooth_l1", "mse", "prototype_kl"],
        patches: Literal["masked", "all"],
        target: Literal["bridge", "projected"],
        temperatures: tuple[float, float],
        teacher: Literal["online", "ema"] = "online",
        centre: RunningMean | None = None,
    ) -> None:
        super().__init__()
        self.centre = centre
        self.decoder, self.teacher = decoder, teacher
        self.loss, self.patches, self.target, self.temperatures = loss, patches, target, temperatures

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """L_mkd of the masked pass against the CLIP-space features of the whole images."""
        model, mask = views.model, views.mask
        decoded = mask.decoded if self.patches == "masked" else None
        prediction = self.decoder(views.masked_tokens, mask.restore, decoded)  # (b, H or L, D or E)
        follows = self.teacher == "ema"
        # Here, under the step's own precision: (b, L, D).
        encoded = (views.teacher_patches if follows else views.target_patches).detach()
        with torch.autocast(prediction.device.type, enabled=False):
            target = encoded.float()
            report = {"target_spread": spread(target)}
            owner = views.teacher if follows else model
            assert owner is not None
            assert owner.image_projection is not None
            weight = owner.image_projection.weight.detach().float()
            if self.target == "projected":
                target = functional.normalize(target @ weight.T, dim=-1)
            if self.centre is not None:
                target = self.centre(target)
            if decoded is not None:
                target = gather_patches(target, decoded)
            if self.loss == "prototype_kl":
                value = self._over_prototypes(views, prediction.float(), target, weight)
            else:
                form = {"cosine": cosine_loss, "smooth_l1": smooth_l1_loss, "mse": mse_loss}[self.loss]
                value = form(prediction, target)
        return {"mkd": value}, report

    def after_step(self, model: MaskedCLIP, skipped: Tensor | None = None) -> None:
        """Let the centre take in what the step saw."""
        if self.centre is not None:
            self.centre.after_step(skipped)

    def _over_prototypes(self, views: Views, prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        if self.target == "bridge":  # the frozen projection leads both to the space of the texts
            prediction, target = prediction @ weight.T, target @ weight.T
        text, text_key = views.prototypes
        return prototype_loss(
            functional.normalize(prediction, dim=-1),
            functional.normalize(target, dim=-1),
            text,
            text_key,
            self.temperatures,
        )


@dataclass(frozen=True)
class TeacherDecay:
    """Decay of a moving average from `begin` to `end` along a half cosine of the run, as BYOL (arXiv 2006.07733)."""

    begin: float
    end: float | None = None

    def at(self, progress: float) -> float:
        """The decay at a place of the run in [0, 1]; `begin` throughout where there is no end."""
        if self.end is None:
            return self.begin
        return self.end - (self.end - self.begin) * (math.cos(math.pi * progress) + 1) / 2


class MovingAverageTeacher(nn.Module):
    """A copy of encoder, bridge and projection that follows the trained ones; its state is part of a checkpoint."""

    def __init__(self, model: MaskedCLIP, decay: TeacherDecay) -> None:
        super().__init__()
        self.decay = decay
        self.encoder = copy.deepcopy(model.encoder).requires_grad_(False)
        self.bridge = copy.deepcopy(model.bridge).requires_grad_(False)
        self.image_projection = copy.deepcopy(model.image_projection)
        if self.image_projection is not None:
            self.image_projection.requires_grad_(False)

    @torch.no_grad()
    def follow(self, model: MaskedCLIP, skipped: Tensor | None = None, progress: float = 0.0) -> None:
        """teacher = decay x teacher + (1 - decay) x student, after an optimizer step that was not skipped."""
        share: Any = 1 - self.decay.at(progress)
        share = share if skipped is None else share * (1 - skipped)
        for name in ("encoder", "bridge", "image_projection"):
            mine, theirs = getattr(self, name), getattr(model, name)
            if mine is None:
                continue
            for teacher, student in zip(mine.parameters(), theirs.parameters(), strict=True):
                teacher.lerp_(student, share)

    @torch.no_grad()
    def patches(self, image: Tensor) -> Tensor:
        """CLIP-space patch tokens of whole images: (b, 3, S, S) -> (b, L, D)."""
        return self.encoder.patches(self.bridge(self.encoder(image)))
