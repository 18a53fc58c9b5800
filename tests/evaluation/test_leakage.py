import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.data.store import open_store
from maskedclip.evaluation.leakage import run_folder, same_files, seen_in_pretraining
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from maskedclip.training.seen import SEEN
from tests.stores import TINY, make_store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leakage")
    _with_hashes(make_store(folder / "store", rows=60))
    make_store(folder / "more", rows=24, text_share=0, seed=1)
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, "--training.steps", "1"])
    pretrain(recipe, [folder / "store", folder / "more"], folder / "run")
    return folder / "run"


def _with_hashes(folder: Path) -> None:
    """sha256 and perceptual_hash of random bits, as curation adds them."""
    random = np.random.Generator(np.random.Philox(3))
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(shard)
        for name in ("sha256", "perceptual_hash"):
            values = [f"{value:016x}" for value in random.integers(0, 2**63, len(table), dtype=np.uint64).tolist()]
            table = table.append_column(name, pa.array(values))
        pq.write_table(table, shard)


def test_write_seen__holds_the_training_rows_and_no_test_row(run: Path) -> None:
    store = open_store([run.parent / "store", run.parent / "more"])
    seen = pq.read_table(run / SEEN)
    assert set(seen.column("id").to_pylist()) == {store.ids[row] for row in store.rows("train").tolist()}
    assert set(seen.column("store").to_pylist()) == set(store.fingerprints)
    assert set(seen.column("crop").to_pylist()) == {"none"}
    assert 0 < sum(seen.column("with_text").to_pylist()) < len(seen)


def test_seen_in_pretraining__a_clean_test_split_is_clean(run: Path) -> None:
    store = open_store(run.parent / "store")
    found = seen_in_pretraining(run, store, store.rows("test"))
    assert (found["images"]["n"], found["near_duplicates"]["n"], found["patients"]["n"]) == (0, 0, 0)
    count = len(store.rows("test"))
    assert found["sentence"].startswith(f"None of the {count} test images, and none of their patients, was trained on")
    assert found["images"]["compared"] == found["patients"]["compared"] == count
    assert found["near_duplicates"]["compared"] == count
    assert found["sentence"].endswith("was trained on.")


def test_seen_in_pretraining__what_could_not_be_compared_is_said(run: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "bare", rows=30, seed=7)
    bare = open_store(tmp_path / "bare")
    found = seen_in_pretraining(run, bare, bare.rows("test"))
    assert found["images"]["compared"] == found["patients"]["compared"] == 0
    assert "could not be checked" in found["sentence"]
    _with_hashes(tmp_path / "bare")
    hashed = open_store(tmp_path / "bare")
    found = seen_in_pretraining(run, hashed, hashed.rows("test"))
    assert found["images"]["compared"] == len(hashed.rows("test"))
    assert found["patients"]["compared"] == 0
    assert found["sentence"].startswith(f"None of the {len(hashed.rows('test'))} test images was trained on")
    assert found["sentence"].endswith(
        "Patients could not be compared, as the store is none of those that were trained on."
    )


def test_seen_in_pretraining__files_near_duplicates_and_patients_are_found(run: Path, tmp_path: Path) -> None:
    seen = pq.read_table(run / SEEN)
    hashes = [value for value in seen.column("perceptual_hash").to_pylist() if value]
    make_store(tmp_path / "other", rows=60, seed=5)
    _with_hashes(tmp_path / "other")
    store = open_store(tmp_path / "other")
    rows = store.rows("test")
    table = store.table
    changed = {name: table.column(name).to_pylist() for name in ("sha256", "perceptual_hash")}
    changed["sha256"] = [f"other {value}" for value in changed["sha256"]]
    changed["perceptual_hash"] = [f"{~int(value, 16) & (2**64 - 1):016x}" for value in changed["perceptual_hash"]]
    changed["sha256"][int(rows[0])] = seen.column("sha256").drop_null()[0].as_py()
    changed["perceptual_hash"][int(rows[1])] = f"{int(hashes[3], 16) ^ 0b11:016x}"
    changed["perceptual_hash"][int(rows[2])] = f"{int(hashes[4], 16) ^ 0b11111:016x}"
    for name, values in changed.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    store.table = table
    found = seen_in_pretraining(run, store, rows)
    assert found["images"] == {"n": 1, "of": len(rows), "first": [store.ids[rows[0]]], "compared": len(rows)}
    assert store.ids[rows[1]] in found["near_duplicates"]["first"]
    assert store.ids[rows[2]] not in found["near_duplicates"]["first"]
    # "p10" of another manifest is somebody else; whose file was trained on is not, nor is that patient's other eye.
    eyes = [store.ids[row] for row in rows[store.patients[rows] == store.patients[rows[0]]]]
    assert found["patients"] == {"n": 2, "of": len(rows), "first": eyes, "compared": 2}
    assert found["sentence"] == (
        f"Leakage: of {len(rows)} test images, 1 was trained on, 1 more looks like a training image (by a perceptual "
        "hash; by chance fewer than 0.1 % of fundus photographs would) and 2 are of patients that were trained on; "
        "figures on them are too good. The other patients could not be compared, as the store is none of those that "
        "were trained on."
    )
    trained = open_store(run.parent / "store")
    again = seen_in_pretraining(run, trained, trained.rows("train"))
    assert again["patients"]["n"] == again["images"]["n"] == len(trained.rows("train"))


