"""A run of two ranks over gloo on this machine."""

import os
import subprocess
import sys
from pathlib import Path

from tests.stores import TINY


def two_ranks_command(folder: Path, out: Path, *options: str) -> list[str]:
    """The command that trains `tiny` on two processes."""
    # Standalone takes a free port: a fixed one is lost where two suites run on one machine.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]
    verb = ["maskedclip", "pretrain", "--config", "maskedclip", "--config", "tiny"]
    place = ["--data", str(folder), "--out", str(out), "--training.devices", "2", "--training.accelerator", "cpu"]
    return [*launch, *verb, *place, *TINY, *options]


def run_two_ranks(folder: Path, out: Path, *options: str) -> str:
    """Run it to its end; returns what it said."""
    done = subprocess.run(
        two_ranks_command(folder, out, *options),
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr
