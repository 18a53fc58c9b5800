"""Where in a photograph a text is: maps of likeness, of contributions and of relevance, on the patch grid.

B images, T texts, S pixels that the model reads, h x w patches, L = h w, E shared width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maskedclip.deployment.maps_dense import dense_features, projected_patches
from maskedclip.deployment.maps_target import Target, Texts, label_prompts, text_directions, text_target
from maskedclip.deployment.model import Model
from maskedclip.deployment.overlay import overlay
from maskedclip.deployment.relevance import relevance_map, relevance_maps
from maskedclip.models.features import BATCH

__all__ = [
    "Target",
    "contribution_maps",
    "label_prompts",
    "magnified",
    "overlay",
    "relevance_map",
    "relevance_maps",
    "scores_of",
    "similarity_maps",
    "text_directions",
    "text_target",
]


def similarity_maps(
    model: Model,
    images: Tensor,
    texts: Texts,
    *,
    against: str | Sequence[str] = (),
    scales: Sequence[int] | None = None,
    mixed: bool = False,
) -> NDArray[np.float32]:
    """Cosine of every patch's embedding with every text, float32 (B, T, h, w), in -1 to 1.

    A patch's token is led over the bridge and projected as the pooled feature is.  Tokens have seen the whole picture
    through the encoder's attention, so a high value says where the model keeps a finding, which need not be where it
    lies: docs/segment.md has what was measured.

    Args:
        model: trained with texts.
        images: what `preprocess` makes, uint8 (B, 3, S, S); or k times as large, for maps of k h x k w patches from
            overlapping tiles.
        texts: sentences or ensembles of sentences.
        against: sentences of the opposite, e.g. `prompts_for("normal")`: maps are then differences of two cosines, in
            -2 to 2, above 0 where a patch is nearer to the text.
        scales: see `dense_features`.
        mixed: read the tokens that the pooled feature is the mean of, after the bridge's attention; see
            `projected_patches`.

    Raises:
        UserError: the model has no texts, or sizes that do not fit.
    """
    directions = text_directions(model, texts, against)
    embeddings = dense_features(model, images, scales, mixed=mixed).embeddings
    return np.ascontiguousarray(np.einsum("bhwe,te->bthw", embeddings, directions, optimize=True))


def contribution_maps(model: Model, images: Tensor, targets: Sequence[Target]) -> NDArray[np.float32]:
    """What each patch's last token adds to each score, float32 (B, T, h, w); a map sums to the score.

    Exact, since the feature is the mean of the patch tokens and all that follows is affine, but for a division (by the
    feature's length, or by a LayerNorm's deviation) that all patches share.  The constant of standardising is spread
    over the patches evenly; a head's own constant is left out.

    Args:
        model: with texts, where a target is `projected`.
        images: uint8 (B, 3, S, S).
        targets: T of them.
    """
    parts = [_contributions(model, batch, targets) for batch in images.split(BATCH)]
    return np.concatenate(parts)


def scores_of(model: Model, images: Tensor, targets: Sequence[Target]) -> NDArray[np.float32]:
    """Each photograph's score for each target, (B, T); images: uint8 (B, 3, S, S)."""
    features = {name: torch.from_numpy(values) for name, values in model.encode_images(images).items()}
    return torch.stack([target.score(features[target.output]) for target in targets], dim=1).numpy()


def magnified(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Maps (..., h, w) at another size, bilinear between the patches' centres: (..., height, width)."""
    table = torch.from_numpy(np.ascontiguousarray(maps)).reshape(-1, 1, *maps.shape[-2:])
    grown = functional.interpolate(table, (height, width), mode="bilinear", align_corners=False)
    return grown.reshape(*maps.shape[:-2], height, width).numpy()


def _contributions(model: Model, images: Tensor, targets: Sequence[Target]) -> NDArray[np.float32]:
    encoder, attention = model.module.encoder, model.module.attention
    projected = None
    if any(target.output == "projected" for target in targets):
        projected = projected_patches(model, images)[1]
    pools = attention is not None and any(target.output != "encoder" for target in targets)
    spaces = model.patch_features(images) if pools or any(target.output != "projected" for target in targets) else {}
    weights = None
    if pools and attention is not None:
        with torch.no_grad():
            weights = attention.weights(torch.from_numpy(spaces["bridge"]))
    maps = []
    for target in targets:
        tokens = projected if target.output == "projected" else torch.from_numpy(spaces[target.output])
        assert tokens is not None
        if weights is None or target.output == "encoder":
            direction, divisor = target.linear(tokens.mean(dim=1))
            shares = tokens @ direction / divisor[:, None] / tokens.shape[1]
        else:  # each patch counts as much as attention pooling lets it
            direction, divisor = target.linear((weights[:, :, None] * tokens).sum(dim=1))
            shares = weights * (tokens @ direction) / divisor[:, None]
        maps.append(shares.cpu().unflatten(1, encoder.grid))
    return torch.stack(maps, dim=1).numpy()
