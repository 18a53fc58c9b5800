"""A store opens from anywhere, alone or with others, and travels to processes."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.data.store import Store, open_store
from maskedclip.errors import UserError
from maskedclip.evaluation.development import DevelopmentStore
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


def _rewritten(folder: Path, name: str, column: pa.Array) -> None:
    """One column of a store with other values."""
    start = 0
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(shard)
        part = column.slice(start, len(table))
        pq.write_table(table.set_column(table.column_names.index(name), name, part), shard)
        start += len(table)


def test_store__rows_without_a_split_are_training_rows(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "s")
    given = open_store(folder).splits.tolist()
    given[:4] = [None, "", None, ""]
    _rewritten(folder, "split", pa.array(given))
    store = open_store(folder)
    assert set(store.splits) == {"train", "val", "test"}
    for split in ("train", "val", "test"):
        assert np.flatnonzero(store.splits == split).tolist() == store.rows(split).tolist()
    moved = DevelopmentStore(store).splits
    assert set(moved[:4]) <= {"train", "val"}
    assert (moved[store.splits == "test"] == "").all()  # stay hidden
    _rewritten(folder, "split", pa.nulls(48, pa.string()))
    assert set(open_store(folder).splits) == {"train"}


def test_open_store__a_column_of_two_kinds_is_named_with_both_stores(tmp_path: Path) -> None:
    folders = [make_store(tmp_path / name, seed=place) for place, name in enumerate("abc")]
    _rewritten(folders[0], "label.red", pa.nulls(48))
    _rewritten(folders[2], "label.red", pa.array(["yes", "no"] * 24))
    with pytest.raises(UserError) as caught:
        open_store(folders)
    assert str(caught.value) == (
        f"--data: label.red holds numbers in {folders[1]} and words in {folders[2]}; write it in one way in both "
        "manifests, and curate the one that you changed again"
    )
    assert len(open_store(folders[:2])) == 96
    shard = sorted(folders[0].glob("shard-*.parquet"))[0]
    table = pq.read_table(shard)
    place = table.column_names.index("label.green")
    pq.write_table(table.set_column(place, "label.green", pa.array(["x"] * len(table))), shard)
    with pytest.raises(UserError, match=r"a: the store cannot be read \(.*label\.green"):
        open_store(folders[0])
