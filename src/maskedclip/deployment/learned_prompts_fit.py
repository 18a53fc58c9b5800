"""Learning prompts from masked crops of the seen labels; nothing else is changed (arXiv 2112.14757).

N crops, K labels, n vectors, W width of the text encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from maskedclip.data.masks import mask_names, read_masks
from maskedclip.data.store import Store
from maskedclip.deployment.learned_prompts import COUNT, DEVIATION, LearnedPrompts, crop_loss
from maskedclip.deployment.model import Model
from maskedclip.deployment.proposals_crops import fill_colour, masked_crops
from maskedclip.errors import UserError

LEAST = 12
"""Pixels of a mask that counts [ours]."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How vectors are learnt.

    vectors: n.  batch: crops a step.  weight_decay.  per_label: crops a label.  These are the paper's.  lr: of SGD,
    falling to 0 as a cosine; the paper's is 0.02, at which few labels are learnt at the cost of the unseen ones.
    steps: the paper takes 16,000; both [inferred].  grow: by how many pixels of 256 masks are widened, since proposals
    are as coarse as patches [ours].
    """

    vectors: int = COUNT
    steps: int = 100
    batch: int = 32
    lr: float = 0.002
    weight_decay: float = 5e-4
    per_label: int = 32
    grow: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, option in (
            ("vectors", "vectors"),
            ("steps", "steps"),
            ("batch", "batch"),
            ("per_label", "per-label"),
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{option} {getattr(self, name)}: give 1 or more")
        if not 0 < self.lr <= 10:
            raise UserError(f"--lr {self.lr:g}: is outside 0 to 10; e.g. 0.002")


def mask_crops(
    model: Model, store: Store, rows: NDArray[np.int64], labels: Sequence[str], settings: PromptSettings
) -> tuple[Tensor, NDArray[np.int64]]:
    """Masked crops of labels, drawn by the seed: uint8 (N, 3, S, S), and each one's label by place, (N,).

    Raises:
        UserError: the store has no such mask, or none of these rows has one; fewer than two labels.
    """
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise UserError("--labels: give at least two different ones: prompts learn to tell them apart")
    known = mask_names(store)
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise UserError(f"--labels: {unknown[0]!r} is no mask of the store; there are {', '.join(known) or 'none'}")
    size, fill = model.preprocessing.size, fill_colour(model.preprocessing.mean)
    order = np.random.Generator(np.random.Philox(settings.seed)).permutation(rows)
    crops, truth = [], []
    for place, label in enumerate(labels):
        found = 0
        for start in range(0, len(order), 256):
            some = np.sort(order[start : start + 256])
            for row, mask in zip(some, read_masks(store, some, label), strict=True):
                if mask is None or mask.sum() < LEAST or found == settings.per_label:
                    continue
                image = store.image(int(row))
                if settings.grow:
                    steps = max(1, round(settings.grow * mask.shape[0] / 256))
                    mask = np.asarray(ndimage.binary_dilation(mask, iterations=steps), bool)
                if image.shape[1:] != mask.shape:
                    raise UserError(f"row {store.ids[int(row)]}: mask and image differ in size; curate again")
                crops.append(masked_crops(image, mask[None], fill, size)[0][0])
                truth.append(place)
                found += 1
            if found == settings.per_label:
                break
        if not found:
            raise UserError(f"--labels: no training row has a mask of {label!r} of {LEAST} px or more")
    return torch.stack(crops), np.array(truth, np.int64)


def train_prompts(
    model: Model, crops: Tensor, truth: NDArray[np.int64], labels: Sequence[str], settings: PromptSettings
) -> tuple[LearnedPrompts, dict[str, Any]]:
    """Learn vectors on crops uint8 (N, 3, S, S) of labels by place (N,).

    Returns: the vectors, and a record with the cross-entropy over all crops before and after.
    """
    device = model.device
    embeddings = torch.from_numpy(model.encode_images(crops)["projected"]).to(device)
    answers = torch.from_numpy(truth).to(device)
    encoder = model.module.text_encoder
    if encoder is None:
        raise UserError("this model was trained without texts and has no prompts to learn")
    random = torch.Generator().manual_seed(settings.seed)
    start = DEVIATION * torch.randn(settings.vectors, encoder.config["hidden_size"], generator=random)
    vectors = start.to(device).requires_grad_(True)
    optimizer = torch.optim.SGD([vectors], lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)

    def over_all() -> float:
        with torch.no_grad():
            return float(crop_loss(model, vectors, embeddings, answers, labels))

    first = over_all()
    order = torch.zeros(0, dtype=torch.int64)
    batch = min(settings.batch, len(crops))
    with torch.enable_grad():
        for _ in range(settings.steps):
            while len(order) < batch:
                order = torch.cat([order, torch.randperm(len(crops), generator=random)])
            chosen, order = order[:batch].to(device), order[batch:]
            loss = crop_loss(model, vectors, embeddings[chosen], answers[chosen], labels)
            (vectors.grad,) = torch.autograd.grad(loss, [vectors])  # the towers' gradients are never made
            optimizer.step()
            schedule.step()
    last = over_all()
    record = {
        "crops": len(crops),
        "steps": settings.steps,
        "lr": settings.lr,
        "seed": settings.seed,
        "loss_first": first,
        "loss_last": last,
    }
    return LearnedPrompts(vectors.detach().cpu(), labels, model.fingerprint), record
