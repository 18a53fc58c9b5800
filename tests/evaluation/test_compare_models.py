import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from maskedclip.errors import UserError
from maskedclip.evaluation.compare_models import Comparison, compare_models
from maskedclip.evaluation.compare_read import rank_table, read_predictions
from maskedclip.evaluation.compare_sheets import sheets
from maskedclip.evaluation.delong import delong_difference
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.holm import holm
from tests.evaluation.compare_case import MODEL, STORE, blurred, evaluated, rewritten
from tests.evaluation.stand_ins import changed

MACRO = ("linear", "encoder", "macro")
RECALLS = ("recall_at_1", "recall_at_5", "recall_at_10")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    root = tmp_path_factory.mktemp("models")
    models = {"clear": MODEL, "blurred": blurred(2.0), "blind": blurred(2.0, 5, text=False)}
    return {name: [evaluated(model, root / name)] for name, model in models.items()}


@pytest.fixture(scope="module")
def compared(folders: dict[str, list[Path]]) -> Comparison:
    return compare_models(folders, "blurred", replicates=20)


def test_compare_models__other_metrics_are_those_of_the_results(
    folders: dict[str, list[Path]], compared: Comparison
) -> None:
    results = json.loads((folders["clear"][0] / "results.json").read_text())["linear"]["encoder"]["macro"]
    for metric in ("auroc", "auprc", "balanced_accuracy"):
        estimate = compared.value("clear", MACRO, metric)
        assert estimate is not None
        assert estimate.to_json() == pytest.approx(results[metric])
    assert compared.difference("blurred", MACRO) is None
    difference = compared.difference("clear", MACRO)
    assert difference is not None
    assert difference.low > 0


def test_compare_models__delong_by_label_and_holm_over_the_labels(
    folders: dict[str, list[Path]], compared: Comparison
) -> None:
    first, second = (read_predictions(folders[name][0]) for name in ("clear", "blurred"))
    p_values = []
    for label in ("glaucoma", "drusen", "normal"):
        a, b = (part.scores["linear", "encoder", label][None] for part in (first, second))
        p_values.append(delong_difference(a.truth, a.score, b.score, clusters=first.patients[a.rows]).p_value)
    tests = compared.tests["clear"]
    found = [tests["linear", "encoder", label] for label in ("glaucoma", "drusen", "normal")]
    assert [test.p_value for test in found] == pytest.approx(p_values)
    assert [test.corrected for test in found] == pytest.approx(holm(p_values))
    assert ("linear", "encoder", "dr_grade") not in tests  # several classes
    assert ("zero_shot", "projected", "drusen") not in compared.tests["blind"]
    assert set(compared.tests) == {"clear", "blind"}


def test_compare_models__an_undefined_label_stays_out_of_the_correction(tmp_path: Path) -> None:
    labels = {name: STORE.labels[name] for name in ("glaucoma", "drusen")}
    rare = np.where(STORE.splits == "test", 0, STORE.labels["normal"]).astype(np.float32)
    store = changed(STORE, labels={**labels, "rare": rare})
    folders = {name: [evaluated(model, tmp_path / name, store)] for name, model in (("a", MODEL), ("b", blurred(2.0)))}
    compared = compare_models(folders, "b", replicates=20)
    tests = {key[2]: test for key, test in compared.tests["a"].items() if key[:2] == ("linear", "encoder")}
    assert tests["rare"].to_json() == {"p_value": None, "corrected": None}
    smallest = min(tests[name].p_value for name in labels)
    assert min(tests[name].corrected for name in labels) == pytest.approx(min(2 * smallest, 1))
    json.dumps(compared.to_json(), allow_nan=False)
    some = compare_models(folders, "b", protocols=["knn"], replicates=20)
    assert {key[0] for key in some.tests["a"]} == {"knn"}


def test_compare_models__what_is_missing_is_said_with_its_reason(compared: Comparison) -> None:
    assert list(compared.missing) == [
        "blind has no Linear probe on g(f) (bridge); no k-NN on g(f) (bridge): the model has no such feature",
        "blind has no Zero-shot, text prompts; no retrieval, image → text; no retrieval, image → text, mean over the "
        "texts; no retrieval, text → image: the model has "
        "no text encoder",
    ]


