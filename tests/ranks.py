"""A run of two ranks over gloo on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.lives import start_ranks
from tests.stores import TINY


def _verb(folder: Path, out: Path, *options: str) -> list[str]:
    verb = ["pretrain", "--config", "maskedclip", "--config", "tiny", "--data", str(folder), "--out", str(out)]
    return [*verb, "--training.devices", "2", "--training.accelerator", "cpu", *TINY, *options]


def torchrun_command(folder: Path, out: Path, *options: str) -> list[str]:
    """The command that trains `tiny` on two processes, by torchrun."""
    # Standalone takes a free port: a fixed one is lost where two suites run on one machine.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]
    return [*launch, "maskedclip", *_verb(folder, out, *options)]


def run_torchrun(folder: Path, out: Path, *options: str) -> str:
    """Run it to its end; returns what it said."""
    done = subprocess.run(
        torchrun_command(folder, out, *options),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def run_two_ranks(folder: Path, out: Path, *options: str) -> str:
    """The same without torchrun's start, which takes most of the time; returns what both ranks said."""
    lives = start_ranks(_verb(folder, out, *options), out.with_name(f"{out.name}-said"))
    deadline = time.monotonic() + 300
    while any(life.status is None for life in lives) and time.monotonic() < deadline:
        if any(life.status for life in lives):  # the others may say why, but may wait for it as well
            deadline = min(deadline, time.monotonic() + 5)
        time.sleep(0.05)
    ended = [life.status for life in lives]
    for life in lives:
        life.kill()
    said = "".join(life.out + life.error for life in lives)
    assert ended == [0, 0], f"two ranks ended with {ended}:\n{said[-6000:]}"
    return said
