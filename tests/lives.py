"""Commands in processes of their own, forked from one that has imported what they need: seconds less than a start.

What a start itself does (its imports, torchrun) is for tests that use `subprocess`.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path

from maskedclip.cli import main

_SERVED = ["maskedclip.training.pretrain", "maskedclip.evaluation.report", "transformers.models.bert.modeling_bert"]
_CONTEXT = multiprocessing.get_context("forkserver")


def serve() -> None:
    """Start the process that imports; workers of loaders are forked from it too."""
    _CONTEXT.set_forkserver_preload(_SERVED)
    forkserver.ensure_running()


class Life:
    """One command; what it says goes to two files in `folder`.

    Attributes:
        status: of its end, negative for a signal; None while it lasts.
    """

    def __init__(self, command: Sequence[object], folder: Path, **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._said = folder / "stdout", folder / "stderr"
        self._process = _CONTEXT.Process(target=_live, args=([str(part) for part in command], environment, *self._said))
        self._process.start()

    @property
    def status(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Its status; it is killed where it lasts longer than `timeout` seconds, and TimeoutError raised."""
        self._process.join(timeout)
        if (status := self.status) is None:
            self.kill()
            raise TimeoutError(f"after {timeout} s:\n{self.out}\n{self.error}")
        return status

    def send_signal(self, number: int) -> None:
        """Like `subprocess.Popen.send_signal`."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it where it has not ended."""
        self._process.kill()
        self._process.join()

    @property
    def out(self) -> str:
        return self._said[0].read_text()

    @property
    def error(self) -> str:
        return self._said[1].read_text()


def _live(command: list[str], environment: dict[str, str], out: Path, error: Path) -> None:
    os.environ.update(environment)
    for path, descriptor in ((out, 1), (error, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    sys.argv = ["maskedclip", *command]
    sys.exit(main())


def start_ranks(command: Sequence[object], folder: Path, ranks: int = 2) -> list[Life]:
    """One command on several ranks of this machine, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": str(port),
    }
    return [
        Life(command, folder / f"rank{rank}", **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(ranks)
    ]