def test_compare_models__what_was_not_evaluated_is_said(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    evaluate(blurred(1.0), STORE, tmp_path / "knn", protocols=["knn"], replicates=20)
    compared = compare_models({"clear": folders["clear"], "knn": [tmp_path / "knn"]}, "clear", replicates=20)
    assert len(compared.missing) == 1
    assert compared.missing[0].startswith("knn has no Linear probe on f (encoder); no Linear probe on g(f)")
    assert compared.missing[0].endswith(": not evaluated")


def test_compare_models__a_label_that_one_lacks_is_said(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    store = changed(STORE, labels={name: column for name, column in STORE.labels.items() if name != "drusen"})
    other = evaluated(blurred(1.0), tmp_path / "other", store)
    compared = compare_models({"clear": folders["clear"], "other": [other]}, "clear", replicates=20)
    assert "other has no Linear probe on f (encoder) for drusen" in compared.missing
    # The means in results.json are over other labels, so only those of the scores, over the common ones, are told.
    assert compared.value("clear", MACRO, "balanced_accuracy") is None
    value = compared.value("clear", MACRO)
    assert value is not None
    assert value.note == "mean of 4 labels"


def test_compare_models__recall_with_and_without_ranks(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    key = ("retrieval", "image_to_text", "recall_at_5")
    copies = {name: [rewritten(folders[name][0], tmp_path / f"{name}-plain")] for name in ("clear", "blurred")}
    plain = compare_models(copies, "blurred", replicates=20)
    recall = json.loads((folders["clear"][0] / "results.json").read_text())["retrieval"]["image_to_text"]["recall_at_5"]
    value = plain.value("clear", key, "recall")
    assert value is not None
    assert (value.value, value.low) == (recall["value"], recall["low"])
    assert plain.difference("clear", key) is None
    assert plain.chance[key] == recall["chance"]
    assert plain.fixed_order[key] == recall["fixed_order"]
    heading = f"commonest first {', '.join(f'{plain.fixed_order[(*key[:2], name)]:.3f}' for name in RECALLS)}"
    assert any(heading in section for sheet in sheets(plain) for section, _ in sheet.sections)
    kept = {}
    for name, ranks in (("clear", [1, 1, 2, 3]), ("blurred", [1, 9, 2, 30])):
        kept[name] = [rewritten(folders[name][0], tmp_path / name)]
        table = rank_table(np.array(ranks), np.array([1]), list("wxyz"), list("pqrs"), ["text"], np.zeros(4, int))
        pq.write_table(table, kept[name][0] / "retrieval.parquet")
    paired = compare_models(kept, "blurred", replicates=200)
    difference = paired.difference("clear", key)
    assert difference is not None
    assert difference.value == pytest.approx(0.5)
    written = paired.to_json()
    assert written["chance"]["image_to_text"]["recall_at_5"] == recall["chance"]
    assert written["fixed_order"]["image_to_text"]["recall_at_5"] == recall["fixed_order"]
    assert written["differences"]["clear"]["retrieval"]["image_to_text"]["recall_at_5"]["value"] == pytest.approx(0.5)
    assert written["values"]["clear"]["retrieval"]["image_to_text"]["recall_at_5"]["value"] == pytest.approx(1)


def test_compare_models__seeds_have_means_and_no_tests(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    second = evaluated(blurred(2.0, 9), tmp_path / "second")
    groups = {"clear": folders["clear"], "blurred": [*folders["blurred"], second]}
    compared = compare_models(groups, "clear", replicates=20)
    assert compared.tests == {"blurred": {}}
    accuracy = compared.value("blurred", MACRO, "balanced_accuracy")
    assert accuracy is not None
    assert np.isnan(accuracy.low)
    assert accuracy.note.startswith("mean of 2 seeds, 0.")
    assert compared.to_json()["models"]["blurred"]["seeds"] == 2


def test_compare_models__protocols_of_any_depth_are_told(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    """Few-shot results lie one level deeper, by shots, and keep no scores: values without paired differences."""
    copies = {}
    for name in ("clear", "blurred"):
        copy = rewritten(folders[name][0], tmp_path / name)
        results = json.loads((copy / "results.json").read_text())
        part = {"macro": {"auroc": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 9}}, "per_label": {}}
        results["fewshot"] = {"encoder": {"1": part, "5": part}}
        (copy / "results.json").write_text(json.dumps(results))
        copies[name] = [copy]
    compared = compare_models(copies, "clear", replicates=20)
    assert ("fewshot", "encoder, 5") in compared.sections
    value = compared.value("blurred", ("fewshot", "encoder, 5", "macro"))
    assert value is not None
    assert value.value == 0.7
    assert compared.difference("blurred", ("fewshot", "encoder, 5", "macro")) is None
    assert compared.missing == []


def test_compare_models__faults(folders: dict[str, list[Path]], tmp_path: Path) -> None:
    pair = {name: folders[name] for name in ("clear", "blurred")}
    with pytest.raises(UserError, match="no evaluation has finetune"):
        compare_models(pair, "clear", protocols=["linear", "finetune"])
    labels = {"other": STORE.labels["drusen"]}
    only = evaluated(blurred(1.0, text=False), tmp_path / "only", changed(STORE, labels=labels))
    with pytest.raises(UserError, match="no protocol, feature and label in common; evaluate both alike"):
        compare_models({"only": [only], "blind": folders["blind"]}, "blind")
    copy = tmp_path / "copy"
    shutil.copytree(folders["clear"][0], copy)
    results = json.loads((copy / "results.json").read_text())
    del results["retrieval"]["image_to_text"]["recall_at_1"]
    (copy / "results.json").write_text(json.dumps(results))
    with pytest.raises(UserError, match=r"results\.json: is damaged \(KeyError: 'recall_at_1'\)"):
        compare_models({"copy": [copy], "blurred": folders["blurred"]}, "copy")
