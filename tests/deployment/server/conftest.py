"""A server in the process: two models, an index of the small store, limits that tests can reach."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from maskedclip.deployment.embed import embed
from maskedclip.deployment.model import load
from maskedclip.deployment.server.guard import Guard
from maskedclip.deployment.server.served import Labels, Served, serve_index, serve_models, shown_columns
from maskedclip.deployment.server.settings import Settings
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.deployment.server.case import LABELS, build_guard
from tests.stores import TINY


@pytest.fixture(scope="session")
def second_run(trained_store: Path) -> Path:
    """Another run on the same store."""
    run = trained_store.parent / "second"
    pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, "--seed", "1"]), trained_store, run)
    return run


@pytest.fixture(scope="session")
def served(trained_run: Path, second_run: Path) -> list[Served]:
    return serve_models([trained_run, second_run], Labels(names=LABELS, kind="independent"), device="cpu")


@pytest.fixture(scope="session")
def index_file(trained_run: Path, trained_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("server") / "features.parquet"
    embed(load(trained_run, device="cpu"), trained_store, file)
    return file


@pytest.fixture(scope="module")
def guard(served: list[Served], index_file: Path) -> Iterator[Guard]:
    index, indexed = serve_index(index_file, served)
    settings = Settings(max_bytes=1 << 20, max_files=4, max_pixels=1_000_000, queue=8, timeout=20)
    made = build_guard(served, settings, index=index, indexed=indexed, shown=shown_columns(index, []))
    yield made
    made.app.state.engine.close()


@pytest.fixture(scope="module")
def client(guard: Guard) -> TestClient:
    """No lifespan: the engine lives as long as the module."""
    return TestClient(guard, base_url="http://127.0.0.1", raise_server_exceptions=False)
