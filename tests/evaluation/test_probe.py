import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from maskedclip.evaluation.probe import GRID, linear_probe, score_paths, standardise
from maskedclip.evaluation.tasks import Prediction, Task, read_tasks

N = 360


def _set(seed: int = 0) -> tuple[NDArray, dict[str, Task], NDArray, NDArray]:
    generator = np.random.Generator(np.random.Philox(seed))
    x = generator.normal(size=(N, 12)) * generator.uniform(0.1, 10, 12) + 5
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    labels = {
        "a": (z[:, 0] + generator.normal(size=N) > 0).astype(np.float32),
        "b": (z[:, 1] + generator.normal(size=N) > 1.2).astype(np.float32),
        "grade": np.clip(np.round(z[:, 2] + 0.7 * generator.normal(size=N) + 1), 0, 3).astype(np.float32),
        "word": np.array(["x", "y", "z"], dtype=object)[np.argmax(z[:, 3:6] + generator.normal(size=(N, 3)), axis=1)],
    }
    labels["a"][::7] = np.nan
    splits = np.repeat(["train", "val", "test"], N // 3)
    patients = np.array([f"p{row // 2}" for row in range(N)], dtype=object)
    return x, read_tasks(labels)[0], splits, patients


def _given(answer: Prediction | str) -> Prediction:
    assert isinstance(answer, Prediction)
    return answer


def test_linear_probe__equals_scikit_learn_at_the_chosen_c() -> None:
    x, tasks, splits, patients = _set()
    answers = linear_probe(x, tasks, splits, patients)
    train, test = splits == "train", splits == "test"
    z = (x - x[train].mean(axis=0)) / x[train].std(axis=0)
    for name, task in tasks.items():
        answer = _given(answers[name])
        assert answer.chosen in GRID
        rows = train & task.known
        model = LogisticRegression(C=answer.chosen, tol=1e-10, max_iter=50_000).fit(z[rows], task.truth[rows])
        expected = model.predict_proba(z[test])
        assert answer.scores == pytest.approx(expected[:, 1] if task.kind == "binary" else expected, abs=1e-5)


def test_linear_probe__c_is_the_best_on_validation() -> None:  # P32
    x, tasks, splits, patients = _set()
    train, validation = splits == "train", splits == "val"
    z = standardise(x, train)
    quality = []
    for c in GRID:
        parts = []
        for name in ("a", "b"):
            rows, held = train & tasks[name].known, validation & tasks[name].known
            model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(z[rows], tasks[name].truth[rows])
            parts.append(roc_auc_score(tasks[name].truth[held], model.predict_proba(z[held])[:, 1]))
        quality.append(np.mean(parts))
    answers = linear_probe(x, tasks, splits, patients)
    assert _given(answers["a"]).chosen == _given(answers["b"]).chosen == GRID[int(np.argmax(quality))]


def test_linear_probe__test_rows_change_neither_fit_nor_choice() -> None:
    x, tasks, splits, patients = _set()
    before = linear_probe(x, tasks, splits, patients)
    spoilt = {
        name: Task(
            name=name,
            kind=task.kind,
            classes=task.classes,
            truth=np.where(splits == "test", (task.truth + 1) % len(task.classes), task.truth),
        )
        for name, task in tasks.items()
    }
    moved = x.copy()
    moved[np.flatnonzero(splits == "test")[1:]] += 100.0  # the first test row keeps its features, and its scores
    after = linear_probe(moved, spoilt, splits, patients)
    for name in tasks:
        assert _given(before[name]).chosen == _given(after[name]).chosen
        assert (_given(before[name]).scores[0] == _given(after[name]).scores[0]).all()


def test_linear_probe__without_validation_by_folds_of_patients() -> None:
    x, tasks, splits, patients = _set()
    splits = np.where(splits == "val", "train", splits)
    answers = linear_probe(x, tasks, splits, patients, seed=1)
    again = linear_probe(x, tasks, splits, patients, seed=1)
    for name in tasks:
        assert _given(answers[name]).chosen in GRID[2:]  # the labels can be learnt: not the strongest shrinkage
        assert (_given(answers[name]).scores == _given(again[name]).scores).all()


def test_linear_probe__folds_keep_patients_whole() -> None:
    """Each patient's rows are copies with a label of its own: only folds that split patients could learn it."""
    generator = np.random.Generator(np.random.Philox(9))
    codes = np.repeat(np.arange(60), 4)
    x = generator.normal(size=(60, 80))[codes] + 0.01 * generator.normal(size=(240, 80))
    truth = (generator.random(60) < 0.5)[codes].astype(np.float32)
    splits = np.where(np.arange(240) < 200, "train", "test")
    patients = codes.astype(str).astype(object)
    tasks, _ = read_tasks({"a": truth})
    whole = _given(linear_probe(x, tasks, splits, patients)["a"]).chosen
    leaking = _given(linear_probe(x, tasks, splits, np.full(240, "", dtype=object))["a"]).chosen
    assert whole != leaking


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "the training split has one class only"), (np.nan, "the training split has no known")]
)
def test_linear_probe__what_cannot_be_learnt_says_why(value: float, reason: str) -> None:
    x, tasks, splits, patients = _set()
    truth = np.where(splits == "train", value, np.arange(N) % 2).astype(np.float32)
    answers = linear_probe(x, read_tasks({"c": truth})[0] | {"a": tasks["a"]}, splits, patients)
    assert str(answers["c"]).startswith(reason)
    assert isinstance(answers["a"], Prediction)


