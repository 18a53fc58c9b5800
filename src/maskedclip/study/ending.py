"""A scheduler that asks a study to end: between trainings, where no checkpoint can be written, at once."""

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from maskedclip.console import say
from maskedclip.training.pretrain import Finished
from maskedclip.training.stopping import REQUEUE

_ASKED = (signal.SIGTERM, signal.SIGUSR1)
_ONCE = 5.0
"""Seconds within which several signals are one request: to all processes of a job, and passed on by its script."""


class AskedToEnd(BaseException):
    """SIGTERM or SIGUSR1 asked for the end.  No fault of a cell, so nothing that catches faults catches it."""


def check_not_asked(done: Finished) -> None:
    """Raise AskedToEnd where a training ended because it was asked to."""
    if done.status == REQUEUE:
        raise AskedToEnd(done.reason)


@contextmanager
def ends_with_status() -> Iterator[None]:
    """Turn a request to end into a line and exit status 75, which asks for another start.

    A training listens itself while it lasts, and writes a checkpoint first.
    """
    owner = os.getpid()
    last = -math.inf

    def receive(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a child that was forked meanwhile ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        # A second one while the first unwinds would be raised where nothing takes it.
        nonlocal last
        previous, last = last, time.monotonic()
        if last - previous < _ONCE:
            return
        raise AskedToEnd(f"{signal.Signals(number).name} asked for it")

    listens = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, receive) for number in _ASKED} if listens else {}
    try:
        yield
    except AskedToEnd as error:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # asked twice, it ends once
        _leave(str(error))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(reason: str) -> NoReturn:
    say(f"the study ends early: {reason}; what is finished is kept, and the same command goes on")
    sys.exit(REQUEUE)
