"""Codeword target in the style of MaskCLIP (arXiv 2208.12262): soft codewords of a teacher that sees the whole image.

A moving average of the encoder sees all patches; a quantizer that is trained along turns its features into soft
codewords.  The student sees the visible patches, a one-layer decoder predicts features of the hidden ones, and
cross-entropy draws their codewords to the teacher's.  [paper]  The quantizer's form, its moving average for the
teacher, the temperatures (RILS, arXiv 2301.06958) and the centring (DINO, arXiv 2104.14294) are reconstructions.
[inferred]

MaskCLIP's other targets are standard terms of this package: pixels are `objective.mim_weight`, features of the moving
average are `objective.mkd_weight` with `mkd_teacher: ema` and `model.bridge: false`.

B images, L patches, H' decoded hidden patches, D the encoder's width, K codewords.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.models.decoder import Decoder
from maskedclip.models.initialisation import initialise
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.vit import gather_patches
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.distillation import TeacherDecay
from maskedclip.objectives.pretraining import BuildContext
from maskedclip.parts import TermOptions
from maskedclip.ranks import gather_rows
from maskedclip.recipe_sections import require


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.codeword`; the teacher's decay is `objective.ema_decay` (to `ema_decay_end`)."""

    masks: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    codewords: int = 8192
    """K; 256 for small data and short runs.  [inferred]"""
    hidden: int = 2048
    """Width of the quantizer's hidden layer.  [ours]"""
    bottleneck: int = 64
    """Length of the unit vectors that are compared with codewords; the shorter, the sharper the first codewords are.
    [ours]"""
    teacher_temperature: float = 0.04
    """Of the teacher's softmax; sharper than the student's.  [inferred]"""
    student_temperature: float = 0.1
    """Of the student's softmax.  [inferred]"""
    centre_momentum: float = 0.9
    """Of the running mean that is taken off the teacher's logits, a step; DINO's value.  [inferred]"""
    depth: int = 1
    """Blocks of the decoder; its width is the feature decoder's."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        where = "objective.terms.codeword"
        require(self.codewords >= 2, f"{where}.codewords: {self.codewords} is too few; give 2 or more, e.g. 256")
        for name in ("hidden", "bottleneck", "depth"):
            require(getattr(self, name) >= 1, f"{where}.{name}: {getattr(self, name)} is too small; give 1 or more")
        for name in ("teacher_temperature", "student_temperature"):
            require(getattr(self, name) > 0, f"{where}.{name}: {getattr(self, name)}; give a value above 0, e.g. 0.1")
        require(
            0 <= self.centre_momentum < 1,
            f"{where}.centre_momentum: {self.centre_momentum} is outside [0, 1); e.g. 0.9",
        )


class Quantizer(nn.Module):
    """MLP to unit vectors, and their cosine with unit codewords, in float32: (..., D) -> logits (..., K)."""

    def __init__(self, width: int, hidden: int, bottleneck: int, codewords: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        initialise(self)
        self.codewords = nn.Parameter(torch.randn(codewords, bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        """Cosines in [-1, 1]; half precision would round them by a tenth of a temperature."""
        with torch.autocast(features.device.type, enabled=False):
            unit = functional.normalize(self.mlp(features.float()), dim=-1)
            return unit @ functional.normalize(self.codewords.float(), dim=-1).T


def codeword_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the student's codewords to the teacher's, mean over patches.

    Args:
        student: logits (B, H', K).
        teacher: probabilities, without gradient, (B, H', K).
        temperature: of the student's softmax.

    Returns: float32 ().
    """
    return -(teacher * functional.log_softmax(student.float() / temperature, dim=-1)).sum(dim=-1).mean()


