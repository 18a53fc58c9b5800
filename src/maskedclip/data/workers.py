"""How the worker processes of a loader begin."""

import multiprocessing
import sys
from typing import Any

import torch


def worker_options(workers: int) -> dict[str, Any]:
    """What `torch.utils.data.DataLoader` is given for this many worker processes; 0 loads in the caller's process.

    Forked workers can inherit locks held by the parent's threads, and spawned ones import PyTorch each by itself, which
    takes seconds of a core.  So on Linux they are forked from a server that has no threads of ours and has imported
    what they need once; they share its memory.
    """
    if not workers:
        return {"num_workers": 0}
    serves = sys.platform == "linux"
    if serves:  # without effect where a server of this process runs already
        multiprocessing.set_forkserver_preload(["maskedclip.data.loader"])
    return {
        "num_workers": workers,
        "prefetch_factor": 2,
        "worker_init_fn": _single_thread,
        "multiprocessing_context": "forkserver" if serves else "spawn",
    }


def _single_thread(_worker: int) -> None:
    torch.set_num_threads(1)
