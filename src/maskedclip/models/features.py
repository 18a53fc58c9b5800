"""The one function from images to features, behind the online probe, `evaluate`, `embed`, `classify` and `load`.

Features are computed in float32, whatever the precision of training, unless the caller opens an autocast around it.
B images, D encoder width, E shared width.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.data.imaging import standardise
from maskedclip.data.transforms import normalise, resize
from maskedclip.models.attention import evaluation_kernels
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing
from maskedclip.models.text import TextTokenizer

BATCH = 64


@torch.inference_mode()
def image_features(model: MaskedCLIP, image: Tensor, preprocessing: Preprocessing) -> dict[str, Tensor]:
    """Features of uint8 images at the model's size.

    Args:
        model: in evaluation mode.
        image: uint8 (B, 3, S, S), on the model's device.
        preprocessing: for its mean and standard deviation.

    Returns: `encoder`, mean of the patch tokens of f, (B, D); where texts were trained on, also `bridge`, mean of the
        patch tokens of g(f), weighted where the model pools by attention, (B, D), and `projected`, unit length,
        (B, E).  float32.
    """
    with evaluation_kernels(model):
        tokens = model.encoder(to_input(image, preprocessing))
        features = {"encoder": model.pool(tokens)}
        if model.image_projection is not None:
            clip_tokens = model.bridge(tokens)
            features |= {"bridge": model.pool_clip(clip_tokens), "projected": model.project(clip_tokens)}
        return {name: value.float() for name, value in features.items()}


def prepare_pixels(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Prepare a photograph as curation does: crop, square, resize; RGB (H, W, 3) -> uint8 (3, S, S)."""
    standard = standardise(pixels, size=preprocessing.stored_size, crop=preprocessing.crop).image
    return resize(torch.from_numpy(standard.copy()).permute(2, 0, 1).contiguous(), preprocessing.size)


def to_input(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Uint8 images (B, 3, S, S) -> the encoder's normalised float32 input (B, 3, S, S)."""
    mean = torch.tensor(preprocessing.mean, device=image.device)
    std = torch.tensor(preprocessing.std, device=image.device)
    return normalise(image, mean, std)


def stack_features(model: MaskedCLIP, batches: Iterable[Tensor], preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """`image_features` over many batches, on the processor, (N, .)."""
    device = next(model.parameters()).device
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, value in image_features(model, batch.to(device), preprocessing).items():
            parts.setdefault(name, []).append(value.cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


@torch.inference_mode()
def text_features(model: MaskedCLIP, tokenizer: TextTokenizer, texts: list[str]) -> np.ndarray:
    """Embeddings of texts, unit length, float32 (N, E)."""
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(texts), BATCH):
        ids, mask = tokenizer(texts[start : start + BATCH])
        with evaluation_kernels(model):
            parts.append(model.embed_text(ids.to(device), mask.to(device)).float().cpu().numpy())
    return np.concatenate(parts)
