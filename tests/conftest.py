"""Fixtures that all tests share."""

import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

# Tiny matrices gain nothing from threads, and several test processes with many threads each starve one another.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """Where a test will want processes, what they are forked from imports beside the first tests."""
    if "tests.lives" in sys.modules:
        sys.modules["tests.lives"].serve()


@pytest.fixture(autouse=True)
def repeatable_draws() -> None:
    """What a test draws from torch's own generator does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development photographs beside the checkout; the test is skipped where it is not."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no ../shared/data on this machine")
    return folder
