import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from maskedclip.evaluation.few_shot import REGULARISATION, draw_shots, few_shot, shot_predictions
from maskedclip.evaluation.probe import standardise
from maskedclip.evaluation.statistics import cluster_codes, cluster_weights
from maskedclip.evaluation.tasks import Task, read_tasks
from tests.evaluation.stand_ins import make_case


def _case() -> tuple:
    store, model = make_case(patients=150)
    tasks, _ = read_tasks(store.labels)
    weights = cluster_weights(store.patients[store.splits == "test"], replicates=100)
    return model.tables["encoder"], tasks, store.splits, store.patients, weights


def test_few_shot__equals_scikit_learn_draw_by_draw() -> None:
    x, tasks, splits, patients, weights = _case()
    result = few_shot(x, tasks, splits, patients, weights, ks=[5], draws=4, seed=3).section["5"]
    train, test = splits == "train", splits == "test"
    z, codes = standardise(x, train), cluster_codes(patients)
    for name in ("glaucoma", "dr_grade"):
        task, values = tasks[name], []
        for draw in range(4):
            shots = draw_shots(task, train, codes, 5, seed=3, draw=draw)
            model = LogisticRegression(C=REGULARISATION / x.shape[1], tol=1e-10, max_iter=10_000)
            scores = model.fit(z[shots], task.truth[shots]).predict_proba(z[test])
            if name == "glaucoma":
                values.append(roc_auc_score(task.truth[test], scores[:, 1]))
            else:
                values.append(roc_auc_score(task.truth[test], scores, multi_class="ovr"))
        entry = result["per_label"][name]["auroc"]
        assert entry["value"] == pytest.approx(np.mean(values), abs=1e-3)
        assert entry["spread"] == pytest.approx(np.std(values, ddof=1), abs=1e-3)
        assert entry["low"] < entry["value"] < entry["high"]


def test_few_shot__more_shots_tell_more() -> None:
    x, tasks, splits, patients, weights = _case()
    result = few_shot(x, tasks, splits, patients, weights).section
    assert list(result) == ["1", "5", "10", "20"]
    values = [result[k]["macro"]["auroc"]["value"] for k in result]
    assert values == sorted(values)
    assert values[0] < values[-1] - 0.05
    assert all(result[k]["macro"]["auroc"]["draws"] == 10 for k in result)
    json.dumps(result, allow_nan=False)


def test_few_shot__too_few_images_of_a_class_are_undefined_with_n() -> None:
    x, tasks, splits, patients, weights = _case()
    truth = tasks["drusen"].truth.copy()
    positives = np.flatnonzero((truth == 1) & (splits == "train"))
    truth[positives[3:]] = -1
    tasks = {"drusen": Task(name="drusen", kind="binary", classes=(0, 1), truth=truth), "normal": tasks["normal"]}
    result = few_shot(x, tasks, splits, patients, weights, ks=[1, 5], draws=2).section
    n = int((tasks["drusen"].known & (splits == "test")).sum())
    assert result["1"]["per_label"]["drusen"]["auroc"]["value"] is not None
    entry = result["5"]["per_label"]["drusen"]["auroc"]
    assert entry["value"] is None
    assert entry["note"] == f"undefined (n={n}, 5 training images of each class are needed, class 1 has 3)"
    assert result["5"]["macro"]["auroc"]["note"] == "mean of 1 of 2 labels; undefined: drusen"


def test_few_shot__without_training_rows_says_so() -> None:
    x, tasks, splits, patients, weights = _case()
    result = few_shot(x, tasks, np.where(splits == "train", "", splits), patients, weights, ks=[1], draws=2).section[
        "1"
    ]
    assert result["macro"]["auroc"]["value"] is None
    assert "the training split has no known value" in result["per_label"]["normal"]["auroc"]["note"]


def test_few_shot__validation_and_test_labels_change_nothing_but_the_score() -> None:  # P32
    x, tasks, splits, patients, _ = _case()
    z, codes, train = standardise(x, splits == "train"), cluster_codes(patients), splits == "train"
    task = tasks["glaucoma"]
    turned = Task(name="glaucoma", kind="binary", classes=(0, 1), truth=np.where(train, task.truth, 1 - task.truth))
    shots = [draw_shots(entry, train, codes, 5, seed=0, draw=0) for entry in (task, turned)]
    assert (shots[0] == shots[1]).all()
    scores = [shot_predictions(z, entry, shots[0][None], z[splits == "test"])[0].scores for entry in (task, turned)]
    assert (scores[0] == scores[1]).all()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(2, 4), st.integers(0, 3))
def test_draw_shots__k_known_training_rows_of_each_class(seed: int, k: int, classes: int, draw: int) -> None:
    task, train, patients = _random_task(seed, k, classes)
    shots = draw_shots(task, train, patients, k, seed=seed, draw=draw)
    assert len(set(shots.tolist())) == k * classes
    assert train[shots].all()
    assert task.truth[shots].tolist() == np.repeat(np.arange(classes), k).tolist()
    assert (shots == draw_shots(task, train, patients, k, seed=seed, draw=draw)).all()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 3))
def test_draw_shots__no_patient_twice_where_that_can_be_had(seed: int, k: int, classes: int) -> None:
    task, train, patients = _random_task(seed, k, classes)
    shots = draw_shots(task, train, patients, k, seed=seed, draw=0)
    people = [{int(p) for p in patients[train & (task.truth == c)]} for c in range(classes)]
    # Hall: distinct patients exist if and only if any classes together have enough of them.
    enough = all(
        len(set.union(*(people[c] for c in range(classes) if subset >> c & 1))) >= k * subset.bit_count()
        for subset in range(1, 1 << classes)
    )
    assert (len(set(patients[shots].tolist())) == k * classes) == enough


def test_draw_shots__every_patient_is_as_likely() -> None:
    truth = np.repeat([0, 1], [40, 6])
    task = Task(name="a", kind="binary", classes=(0, 1), truth=truth)
    patients, train = np.arange(46), np.ones(46, dtype=bool)
    counts = sum(np.bincount(draw_shots(task, train, patients, 3, seed=0, draw=d), minlength=46) for d in range(1000))
    assert np.asarray(counts)[truth == 1] == pytest.approx(500, abs=70)
    assert np.asarray(counts)[truth == 0] == pytest.approx(75, abs=35)


def test_draw_shots__seed_label_k_and_draw_matter() -> None:
    task, train, patients = _random_task(1, 5, 2, rows=200)
    other = Task(name="b", kind=task.kind, classes=task.classes, truth=task.truth)
    draws = {
        tuple(draw_shots(entry, train, patients, 5, seed=seed, draw=draw).tolist())
        for entry in (task, other)
        for seed in (0, 1)
        for draw in (0, 1)
    }
    assert len(draws) == 8


def _random_task(seed: int, k: int, classes: int, rows: int = 30) -> tuple:
    generator = np.random.Generator(np.random.Philox(seed))
    truth = np.concatenate([np.repeat(np.arange(classes), k), generator.integers(-1, classes, rows)])
    train = np.concatenate([np.ones(k * classes, dtype=bool), generator.random(rows) < 0.5])
    patients = generator.integers(0, max(2, len(truth) // 3), len(truth))
    names = (0, 1) if classes == 2 else tuple(range(classes))
    return Task(name="a", kind="binary" if classes == 2 else "ordinal", classes=names, truth=truth), train, patients
