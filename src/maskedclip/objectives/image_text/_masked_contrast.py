"""InfoNCE over some rows of a batch, of shapes that do not depend on which.

b rows on this rank, B on all ranks, E shared width.
"""

import torch
from torch import Tensor

from maskedclip.ranks import gather_rows, mean_over_ranks, rank_and_world


def masked_contrast(
    image: Tensor,
    text: Tensor,
    text_key: Tensor,
    takes_part: Tensor,
    scale: Tensor,
    *,
    soft_targets: bool = True,
    has_read: Tensor | None = None,
) -> Tensor:
    """The mean of image-to-text and text-to-image cross-entropy over the rows that take part, 0 where none does.

    Args:
        image: unit length, (b, E).
        text: unit length, (b, E).
        text_key: rows of equal keys are positives of each other, int64 (b,).
        takes_part: the others are neither rows nor negatives, bool (b,).
        scale: inverse temperature, ().
        soft_targets: False makes only the own pair positive.
        has_read: whether a text has read an image of this rank, not its own, bool (b, b): these are no pairs, neither
            positive nor negative, since the answer would lie in the question.

    Returns: float32 (); the mean over ranks is the mean over all rows that take part.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = image.float(), text.float(), scale.float()
        images, texts, keys = gather_rows(image), gather_rows(text), gather_rows(text_key)
        there = gather_rows(takes_part.long()) > 0  # (B,)
        own = _own(len(image), len(there), image.device)
        positive = (text_key[:, None] == keys) & there if soft_targets else own
        total = image.new_zeros(())
        for rows, columns, read in (
            (image, texts, None if has_read is None else has_read.T),
            (text, images, has_read),
        ):
            counts, right = there.expand_as(positive), positive
            if read is not None:
                counts = counts & ~_among_all(read, len(there))
                right = positive & counts
            logits = (scale * rows @ columns.T).masked_fill(~counts, torch.finfo(torch.float32).min)
            found = torch.where(right, logits.log_softmax(dim=1), 0.0).sum(dim=1)
            each = -found / right.sum(dim=1).clamp(min=1)
            total = total + torch.where(takes_part, each, 0.0).sum() / 2
        return mean_over_ranks(total, takes_part.sum())


def _among_all(own: Tensor, columns: int) -> Tensor:
    """What holds between rows of this rank, (b, b), among the columns of all ranks, (b, B)."""
    start = rank_and_world()[0] * len(own)
    return torch.nn.functional.pad(own, (start, columns - start - len(own)))


def _own(rows: int, columns: int, device: torch.device) -> Tensor:
    """Which column of all ranks is a row's own pair, bool (b, B)."""
    rank, _ = rank_and_world()
    places = torch.arange(rows, device=device) + rank * rows
    return places[:, None] == torch.arange(columns, device=device)
