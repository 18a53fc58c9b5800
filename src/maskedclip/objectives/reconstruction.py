"""L_mim, masked image modelling on pixels.  B images, L patches, P pixels on a patch's side."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.models.decoder import Decoder
from maskedclip.models.vit import gather_patches
from maskedclip.objectives.base import Losses, Report, Views

_EPSILON = 1e-6


def pixel_target(patches: Tensor, *, normalise: bool = True) -> Tensor:
    """Pixels of each patch, (x - mean) / sqrt(var + 1e-6) within the patch (MAE, arXiv 2111.06377).

    The variance is the unbiased one.

    Args:
        patches: of normalised images, (B, N, P P 3).
        normalise: False gives the pixels as they are.

    Returns: float32 (B, N, P P 3).
    """
    patches = patches.float()
    if not normalise:
        return patches
    # One kernel instead of five passes: layer_norm divides by the biased deviation, so the rest is a constant.
    shrink = (patches.shape[-1] - 1) / patches.shape[-1]
    return functional.layer_norm(patches, patches.shape[-1:], eps=_EPSILON * shrink) * shrink**0.5


class Reconstruction(nn.Module):
    """h_x and its loss over all images: mean squared error over hidden patches only."""

    spans_batch = False

    def __init__(self, decoder: Decoder, patch_size: int, *, normalise: bool) -> None:
        super().__init__()
        self.decoder = decoder
        self.patch_size, self.normalise = patch_size, normalise

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """L_mim of the masked pass, over the hidden patches that are decoded."""
        mask = views.mask
        prediction = self.decoder(views.masked_tokens, mask.restore, mask.decoded)  # (B, H', P P 3)
        with torch.autocast(prediction.device.type, enabled=False):
            patches = gather_patches(views.image_patches, mask.decoded)
            target = pixel_target(patches, normalise=self.normalise)
            views.keep_patch_error(prediction, target)
            return {"mim": functional.mse_loss(prediction.float(), target)}, {}
