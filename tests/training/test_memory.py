"""The memory that a training is said to take."""

import os
import subprocess
import sys

import pytest

# In a process of its own, where nothing else is freed meanwhile.
_SCRIPT = """
import torch
from maskedclip.training.memory import begin_peak, keep_freed_memory, peak_bytes

cpu = torch.device("cpu")
keep_freed_memory(cpu)
before = peak_bytes(cpu)
blocks = [torch.ones(20 << 20, dtype=torch.uint8) for _ in range(20)]
del blocks
high = peak_bytes(cpu)
begin_peak(cpu)
print(before, high, peak_bytes(cpu))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
def test_peak_bytes__holds_what_was_taken_and_freed_until_it_begins_anew() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
    before, high, later = map(int, done.stdout.split())
    assert high - before > 300 << 20
    if os.access("/proc/self/clear_refs", os.W_OK):  # a system may not let a process reset its peak
        assert high - later > 300 << 20
