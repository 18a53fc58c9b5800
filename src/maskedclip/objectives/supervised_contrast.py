"""Contrast between groups of samples, such as the modalities of volumes.  B samples, D features, G groups."""

import torch
from torch import Tensor
from torch.nn import functional


def supervised_contrast(features: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """SupCon (arXiv 2004.11362, the form with the sum outside): samples of one group attract, others repel.

    For each sample with at least one other of its group, minus the mean over those of the log of their share in the
    softmax over all other samples; the mean over such samples, 0 where there are none.  Samples of an unknown group
    take no part.

    Args:
        features: (B, D); brought to unit length here.
        groups: number of each sample's group, int64 (B,); negative is unknown.
        temperature: by which cosines are divided.
    """
    known = groups >= 0
    unit = functional.normalize(features.float(), dim=-1)
    same = (groups[:, None] == groups[None, :]) & known[:, None] & known[None, :]
    itself = torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    others = known[:, None] & known[None, :] & ~itself
    positive = (same & ~itself).float()
    # a finite floor, so that a row without any other sample gives no NaN, which a mask could not take back
    logits = (unit @ unit.T / temperature).masked_fill(~others, -1e9)
    shares = logits.log_softmax(dim=1).masked_fill(~others, 0.0)
    count = positive.sum(dim=1)
    of_anchor = -(positive * shares).sum(dim=1) / count.clamp(min=1)
    return of_anchor.sum() / (count > 0).sum().clamp(min=1)


def literal_contrast(features: Tensor, groups: Tensor, temperature: float) -> Tensor:
    """What the official code of Disruptive Autoencoders computes: cross-entropy of H H' exp(T) with the group's number.

    The number of a group indexes a *place* in the batch, not the samples of the group, so the loss depends on the
    order of the batch; features are not brought to unit length.  For reproduction only.

    Args:
        features: H, (B, D).
        groups: int64 (B,), below B.
        temperature: T.
    """
    flat = features.float()
    return functional.cross_entropy(flat @ flat.T * torch.exp(torch.tensor(temperature)).item(), groups)
