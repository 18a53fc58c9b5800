"""Frequency target in the style of Ge2-AE (arXiv 2204.08227): pixels and spectrum predicted by two decoders that agree.

One masked pass feeds a pixel decoder and a decoder that mixes patches in the frequency domain.  The pixel decoder is
held to the hidden pixels, the other one to the whole spectrum by a focal frequency loss (FFL, arXiv 2012.12821), and
both to each other on hidden patches.  [paper]  Decoder depth, weights and the way in which each is held to the other
are reconstructions.  [inferred]

B images, L patches on a grid of h x w, H' decoded hidden patches, C class tokens, D the encoder's width, W the
decoder's, P pixels on a patch's side, V = 3 P P.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.models.decoder import Decoder
from maskedclip.models.vit import gather_patches
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.pretraining import BuildContext
from maskedclip.objectives.targets._frequency_decoder import FrequencyDecoder
from maskedclip.parts import TermOptions
from maskedclip.ranks import gather_rows
from maskedclip.recipe_sections import require


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.frequency`."""

    masks: ClassVar[bool] = True

    focal_weight: float = 1.0
    """Weight of the focal frequency loss, beside the pixel loss's 1.  [inferred]"""
    consistency_weight: float = 0.5
    """Weight of the disagreement of both decoders on hidden patches.  [inferred]"""
    consistency: Literal["alternate", "symmetric"] = "alternate"
    """`alternate`: in each sample one decoder, by lot, is drawn to the other; `symmetric`: each to the other."""
    alpha: float = 1.0
    """How much the focal weights favour frequencies that are hard; 0 makes them all equal."""
    log_weights: bool = False
    """Focal weights from log(1 + w), so that the hardest frequency outshines the others less."""
    batch_weights: bool = False
    """Divide focal weights by the batch's largest instead of each image and channel's own."""
    patch_factor: int = 1
    """Spectra are taken of patch_factor x patch_factor tiles of the image instead of the whole."""
    depth: int = 2
    """Blocks of the frequency decoder; width as the pixel decoder's.  [inferred]"""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        where = "objective.terms.frequency"
        for name in ("focal_weight", "consistency_weight", "alpha"):
            require(getattr(self, name) >= 0, f"{where}.{name}: {getattr(self, name)} is negative; give 0 or more")
        require(
            self.focal_weight + self.consistency_weight > 0,
            f"{where}: focal_weight and consistency_weight are both 0, so the frequency decoder learns nothing; "
            "raise one, or use objective.mim_weight instead",
        )
        require(self.patch_factor >= 1, f"{where}.patch_factor: {self.patch_factor} is too small; 1 is the whole image")
        require(self.depth >= 1, f"{where}.depth: {self.depth} is too small; give 1 or more")


def focal_weights(squared: Tensor, alpha: float, *, log: bool = False, batch: bool = False) -> Tensor:
    """How much each frequency counts: |difference|^alpha over its largest, detached, in [0, 1].

    Args:
        squared: squared modulus of the spectra's difference, (B, 3, tiles, H, W).
        alpha: 0 or more.
        log: take log(1 + |difference|^alpha).
        batch: the largest of all ranks' images, instead of each image, channel and tile's own.

    Returns: float32, 0 where no frequency differs (unless alpha is 0).
    """
    weight = squared.detach().sqrt() ** alpha
    if log:
        weight = weight.log1p()
    largest = gather_rows(weight.amax()[None]).amax() if batch else weight.amax(dim=(-2, -1), keepdim=True)
    return (weight / largest).nan_to_num(0.0).clamp(0.0, 1.0)


def focal_frequency_loss(
    prediction: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    *,
    log: bool = False,
    batch: bool = False,
    patch_factor: int = 1,
) -> Tensor:
    """Mean over frequencies of the squared difference of two images' spectra, times its focal weight.

    With equal weights this is the mean squared error of the pixels (Parseval); with any others it is less.

    Args:
        prediction: (B, 3, H, W).
        target: (B, 3, H, W).
        alpha, log, batch: of `focal_weights`.
        patch_factor: tiles on a side; must divide H and W.

    Returns: float32 ().
    """
    tiles = "b c (n h) (m w) -> b c (n m) h w"
    difference = rearrange(prediction.float() - target.float(), tiles, n=patch_factor, m=patch_factor)
    spectrum = torch.view_as_real(torch.fft.fft2(difference, norm="ortho"))
    squared = spectrum.square().sum(dim=-1)
    return (focal_weights(squared, alpha, log=log, batch=batch) * squared).mean()


