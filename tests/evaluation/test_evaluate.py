import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.evaluation.claimed_folder import claimed_folder
from maskedclip.evaluation.development import DevelopmentStore
from maskedclip.evaluation.evaluate import PREDICTION_SCHEMA, evaluate
from maskedclip.whole_files import PARTIAL
from tests.evaluation.stand_ins import ArrayModel, changed, make_case
from tests.stores import make_store

STORE, MODEL = make_case()
BLIND = ArrayModel(tables={})  # cannot compute anything
METRICS = {"auroc", "auprc", "balanced_accuracy"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    out = tmp_path_factory.mktemp("evaluation") / "deep" / "out"
    return evaluate(MODEL, STORE, out, replicates=60, seed=1), out


def test_evaluate__shape_of_the_results(written: tuple[dict, Path]) -> None:
    results, out = written
    assert json.loads((out / "results.json").read_text()) == results
    assert list(results) == ["linear", "knn", "zero_shot", "retrieval", "about"]
    for protocol in ("linear", "knn"):
        assert set(results[protocol]) == {"encoder", "bridge"}
        for part in results[protocol].values():
            assert set(part) == {"macro", "per_label", "chosen"}
            assert set(part["macro"]) == METRICS | {"brier", "calibration_error"}
            assert set(part["per_label"]) == set(part["chosen"]) == set(STORE.labels)
            assert {"value", "low", "high", "n"} <= set(part["macro"]["auroc"])
    assert set(results["zero_shot"]) == {"macro", "per_label", "calibrated"}
    assert set(results["zero_shot"]["calibrated"]["per_label"]) == set(STORE.labels)
    assert set(results["zero_shot"]["macro"]) == METRICS
    assert "quadratic_kappa" in results["linear"]["encoder"]["per_label"]["dr_grade"]
    for direction in ("image_to_text", "text_to_image"):
        assert set(results["retrieval"][direction]) == {"recall_at_1", "recall_at_5", "recall_at_10", "median_rank"}
    assert set(results["retrieval"]["image_to_text_per_text"]) == {"recall_at_1", "recall_at_5", "recall_at_10"}
    files = ["predictions.parquet", "results.json", "retrieval.parquet", "test.parquet"]
    assert sorted(path.name for path in out.iterdir()) == files


def test_evaluate__a_model_that_sees_the_labels_is_found_out(written: tuple[dict, Path]) -> None:
    results, _ = written
    encoder, bridge = (results["linear"][feature]["macro"]["auroc"] for feature in ("encoder", "bridge"))
    assert encoder["low"] > 0.6
    assert encoder["low"] < encoder["value"] < encoder["high"]
    assert encoder["value"] > bridge["value"]
    assert results["knn"]["encoder"]["macro"]["auroc"]["value"] > 0.6
    zero_shot = {name: entry["auroc"]["value"] for name, entry in results["zero_shot"]["per_label"].items()}
    assert min(zero_shot[name] for name in ("glaucoma", "drusen", "normal")) > 0.85
    assert results["retrieval"]["image_to_text"]["recall_at_1"]["low"] > 0.5
    # "Drusen", "drusen." and "drusen" are one candidate: four combinations of findings in all
    assert results["retrieval"]["image_to_text"]["median_rank"]["candidates"] == 4


def test_evaluate__about_says_what_was_evaluated(written: tuple[dict, Path]) -> None:
    about = written[0]["about"]
    test = int((STORE.splits == "test").sum())
    assert about["model"] == "model-1"
    assert about["store"] == "store-1"
    assert about["rows"]["test"] == test
    assert about["test_patients"] == test // 2
    assert (about["replicates"], about["seed"]) == (60, 1)
    assert sum(about["labels"]["camera"]["test"].values()) == test


def test_evaluate__predictions_reproduce_the_figures(written: tuple[dict, Path]) -> None:
    results, out = written
    table = pq.read_table(out / "predictions.parquet")
    assert table.schema.equals(PREDICTION_SCHEMA)
    rows = [r for r in table.to_pylist() if (r["protocol"], r["feature"]) == ("linear", "encoder")]
    assert {r["split"] for r in rows} == {"test"}
    drusen = [r for r in rows if r["label"] == "drusen"]
    area = roc_auc_score([r["truth"] for r in drusen], [r["score"] for r in drusen])
    assert results["linear"]["encoder"]["per_label"]["drusen"]["auroc"]["value"] == pytest.approx(area)
    camera = [r for r in rows if r["label"] == "camera"]
    areas = []
    for name in ("canon", "topcon", "zeiss"):
        part = [r for r in camera if r["class"] == name]
        areas.append(roc_auc_score([r["truth"] for r in part], [r["score"] for r in part]))
    assert results["linear"]["encoder"]["per_label"]["camera"]["auroc"]["value"] == pytest.approx(np.mean(areas))
    place = {row: STORE.patients[k] for k, row in enumerate(STORE.ids)}
    assert all(r["patient"] == place[r["id"]] for r in rows)


def test_evaluate__same_seed_same_bits(written: tuple[dict, Path], tmp_path: Path) -> None:
    evaluate(MODEL, STORE, tmp_path / "again", replicates=60, seed=1)
    for name in ("results.json", "predictions.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (written[1] / name).read_bytes()


def test_evaluate__rows_without_split_are_not_used(written: tuple[dict, Path], tmp_path: Path) -> None:
    splits = STORE.splits.copy()
    splits[np.flatnonzero(splits == "train")[:20]] = ""
    results = evaluate(MODEL, changed(STORE, splits=splits), tmp_path / "out", replicates=10, protocols=["linear"])
    assert results["about"]["rows_used"]["train"] == written[0]["about"]["rows_used"]["train"] - 20


def test_evaluate__sections_that_cannot_be_had_say_why(tmp_path: Path) -> None:
    silent = replace(MODEL, has_text=False, tables={"encoder": MODEL.tables["encoder"]})
    results = evaluate(silent, STORE, tmp_path / "a", replicates=10)
    assert results["zero_shot"] == results["retrieval"] == {"skipped": "the model has no text encoder"}
    assert set(results["linear"]) == {"encoder"}
    unlabelled = changed(STORE, labels={"age": np.linspace(50, 51, len(STORE)).astype(np.float32)})
    results = evaluate(MODEL, unlabelled, tmp_path / "b", replicates=10)
    for protocol in ("linear", "knn", "zero_shot"):
        assert results[protocol] == {"skipped": "label.age has fractions: a quantity, not classes"}
    wordless = changed(STORE, labels={}, texts=[None] * len(STORE))
    results = evaluate(MODEL, wordless, tmp_path / "c", replicates=10)
    assert results["knn"] == {"skipped": "the store has no label.* column"}
    assert results["retrieval"] == {"skipped": "the test split has 0 distinct texts; retrieval needs two"}
    only_test = changed(STORE, splits=np.full(len(STORE), "test"))
    results = evaluate(MODEL, only_test, tmp_path / "d", replicates=10)
    assert results["linear"] == {"skipped": "no row of the split 'train' has a label"}
    assert results["zero_shot"]["macro"]["auroc"]["value"] > 0.5


def test_evaluate__retrieval_uses_the_rows_with_text(tmp_path: Path) -> None:
    texts = [text if row % 2 else None for row, text in enumerate(STORE.texts)]
    results = evaluate(MODEL, changed(STORE, texts=texts), tmp_path / "out", replicates=10, protocols=["retrieval"])
    assert results["retrieval"]["image_to_text"]["recall_at_1"]["n"] == int((STORE.splits == "test").sum()) // 2
    assert list(results) == ["retrieval", "about"]


def test_evaluate__user_prompts_are_used(written: tuple[dict, Path], tmp_path: Path) -> None:
    prompts = {"glaucoma": ["normal"], "normal": ["glaucoma"], "dr_grade=1": ["mild"], "zeiss": ["sharp"]}
    results = evaluate(MODEL, STORE, tmp_path / "out", replicates=10, protocols=["zero_shot"], prompts=prompts)
    swapped = results["zero_shot"]["per_label"]["glaucoma"]["auroc"]["value"]
    assert swapped < 0.5 < written[0]["zero_shot"]["per_label"]["glaucoma"]["auroc"]["value"]


def test_evaluate__faults_of_the_request_are_one_line(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    for says, arguments in {
        "exists already": {"out": full},
        "protocols: umap; choose from linear": {"protocols": ["linear", "umap"]},
        "protocols: none given": {"protocols": []},
        "replicates: 1 give no interval": {"replicates": 1},
        "'glucoma' is no label of the store; it has glaucoma, drusen": {"prompts": {"glucoma": ["x"]}},
        "no row has split 'test'": {"store": changed(STORE, splits=np.full(len(STORE), "train"))},
    }.items():
        with pytest.raises(UserError) as fault:
            evaluate(**({"model": MODEL, "store": STORE, "out": tmp_path / "out"} | arguments))
        assert says in str(fault.value)
        assert "\n" not in str(fault.value)
    assert not (tmp_path / "out").exists()


def test_evaluate__features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = MODEL.tables["bridge"].copy()
    broken[:, 0] = np.nan
    with pytest.raises(UserError, match="'bridge' features are not finite"):
        evaluate(replace(MODEL, tables={**MODEL.tables, "bridge": broken}), STORE, tmp_path / "out")


def test_evaluate__folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is computed."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        evaluate(BLIND, STORE, tmp_path / "file" / "out", replicates=10, protocols=["knn"])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="no space left"):
        evaluate(BLIND, STORE, tmp_path / "out", replicates=10, protocols=["knn"])
    assert not (tmp_path / "out").exists()


def test_evaluate__a_refusal_leaves_no_folder_behind(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    for out in (tmp_path / "deep" / "out", tmp_path / "given"):
        with pytest.raises(UserError, match="no label of the store"):
            evaluate(BLIND, STORE, out, prompts={"glucoma": ["x"]})
    assert [place.name for place in tmp_path.iterdir()] == ["given"]
    assert not list((tmp_path / "given").iterdir())


def test_claimed_folder__a_failed_call_takes_nothing_from_another_on_the_same_folder(tmp_path: Path) -> None:
    """Two tasks of a cluster on one folder: what the one made goes with it, and the other can still write."""

    class Meanwhile(ArrayModel):
        """While its features are computed, another call claims the folder and fails."""

        def features(self, store: Any, rows: NDArray[np.int64]) -> dict[str, NDArray]:
            with pytest.raises(UserError, match="no label of the store"):
                evaluate(BLIND, STORE, tmp_path / "out", prompts={"glucoma": ["x"]})
            (tmp_path / "out").rmdir()  # as a tidy colleague would
            return super().features(store, rows)

    evaluate(Meanwhile(tables=MODEL.tables), STORE, tmp_path / "out", replicates=10, protocols=["knn"])
    assert (tmp_path / "out" / "results.json").is_file()


def test_claimed_folder__one_that_another_call_tries_is_no_result(tmp_path: Path) -> None:
    (tmp_path / f"{PARTIAL}of-another").write_bytes(b"")
    with claimed_folder(tmp_path):
        pass
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match="exists already"), claimed_folder(tmp_path):
        pass


def test_claimed_folder__a_full_disk_leaves_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, _: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(UserError, match="no space left"), claimed_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_evaluate__a_store_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    first, other = make_store(tmp_path / "first"), make_store(tmp_path / "other", seed=1)
    shutil.copytree(first, tmp_path / "copy")
    (tmp_path / "link").symlink_to(first)
    for second, said in (
        (first, f"stands twice (as {first}); give each store once"),
        (tmp_path / "link", f"stands twice (as {first}); give each store once"),
        (tmp_path / "copy", f"has the same images as {first}; give one of the two"),
    ):
        for store in (open_store([first, other, second]), DevelopmentStore(open_store([first, other, second]))):
            with pytest.raises(UserError) as caught:
                evaluate(BLIND, store, tmp_path / "out", protocols=["knn"])  # type: ignore[arg-type]
            assert str(caught.value) == f"{second}: {said}"
    model = ArrayModel(tables={"encoder": np.eye(96)})
    evaluate(model, open_store([first, other]), tmp_path / "out", replicates=10, protocols=["knn"])