def test_linear_probe__one_patient_and_no_validation_says_why() -> None:
    x, tasks, splits, _ = _set()
    splits = np.where(splits == "val", "", splits)
    answers = linear_probe(x, {"a": tasks["a"]}, splits, np.full(N, "one", dtype=object))
    assert "too few training patients" in str(answers["a"])


def test_linear_probe__class_without_training_rows_has_no_score() -> None:
    x, tasks, splits, patients = _set()
    grade = tasks["grade"]
    kept = np.where((splits == "train") & (grade.truth == 3), -1, grade.truth)
    task = Task(name="grade", kind="ordinal", classes=grade.classes, truth=kept)
    answer = _given(linear_probe(x, {"grade": task}, splits, patients)["grade"])
    assert np.isnan(answer.scores[:, 3]).all()
    assert answer.scores[:, :3].sum(axis=1) == pytest.approx(1)
    assert (answer.predicted < 3).all()


def test_score_paths__equals_scikit_learn_at_each_c() -> None:
    """Correlated as a network's features are, also without a warm start and at a tighter tolerance."""
    generator = np.random.Generator(np.random.Philox(5))
    mix = generator.normal(size=(40, 40)) / np.arange(1, 41)[:, None]
    x = standardise(generator.normal(size=(300, 40)) @ mix, np.ones(300, dtype=bool))
    noisy = x[:, 0] + generator.normal(size=300)
    labels = {"rare": (noisy > 2).astype(np.float32), "grade": np.digitize(noisy, [-1, 0, 1]).astype(np.float32)}
    labels["rare"][:50] = np.nan
    tasks = list(read_tasks(labels)[0].values())
    train, query = np.arange(300) < 200, np.arange(200, 300)
    for task, path in zip(tasks, score_paths(x, tasks, train, query, GRID), strict=True):
        rows = train & task.known
        for c, scores in zip(GRID, path, strict=True):
            model = LogisticRegression(C=c, tol=1e-10, max_iter=50_000).fit(x[rows], task.truth[rows])
            expected = model.predict_proba(x[query])
            assert scores == pytest.approx(expected[:, 1] if task.kind == "binary" else expected, abs=1e-5)


@pytest.mark.parametrize("spread", [0.0, 1.0])  # 0: the features of a collapsed model
def test_score_paths__warns_of_nothing(spread: float) -> None:
    generator = np.random.Generator(np.random.Philox(6))
    x = spread * np.repeat(generator.normal(size=(60, 15)), 2, axis=1)  # each column twice
    place = np.arange(60, dtype=np.float32)
    x[:, :2] += 5 * spread * (place[:, None] >= 30)  # and one label separable
    labels = {f"{count}": (place < count).astype(np.float32) for count in range(3, 31, 3)} | {"grade": place % 3}
    tasks = list(read_tasks(labels)[0].values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = score_paths(x, tasks, np.ones(60, dtype=bool), np.arange(60), GRID)
    for task, path in zip(tasks, paths, strict=True):
        if not spread:
            share = np.bincount(task.truth) / 60
            assert path == pytest.approx(np.full(path.shape, share[1] if task.kind == "binary" else share), abs=1e-4)


def test_standardise__constant_columns_become_zero() -> None:
    x = np.stack([np.full(9, 0.1, np.float32), np.arange(9, dtype=np.float32)], axis=1)
    z = standardise(x, np.arange(9) < 6)
    assert (z[:, 0] == 0).all()
    assert z[:6, 1].std() == pytest.approx(1)
