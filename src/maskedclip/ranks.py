"""What ranks say to each other: rows with gradient inside a step, Python values between steps."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


_T = TypeVar("_T")


def rank_and_world() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def everybody(value: _T) -> list[_T]:
    """The value of every rank, in their order; it travels as a pickle between processes of one run."""
    if not is_distributed():
        return [value]
    values: list[_T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if is_distributed():
        dist.barrier()


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


def mean_over_ranks(total: Tensor, count: Tensor) -> Tensor:
    """A rank's sum over the mean count of all ranks: the mean of this over the ranks is the mean over all that counts.

    Args:
        total: sum over this rank's rows, ().
        count: how many they are, (); all ranks may have 0, then so is the result.
    """
    counts = gather_rows(count.detach().float().reshape(1))
    return total / counts.mean().clamp(min=1 / len(counts))


def leave_ranks() -> None:
    """Part from the other ranks together; one that exits while another still works would abort."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
