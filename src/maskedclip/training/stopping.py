"""Why a run ends before its last step: its time is over, a scheduler asks, or nothing gets better."""

import signal
import threading
from types import FrameType

import torch
from lightning_fabric import Fabric
from torch import Tensor

_ASKED = (signal.SIGTERM, signal.SIGUSR1)
_EVERY = 10
REQUEUE = 75
"""Exit status (EX_TEMPFAIL) of a run that was asked to end and wants to be started again."""


class StopRequest:
    """SIGTERM and SIGUSR1 (of SLURM's --signal) ask for an end with a checkpoint, after the current step.

    Several ranks end after the next step at which they `agree`.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        """Listen; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in _ASKED:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name


def agree(fabric: Fabric, step: int, code: int) -> int:
    """The highest code of any rank, asked every tenth step (it costs a wait), so that all end after the same one."""
    if fabric.world_size == 1:
        return code
    if step % _EVERY:
        return 0
    highest = fabric.all_reduce(torch.tensor(float(code), device=fabric.device), reduce_op="max")
    assert isinstance(highest, Tensor)
    return int(highest)
