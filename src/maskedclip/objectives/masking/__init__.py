"""Which patches a step hides: a score for each patch, and one rule that turns scores into an exact mask."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from maskedclip import randomness

if TYPE_CHECKING:
    from maskedclip.objectives.base import Views


@dataclass(frozen=True)
class Mask:
    """A mask of L patches, K of them visible, for each of B images.

    keep: places of the visible patches, int64 (B, K).  hidden: places of the others, int64 (B, L - K).
    restore: where each patch stands in the order (keep, hidden), int64 (B, L).
    decoded: places of the hidden patches that decoders predict, int64 (B, H'): all of `hidden`, or some.
    """

    keep: Tensor
    hidden: Tensor
    restore: Tensor
    decoded: Tensor

    def is_hidden(self) -> Tensor:
        """True at hidden patches, bool (B, L)."""
        return self.restore >= self.keep.shape[1]


@dataclass(frozen=True)
class MaskContext:
    """What a masker may look at.

    keys: of the samples at their step, int64 (B,).  progress: of the run, in [0, 1].  views: of the step, whose
    attention and features are computed when a masker asks for them; None where there is no step.
    """

    keys: Tensor
    num_patches: int
    progress: float
    views: "Views | None" = None


class Masker(Protocol):
    """Scores patches; the lowest-scored ones stay visible."""

    def score(self, context: MaskContext) -> Tensor:
        """A score for each patch, float (B, L)."""
        ...


class RandomMasker:
    """Every set of patches is as likely as any other (MAE, arXiv 2111.06377)."""

    def score(self, context: MaskContext) -> Tensor:
        """Uniform noise that depends on the samples' keys alone, (B, L)."""
        return randomness.uniform(context.keys, context.num_patches)


def visible_patches(num_patches: int, ratio: float) -> int:
    """K = round((1 - ratio) L), at least one."""
    return max(1, round((1 - ratio) * num_patches))


def mask_from_scores(scores: Tensor, ratio: float) -> Mask:
    """Hide the patches with the highest scores, the same number in every image.

    Args:
        scores: (B, L); equal scores are kept in the order of the patches.
        ratio: share to hide, in [0, 1).
    """
    shuffle = torch.argsort(scores, dim=1, stable=True)
    visible = visible_patches(scores.shape[1], ratio)
    hidden = shuffle[:, visible:]
    return Mask(keep=shuffle[:, :visible], hidden=hidden, restore=torch.argsort(shuffle, dim=1), decoded=hidden)


def decode_some(mask: Mask, keys: Tensor, share: float) -> Mask:
    """The mask with a random part of its hidden patches to be decoded, as CrossMAE (arXiv 2401.14391) does.

    Args:
        mask: of B images.
        keys: of the samples at their step, int64 (B,).
        share: of the hidden patches, in (0, 1]; at least one is decoded.
    """
    hidden = mask.hidden.shape[1]
    count = max(1, round(share * hidden)) if hidden else 0
    if count == hidden:
        return mask
    patches = mask.restore.shape[1]
    noise = randomness.uniform(keys, patches + hidden)[:, patches:]  # other numbers than those of the mask
    return replace(mask, decoded=mask.hidden.gather(1, noise.argsort(dim=1, stable=True)[:, :count]))
