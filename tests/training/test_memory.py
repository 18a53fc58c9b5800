"""The memory that a training is said to take."""

import subprocess
import sys

import pytest

# In a process of its own: a training that ran in this one keeps what it freed.
_SCRIPT = """
import torch
from maskedclip.training.memory import begin_peak, peak_bytes

cpu = torch.device("cpu")
before = peak_bytes(cpu)
block = torch.ones(400 << 20, dtype=torch.uint8)
del block
high = peak_bytes(cpu)
begin_peak(cpu)
print(before, high, peak_bytes(cpu))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_peak_bytes__holds_what_was_taken_and_freed_until_it_begins_anew() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    before, high, later = map(int, done.stdout.split())
    assert high - before > 300 << 20
    if later != high:  # a system may not let a process reset its peak
        assert high - later > 200 << 20
