"""L_clip, the image-text loss, exact and without a B x B matrix.  b pairs on this rank, B on all ranks, E shared width.

A row's loss is log sum_j exp(s a_i . c_j) - s a_i . m_i, where m_i is the mean of the columns whose texts equal the
row's: soft targets need one mean an embedding, never a matrix.  The first part is computed in blocks of rows that are
computed again backward, as in Inf-CL (arXiv 2410.17243); local rows meet the gathered columns of all ranks, as in
DisCo-CLIP (arXiv 2304.08480).
"""

from typing import Any

import torch
from torch import Tensor, nn

from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.ranks import gather_rows, is_distributed

_BLOCK_ELEMENTS = 2**23
"""Logits held at a time: 32 MB in float32."""
_ACCURACY_ROWS = 1024


class _LogSumExp(torch.autograd.Function):
    """log sum_j exp(s a_i . c_j) of each row i; with `both`, also log sum_i exp(s a_i . c_j) of each column j."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, block: int, both: bool) -> tuple[Tensor, ...]:
        row_sums = rows.new_empty(len(rows))
        column_sums = columns.new_full((len(columns),), -torch.inf) if both else columns.new_empty(0)
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            logits = scale * rows[part] @ columns.T  # (block, B)
            row_sums[part] = logits.logsumexp(dim=1)
            if both:
                column_sums = torch.logaddexp(column_sums, logits.logsumexp(dim=0))
        ctx.save_for_backward(rows, columns, scale, row_sums, column_sums)
        ctx.block, ctx.both = block, both
        return row_sums, column_sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, columns, scale, row_sums, column_sums = ctx.saved_tensors
        by_row, by_column = gradients
        to_rows, to_columns = torch.empty_like(rows), torch.zeros_like(columns)
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), ctx.block):
                part = slice(start, start + ctx.block)
                logits = scale * rows[part] @ columns.T
                if ctx.both:  # in place: a block of logits and one of weights are all that is held
                    weights = (logits - column_sums).exp_().mul_(by_column)
                    logits.sub_(row_sums[part, None]).exp_().mul_(by_row[part, None]).add_(weights)
                else:
                    logits.sub_(row_sums[part, None]).exp_().mul_(by_row[part, None])
                torch.mm(logits, columns, out=to_rows[part])
                to_columns.addmm_(logits.T, rows[part])
        to_scale = (to_rows * rows).sum()
        return to_rows.mul_(scale), to_columns.mul_(scale), to_scale, None, None


def _mean_of_equals(columns: Tensor, keys: Tensor) -> Tensor:
    """The mean of the columns whose key equals a column's own, (B, E), in memory of O(B E) and without host sync."""
    order = keys.argsort(stable=True)
    ordered = keys[order]
    begins = torch.ones_like(ordered)
    begins[1:] = ordered[1:] != ordered[:-1]
    group = torch.empty_like(order)
    group[order] = begins.cumsum(dim=0) - 1  # (B,), 0 .. groups - 1
    sums = torch.zeros_like(columns).index_add(0, group, columns)
    counts = columns.new_zeros(len(columns)).index_add(0, group, columns.new_ones(len(columns)))
    return sums[group] / counts[group, None]


def clip_loss(
    image: Tensor,
    text: Tensor,
    text_key: Tensor,
    scale: Tensor,
    *,
    soft_targets: bool = True,
    block: int | None = None,
) -> Tensor:
    """Pairs with equal texts are positives of each other; when all differ, this is InfoNCE.

    Row i's target is y_ij = [k_i = k_j] / sum_l [k_i = k_l] (UniCL, arXiv 2204.03610; FLAIR, arXiv 2308.07898); the
    loss is the mean of image-to-text and text-to-image cross-entropy.

    Args:
        image: unit length, (b, E).
        text: unit length, (b, E).
        text_key: equal where the normalised texts are equal, int64 (b,).
        scale: exp(s), ().
        soft_targets: False makes only the own pair positive.
        block: rows whose logits are held at a time; None takes what fills 32 MB.

    Returns: mean over this rank's rows, float32 ().
    """
    with torch.autocast(image.device.type, enabled=False):  # in bf16 the logits would lose their last two digits
        image, text, scale = image.float(), text.float(), scale.float()
        all_image, all_text = gather_rows(image), gather_rows(text)  # (B, E)
        block = block or max(1, _BLOCK_ELEMENTS // max(1, len(all_text)))
        if is_distributed():
            image_sums, _ = _LogSumExp.apply(image, all_text, scale, block, False)  # type: ignore[misc]
            text_sums, _ = _LogSumExp.apply(text, all_image, scale, block, False)  # type: ignore[misc]
        else:  # one matrix serves both directions
            image_sums, text_sums = _LogSumExp.apply(image, text, scale, block, True)  # type: ignore[misc]
        if soft_targets:
            keys, own = gather_rows(text_key), _own_rows(len(image))
            positive_text = _mean_of_equals(all_text, keys)[own]
            positive_image = _mean_of_equals(all_image, keys)[own]
        else:
            positive_text, positive_image = text, image
        positives = (image * positive_text + text * positive_image).sum(dim=1)
        return (image_sums + text_sums - scale * positives).mean() / 2


def _own_rows(count: int) -> slice:
    start = torch.distributed.get_rank() * count if is_distributed() else 0
    return slice(start, start + count)


class Contrastive(nn.Module):
    """The image-text objective of a step."""

    spans_batch = True
    """The loss is no mean over samples: a batch that is computed in parts needs the features of all of it."""

    def __init__(self, *, soft_targets: bool) -> None:
        super().__init__()
        self.soft_targets = soft_targets

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """L_clip over the paired images, and how often the right text is the nearest in this rank's batch."""
        batch, scale = views.batch, views.model.scale
        image, text = views.paired_embedding, views.text_embedding
        assert batch.text_key is not None
        loss = clip_loss(image, text, batch.text_key, scale, soft_targets=self.soft_targets)
        with torch.no_grad():
            nearest = (image[:_ACCURACY_ROWS] @ text.T).argmax(dim=1)
            accuracy = (batch.text_key[nearest] == batch.text_key[:_ACCURACY_ROWS]).float().mean()
        return {"clip": loss}, {"clip_accuracy": accuracy, "logit_scale": scale.detach()}
