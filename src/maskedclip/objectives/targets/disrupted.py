"""Disruptive autoencoder (DAE, arXiv 2307.16896), SupCon variant: undo noise, lost resolution and hidden channels.

The encoder reads a disrupted input of which a part of the patch embedding's channels is zeroed at every location; the
loss is the L1 distance of the decoded picture or volume to the clean one, over all values.  Pooled features of one
modality attract each other.  The same class works on pictures (H, W) and on volumes (X, Y, Z).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.corruption import add_noise, channel_mask, lower_resolution
from maskedclip.objectives.supervised_contrast import literal_contrast, supervised_contrast
from maskedclip.parts import TermOptions
from maskedclip.ranks import gather_rows
from maskedclip.recipe_sections import require

_WHERE = "objective.terms.disrupted"
_TOO_FEW = (
    f"{_WHERE}.contrast_weight: the store knows fewer than two modalities (column modality), so there is nothing to "
    "contrast; name them in the manifest, or set 0"
)


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """What is disrupted, and how strongly."""

    mode: Literal["all", "denoise", "superres", "channels"] = "all"
    """All disruptions, or a single one: noise, resolution, hidden channels."""
    noise_variance: float = 0.1
    """Of the noise that is added [paper]."""
    downsample: int = 4
    """Factor by which each axis loses resolution, nearest neighbour [paper]."""
    channel_ratio: float = 0.6
    """Share of the patch embedding's channels that is zeroed at every location [paper]."""
    channel_draw: Literal["batch", "sample"] = "batch"
    """One draw of channels for the whole batch [paper's code], or one for each sample."""
    contrast_weight: float = 0.03
    """Weight of the contrast between modalities [paper]; 0 leaves it out."""
    temperature: float = 0.5
    """Of that contrast [paper]."""
    literal: bool = False
    """The contrast as the official code computes it, which depends on the order of the batch; for reproduction."""
    skip_width: int = 16
    """Channels of two convolutions that join the decoded input with the disrupted one at full resolution [inferred]; 0
    decodes from tokens alone."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        require(self.noise_variance >= 0, f"{_WHERE}.noise_variance: {self.noise_variance} is negative; give 0.1")
        require(self.downsample >= 1, f"{_WHERE}.downsample: {self.downsample}; give 1 (none) or more, e.g. 4")
        require(0 <= self.channel_ratio < 1, f"{_WHERE}.channel_ratio: {self.channel_ratio} is outside [0, 1)")
        require(self.contrast_weight >= 0, f"{_WHERE}.contrast_weight: {self.contrast_weight} is negative; 0 is none")
        require(self.temperature > 0, f"{_WHERE}.temperature: give a value above 0, e.g. 0.5")
        require(self.skip_width >= 0, f"{_WHERE}.skip_width: {self.skip_width} is negative; 0 is none")

    @property
    def noise(self) -> float:
        """Variance of the noise in this mode."""
        return self.noise_variance if self.mode in ("all", "denoise") else 0.0

    @property
    def factor(self) -> int:
        """Loss of resolution in this mode."""
        return self.downsample if self.mode in ("all", "superres") else 1

    @property
    def ratio(self) -> float:
        """Share of hidden channels in this mode."""
        return self.channel_ratio if self.mode in ("all", "channels") else 0.0


class Disrupted(nn.Module):
    """Decoder and losses of the disruptive autoencoder."""

    spans_batch = False

    def __init__(self, decoder: nn.Module, refine: nn.Module | None, options: Options) -> None:
        super().__init__()
        self.decoder, self.refine, self.options = decoder, refine, options
        self.whole_batch = options.contrast_weight > 0 or (options.ratio > 0 and options.channel_draw == "batch")

    def check_store(self, store: Store) -> None:
        """Refuse a store without modalities to contrast, before a run is begun.

        Raises:
            UserError: the contrast has a weight, and there are fewer than two.
        """
        if self.options.contrast_weight > 0 and len(store.modalities[1]) < 2:
            raise UserError(_TOO_FEW)

    def disrupt(self, image: Tensor, keys: Tensor) -> Tensor:
        """Noise, then lost resolution; the image itself is left as it is, (B, C, ...) -> the same."""
        return lower_resolution(add_noise(image, keys, self.options.noise), self.options.factor)

    def restore(self, encoder: Any, disrupted: Tensor, channels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Encode a disrupted input and decode it.

        Args:
            encoder: of pictures or volumes.
            disrupted: (B, C, ...).
            channels: True where the patch embedding is zeroed, bool (B, D), or None.

        Returns: the restored input (B, C, ...) and the tokens, (B, C' + L, D).
        """
        if hasattr(encoder, "pyramid"):
            levels = encoder.pyramid(disrupted, channels)
            return self.decoder(levels, disrupted), encoder.tokens(levels)
        tokens = encoder(disrupted, channels=channels)
        places = torch.arange(encoder.num_patches, device=tokens.device).expand(len(tokens), -1)
        restored = encoder.unpatchify(self.decoder(tokens, places))
        if self.refine is not None:
            restored = restored + self.refine(torch.cat([restored, disrupted.to(restored.dtype)], dim=1))
        return restored, tokens

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """L1 over all values, and the contrast between modalities times its weight."""
        options, encoder, keys = self.options, views.model.encoder, views.batch.keys
        channels = None
        if options.ratio > 0:
            channels = channel_mask(keys, encoder.patch_channels, options.ratio, options.channel_draw)
        disrupted = self.disrupt(views.image, keys)
        restored, tokens = self.restore(encoder, disrupted, channels)
        with torch.autocast(restored.device.type, enabled=False):
            losses = {"disrupted": functional.l1_loss(restored.float(), views.image.float())}
            report = {"disrupted_input": functional.l1_loss(disrupted.float(), views.image.float())}
            if options.contrast_weight > 0:
                losses["modality"] = options.contrast_weight * self._contrast(views, tokens)
        return losses, report

    def _contrast(self, views: Views, tokens: Tensor) -> Tensor:
        if views.batch.modality is None:
            raise UserError(_TOO_FEW)
        groups = gather_rows(views.batch.modality)
        if not self.options.literal:
            pooled = gather_rows(views.model.pool(tokens).float())
            return supervised_contrast(pooled, groups, self.options.temperature)
        if int(groups.max()) >= len(groups) or int(groups.min()) < 0:
            raise UserError(
                f"{_WHERE}.literal: modality {int(groups.max())} names no place in a batch of {len(groups)}, or one is "
                "unknown; raise the batch, or leave literal out"
            )
        flat = gather_rows(views.model.encoder.patches(tokens).float().flatten(1))
        return literal_contrast(flat, groups, self.options.temperature)


def build(options: Options, context: Any) -> Disrupted:
    """The term of a recipe."""
    encoder = context.model.encoder
    if hasattr(encoder, "pyramid_decoder"):
        return Disrupted(encoder.pyramid_decoder(), None, options)
    refine = None
    if options.skip_width:
        volumes = len(encoder.grid) == 3
        convolution: Any = nn.Conv3d if volumes else nn.Conv2d
        values = 1 if volumes else 3
        refine = nn.Sequential(
            convolution(2 * values, options.skip_width, 3, padding=1),
            nn.GELU(),
            convolution(options.skip_width, values, 3, padding=1),
        )
    return Disrupted(context.decoder(out=encoder.patch_values), refine, options)
