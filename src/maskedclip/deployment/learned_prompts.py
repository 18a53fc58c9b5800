"""Learned prompts: a few vectors in the place of the words around a label's name (arXiv 2112.14757, after CoOp).

A label's text is [CLS] P1 .. Pn name . [SEP].  Both towers stay as they are; the vectors belong to one model.
K labels, n vectors, W width of the text encoder, E shared width.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from maskedclip.data.prompts import humanise
from maskedclip.deployment.heads_saving import refuse_existing
from maskedclip.deployment.model import Model
from maskedclip.deployment.publishing import partial_of, publish
from maskedclip.errors import UserError
from maskedclip.models.attention import evaluation_kernels

FORMAT = "1"
COUNT, DEVIATION = 16, 0.02
"""Vectors, and the standard deviation that they start with [paper]."""
SUFFIX = ".safetensors"


class LearnedPrompts:
    """Vectors for one model.

    vectors: float32 (n, W).  labels: those that they were learnt on.  model: its fingerprint.
    """

    def __init__(self, vectors: Tensor, labels: Sequence[str], model: str) -> None:
        self.vectors, self.labels, self.model = vectors, tuple(labels), model

    @torch.no_grad()
    def directions(self, model: Model, labels: Sequence[str]) -> NDArray[np.float32]:
        """Where labels point, learnt on or not, unit length (K, E)."""
        return text_with_vectors(model, self.vectors.to(model.device), labels).cpu().numpy()


def text_with_vectors(model: Model, vectors: Tensor, labels: Sequence[str]) -> Tensor:
    """Embeddings of labels behind vectors (n, W): unit length, float32 (K, E), differentiable in the vectors.

    Raises:
        UserError: the model was trained without texts, or its text encoder has too few positions.
    """
    encoder = model.module.text_encoder
    if encoder is None or model.tokenizer is None:
        raise UserError("this model was trained without texts and has no prompts to learn")
    ids, mask = (part.to(model.device) for part in model.tokenizer([f"{humanise(label)}." for label in labels]))
    longest = int(mask.sum(dim=1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]
    bert: Any = encoder.bert
    positions = getattr(bert.config, "max_position_embeddings", None)
    if positions is not None and longest + len(vectors) > positions:
        raise UserError(
            f"{len(vectors)} vectors and {longest} tokens of a label are more than the text encoder's {positions} "
            f"positions; give --vectors {max(0, positions - longest)} or less, or shorter labels"
        )
    if encoder.causal:
        ids = ids.scatter(1, mask.sum(dim=1, keepdim=True) - 1, encoder.soi)  # where `hidden` puts it
    words = bert.get_input_embeddings()(ids)
    rows = vectors.to(words.dtype)[None].expand(len(labels), -1, -1)
    joined = torch.cat([words[:, :1], rows, words[:, 1:]], dim=1)
    real = torch.cat([mask[:, :1], mask.new_ones((len(labels), len(vectors))), mask[:, 1:]], dim=1)
    with evaluation_kernels(model.module):
        hidden = bert(inputs_embeds=joined, attention_mask=encoder._attention_mask(real)).last_hidden_state
    return encoder.project(encoder.pool_hidden(hidden, real))


def crop_loss(model: Model, vectors: Tensor, embeddings: Tensor, truth: Tensor, labels: Sequence[str]) -> Tensor:
    """Cross-entropy of crops over the labels, at a scale of 100; embeddings (B, E) of unit length, truth (B,)."""
    return functional.cross_entropy(100.0 * embeddings @ text_with_vectors(model, vectors, labels).T, truth)


def save_prompts(path: Path, prompts: LearnedPrompts, about: dict[str, Any]) -> None:
    """Write vectors as a new file.

    Raises:
        UserError: the file exists, has another suffix, or cannot be written.
    """
    if path.suffix != SUFFIX:
        raise UserError(f"--out {path}: name it {path.stem}{SUFFIX}")
    refuse_existing(path, "--out")
    metadata = {
        "format": FORMAT,
        "model": prompts.model,
        "labels": json.dumps(list(prompts.labels)),
        "about": json.dumps(about, allow_nan=False),
    }
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"vectors": prompts.vectors.detach().cpu().contiguous()}, partial, metadata)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); free space or give another file") from None
    publish(partial, path)


def read_prompts(path: Path, model: Model) -> LearnedPrompts:
    """Vectors of a file that `save_prompts` wrote, for the model that they were learnt with.

    Raises:
        UserError: it is none, it is damaged, or it belongs to another model.
    """
    if not path.is_file():
        raise UserError(f"--prompts {path}: no such file; `maskedclip prompts RUN --data STORE` learns them")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata["format"] != FORMAT:
                raise UserError(
                    f"--prompts {path}: format {metadata['format']}, this version reads {FORMAT}; update maskedclip"
                )
            labels, base = json.loads(metadata["labels"]), metadata["model"]
            vectors = file.get_tensor("vectors")
        if vectors.ndim != 2 or not vectors.is_floating_point() or not vectors.isfinite().all():
            raise ValueError("vectors")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError("labels")
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"--prompts {path}: holds no learned prompts ({line}); learn them anew") from None
    if base != model.fingerprint:
        raise UserError(
            f"--prompts {path}: was learnt with the model {base}, and this is {model.fingerprint}; learn them for this "
            "one with `maskedclip prompts`"
        )
    return LearnedPrompts(vectors.float(), labels, base)
