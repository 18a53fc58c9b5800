"""A small store, a run trained on it for a few steps, and its model: read only, shared by a process's tests."""

from pathlib import Path

import pytest

from maskedclip.deployment.model import Model, load
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.stores import TINY, make_store


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 images of 32 px, two a patient, with texts and two binary labels."""
    return make_store(tmp_path_factory.mktemp("deployment") / "store")


@pytest.fixture(scope="session")
def trained_run(trained_store: Path) -> Path:
    """A run directory with texts: encoder 48 wide, 16 patches, shared space of 16."""
    run = trained_store.parent / "run"
    pretrain(load_recipe(["maskedclip", "tiny"], TINY), trained_store, run)
    return run


@pytest.fixture(scope="session")
def trained_model(trained_run: Path) -> Model:
    """The run's model on the processor."""
    return load(trained_run, device="cpu")