def consistency_loss(frequency: Tensor, pixels: Tensor, keys: Tensor, mode: str) -> Tensor:
    """Squared disagreement of both predictions, with gradient to one of them in each sample, or to both.

    A spectrum's inverse transform is the image itself, so both are compared as pixels.

    Args:
        frequency: pixels that the frequency decoder predicts of hidden patches, (B, H', V).
        pixels: those of the pixel decoder, (B, H', V).
        keys: of the samples at their step, int64 (B,); the lowest bit is the lot.
        mode: `alternate` or `symmetric`.

    Returns: float32 (); the same value in both modes.
    """
    frequency, pixels = frequency.float(), pixels.float()
    if mode == "alternate":
        first = (keys & 1 == 1)[:, None, None]
        frequency = torch.where(first, frequency, frequency.detach())
        pixels = torch.where(first, pixels.detach(), pixels)
    return functional.mse_loss(frequency, pixels)


class Frequency(nn.Module):
    """Both decoders and their three losses, over all images; pixels are not normalised within patches."""

    spans_batch = False

    def __init__(self, options: Options, decoder: Decoder, frequency_decoder: FrequencyDecoder) -> None:
        super().__init__()
        self.options, self.decoder, self.frequency_decoder = options, decoder, frequency_decoder
        self.whole_batch = options.batch_weights

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The pixel loss, the focal frequency loss and the consistency, each with its own weight."""
        mask, chosen, encoder = views.mask, self.options, views.model.encoder
        pixels = self.decoder(views.masked_tokens, mask.restore, mask.decoded)  # (B, H', V)
        patches = self.frequency_decoder(views.masked_tokens, mask.restore)  # (B, L, V)
        with torch.autocast(pixels.device.type, enabled=False):
            pixels, patches = pixels.float(), patches.float()
            target = gather_patches(views.image_patches, mask.decoded).float()
            if views.patch_error is None:
                views.keep_patch_error(pixels, target)
            painted = rearrange(
                patches,
                "b (h w) (p q c) -> b c (h p) (w q)",
                h=encoder.grid[0],
                p=encoder.patch_size,
                q=encoder.patch_size,
            )
            focal = focal_frequency_loss(
                painted,
                views.image,
                chosen.alpha,
                log=chosen.log_weights,
                batch=chosen.batch_weights,
                patch_factor=chosen.patch_factor,
            )
            frequency = gather_patches(patches, mask.decoded)
            disagreement = consistency_loss(frequency, pixels, views.batch.keys, chosen.consistency)
            losses = {
                "frequency_pixels": functional.mse_loss(pixels, target),
                "frequency_focal": chosen.focal_weight * focal,
                "frequency_consistency": chosen.consistency_weight * disagreement,
            }
            report = {
                "frequency_disagreement": disagreement,
                "frequency_error": functional.mse_loss(frequency, target),
            }
        return losses, report


def build(options: Options, context: BuildContext) -> Frequency:
    """Both decoders at the recipe's image decoder's width."""
    encoder, sizes = context.model.encoder, context.recipe.model
    if len(encoder.grid) != 2:
        raise UserError(
            "objective.terms.frequency: spectra are of 2-D images, and the encoder reads volumes; leave out"
        )
    size = context.recipe.data.size
    if size % options.patch_factor:
        raise UserError(
            f"objective.terms.frequency.patch_factor: {options.patch_factor} does not divide data.size {size}; give 1"
        )
    frequency_decoder = FrequencyDecoder(
        encoder_width=encoder.width,
        class_tokens=encoder.num_class_tokens,
        grid=encoder.grid,
        width=sizes.image_decoder_width,
        depth=options.depth,
        out=encoder.patch_values,
    )
    return Frequency(options, context.decoder(out=encoder.patch_values), frequency_decoder)
