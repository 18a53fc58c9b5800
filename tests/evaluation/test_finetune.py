"""Fine-tuning learns what is there to learn, repeats bit for bit, and never looks at a test row before the end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskedclip.data.store import Store
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.evaluation import finetune
from maskedclip.evaluation.finetune import FineTuning, fine_tune, lr_factor
from maskedclip.evaluation.finetune_labels import Labels
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.evaluation.probe import linear_probe
from maskedclip.evaluation.selection import ranking_quality
from maskedclip.evaluation.tasks import UNKNOWN, Prediction, Task
from tests.evaluation.finetune_case import all_rows, make_model, open_case, settings, spots

Case = tuple[Model, Store, dict[str, Task]]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_model(), *open_case(tmp_path_factory.mktemp("finetune") / "store")


def _run(case: Case, tasks: dict[str, Task], chosen: FineTuneSettings, **changes: Any) -> FineTuning:
    model, store, _ = case
    given = {"rows": all_rows(store), "splits": store.splits, "seed": 0} | changes
    return fine_tune(model, given.pop("store", store), tasks, settings=chosen, **given)


def _scores(tuned: FineTuning, name: str) -> np.ndarray:
    answer = tuned.answers[name]
    assert isinstance(answer, Prediction), answer
    return answer.scores


def _timeless(tuned: FineTuning) -> list[dict[str, Any]]:
    return [record | {"seconds": None} for record in tuned.records]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fine_tune__repeats_bitwise_and_leaves_the_model_alone(case: Case, method: Any) -> None:
    if method == "lora":
        pytest.importorskip("peft")
    model, _, tasks = case
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    trainable = [value.requires_grad for value in model.module.parameters()]
    structure, noise = str(model.module), torch.get_rng_state()
    chosen = settings(method=method, lora_dropout=0.1, class_weighting="sampler")
    first, second = (_run(case, tasks, chosen) for _ in range(2))
    other = _run(case, tasks, chosen, seed=1)
    for name in tasks:
        assert np.array_equal(_scores(first, name), _scores(second, name))
        assert not np.array_equal(_scores(first, name), _scores(other, name))
    assert _timeless(first) == _timeless(second)
    after = model.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [value.requires_grad for value in model.module.parameters()] == trainable
    assert str(model.module) == structure
    assert torch.equal(torch.get_rng_state(), noise)


def test_fine_tune__learns_a_spot_that_the_untouched_encoder_hardly_shows(tmp_path: Path) -> None:
    model, (store, _) = make_model(), open_case(tmp_path / "store", rows=240)
    pictures, green = spots(240)
    store.decoded = pictures  # type: ignore[assignment]
    task = {"green": Task(name="green", kind="binary", classes=(0, 1), truth=green)}
    rows, test = all_rows(store), store.splits == "test"
    probed = linear_probe(model.features(store, rows)["encoder"], task, store.splits, store.patients)["green"]
    chosen = FineTuneSettings(epochs=20, lr=2e-2, layer_decay=1.0, drop_path=0.0, crop_scale=(0.8, 1.0))
    tuned = fine_tune(model, store, task, rows, store.splits, chosen)
    assert isinstance(probed, Prediction)
    floor = ranking_quality(task["green"].on(test), probed.scores)
    learnt = ranking_quality(task["green"].on(test), _scores(tuned, "green"))
    assert learnt > 0.95
    assert learnt > floor + 0.2


@pytest.mark.parametrize("name", ["green", "kind"])
def test_fine_tune__head_starts_at_a_probe(case: Case, name: str) -> None:
    """With a learning rate of next to nothing the network is the probe of the untouched features."""
    model, store, tasks = case
    task, test = tasks[name], store.splits == "test"
    chosen = settings(lr=1e-12, epochs=1, head_start="probe")
    scores = _scores(_run(case, {name: task}, chosen), name)
    pooled = torch.from_numpy(model.features(store, all_rows(store))["encoder"])
    features = torch.nn.functional.layer_norm(pooled, (48,), eps=1e-6).numpy()
    labels = Labels([task], store.splits == "train", chosen)
    weights, biases = labels.probe(features[labels.places])
    assert scores == pytest.approx(labels.scores(features[test] @ weights.T + biases)[0], abs=1e-4)
    assert scores.std(axis=0).max() > 0.01


def test_fine_tune__one_network_for_all_binary_labels_one_for_each_other(case: Case) -> None:
    _, store, tasks = case
    tuned = _run(case, tasks, settings())
    assert [record["labels"] for record in tuned.records] == [["red", "green"], ["kind"]]
    assert list(tuned.answers) == list(tasks)
    test = int((store.splits == "test").sum())
    assert _scores(tuned, "red").shape == (test,)
    assert _scores(tuned, "kind").shape == (test, 4)
    assert _scores(tuned, "kind").sum(axis=1) == pytest.approx(1)
    record = tuned.records[0]
    assert record["train_images"] == int((store.splits == "train").sum())
    assert record["trainable_parameters"] == record["parameters"]
    assert record["learning_rates"]["head"] == pytest.approx(5e-3 * 8 / 256)
    assert len(record["validation_auroc"]) == len(record["train_loss"]) == record["epochs"] == 2


def test_fine_tune__the_best_validation_epoch_answers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store, tasks = case
    seen: list[np.ndarray] = []

    def quality(self: Labels, logits: np.ndarray, rows: np.ndarray) -> float:
        seen.append(self.scores(logits)[0])
        return [0.5, 0.9, 0.9, 0.7][len(seen) - 1]

    monkeypatch.setattr(Labels, "quality", quality)
    # The validation images once more as test rows: their predictions tell which epoch's weights answer.
    validation = np.flatnonzero(store.splits == "val")
    rows = np.concatenate([np.flatnonzero(store.splits == "train"), validation, validation])
    splits = np.repeat(["train", "val", "test"], [len(rows) - 2 * len(validation), len(validation), len(validation)])
    task = {"red": tasks["red"].on(rows)}
    tuned = _run(case, task, settings(epochs=4), rows=rows, splits=splits)
    assert tuned.records[0]["best_epoch"] == 2  # the first of equals
    assert tuned.records[0]["epochs"] == 4
    assert np.array_equal(_scores(tuned, "red"), seen[1])
    assert not np.array_equal(seen[1], seen[3])
    seen.clear()
    patient = _run(case, task, settings(epochs=4, patience=1), rows=rows, splits=splits)
    assert patient.records[0]["epochs"] == 3
    assert np.array_equal(_scores(patient, "red"), _scores(tuned, "red"))


class _Altered(Store):
    """Every test picture is another, and reading one before `allowed` is an error."""

    allowed = False

    def image(self, row: int) -> torch.Tensor:
        if self.splits[row] != "test":
            return super().image(row)
        assert self.allowed, "a test row was read while there was something to choose"
        return 255 - super().image(row)


def test_fine_tune__test_rows_choose_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store, tasks = case
    task = tasks["green"]
    flipped = replace(task, truth=np.where(store.splits == "test", 1 - task.truth, task.truth))
    other = _Altered(store.folders)
    original = finetune._Run.answers

    def answers(self: finetune._Run) -> dict[str, Prediction]:
        other.allowed = True
        return original(self)

    monkeypatch.setattr(finetune._Run, "answers", answers)
    plain = _run(case, {"green": task}, settings(epochs=3))
    altered = _run(case, {"green": flipped}, settings(epochs=3, decoded_cache="off"), store=other)
    assert _timeless(plain) == _timeless(altered)
    assert None not in plain.records[0]["validation_auroc"]
    assert not np.array_equal(_scores(plain, "green"), _scores(altered, "green"))  # other pictures, other predictions


def test_fine_tune__without_validation_rows_the_last_epoch_answers(case: Case) -> None:
    _, store, tasks = case
    splits = np.where(store.splits == "val", "", store.splits)
    record = _run(case, {"red": tasks["red"]}, settings(patience=1), splits=splits).records[0]
    assert (record["epochs"], record["best_epoch"]) == (2, 2)
    assert record["validation_auroc"] == [None, None]
    assert record["best_epoch_by"] == "the last one: no validation row of each class"


def test_fine_tune__what_cannot_be_learnt_says_why(case: Case) -> None:
    _, store, tasks = case
    train = np.flatnonzero(store.splits == "train")
    few, unknown, single = (tasks["red"].truth.copy() for _ in range(3))
    few[train[3:]], unknown[train], single[train] = UNKNOWN, UNKNOWN, 1
    given = {"few": few, "unknown": unknown, "single": single}
    columns = {name: replace(tasks["red"], name=name, truth=truth) for name, truth in given.items()}
    tuned = _run(case, columns, settings())
    assert tuned.records == []
    assert tuned.answers == {
        "few": "the training split has 3 images with a known value; fine-tuning needs 4",
        "unknown": "the training split has no known value",
        "single": "the training split has one class only",
    }


def test_fine_tune__a_class_without_training_rows_has_no_score(case: Case) -> None:
    _, store, tasks = case
    kind = tasks["kind"]
    truth = np.where((store.splits == "train") & (kind.truth == 1), UNKNOWN, kind.truth)
    answer = _run(case, {"kind": replace(kind, truth=truth)}, settings()).answers["kind"]
    assert isinstance(answer, Prediction)
    assert np.isnan(answer.scores).all(axis=0).tolist() == [False, True, False, False]
    assert 1 not in answer.predicted


def test_fine_tune__skips_a_bad_step_and_ends_when_all_are_bad(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # P1
    _, _, tasks = case
    original, bad = Labels.loss, {1}
    called: list[int] = []

    def loss(self: Labels, logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        called.append(len(called))
        return original(self, logits, places) * (float("nan") if called[-1] in bad else 1.0)

    monkeypatch.setattr(Labels, "loss", loss)
    red = {"red": tasks["red"]}
    tuned = _run(case, red, settings())
    assert tuned.records[0]["skipped_steps"] == 1
    assert "step 1 skipped: not finite (loss nan" in capsys.readouterr().err
    assert np.isfinite(_scores(tuned, "red")).all()
    called.clear()
    bad.update(range(100))
    with pytest.raises(UserError, match=r"red diverged: none of its 8 steps was finite; give less than 0.005"):
        _run(case, red, settings())
    called.clear()
    with pytest.raises(UserError, match="red diverged: 3 steps were not finite"):
        _run(case, red, settings(max_bad_steps=2))


def test_fine_tune__diverged_weights_are_an_error_not_a_score(case: Case) -> None:
    with pytest.raises(UserError, match="diverged") as caught:
        _run(case, {"red": case[2]["red"]}, settings(lr=1e30, warmup=0.0))
    assert "\n" not in str(caught.value)


def test_fine_tune__another_size_and_part_of_the_patients(case: Case) -> None:
    _, _, tasks = case
    tuned = _run(case, {"red": tasks["red"]}, settings(size=48, max_train=21, epochs=1))
    assert tuned.records[0]["train_images"] == 20  # ten patients of two images
    with pytest.raises(UserError, match=r"finetune.size: 50 is no multiple of the encoder's 8 px patches; give 48"):
        _run(case, {"red": tasks["red"]}, settings(size=50))


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (30, 0.5), (49, 0.0015413331334360182)]
)
def test_lr_factor__warm_up_then_cosine(step: int, expected: float) -> None:
    assert lr_factor(step, 50, 0.2) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("lr", 0.0), ("layer_decay", 0.0), ("warmup", 1.0), ("crop_scale", (0.5, 0.2)), ("patience", -1)],
)
def test_settings__say_what_is_wrong(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"finetune.{field}"):
        FineTuneSettings(**{field: value})
