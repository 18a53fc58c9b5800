"""Stage 1 of CLIP4Cir (arXiv 2308.11485): both encoders are fine-tuned so that the plain sum finds the target.

The result is a model of its own: other features, another fingerprint, a file of `embed` of its own.
B triplets a step, S px that the model reads.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.console import bar
from maskedclip.deployment.composed import SumHead, contrastive_loss
from maskedclip.deployment.composed_features import width_of
from maskedclip.deployment.composed_triplets import Triplets
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.features import to_input
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import SavedModel, weights_fingerprint


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How the encoders are tuned.

    The paper takes AdamW at 2e-6 with an epsilon of 1e-7, batches of 128 and 100 epochs, for a CLIP that was trained on
    400 million pairs; lr, batch and steps here are for small models [inferred].
    """

    steps: int = 200
    batch: int = 32
    lr: float = 5e-5
    weight_decay: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2:
            raise UserError("--finetune: give 1 step or more, and batches of 2 triplets or more")
        if not 0 < self.lr < 1:
            raise UserError(f"--finetune-lr {self.lr:g}: is outside 0 to 1; e.g. 5e-5")


def finetune_encoders(
    model: Model, pictures: Callable[[NDArray[np.int64]], Tensor], triplets: Triplets, settings: FinetuneSettings
) -> tuple[Model, dict[str, Any]]:
    """Tune a copy of both encoders by the sum; the given model stays as it is.

    Both run in evaluation mode, as in the paper: standardising keeps its statistics.

    Args:
        model: with texts.
        pictures: rows (m,) -> uint8 (m, 3, S, S), on the processor.
        triplets: of training rows.
        settings: see `FinetuneSettings`.

    Returns: the tuned model, and a record.

    Raises:
        UserError: a model without texts, or fewer than two triplets.
    """
    width_of(model)
    assert model.tokenizer is not None
    if len(triplets) < 2:
        raise UserError(f"{len(triplets)} triplets are too few to tune encoders on: at least 2, better some hundreds")
    module = copy.deepcopy(model.module).eval().requires_grad_(True)
    if isinstance(module.encoder.vit.pos_embed, torch.nn.Parameter):
        module.encoder.vit.pos_embed.requires_grad_(False)  # fixed ones must stay, and learnt ones are no concern here
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, eps=1e-7, weight_decay=settings.weight_decay)
    random = torch.Generator().manual_seed(settings.seed)
    batch = min(settings.batch, len(triplets))
    order = torch.zeros(0, dtype=torch.int64)
    losses: list[float] = []
    with torch.enable_grad(), bar("encoders", settings.steps) as shown:
        for _ in range(settings.steps):
            while len(order) < batch:
                order = torch.cat([order, torch.randperm(len(triplets), generator=random)])
            some, order = triplets.on(order[:batch].numpy()), order[batch:]
            rows, places = np.unique(np.concatenate([some.reference, some.target]), return_inverse=True)
            images = _image_features(module, to_input(pictures(rows).to(model.device), model.preprocessing))
            words = sorted(set(some.captions))
            ids, mask = (part.to(model.device) for part in model.tokenizer(words))
            texts = _text_features(module, ids, mask)[[words.index(caption) for caption in some.captions]]
            places = torch.from_numpy(places.reshape(2, -1))
            right = torch.from_numpy(some.right(some.target)).to(model.device)
            query = SumHead().compose(images[places[0]], texts)
            loss = contrastive_loss(query, images[places[1]], right)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            shown.advance(note=f"loss {losses[-1]:.3f}")
    module.zero_grad(set_to_none=True)
    module.requires_grad_(False)
    saved = SavedModel(module, model.tokenizer, model.preprocessing, weights_fingerprint(module, model.preprocessing))
    last = float(np.mean(losses[-max(1, len(losses) // 20) :]))
    record = {"steps": settings.steps, "batch": batch, "lr": settings.lr, "seed": settings.seed}
    return Model(saved, model.device), record | {"loss_first": losses[0], "loss_last": last}


def _image_features(module: MaskedCLIP, image: Tensor) -> Tensor:
    """Projected, un-normalised, (m, d)."""
    assert module.image_projection is not None
    pooled = module.pool_clip(module.bridge(module.encoder(image)))
    return module.image_projection(module.standardise(pooled)).float()


def _text_features(module: MaskedCLIP, ids: Tensor, mask: Tensor) -> Tensor:
    """Projected, un-normalised, (U, d)."""
    encoder = module.text_encoder
    assert encoder is not None
    return encoder.projection(encoder.standardise(encoder.pool(ids, mask))).float()
