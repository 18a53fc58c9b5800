"""Locks on files of a study's folder, by which processes share its work; a lock ends with its process."""

import errno
import fcntl
from pathlib import Path
from typing import IO

from maskedclip.errors import UserError

_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


class NoLocksError(UserError):
    """The file system of a study has no locks, so nothing in it can be shared."""


def lock(handle: IO[str], *, wait: bool) -> bool:
    """Lock an open file.  Returns whether this process has it; it always has once it waits.

    Raises:
        NoLocksError: the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if not wait and error.errno in _TAKEN:
            return False
        raise NoLocksError(
            f"{Path(handle.name).parent}: files can't be locked there ({error.strerror}), so that processes would "
            "train the same cell; give an --out on a file system with locks, or mount this one with them (flock)"
        ) from None
    return True
