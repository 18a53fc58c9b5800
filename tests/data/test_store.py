"""A store opens from anywhere, alone or with others, and travels to processes."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from maskedclip.data.store import Store, open_store
from maskedclip.errors import UserError
from tests.stores import SENTENCES, draw, make_store


def test_store__columns_and_images(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "s"))
    assert len(store) == 48
    assert bytes(store.image_bytes(17)) == draw(17, 32, (17 // 2 * 7) % 4)
    assert bytes(store.image_bytes(47)) == draw(47, 32, (47 // 2 * 7) % 4)
    assert store.text(0) == SENTENCES[0]
    assert store.labels["red"].dtype == np.float32
    assert len(store.rows("train")) == 32
    assert store.has_text.all()
    assert len(set(store.ids)) == 48


def test_store__several_as_one(tmp_path: Path) -> None:
    first, second = make_store(tmp_path / "a"), make_store(tmp_path / "b", rows=12, text_share=0.0, seed=3)
    store = open_store([first, second])
    assert len(store) == 60
    assert bytes(store.image_bytes(50)) == bytes(open_store(second).image_bytes(2))
    assert store.text(50) is None
    assert store.has_text.sum() == 48
    assert store.fingerprint != open_store(first).fingerprint


def test_store__reopens_in_another_process(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "s"))
    again = pickle.loads(pickle.dumps(store))
    assert isinstance(again, Store)
    assert len(pickle.dumps(store)) < 1000
    assert bytes(again.image_bytes(3)) == bytes(store.image_bytes(3))


def test_store__read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_store(tmp_path / "s")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    store = open_store(folder)
    assert bytes(store.image_bytes(3)) == draw(3, 32, (3 // 2 * 7) % 4)
    assert not (folder / ".cache").exists()


def test_open_store__says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such store"):
        open_store(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a store"):
        open_store(tmp_path / "empty")
    folder = make_store(tmp_path / "s")
    (folder / "shard-00001.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(UserError, match="cannot be read"):
        open_store(folder)
    shutil.rmtree(folder)
    (make_store(folder) / "curation.json").unlink()
    with pytest.raises(UserError, match=r"curation\.json is missing"):
        open_store(folder)
