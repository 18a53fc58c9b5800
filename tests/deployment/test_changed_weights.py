"""Weights that somebody exchanged in a run's folder are another model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.models import saving
from tests.changed_weights import change_weights


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_run, tmp_path / "run")
    return tmp_path / "run"


def test_features__kept_of_the_former_weights_are_not_taken(run: Path, trained_store: Path, tmp_path: Path) -> None:
    store, rows, kept = open_store(trained_store), np.arange(4), tmp_path / "kept"
    before = CachedFeatures(load(run, device="cpu"), store, kept).features(store, rows)["encoder"]
    change_weights(run / "model")
    changed = load(run, device="cpu")
    given = CachedFeatures(changed, store, kept).features(store, rows)["encoder"]
    assert not np.allclose(given, before)
    assert np.array_equal(given, changed.features(store, rows)["encoder"])
    assert len(list(kept.iterdir())) == 2


def test_load__preprocessing_that_was_edited_is_another_model(run: Path) -> None:
    first = load(run, device="cpu").fingerprint
    assert json.loads((run / "model" / "config.json").read_text())["fingerprint"] == first
    path = run / "model" / "preprocessing.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.5, 0.5, 0.5]}))
    assert load(run, device="cpu").fingerprint != first


def test_load__weights_that_are_exchanged_while_they_are_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, exchanged = saving.load_file, []

    def slow(path: Path) -> dict:
        tensors = read(path)
        if not exchanged:
            exchanged.append(True)
            change_weights(run / "model")
        return tensors

    monkeypatch.setattr(saving, "load_file", slow)
    caught = load(run, device="cpu")
    monkeypatch.undo()
    again = load(run, device="cpu")
    assert caught.fingerprint == again.fingerprint
    pairs = zip(caught.module.state_dict().values(), again.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_load__needs_no_stated_fingerprint(run: Path) -> None:
    config = run / "model" / "config.json"
    stated = json.loads(config.read_text())
    first = stated.pop("fingerprint")
    config.write_text(json.dumps(stated))
    assert load(run, device="cpu").fingerprint == first
