"""What composed retrieval reads: projected features before they are brought to unit length, of pictures and of texts.

Norms carry weight in a sum, so the heads take features as they are (arXiv 2308.11485, its code).  The `bridge` feature,
which `evaluate` caches and `embed` writes, is all that a picture's needs: standardising and projecting are linear.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.attention import evaluation_kernels
from maskedclip.models.features import BATCH


def width_of(model: Model) -> int:
    """Width d of the space that pictures and texts share.

    Raises:
        UserError: the model was trained without texts.
    """
    if model.module.image_projection is None:
        raise UserError("this model was trained without texts, so no words go with a photograph; train with texts")
    return int(model.module.image_projection.weight.shape[0])


@torch.inference_mode()
def image_directions(model: Model, bridge: NDArray) -> NDArray[np.float32]:
    """Projected, un-normalised features of pictures, float32 (N, d), of their `bridge` features (N, D)."""
    width_of(model)
    module = model.module
    assert module.image_projection is not None
    values = torch.from_numpy(np.ascontiguousarray(bridge, np.float32)).to(model.device)
    return module.image_projection(module.standardise(values)).float().cpu().numpy()


@torch.inference_mode()
def text_directions(model: Model, texts: Sequence[str]) -> NDArray[np.float32]:
    """Projected, un-normalised features of texts, float32 (N, d)."""
    width_of(model)
    encoder, tokenizer = model.module.text_encoder, model.tokenizer
    assert encoder is not None
    assert tokenizer is not None
    parts = []
    for start in range(0, len(texts), BATCH):
        ids, mask = tokenizer(list(texts[start : start + BATCH]))
        with evaluation_kernels(model.module):
            pooled = encoder.pool(ids.to(model.device), mask.to(model.device))
            parts.append(encoder.projection(encoder.standardise(pooled)).float().cpu().numpy())
    return np.concatenate(parts)
