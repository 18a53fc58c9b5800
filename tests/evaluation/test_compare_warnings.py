"""A comparison tells what makes its figures too good or unlike: in its tables, its figure and its JSON."""

import json
from pathlib import Path

import numpy as np
import pytest

from maskedclip.errors import UserError
from maskedclip.evaluation.compare_figure import forest_plot, macro_blocks
from maskedclip.evaluation.compare_models import Comparison, compare_models
from maskedclip.evaluation.compare_sheets import sheets
from maskedclip.evaluation.evaluate import evaluate
from tests.evaluation.compare_case import MODEL, STORE, blurred, evaluated
from tests.evaluation.stand_ins import changed

SEEN = "Leakage: of 40 test images, 30 were trained on; figures on them are too good."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("warned")
    return {"a": evaluated(MODEL, root / "a"), "b": evaluated(blurred(1.0), root / "b")}


def _noting(folder: Path, **more: object) -> Path:
    path = folder / "results.json"
    results = json.loads(path.read_text())
    results["about"] |= more
    path.write_text(json.dumps(results))
    return folder


def _compared(**folders: Path) -> Comparison:
    return compare_models({name: [folder] for name, folder in folders.items()}, next(iter(folders)), replicates=20)


def test_leakage__stands_in_every_table_the_figure_and_the_json(tmp_path: Path) -> None:
    seen = {"checked": True, "sentence": SEEN, "near_duplicates": {"n": 0, "of": 40}}
    first = _noting(evaluated(MODEL, tmp_path / "a"), seen_in_pretraining=seen, same_files={"n": 2, "first": []})
    other = evaluated(blurred(1.0), tmp_path / "b")
    compared = _compared(a=first, b=other)
    same = "a: 2 test images are training or validation images of the labels too (the same file)."
    assert list(compared.warnings) == [f"a: {SEEN}", same]
    assert all(list(sheet.notes[:2]) == list(compared.warnings) for sheet in sheets(compared))
    assert compared.to_json()["warnings"] == list(compared.warnings)
    drawn = forest_plot(compared, macro_blocks(compared)).decode()
    assert f"a: {SEEN[:40]}" in drawn
    _noting(other, seen_in_pretraining=seen)
    assert compared.warnings != (both := _compared(a=first, b=other).warnings)
    assert both[0] == SEEN  # of all models, so it needs no name


def test_leakage__none_is_no_warning(folders: dict[str, Path]) -> None:
    assert _compared(**folders).warnings == []


def test_labels__other_training_labels_are_told_and_other_test_labels_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    drusen = STORE.labels["drusen"]
    columns = {
        "train": np.where(STORE.splits == "train", 1 - drusen, drusen),
        "test": np.where(STORE.splits == "test", 1, drusen),
    }
    for name, column in columns.items():
        store = changed(STORE, labels={**STORE.labels, "drusen": column.astype(np.float32)})
        evaluate(MODEL, store, tmp_path / name, protocols=["linear", "fewshot"][name == "test" :], replicates=20)
    told = _compared(a=folders["a"], train=tmp_path / "train").unlike
    assert told == ["labels, splits or patients of the store (a; train), on which few-shot and label efficiency draw"]
    assert _compared(**folders).unlike == []
    evaluate(MODEL, STORE, tmp_path / "few", protocols=["fewshot"], replicates=20)
    with pytest.raises(UserError, match="few and test: evaluated with other values of the label drusen"):
        _compared(few=tmp_path / "few", test=tmp_path / "test")


def test_notes__what_a_mean_lacks_is_told_below_its_table(folders: dict[str, Path], tmp_path: Path) -> None:
    rare = (np.arange(len(STORE)) == np.flatnonzero(STORE.splits == "train")[0]).astype(np.float32)
    # The third grade is on no test image, so the mean over the grades is over two of three.
    grade = np.where(STORE.splits == "test", STORE.labels["drusen"], np.arange(len(STORE)) % 3).astype(np.float32)
    store = changed(STORE, labels={"rare": rare, "grade": grade, "drusen": STORE.labels["drusen"]})
    for name, model in (("a", MODEL), ("b", blurred(1.0))):
        evaluate(model, store, tmp_path / name, protocols=["linear"], replicates=20)
    means, labels = sheets(_compared(a=tmp_path / "a", b=tmp_path / "b"), labels=[("linear", "encoder")])
    assert means.sections[0][0] == "Linear probe on f (encoder), mean of 2 of 3 labels"
    assert any(note.startswith("Linear probe on f (encoder)") and "undefined: rare" in note for note in means.notes)
    assert "grade: mean of 2 of 3 classes; undefined: 2." in labels.notes


def test_retrieval__says_how_many_images_and_texts(folders: dict[str, Path]) -> None:
    sheet = next(sheet for sheet in sheets(_compared(**folders)) if sheet.name == "retrieval")
    n = json.loads((folders["a"] / "results.json").read_text())["retrieval"]["image_to_text"]["recall_at_1"]["n"]
    assert f"image → text, n {n:,}" in sheet.sections[0][0]
    assert any("20 bootstrap replicates" in note and "patients" in note for note in sheet.notes)
