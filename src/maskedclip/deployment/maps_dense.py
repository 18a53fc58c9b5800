"""Patch tokens and their embeddings of whole photographs: at the model's size, or in overlapping tiles.

B images, S pixels that the model reads, k times as many that a photograph has, h x w patches of S, P pixels on a
patch's side, D encoder width, E shared width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maskedclip.data.transforms import resize
from maskedclip.deployment.maps_blocks import plain_blocks, without_exchange
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.attention import evaluation_kernels
from maskedclip.models.features import BATCH, to_input
from maskedclip.models.maskedclip import MaskedCLIP


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseFeatures:
    """Features in place, float32.

    tokens: patch tokens of f (B, k h, k w, D).  embeddings: patch tokens of g(f), projected and brought to unit length
    (B, k h, k w, E); where tiles overlap, a weighted mean of unit vectors.
    """

    tokens: NDArray[np.float32]
    embeddings: NDArray[np.float32]


def dense_features(
    model: Model, images: Tensor, scales: Sequence[int] | None = None, *, mixed: bool = False
) -> DenseFeatures:
    """Features of every patch.

    Args:
        model: trained with texts.
        images: uint8 (B, 3, k S, k S), k whole.
        scales: how many tiles lie side by side, each at most k; the features of several scales are averaged on the
            finest grid, that of k.  None: k alone.  Tiles overlap by half, and their borders weigh little.
        mixed: see `projected_patches`.

    Raises:
        UserError: the model has no texts, or sizes that do not fit.
    """
    side, finest = model.preprocessing.size, tiles_of(model, images)
    used = list(scales or [finest])
    if min(used) < 1 or max(used) > finest:
        raise UserError(f"tiles: {used} for a picture of {images.shape[-1]} px, a model of {side} px; at most {finest}")
    rows, columns = (finest * count for count in model.module.encoder.grid)
    sums: list[NDArray[np.float32]] = []
    for scale in used:
        shrunk = torch.stack([resize(image, scale * side) for image in images.cpu()])
        parts = _tiled(model, shrunk, scale, mixed)
        grown = [_grown(part, rows, columns) for part in parts]
        sums = [total + part for total, part in zip(sums, grown, strict=True)] if sums else grown
    tokens, embeddings = (total / np.float32(len(used)) for total in sums)
    return DenseFeatures(tokens=tokens, embeddings=embeddings)


def tiles_of(model: Model, images: Tensor) -> int:
    """How often the model's size goes into the images' side.

    Raises:
        UserError: not a whole number of times.
    """
    side = model.preprocessing.size
    if images.ndim != 4 or images.shape[2] != images.shape[3] or images.shape[2] % side or not images.shape[2]:
        raise UserError(
            f"images: give uint8 (B, 3, {side}, {side}), or a whole multiple of {side}, not {tuple(images.shape)}"
        )
    return images.shape[2] // side


@torch.inference_mode()
def projected_patches(model: Model, images: Tensor, *, mixed: bool = True) -> tuple[Tensor, Tensor]:
    """Patch tokens of f (B, L, D), and those of g(f) projected but not brought to unit length, float32 (B, L, E).

    The projection of the mean token is the mean of the projected tokens: standardising with running statistics and
    projecting are affine.

    mixed: let the bridge's attention carry features from patch to patch, as it does for the pooled feature; if not,
    each patch attends to itself alone on the bridge, which keeps features where they are (the last layer of MaskCLIP,
    arXiv 2112.01071, is read in this way).

    Raises:
        UserError: the model was trained without texts.
    """
    module = model.module
    if module.image_projection is None:
        raise UserError("this model was trained without texts and cannot compare patches with any")
    with evaluation_kernels(module):
        tokens = module.encoder(to_input(images.to(model.device), model.preprocessing))
        led = module.bridge(tokens) if mixed else _led_in_place(module, tokens)
        led = module.encoder.patches(led)
        return module.encoder.patches(tokens).float(), module.image_projection(module.standardise(led)).float()


def _led_in_place(module: MaskedCLIP, tokens: Tensor) -> Tensor:
    for block in plain_blocks(module.bridge.blocks):
        tokens = without_exchange(block, tokens)
    return module.bridge.norm(tokens)


def _tiled(model: Model, images: Tensor, scale: int, mixed: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tokens and unit embeddings of images (B, 3, scale S, scale S): (B, scale h, scale w, .)."""
    (rows, columns), patch = model.module.encoder.grid, model.module.encoder.patch_size
    tops, lefts = _starts(rows, scale), _starts(columns, scale)
    places = [(top, left) for top in tops for left in lefts]
    weight = torch.outer(_ramp(rows), _ramp(columns))[..., None]  # (h, w, 1)
    results: list[list[NDArray[np.float32]]] = [[], []]
    for image in images if scale > 1 else images.split(BATCH):
        tiles = image
        if scale > 1:
            spans = [(slice(t * patch, (t + rows) * patch), slice(c * patch, (c + columns) * patch)) for t, c in places]
            tiles = torch.stack([image[:, down, across] for down, across in spans])
        batches = [projected_patches(model, part, mixed=mixed) for part in tiles.split(BATCH)]
        for result, values in zip(results, zip(*batches, strict=True), strict=True):
            table = torch.cat(list(values)).unflatten(1, (rows, columns))
            if result is results[1]:
                table = functional.normalize(table, dim=-1)
            if scale > 1:
                table = _blended(table, weight.to(table.device), places, (rows * scale, columns * scale))
            result.append(table.cpu().numpy())
    tokens, embeddings = (np.concatenate(result) for result in results)
    return tokens, embeddings


def _blended(tiles: Tensor, weight: Tensor, places: Sequence[tuple[int, int]], grid: tuple[int, int]) -> Tensor:
    """Weighted mean of overlapping tiles (n, h, w, .) on one grid, (1, *grid, .)."""
    rows, columns = tiles.shape[1:3]
    total = tiles.new_zeros((*grid, tiles.shape[-1]))
    weights = tiles.new_zeros((*grid, 1))
    for tile, (top, left) in zip(tiles, places, strict=True):
        total[top : top + rows, left : left + columns] += tile * weight
        weights[top : top + rows, left : left + columns] += weight
    return (total / weights)[None]


def _starts(patches: int, scale: int) -> list[int]:
    """Where tiles begin, in patches: half a tile apart, the last one at the border."""
    last = patches * (scale - 1)
    return sorted({*range(0, last, max(1, patches // 2)), last})


def _ramp(patches: int) -> Tensor:
    """Weights that fall towards both borders and stay above 0, (n,)."""
    place = torch.arange(patches, dtype=torch.float32)
    return torch.minimum(place + 1, patches - place)


def _grown(table: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    if table.shape[1:3] == (rows, columns):
        return table
    channels = torch.from_numpy(table).permute(0, 3, 1, 2)
    grown = functional.interpolate(channels, (rows, columns), mode="bilinear", align_corners=False)
    return grown.permute(0, 2, 3, 1).contiguous().numpy()