def codeword_use(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """How the codewords are used, in shares of log K, both in [0, 1]; collapse shows as either being 0.

    Args:
        probabilities: (B, H', K).

    Returns: the entropy of the mean over patches, 0 where all patches have one codeword; and what is left of it when
        the mean entropy of a patch is taken off (their mutual information), 0 where all patches look the same.
    """
    patches = probabilities.flatten(0, -2)
    mean = patches.mean(dim=0)
    entropy = -torch.xlogy(mean, mean).sum()
    unsure = -torch.xlogy(patches, patches).sum(dim=-1).mean()
    most = math.log(patches.shape[1])
    return entropy / most, (entropy - unsure).clamp(min=0) / most


class Codeword(nn.Module):
    """Decoder, quantizer, the quantizer's moving average and the centre; the views hold the encoder's average."""

    spans_batch = False

    def __init__(self, options: Options, decoder: Decoder, quantizer: Quantizer, decay: TeacherDecay) -> None:
        super().__init__()
        self.options, self.decay = options, decay
        self.decoder, self.quantizer = decoder, quantizer
        self.teacher_quantizer = copy.deepcopy(quantizer).requires_grad_(False)
        self.centre = nn.Buffer(torch.zeros(len(quantizer.codewords)))  # (K,)
        self._place: float | None = None
        self._means: list[Tensor] = []

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """Cross-entropy on hidden patches between what the decoder predicts and what the teacher sees."""
        mask, chosen = views.mask, self.options
        student = self.quantizer(self.decoder(views.masked_tokens, mask.restore, mask.decoded))  # (B, H', K)
        features, logits = self.teacher_logits(views)
        with torch.autocast(student.device.type, enabled=False):
            self._remember(logits, views.progress)
            centred = logits - self.centre
            teacher = functional.softmax(centred / chosen.teacher_temperature, dim=-1)
            loss = codeword_loss(student, teacher, chosen.student_temperature)
            seen = student.detach()
            agreement = functional.cosine_similarity(seen - seen.mean(dim=(0, 1)), centred, dim=-1)
            entropy, information = codeword_use(teacher)
            report = {
                "codeword_entropy": entropy,
                "codeword_information": information,
                "codeword_cosine": agreement.mean(),
                "teacher_deviation": features.flatten(0, 1).std(dim=0, correction=0).mean(),
            }
        return {"codeword": loss}, report

    @torch.no_grad()
    def teacher_logits(self, views: Views) -> tuple[Tensor, Tensor]:
        """Of the decoded hidden patches, seen in the whole image: features (B, H', D), logits (B, H', K), float32."""
        assert views.teacher is not None
        encoder = views.teacher.encoder
        # Without a bridge both spaces are one, and another term may have asked for the same pass.
        one = views.model.bridge.depth == 0
        patches = views.teacher_patches if one else encoder.patches(encoder(views.image))
        features = gather_patches(patches, views.mask.decoded).float()
        return features, self.teacher_quantizer(features)

    @torch.no_grad()
    def _remember(self, logits: Tensor, progress: float) -> None:
        """Keep the mean logits of this part of the step's batch, over all ranks; a step begins anew."""
        if progress != self._place:
            self._place, self._means = progress, []
        self._means.append(gather_rows(logits.mean(dim=(0, 1))[None]).mean(dim=0))

    @torch.no_grad()
    def after_step(self, model: MaskedCLIP, skipped: Tensor | None) -> None:
        """Let the teacher's quantizer and the centre follow, unless the step was skipped."""
        del model
        share: Any = 1 - self.decay.at(self._place or 0.0)
        share = share if skipped is None else share * (1 - skipped)
        trained = self.quantizer.parameters()
        for teacher, student in zip(self.teacher_quantizer.parameters(), trained, strict=True):
            teacher.lerp_(student, share)
        if self._means:
            momentum = self.options.centre_momentum
            moved = momentum * self.centre + (1 - momentum) * torch.stack(self._means).mean(dim=0)
            self.centre.copy_(moved if skipped is None else torch.where(skipped > 0, self.centre, moved))
        self._means = []


def build(options: Options, context: BuildContext) -> Codeword:
    """A decoder of the feature decoder's width and a quantizer on the encoder's width."""
    sizes, width = context.recipe.model, context.model.encoder.width
    decoder = context.decoder(
        out=width, width=sizes.feature_decoder_width, depth=options.depth, heads=sizes.feature_decoder_heads
    )
    quantizer = Quantizer(width, options.hidden, options.bottleneck, options.codewords)
    chosen = context.recipe.objective
    return Codeword(options, decoder, quantizer, TeacherDecay(chosen.ema_decay, chosen.ema_decay_end))
