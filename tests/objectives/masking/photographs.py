"""Phantom photographs, digits, a stand-in for the attention between patches, and what a mask looks like on a grid."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from maskedclip import randomness
from maskedclip.data.phantom import draw_phantom
from maskedclip.models.vit import patchify
from maskedclip.objectives.masking import Mask


@cache
def photographs(count: int = 8, size: int = 56) -> Tensor:
    """Left eyes of patients 0, 1, ..., float32 in [0, 1], (B, 3, S, S)."""
    drawn = [torch.tensor(draw_phantom(0, patient, "left", size).image) for patient in range(count)]
    return torch.stack(drawn).permute(0, 3, 1, 2).float() / 255


@cache
def digits(count: int) -> Tensor:
    """Handwritten digits of 16 px somewhere on black pictures of 32 px, uint8 (B, 3, 32, 32)."""
    values, _ = load_digits(return_X_y=True)
    strokes = torch.tensor(15.9 * values[:count]).round().byte().unflatten(1, (8, 8))
    strokes = strokes.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    pictures = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    corners = torch.randint(0, 17, (count, 2), generator=torch.Generator().manual_seed(0)).tolist()
    for picture, digit, (top, left) in zip(pictures, strokes, corners, strict=True):
        picture[:, top : top + 16, left : left + 16] = digit
    return pictures


def stand_in(images: Tensor, patch: int = 4) -> Tensor:
    """Softmax over patches of likeness in content and nearness in place, as attention is, (B, L, L).

    Content is the pixels of a patch, place is in units of the image's side; both widths were chosen once, so that
    attention falls off over a few patches.
    """
    content = patchify(images, patch)
    content = (content - content.mean(dim=1, keepdim=True)) / content.std(dim=1, keepdim=True).clamp(min=1e-3)
    side = images.shape[-1] // patch
    place = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float() / side
    unlike = torch.cdist(content, content).square() / content.shape[-1]
    far = torch.cdist(place, place).square()
    return (-unlike - far / (2 * 0.15**2)).softmax(dim=-1)


def within_over_across(attention: Tensor, mask: Mask) -> Tensor:
    """Mean S among hidden patches, each with itself too, over mean S from hidden to visible ones, (B,)."""
    similar = (attention + attention.transpose(1, 2)) / 2
    hidden = mask.is_hidden().to(similar.dtype)
    seen = 1 - hidden
    among = torch.einsum("bij,bi,bj->b", similar, hidden, hidden) / hidden.sum(1) ** 2
    between = torch.einsum("bij,bi,bj->b", similar, hidden, seen) / (hidden.sum(1) * seen.sum(1))
    return among / between


def boundary(mask: Mask, side: int) -> Tensor:
    """Edges of the grid between a hidden and a visible patch, float (B,)."""
    hidden = mask.is_hidden().unflatten(1, (side, side))
    across = (hidden[:, 1:] != hidden[:, :-1]).sum(dim=(1, 2))
    return (across + (hidden[:, :, 1:] != hidden[:, :, :-1]).sum(dim=(1, 2))).float()


def keys_of(count: int, seed: int = 0) -> Tensor:
    """Keys of samples 0, 1, ... of a step, int64 (B,)."""
    return torch.from_numpy(randomness.sample_keys(seed, 0, torch.arange(count).numpy()))
