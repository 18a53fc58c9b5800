"""L_mim, masked image modelling on pixels.  B images, L patches, P pixels on a patch's side."""

import torch
from torch import Tensor, nn

from maskedclip.models.decoder import Decoder
from maskedclip.models.vit import gather_patches, patchify
from maskedclip.objectives.base import Losses, Report, Views

_EPSILON = 1e-6


def pixel_target(image: Tensor, patch_size: int, *, normalise: bool = True) -> Tensor:
    """Pixels of each patch, (x - mean) / sqrt(var + 1e-6) within the patch (MAE, arXiv 2111.06377).

    The variance is the unbiased one.

    Args:
        image: normalised, (B, 3, S, S).
        patch_size: P.
        normalise: False gives the pixels as they are.

    Returns: float32 (B, L, P P 3).
    """
    patches = patchify(image.float(), patch_size)
    if not normalise:
        return patches
    return (patches - patches.mean(dim=-1, keepdim=True)) / (patches.var(dim=-1, keepdim=True) + _EPSILON).sqrt()


def reconstruction_loss(prediction: Tensor, target: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over hidden patches only, float32 ().

    Args:
        prediction: (B, L, P P 3).
        target: (B, L, P P 3).
        hidden: places of the hidden patches, int64 (B, H).
    """
    difference = gather_patches(prediction.float(), hidden) - gather_patches(target, hidden)
    return difference.square().mean()


class Reconstruction(nn.Module):
    """h_x and its loss over all images."""

    needs_clip_space = False

    def __init__(self, decoder: Decoder, patch_size: int, *, normalise: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.patch_size, self.normalise = patch_size, normalise

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """L_mim of the masked pass."""
        mask = views.mask
        prediction = self.decoder(views.masked_tokens, mask.restore)
        with torch.autocast(prediction.device.type, enabled=False):
            target = pixel_target(views.image, self.patch_size, normalise=self.normalise)
            return {"mim": reconstruction_loss(prediction, target, mask.hidden)}, {}
