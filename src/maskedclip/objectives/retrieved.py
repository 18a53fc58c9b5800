"""Texts that were retrieved for images without one (`maskedclip pair`), and those images, in the shared space.

Few images of a step may have a retrieved text, and how many differs from step to step and rank to rank, so whatever
standardises over the batch does so here by its running statistics.
"""

import torch
from torch import Tensor

from maskedclip.models.standardise import running_statistics
from maskedclip.objectives.base import Batch, Views
from maskedclip.ranks import gather_rows


def retrieved_text_embedding(views: Views) -> Tensor:
    """The retrieved texts of a step, unit length, with gradient where that is enabled, (R, E)."""
    batch, model = views.batch, views.model
    assert batch.retrieved_ids is not None
    assert batch.retrieved_mask is not None
    assert model.text_encoder is not None
    with running_statistics(model.text_encoder):
        return model.text_encoder(batch.retrieved_ids, batch.retrieved_mask)


def retrieved_pairs(views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """The unpaired images and their retrieved texts, with gradient.

    Returns: images and texts, unit length, (B_u, E) each, the texts of no meaning where there is none; which images
        have one, bool (B_u,).
    """
    batch, model = views.batch, views.model
    known = _index(batch) >= 0
    with running_statistics(model):
        images = model.project_pooled(model.pool_clip(model.bridge(model.encoder(views.image[batch.num_paired :]))))
    return images, retrieved_text_embedding(views)[_index(batch).clamp(min=0)], known


def _index(batch: Batch) -> Tensor:
    assert batch.retrieved_index is not None
    return batch.retrieved_index[batch.num_paired :]


def mean_of_known(values: Tensor, known: Tensor) -> Tensor:
    """Mean of the known rows over all ranks, with gradient: (b, K) and bool (b,) -> (K,); 0 where there are none."""
    rows = gather_rows(torch.where(known[:, None], values, 0.0))
    return rows.sum(dim=0) / gather_rows(known.float()).sum().clamp(min=1)
