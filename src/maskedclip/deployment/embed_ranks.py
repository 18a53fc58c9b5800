"""Several processes that embed together: torchrun's, or those of an `srun` step; they only tell each other to go on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from maskedclip.errors import UserError
from maskedclip.ranks import rank_and_world

_PATIENCE = timedelta(days=30)  # a rank may have much more to do than another; one that dies is noticed at once


@contextmanager
def embedding_ranks() -> Iterator[tuple[int, int]]:
    """This process's rank, and how many there are; they meet on entry and part together.

    Raises:
        UserError: the others cannot be reached, or one of them ended before its time.
    """
    if dist.is_available() and dist.is_initialized():
        yield rank_and_world()
        return
    rank, world = _launched()
    if world == 1:
        yield 0, 1
        return
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"rank {rank} of {world} cannot reach the others ({str(error).splitlines()[0]})") from None
    try:
        yield rank, world
    except RuntimeError as error:
        if "closed" not in str(error).lower() and "reset" not in str(error).lower():
            raise
        raise UserError(
            "another rank ended before its time; its own message says why, and the same command goes on"
        ) from None
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """`auto` as this rank's own GPU where there are several ranks and GPUs; anything else as it is."""
    if device != "auto" or not torch.cuda.is_available() or _launched()[1] == 1:
        return device
    local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return f"cuda:{local % torch.cuda.device_count()}"


def _launched() -> tuple[int, int]:
    """Rank and number of ranks as the launcher tells them; 0 and 1 without one."""
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:  # set by srun alone: a batch script is no rank
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment()
        os.environ.setdefault("MASTER_ADDR", slurm.main_address)
        os.environ.setdefault("MASTER_PORT", str(slurm.main_port))
        return slurm.global_rank(), slurm.world_size()
    return 0, 1
