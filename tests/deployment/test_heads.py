"""Heads that learn from labels: the scores of `evaluate`, and folders that are whole, or refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.special import expit, softmax

import maskedclip
from maskedclip.data.store import Store
from maskedclip.deployment.classifier import read_classifier, zero_shot_classifier
from maskedclip.deployment.heads import abstention_curve
from maskedclip.deployment.heads_fit import fit_head
from maskedclip.deployment.heads_saving import read_head, save_head
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.evaluation.calibration import platt
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.evaluation.probe import linear_heads, linear_probe
from maskedclip.evaluation.tasks import read_tasks
from tests.changed_weights import change_weights
from tests.deployment.classifier_case import labelled_store, linear_map, open_labelled

FEW = FineTuneSettings(epochs=2, head_start="probe", lr=0.02)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_labelled(labelled_store(tmp_path_factory.mktemp("heads") / "store"))


@pytest.fixture(scope="module")
def evaluated(trained_model: Model, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scores of the test rows as `evaluate` has them."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate(trained_model, store, out, protocols=["linear", "finetune", "lora"], replicates=2, finetune=FEW)
    return pq.read_table(out / "predictions.parquet").to_pandas()


@pytest.fixture(scope="module")
def linear(trained_model: Model, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linear") / "head"
    fit_head(trained_model, store).save(folder)
    return folder


def _scores(
    table: Any, store: Store, protocol: str, feature: str, label: str, value: str | None
) -> NDArray[np.float64]:
    chosen = table[(table.protocol == protocol) & (table.feature == feature) & (table.label == label)]
    chosen = chosen if value is None else chosen[chosen["class"] == value]
    ids = [store.ids[row] for row in np.flatnonzero(store.splits == "test")]
    return chosen.set_index("id").score[ids].to_numpy()


def _test_features(model: Model, store: Store) -> dict[str, NDArray]:
    return model.features(store, np.flatnonzero(store.splits == "test"))


@pytest.mark.parametrize("feature", ["encoder", "bridge"])
def test_linear__scores_are_those_of_evaluate(trained_model: Model, store: Store, evaluated: Any, feature: str) -> None:
    classifier = fit_head(trained_model, store, output=feature)
    assert classifier.labels == ("red", "green")
    scores = classifier.scores(_test_features(trained_model, store))
    for place, label in enumerate(classifier.labels):
        expected = _scores(evaluated, store, "linear", feature, label, None)
        assert expit(scores[:, place]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("label", "names"), [("colour", ["clear", "red and green"]), ("grade", ["grade=0", "grade=3"])]
)
def test_linear__several_classes(
    trained_model: Model, store: Store, evaluated: Any, label: str, names: list[str]
) -> None:
    classifier = fit_head(trained_model, store, labels=[label])
    assert classifier.kind == "exclusive"
    shares = softmax(classifier.scores(_test_features(trained_model, store)), axis=1)
    for name in names:
        expected = _scores(evaluated, store, "linear", "encoder", label, name.removeprefix("grade="))
        assert shares[:, classifier.labels.index(name)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("method", ["finetune", "lora"])
def test_finetuned__scores_are_those_of_evaluate_and_photographs_are_read(
    trained_model: Model, store: Store, evaluated: Any, tmp_path: Path, method: Any
) -> None:
    before = {name: value.clone() for name, value in trained_model.module.state_dict().items()}
    fit_head(trained_model, store, method=method, settings=FEW).save(tmp_path / "head")
    assert all(torch.equal(before[name], value) for name, value in trained_model.module.state_dict().items())
    classifier = read_classifier(tmp_path / "head", trained_model)
    test = np.flatnonzero(store.splits == "test")
    features = classifier.model.features(store, test)
    scores = classifier.scores(features)
    for place, label in enumerate(classifier.labels):
        expected = _scores(evaluated, store, method, "encoder", label, None)
        assert expit(scores[:, place]) == pytest.approx(expected, abs=1e-6)
    photographs = [bytes(store.image_bytes(row)) for row in test[:3].tolist()]
    assert classifier.classify(photographs) == classifier.answers({"encoder": features["encoder"][:3]})
    alone = read_classifier(tmp_path / "head", None)
    assert alone.classify(photographs) == classifier.classify(photographs)
    assert maskedclip.load(tmp_path / "head").fingerprint == alone.model.fingerprint  # type: ignore[attr-defined]


def test_finetuned__at_another_size(trained_model: Model, store: Store, tmp_path: Path) -> None:
    settings = FineTuneSettings(epochs=1, size=40, max_train=20)
    made = fit_head(trained_model, store, method="finetune", settings=settings)
    made.save(tmp_path / "head")
    again = read_classifier(tmp_path / "head", trained_model)
    assert again.model.preprocessing.size == 40
    rows = np.arange(5)
    given = again.probabilities(again.model.features(store, rows))
    assert given == pytest.approx(made.probabilities(made.model.features(store, rows)), abs=1e-7)
    change_weights(tmp_path / "head" / "model")  # the encoder of another head, of the same width
    with pytest.raises(UserError, match="another head's"):
        read_classifier(tmp_path / "head", trained_model)


def test_linear__calibrated_on_validation_rows_and_described(linear: Path, store: Store, trained_model: Model) -> None:
    described = json.loads((linear / "head.json").read_text())
    assert described["model"] == trained_model.fingerprint
    assert described["about"]["data"] == store.fingerprint
    assert described["about"]["rows"] == {"train": 64, "val": 64}
    red = described["about"]["calibration"]["labels"]["red"]
    assert red["n"] == 64
    assert red["positives"] == 32
    assert red["auroc"]["low"] <= red["auroc"]["value"] <= red["auroc"]["high"]
    assert 0 <= red["error_before"] <= 1
    assert 0 <= red["error_after"] <= 1
    classifier = read_classifier(linear, trained_model)
    assert classifier.calibrated
    val = store.splits == "val"
    scores = classifier.scores(trained_model.features(store, np.flatnonzero(val)))
    fit = platt(scores[:, 0], store.labels["red"][val].astype(int))
    assert not isinstance(fit, str)
    assert (classifier.head.slopes[0], classifier.head.intercepts[0]) == pytest.approx((fit.slope, fit.intercept))
    assert classifier.head.cuts == pytest.approx(np.log([0.5 / 0.5] * 2), abs=1e-9)  # half of the training rows


@pytest.mark.parametrize("absent", ["", "z", "y z"])
def test_linear_heads__logits_give_the_probabilities_of_linear_probe(absent: str) -> None:
    random = np.random.default_rng(7)
    x = random.normal(size=(240, 8)) * random.uniform(0.1, 10, 8) + 5
    x[:, 3] = 2.5  # a constant column
    words = np.array(["w", "x", "y", "z"], object)[np.argmax((x[:, 4:8] - 5) / x[:, 4:8].std(axis=0), axis=1)]
    splits = np.repeat(["train", "val", "test"], 80)
    words[(splits == "train") & np.isin(words, absent.split())] = None
    columns = {"word": words, "a": (x[:, 0] > 5).astype(np.float32), "none": np.zeros(240, np.float32)}
    columns["none"][200:] = 1  # not among the training rows
    tasks = read_tasks(columns)[0]
    patients = np.array([f"p{row // 2}" for row in range(240)], object)
    probed = linear_probe(x, tasks, splits, patients)
    heads = linear_heads(x, tasks, splits, patients)
    assert heads["none"] == probed["none"] == "the training split has one class only"
    test = x[splits == "test"]
    for name, value in heads.items():
        expected = probed[name]
        if isinstance(value, str) or isinstance(expected, str):
            continue
        logits = test @ value.weight.T + value.bias
        given = expit(logits[:, 0]) if name == "a" else softmax(logits, axis=1)
        wanted = expected.scores if name == "a" else expected.scores[:, list(value.present)]
        assert given == pytest.approx(wanted, abs=1e-9)
        assert value.c == expected.chosen
    word = heads["word"]
    assert not isinstance(word, str)
    assert len(word.present) == 4 - len(absent.split())


def test_fit__rows_of_more_splits_and_what_cannot_be(trained_model: Model, store: Store) -> None:
    assert fit_head(trained_model, store, splits=["train", "test"]).head.about["rows"] == {"train": 96, "val": 64}
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"splits": ["val"]}, "cannot be learnt from"),
        ({"splits": ["nothing"]}, "no split of the store; it has test, train, val"),
        ({"labels": ["drusen"]}, "no label of the store; it has red, green, colour, grade"),
        ({"labels": ["red", "grade"]}, "needs a head of its own"),
        ({"output": "nonsense"}, "none of this model's features"),
    ]
    for arguments, words in refusals:
        with pytest.raises(UserError, match=words):
            fit_head(trained_model, store, **arguments)


def test_fit__without_validation_rows(trained_model: Model, trained_store: Path) -> None:
    store = open_labelled(trained_store)
    store.splits[store.splits == "val"] = ""  # 32 training rows stay
    classifier = fit_head(trained_model, store)
    assert not classifier.calibrated
    assert "no validation rows" in classifier.head.about["note"]
    with pytest.raises(UserError, match="needs validation rows"):
        classifier.abstaining(0.1)


def test_read__refuses_another_models_head(linear: Path, trained_model: Model) -> None:
    other = trained_model.at_size(40)
    with pytest.raises(UserError, match=f"made for the model {trained_model.fingerprint}"):
        read_classifier(linear, other)
    with pytest.raises(UserError, match="give that model's run"):
        read_classifier(linear, None)


def _changed(folder: Path, **changes: Any) -> None:
    file = folder / "head.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_read__names_what_is_wrong(linear: Path, trained_model: Model, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return shutil.copytree(linear, tmp_path / name)

    _changed(damaged("later"), format=2)
    _changed(damaged("labels"), labels=["red"])
    _changed(damaged("kind"), kind="both")
    (damaged("cut") / "head.json").write_text("{")
    (damaged("empty") / "head.json").write_text("[]")
    (damaged("lost") / "head.safetensors").unlink()
    tensors = damaged("tensors") / "head.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    swapped = damaged("swapped") / "head.safetensors"
    parts = load_file(swapped)
    save_file(parts | {"weight": parts["weight"] + 1}, swapped)
    (tmp_path / "nothing").mkdir()
    for name, words in (
        ("later", "format 2, this version reads 1; update"),
        ("labels", "is damaged"),
        ("kind", "is damaged"),
        ("cut", "is damaged"),
        ("empty", "is damaged"),
        ("lost", "is missing"),
        ("tensors", "is damaged, or another head's"),
        ("swapped", "is damaged, or another head's"),
        ("nothing", "no saved head"),
        ("absent", "no saved head"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read_classifier(tmp_path / name, trained_model)
        assert "\n" not in str(caught.value)


def test_save__never_over_something(linear: Path, trained_model: Model, tmp_path: Path) -> None:
    classifier = read_classifier(linear, trained_model)
    with pytest.raises(UserError, match="exists"):
        classifier.save(linear)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        save_head(tmp_path / "file", classifier.head, trained_model, base=classifier.base)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UserError, match="cannot be written"):
        classifier.save(tmp_path / "file" / "head")


def test_recalibrated__head_keeps_its_scores(linear: Path, trained_model: Model, store: Store) -> None:
    before = read_classifier(linear, trained_model)
    after = before.with_calibration(store)
    features = _test_features(trained_model, store)
    assert np.array_equal(after.scores(features), before.scores(features))
    assert after.head.about["calibration"]["store"] == store.fingerprint
    assert after.calibrated


def test_zero_shot__refused_for_a_model_without_texts(trained_model: Model, store: Store) -> None:
    tuned = fit_head(trained_model, store, method="finetune", settings=FineTuneSettings(epochs=1, max_train=8))
    with pytest.raises(UserError, match="without texts"):
        zero_shot_classifier(tuned.model, ["red", "green"])


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_abstention_curve__against_counting(seed: int, rows: int, percent: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(rows, 3)).round(1)  # with ties
    truth = random.integers(0, 3, rows)
    head = linear_map("exclusive", 3)
    table = abstention_curve(head, scores, truth)
    sure = np.sort(softmax(scores, axis=1).max(axis=1))
    least = sure[int(percent / 100 * rows + 1e-9)]
    answered = softmax(scores, axis=1).max(axis=1) >= least
    assert table.coverages[0, percent] == pytest.approx(answered.mean())
    assert table.coverages[0, percent] >= 1 - percent / 100 - 1e-9
    assert table.accuracies[0, percent] == pytest.approx((scores.argmax(axis=1) == truth)[answered].mean())


def test_abstention_curve__unknown_truths_do_not_count() -> None:
    scores = np.array([[2.0, -1.0], [-1.5, 0.5], [0.1, 3.0], [1.0, -3.0]])
    truth = np.array([[1, 0], [0, -1], [0, 1], [-1, 0]])
    table = abstention_curve(linear_map("independent", 2), scores, truth)
    assert table.coverages[:, 0] == pytest.approx([1, 1])
    assert table.accuracies[:, 0] == pytest.approx([(1 + 0.5) / 2, 1])  # row 2 is called l0, and is not
    assert table.accuracies[0, 40] == pytest.approx(1)  # the least certain of three rows is left undecided
    assert table.coverages[0, 40] == pytest.approx(2 / 3)
    assert np.isnan(table.accuracies[0, 99])  # one row of one class: no balanced accuracy


@pytest.mark.parametrize(
    ("field", "value"), [("labels", "ab"), ("labels", ["red", "red"]), ("calibrated", ["false", "false"])]
)
def test_read__refuses_what_no_head_says(linear: Path, tmp_path: Path, field: str, value: Any) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(linear, hostile)
    about = json.loads((hostile / "head.json").read_text())
    (hostile / "head.json").write_text(json.dumps({**about, field: value}))
    with pytest.raises(UserError, match="damaged"):
        read_head(hostile)
    (hostile / "head.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="damaged"):
        read_head(hostile)


def test_abstain__is_rounded_before_its_range_is_checked(linear: Path) -> None:
    head = read_head(linear).head
    with pytest.raises(UserError, match="outside"):
        head.abstaining(0.996)


def test_save__leaves_a_users_partial_folder_alone(linear: Path, trained_model: Model, tmp_path: Path) -> None:
    mine = tmp_path / "head.partial" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    saved = read_head(linear)
    save_head(tmp_path / "head", saved.head, trained_model, base=saved.base)
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head", "head.partial"]
