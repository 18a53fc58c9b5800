"""A trained encoder at another input size: the same weights, positions resampled to the new patch grid."""

import copy
from dataclasses import replace

import torch

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP


def fitting_size(size: int, patch: int) -> int:
    """The largest multiple of the patch that is no more than `size`, at least one patch; pixels."""
    return max(size // patch, 1) * patch


def check_size(size: int, patch: int, where: str) -> None:
    """Refuse an input size that patches do not fill, in the name of what the user gave.

    Raises:
        UserError: names the nearest sizes that fit.
    """
    if size < patch or size % patch:
        lower = fitting_size(size, patch)
        near = f"{lower}" if size < patch else f"{lower} or {lower + patch}"
        raise UserError(f"{where}: {size} px is no multiple of the encoder's {patch} px patches; give {near}")


def resized(model: MaskedCLIP, size: int, where: str = "size") -> MaskedCLIP:
    """A copy of the model that reads `size` pixels; the model itself where it does so already.

    Positions are interpolated bicubically over the same extent of the picture, as timm does it for every encoder at
    another size; nothing else depends on the number of patches (the bridge has no positions of its own).

    Raises:
        UserError: the size is no multiple of the patch.
    """
    check_size(size, model.encoder.patch_size, where)
    if size == model.config.size:
        return model
    other = copy.deepcopy(model)
    encoder = other.encoder
    with torch.no_grad():
        encoder.vit.set_input_size((size, size))
    side = size // encoder.patch_size
    encoder.grid = (side, side)
    encoder.num_patches = encoder.grid[0] * encoder.grid[1]
    other.config = replace(model.config, size=size)
    return other
