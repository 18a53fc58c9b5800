import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from maskedclip.evaluation import knn
from maskedclip.evaluation.knn import nearest_neighbours, neighbours, unit_rows, vote
from maskedclip.evaluation.tasks import Prediction, Task


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(2, 4))
def test_vote__unweighted_equals_scikit_learn(seed: int, k: int, width: int) -> None:
    generator = np.random.Generator(np.random.Philox(seed))
    train, query = generator.normal(size=(40, 6)), generator.normal(size=(15, 6))
    classes = np.concatenate([np.arange(width), generator.integers(0, width, 40 - width)])
    reference = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute").fit(train, classes)
    indices, cosines = neighbours(unit_rows(train), unit_rows(query), k)
    found = vote(classes[indices], cosines, k, width, weighted=False)
    assert found == pytest.approx(reference.predict_proba(query))


def test_vote__weight_falls_with_the_distance() -> None:
    classes, cosines = np.array([[0, 1, 1]]), np.array([[1.0, 0.8, 0.8]])
    weight = np.exp(-0.2 / 0.07)
    assert vote(classes, cosines, 3, 2) == pytest.approx(np.array([[1, 2 * weight]]) / (1 + 2 * weight))
    assert vote(classes, cosines, 1, 2).tolist() == [[1.0, 0.0]]
    assert np.isfinite(vote(classes, np.full((1, 3), -1.0), 3, 2)).all()


def test_neighbours__slices_change_nothing_and_k_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.Generator(np.random.Philox(1))
    train, query = unit_rows(generator.normal(size=(9, 4))), unit_rows(generator.normal(size=(7, 4)))
    whole = neighbours(train, query, 100)
    assert whole[0].shape == (7, 9)
    assert (np.diff(whole[1], axis=1) <= 0).all()
    monkeypatch.setattr(knn, "_CHUNK", 18)
    assert (neighbours(train, query, 100)[0] == whole[0]).all()


def test_nearest_neighbours__only_known_training_rows_vote() -> None:
    x = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.05], [1, 0.01]])
    splits = np.array(["train"] * 4 + ["test"] * 2)
    task = Task(name="a", kind="binary", classes=(0, 1), truth=np.array([-1, 1, 0, 0, 0, 0]))
    answer = nearest_neighbours(x, {"a": task}, splits, ks=(1,), default=1)["a"]
    assert isinstance(answer, Prediction)
    assert answer.scores.tolist() == [1.0, 1.0]  # the nearest row is unknown, the next one is positive
    assert answer.predicted.tolist() == [1, 1]


def test_nearest_neighbours__k_by_validation_else_the_default() -> None:
    generator = np.random.Generator(np.random.Philox(2))
    n = 400
    truth = generator.integers(0, 2, n)
    x = (truth[:, None] - 0.5) * np.array([1.2, 0, 0]) + generator.normal(size=(n, 3))
    task = Task(name="a", kind="binary", classes=(0, 1), truth=truth)
    splits = np.repeat(["train", "val", "test", "test"], n // 4)
    with_validation = nearest_neighbours(x, {"a": task}, splits, ks=(1, 50))["a"]
    assert isinstance(with_validation, Prediction)
    assert with_validation.chosen == 50  # noisy classes: one neighbour is worse than fifty
    without = nearest_neighbours(x, {"a": task}, np.where(splits == "val", "", splits), ks=(1, 50))["a"]
    assert isinstance(without, Prediction)
    assert without.chosen == 20


def test_nearest_neighbours__what_cannot_be_voted_says_why() -> None:
    splits = np.array(["train", "train", "test"])
    task = Task(name="a", kind="binary", classes=(0, 1), truth=np.array([1, 1, 0]))
    assert nearest_neighbours(np.eye(3), {"a": task}, splits)["a"] == "the training split has one class only"


def test_unit_rows__zero_row_stays() -> None:
    assert unit_rows(np.array([[3.0, 4.0], [0, 0]])).tolist() == [[np.float32(0.6), np.float32(0.8)], [0, 0]]
