"""Features of whole volumes: of tiles that cover them, averaged.  N volumes, S voxels on a tile's side."""

import numpy as np
import torch
from torch import Tensor

from maskedclip.data.images import decoded_image
from maskedclip.data.store import Store
from maskedclip.data.transforms_volume import tiles
from maskedclip.models.features import image_features
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing

_TILES = 16
"""Encoded at a time."""


def volume_features(
    model: MaskedCLIP, store: Store, rows: np.ndarray, preprocessing: Preprocessing
) -> dict[str, np.ndarray]:
    """Features of rows of a store of volumes, by name, float32 (n, .).

    A volume is read as tiles of S^3 at the scale in which it is stored, as in training; its feature is the mean over
    them (`projected` again at unit length).

    Args:
        model: an encoder of volumes, in evaluation mode.
        store: of volumes.
        rows: (n,).
        preprocessing: for its size, S.

    Raises:
        UserError: a row cannot be decoded.
    """
    found = [one_volume_features(model, decoded_image(store, row), preprocessing) for row in rows.tolist()]
    if not found:
        return {}
    return {name: torch.stack([entry[name] for entry in found]).cpu().numpy() for name in found[0]}


def one_volume_features(model: MaskedCLIP, volume: Tensor, preprocessing: Preprocessing) -> dict[str, Tensor]:
    """Features of one stored volume (C, X, Y, Z), by name, (D,) or (E,): see `volume_features`."""
    device = next(model.parameters()).device
    parts = [
        image_features(model, part.to(device), preprocessing)
        for part in tiles(volume, preprocessing.size).split(_TILES)
    ]
    mean = {name: torch.cat([part[name] for part in parts]).mean(dim=0) for name in parts[0]}
    if "projected" in mean:
        mean["projected"] = torch.nn.functional.normalize(mean["projected"], dim=-1)
    return mean