def test_seen_in_pretraining__a_store_without_hashes_is_told_by_ids(run: Path) -> None:
    more = open_store(run.parent / "more")
    assert seen_in_pretraining(run, more, more.rows("train"))["images"]["n"] == len(more.rows("train"))
    assert seen_in_pretraining(run, more, more.rows("test"))["images"]["n"] == 0


def test_run_folder__of_a_run_at_another_size_or_its_model_and_of_nothing_else(run: Path, tmp_path: Path) -> None:
    for spec in (str(run), f"{run}@64", str(run / "model")):
        assert run_folder(spec) == run
    for spec in ("timm:vit_tiny_patch16_224", str(tmp_path), f"{tmp_path}@64"):
        assert run_folder(spec) is None
    store = open_store(run.parent / "store")
    assert "not known" in seen_in_pretraining(None, store, store.rows("test"))["reason"]


@pytest.mark.parametrize("split", ["train", "", None])
def test_same_files__finds_a_training_image_among_the_test_images(run: Path, tmp_path: Path, split: str | None) -> None:
    folder = tmp_path / "store"
    shutil.copytree(run.parent / "store", folder)
    store = open_store(folder)
    assert same_files(store) == {"n": 0, "first": []}
    train, test = int(store.rows("train")[0]), int(store.rows("test")[0])
    hashes = store.table.column("sha256").to_pylist()
    hashes[test] = hashes[train]
    splits = store.splits.tolist()
    splits[train] = split
    start = 0
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(shard)
        for name, values in (("sha256", hashes), ("split", splits)):
            own = pa.array(values[start : start + len(table)], pa.string())
            table = table.set_column(table.column_names.index(name), name, own)
        pq.write_table(table, shard)
        start += len(table)
    changed = open_store(folder)
    assert same_files(changed) == {"n": 1, "first": [store.ids[test]]}
    assert same_files(open_store(run.parent / "more")) is None


def test_seen_in_pretraining__an_older_run_says_that_it_cannot_be_checked(run: Path, tmp_path: Path) -> None:
    store = open_store(run.parent / "store")
    found = seen_in_pretraining(tmp_path, store, store.rows("test"))
    assert found["checked"] is False
    assert "cannot be checked" in found["reason"]
    (tmp_path / SEEN).write_bytes(b"no parquet")
    assert (
        "is damaged, so leakage cannot be checked" in seen_in_pretraining(tmp_path, store, store.rows("test"))["reason"]
    )


def test_seen_in_pretraining__patients_that_have_no_name_are_not_said_to_be_compared(run: Path) -> None:
    store = open_store(run.parent / "store")
    rows = store.rows("test")
    table = store.table
    names = [None if row == rows[0] else name for row, name in enumerate(table.column("patient").to_pylist())]
    store.table = table.set_column(table.column_names.index("patient"), "patient", pa.array(names, pa.string()))
    found = seen_in_pretraining(run, store, rows)
    assert found["patients"]["compared"] == len(rows) - 1
    assert found["sentence"] == (
        f"None of the {len(rows)} test images was trained on. The other patients could not be compared, as some images "
        "name none."
    )


def test_seen_in_pretraining__a_patient_is_known_by_any_of_the_files(run: Path, tmp_path: Path) -> None:
    """The training rows of a store that was curated again: the same files, and another fingerprint."""
    folder = tmp_path / "again"
    shutil.copytree(run.parent / "store", folder)
    about = json.loads((folder / "curation.json").read_text())
    (folder / "curation.json").write_text(json.dumps(about | {"fingerprint": "f" * 64}))
    store = open_store(folder)
    rows, train = store.rows("test"), store.rows("train")
    owner = store.patients[train[0]]
    hashes = store.table.column("sha256").to_pylist()
    moved = int(train[0])  # one eye of a patient goes to the test rows under another file, the other eye stays
    hashes[moved] = "another file"
    table = store.table.set_column(store.table.column_names.index("sha256"), "sha256", pa.array(hashes))
    store.table = table
    assert (store.patients == owner).sum() == 2
    found = seen_in_pretraining(run, store, np.array([*rows, moved]))
    assert found["images"]["n"] == 0
    assert found["patients"]["first"] == [store.ids[moved]]
    assert found["sentence"].startswith(f"Leakage: of {len(rows) + 1} test images, 0 were trained on")
