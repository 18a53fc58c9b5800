from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskedclip.errors import UserError
from maskedclip.evaluation.compare import compare_results, comparison_to_json
from maskedclip.evaluation.evaluate import evaluate
from tests.evaluation.stand_ins import ArrayModel, ArrayStore, changed, make_case

STORE, MODEL = make_case()


def _blurred(model: ArrayModel, noise: float) -> ArrayModel:
    generator = np.random.Generator(np.random.Philox(8))
    return replace(model, tables={k: v + noise * generator.normal(size=v.shape) for k, v in model.tables.items()})


def _evaluate(model: ArrayModel, out: Path, store: ArrayStore = STORE) -> dict:
    return evaluate(model, store, out, replicates=20, protocols=["linear", "knn", "zero_shot"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict, dict]:
    root = tmp_path_factory.mktemp("compare")
    first, second = _evaluate(MODEL, root / "a"), _evaluate(_blurred(MODEL, 3.0), root / "b")
    return root / "a", root / "b", first, second


def test_compare_results__value_is_the_difference_of_the_results(folders: tuple[Path, Path, dict, dict]) -> None:
    a, b, results_a, results_b = folders
    differences = compare_results(a, b, replicates=200)
    parts = [results["linear"]["encoder"] for results in (results_a, results_b)]
    for name in ("macro", "drusen", "dr_grade", "camera"):
        first, second = (part["macro"] if name == "macro" else part["per_label"][name] for part in parts)
        estimate = differences["linear", "encoder", name]
        assert estimate.value == pytest.approx(first["auroc"]["value"] - second["auroc"]["value"])
        assert estimate.low <= estimate.value <= estimate.high
    assert differences["linear", "encoder", "macro"].low > 0
    assert ("zero_shot", "projected", "macro") in differences
    assert ("knn", "bridge", "glaucoma") in differences


def test_compare_results__turned_round_changes_the_sign_only(folders: tuple[Path, Path, dict, dict]) -> None:
    a, b, _, _ = folders
    there, back = compare_results(a, b, replicates=100), compare_results(b, a, replicates=100)
    for key, estimate in there.items():
        assert estimate.value == pytest.approx(-back[key].value)
        assert estimate.low == pytest.approx(-back[key].high)


def test_compare_results__model_with_itself_differs_by_nothing(folders: tuple[Path, Path, dict, dict]) -> None:
    for estimate in compare_results(folders[0], folders[0], replicates=50).values():
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


def test_compare_results__order_of_the_rows_does_not_matter(
    folders: tuple[Path, Path, dict, dict], tmp_path: Path
) -> None:
    order = np.random.Generator(np.random.Philox(1)).permutation(len(STORE))
    store = changed(
        STORE,
        ids=[STORE.ids[row] for row in order],
        patients=STORE.patients[order],
        splits=STORE.splits[order],
        texts=[STORE.texts[row] for row in order],
        labels={name: column[order] for name, column in STORE.labels.items()},
    )
    shuffled = replace(MODEL, tables={name: table[order] for name, table in MODEL.tables.items()})
    _evaluate(shuffled, tmp_path / "shuffled", store)
    for estimate in compare_results(folders[0], tmp_path / "shuffled", replicates=20).values():
        assert abs(estimate.value) < 1e-3


def test_compare_results__undefined_labels_stay_undefined(tmp_path: Path) -> None:
    rare = (np.arange(len(STORE)) == np.flatnonzero(STORE.splits == "train")[0]).astype(np.float32)
    store = changed(STORE, labels={"rare": rare, "drusen": STORE.labels["drusen"]})
    for name, model in (("a", MODEL), ("b", _blurred(MODEL, 1.0))):
        _evaluate(model, tmp_path / name, store)
    differences = compare_results(tmp_path / "a", tmp_path / "b", replicates=20)
    assert np.isnan(differences["linear", "encoder", "rare"].value)
    assert differences["linear", "encoder", "macro"].note == "mean of 1 of 2 labels; undefined: rare"
    json = comparison_to_json(differences)
    assert json["linear"]["encoder"]["per_label"]["rare"]["auroc"]["value"] is None
    assert set(json["linear"]["encoder"]["macro"]["auroc"]) == {"value", "low", "high", "n", "note"}


def test_compare_results__other_test_rows_are_refused(folders: tuple[Path, Path, dict, dict], tmp_path: Path) -> None:
    splits = STORE.splits.copy()
    splits[np.flatnonzero(splits == "test")[:2]] = ""
    _evaluate(MODEL, tmp_path / "fewer", changed(STORE, splits=splits))
    with pytest.raises(UserError, match="2 test rows are in one only; evaluate both models on the same store"):
        compare_results(folders[0], tmp_path / "fewer")


def test_compare_results__other_truths_are_refused(folders: tuple[Path, Path, dict, dict], tmp_path: Path) -> None:
    labels = {**STORE.labels, "drusen": 1 - STORE.labels["drusen"]}
    _evaluate(MODEL, tmp_path / "other", changed(STORE, labels=labels))
    with pytest.raises(UserError, match="linear/encoder/drusen: the known test rows or their truths differ"):
        compare_results(folders[0], tmp_path / "other")


def test_compare_results__folder_without_predictions(folders: tuple[Path, Path, dict, dict], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no predictions\.parquet"):
        compare_results(folders[0], tmp_path)
    (tmp_path / "predictions.parquet").write_text("no")
    with pytest.raises(UserError, match="is not a table of predictions"):
        compare_results(folders[0], tmp_path)


def test_compare_results__nothing_in_common(folders: tuple[Path, Path, dict, dict], tmp_path: Path) -> None:
    store = changed(STORE, labels={"other": STORE.labels["drusen"]})
    _evaluate(MODEL, tmp_path / "other", store)
    with pytest.raises(UserError, match="no protocol, feature and label in common"):
        compare_results(folders[0], tmp_path / "other")
