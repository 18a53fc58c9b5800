"""Rows of all ranks, with gradient: the only place where a step talks to other ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)  # each rank's loss depends on these rows
        start = dist.get_rank() * ctx.count
        return total[start : start + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Stack the rows of all ranks, in rank order: (b, ...) -> (B, ...), B = ranks x b.

    Gradients flow back to the rank that a row came from, summed over the ranks that used it.  With one rank the rows
    come back as they are.
    """
    if not is_distributed():
        return rows
    return _AllGather.apply(rows)  # type: ignore[return-value]


def leave_ranks() -> None:
    """Part from the other ranks together; one that exits while another still works would abort."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
