"""Loss, class weights and decisions of fine-tuning against scikit-learn, naive loops and exact rules."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from maskedclip.evaluation.finetune_labels import Labels, balanced_weights, smoothed_loss
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.evaluation.tasks import UNKNOWN, Task

EVERY = np.ones(8, dtype=bool)


def _binary(name: str, truth: list[int]) -> Task:
    return Task(name=name, kind="binary", classes=(0, 1), truth=np.array(truth))


def _labels(tasks: list[Task], train: np.ndarray = EVERY, **changes: Any) -> Labels:
    return Labels(tasks, train, FineTuneSettings(**changes))


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=30))
def test_balanced_weights__equal_scikit_learn_on_the_known_rows(values: list[int]) -> None:
    truth = np.array(values)
    known = truth[truth != UNKNOWN]
    weights = balanced_weights(truth)
    assert (weights[truth == UNKNOWN] == 0).all()
    classes = np.unique(known)
    if len(classes):
        expected = compute_class_weight("balanced", classes=classes, y=known)
        for value, weight in zip(classes, expected, strict=True):
            assert weights[truth == value] == pytest.approx(weight)
            assert weight == pytest.approx(len(known) / (len(classes) * (known == value).sum()))
        assert weights.sum() == pytest.approx(len(known))


def test_labels__sampler_draws_classes_alike() -> None:
    labels = _labels([_binary("a", [1, 0, 0, 0, 0, 0, -1, -1])], class_weighting="sampler")
    assert labels.shares is not None
    assert labels.shares == pytest.approx([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])  # rows of unknown value aren't drawn
    assert (labels.weights == 1).all()
    two = _labels([_binary("a", [1, 0, 0, 0]), _binary("b", [-1, -1, 1, 0])], EVERY[:4], class_weighting="sampler")
    rows = np.array([2, 2 / 3, (2 / 3 + 1) / 2, (2 / 3 + 1) / 2])  # mean over the labels that a row has
    assert two.shares == pytest.approx(rows / rows.sum())


@pytest.mark.parametrize("weighting", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss__binary_equals_a_double_loop(weighting: Any, smoothing: float) -> None:
    truths = [[1, 0, 0, 0, 1, 0, -1, 0], [-1, 1, -1, 0, 0, 0, 0, 0]]
    tasks = [_binary(f"{place}", truth) for place, truth in enumerate(truths)]
    labels = _labels(tasks, class_weighting=weighting, label_smoothing=smoothing)
    torch.manual_seed(0)
    logits, places = torch.randn(5, 2), torch.tensor([6, 0, 1, 4, 2])
    total, count = 0.0, 0
    for row, place in enumerate(places.tolist()):
        for column, truth in enumerate(truths):
            if truth[place] == UNKNOWN:
                continue
            known = [value for value in truth if value != UNKNOWN]
            weight = len(known) / (2 * known.count(truth[place])) if weighting == "balanced" else 1.0
            target = truth[place] * (1 - smoothing) + smoothing / 2
            p = 1 / (1 + np.exp(-float(logits[row, column])))
            total -= weight * (target * np.log(p) + (1 - target) * np.log(1 - p))
            count += 1
    assert float(labels.loss(logits, places)) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("weighting", ["none", "balanced"])
def test_loss__several_classes_equal_a_loop(weighting: Any) -> None:
    truth = [0, 0, 0, 2, 2, 4, -1, 0]  # of five grades, three are present
    task = Task(name="grade", kind="ordinal", classes=(0, 1, 2, 3, 4), truth=np.array(truth))
    labels = _labels([task], class_weighting=weighting, label_smoothing=0.1)
    assert labels.outputs == 3
    assert labels.places.tolist() == [0, 1, 2, 3, 4, 5, 7]
    torch.manual_seed(0)
    logits, places = torch.randn(4, 3), torch.tensor([0, 3, 5, 6])
    total = 0.0
    for row, (place, count) in enumerate([(0, 4), (1, 2), (2, 1), (0, 4)]):
        log_p = torch.log_softmax(logits[row].double(), dim=0).numpy()
        target = np.full(3, 0.1 / 3)
        target[place] += 0.9
        total -= (7 / (3 * count) if weighting == "balanced" else 1.0) * float(target @ log_p)
    assert float(labels.loss(logits, places)) == pytest.approx(total / 4, rel=1e-5)


def test_loss__unknown_values_have_no_gradient() -> None:
    labels = _labels([_binary("a", [1, 0, -1, 0]), _binary("b", [-1, 1, 0, -1])], EVERY[:4])
    logits = torch.zeros(4, 2, requires_grad=True)
    labels.loss(logits, torch.arange(4)).backward()
    assert logits.grad is not None
    assert (logits.grad != 0).tolist() == [[True, False], [True, True], [False, True], [True, False]]
    nothing = torch.zeros(2, 2, requires_grad=True)
    none = torch.full((2, 2), UNKNOWN)
    loss = smoothed_loss(nothing, none, torch.zeros(2, 2), 0.1, binary=True)
    loss.backward()
    assert loss.item() == 0
    assert nothing.grad is not None
    assert (nothing.grad == 0).all()


@pytest.mark.parametrize("weighting", ["none", "balanced", "sampler"])
def test_predictions__decide_against_the_share_that_training_saw(weighting: Any) -> None:
    """The smoothed share of a class is what a network without any knowledge predicts; above it, the class is decided.

    Of eight rows two are positive: 2/8 as they are, 1/2 when balanced by weight or by drawing.
    """
    labels = _labels([_binary("a", [1, 1, 0, 0, 0, 0, 0, 0])], class_weighting=weighting, label_smoothing=0.2)
    share = (0.25 if weighting == "none" else 0.5) * 0.8 + 0.1
    probabilities = np.array([share - 0.01, share + 0.01])
    answer = labels.predictions(np.log(probabilities / (1 - probabilities))[:, None])["a"]
    assert answer.predicted.tolist() == [0, 1]
    assert answer.scores == pytest.approx(probabilities)


def test_predictions__of_several_classes_undo_the_smoothing() -> None:
    task = Task(name="grade", kind="ordinal", classes=(0, 1, 2), truth=np.array([0, 0, 0, 0, 0, 0, 0, 2]))
    labels = _labels([task], label_smoothing=0.2)
    scores = np.array([[0.75, 0.25], [0.85, 0.15]])  # unsmoothed 0.1875 and 0.0625 against a share of 1/8
    answer = labels.predictions(np.log(scores))["grade"]
    assert answer.predicted.tolist() == [2, 0]
    assert np.isnan(answer.scores[:, 1]).all()


@pytest.mark.parametrize("weighting", ["none", "balanced", "sampler"])
@pytest.mark.parametrize("classes", [2, 3])
def test_probe__equals_scikit_learn_on_standardised_features(weighting: Any, classes: int) -> None:
    generator = np.random.Generator(np.random.Philox(0))
    truth = np.concatenate([np.arange(classes), np.minimum(generator.integers(0, 5, 60), classes - 1), [UNKNOWN] * 5])
    x = generator.normal(3, 2, (len(truth), 6)) + truth[:, None] * [1, 0, 0, -1, 0, 0]
    x[:, 5] = 0.1  # a constant column
    for kind in ("nominal", "binary")[: 4 - classes]:
        task = Task(name="a", kind=kind, classes=tuple(range(classes)), truth=truth)
        labels = _labels([task], np.ones(len(truth), dtype=bool), class_weighting=weighting)
        rows = x[labels.places]
        weights, biases = labels.probe(rows)
        assert weights.shape == (labels.outputs, 6)
        scaled = StandardScaler().fit(rows)
        balance = "balanced" if weighting != "none" else None
        model = LogisticRegression(C=3e-3, max_iter=1000, class_weight=balance)
        expected = model.fit(scaled.transform(rows), truth[labels.places]).predict_proba(scaled.transform(rows))
        scores = labels.scores(rows @ weights.T + biases)[0]
        assert scores == pytest.approx(expected[:, 1] if kind == "binary" else expected, abs=1e-3)


def test_quality__is_the_mean_over_the_labels_that_have_one() -> None:
    labels = _labels([_binary("a", [1, 0, 1, 0, 1, 0, 1, 0]), _binary("b", [0, 0, 0, 0, 1, 1, 1, 1])])
    logits = np.array([[3, 0], [1, 0], [2, 0], [4, 0]], np.float32)
    assert labels.quality(logits, np.arange(4)) == pytest.approx(0.5)  # of a alone: b has one class in these rows
    assert np.isnan(labels.quality(logits[:1], np.arange(1)))
