"""Worker processes of loaders: they have imported what they need before they begin, and compute with one thread."""

import subprocess
import sys
from pathlib import Path

import pytest

from maskedclip.data.workers import worker_options

PROGRAM = """
import sys
from torch import get_num_threads
from torch.utils.data import DataLoader
from maskedclip.data.workers import worker_options

class Tells:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return get_num_threads(), "maskedclip.data.loader" in sys.modules

if __name__ == "__main__":
    print(list(DataLoader(Tells(), batch_size=None, **worker_options(2))))
    print("here:", "maskedclip.data.loader" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are spawned")
def test_worker_options__workers_are_forked_from_what_has_imported_already(tmp_path: Path) -> None:
    """In a program of its own: the processes that tests use are served already."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == [str([[1, True]] * 3), "here: False"], done.stderr


def test_worker_options__none_loads_in_the_process_itself() -> None:
    assert worker_options(0) == {"num_workers": 0}
