import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.metrics import log_loss, roc_auc_score

from maskedclip.evaluation.tasks import Prediction, Task
from maskedclip.evaluation.zero_shot_calibration import calibrate_zero_shot, temperature

N = 4000


def _binary(slope: float, offset: float, seed: int = 0) -> tuple[NDArray, Task]:
    generator = np.random.Generator(np.random.Philox(seed))
    scores = 0.1 * generator.normal(size=N) - 0.2
    truth = (generator.random(N) < expit(slope * scores + offset)).astype(np.int64)
    return scores, Task(name="a", kind="binary", classes=(0, 1), truth=truth)


def _prediction(scores: NDArray) -> Prediction:
    return Prediction(scores=scores, predicted=np.zeros(len(scores), dtype=np.int64))


def _given(answer: Prediction | str) -> Prediction:
    assert isinstance(answer, Prediction)
    return answer


def test_calibrate_zero_shot__finds_the_true_probabilities_and_keeps_the_ranking() -> None:
    scores, task = _binary(20.0, 3.0)
    fresh, other = _binary(20.0, 3.0, seed=1)
    answer = _given(calibrate_zero_shot({"a": task}, {"a": _prediction(scores)}, {"a": _prediction(fresh)})["a"])
    assert answer.chosen == pytest.approx(20, rel=0.15)
    assert answer.scores == pytest.approx(expit(20 * fresh + 3), abs=0.05)
    assert answer.probabilities
    assert roc_auc_score(other.truth, answer.scores) == roc_auc_score(other.truth, fresh)


def test_calibrate_zero_shot__never_turns_a_ranking_round() -> None:
    scores, task = _binary(-20.0, -3.0)
    answer = calibrate_zero_shot({"a": task}, {"a": _prediction(scores)}, {"a": _prediction(scores)})["a"]
    assert "higher score is not a likelier finding" in str(answer)


@pytest.mark.parametrize(("kind", "classes"), [("binary", (0, 1)), ("ordinal", (0, 1, 2))])
@pytest.mark.parametrize(("truth", "says"), [(-1, "no known value"), (1, "one class only")])
def test_calibrate_zero_shot__one_class_says_why(kind: str, classes: tuple, truth: int, says: str) -> None:
    task = Task(name="a", kind=kind, classes=classes, truth=np.full(9, truth))
    scores = np.linspace(0.1, 0.5, 9) if kind == "binary" else np.full((9, 3), 1 / 3)
    answer = calibrate_zero_shot({"a": task}, {"a": _prediction(scores)}, {"a": _prediction(scores)})["a"]
    assert says in str(answer)


def test_calibrate_zero_shot__temperature_of_several_classes() -> None:
    generator = np.random.Generator(np.random.Philox(3))
    logits = generator.normal(size=(N, 3))
    truth = np.array([generator.choice(3, p=row) for row in softmax(logits / 0.4, axis=1)])
    task = Task(name="a", kind="ordinal", classes=(0, 1, 2), truth=np.where(np.arange(N) % 10 == 0, -1, truth))
    shown = softmax(logits, axis=1)
    answer = _given(calibrate_zero_shot({"a": task}, {"a": _prediction(shown)}, {"a": _prediction(shown)})["a"])
    assert answer.chosen == pytest.approx(0.4, rel=0.1)
    assert answer.scores == pytest.approx(softmax(logits / 0.4, axis=1), abs=0.05)
    assert log_loss(truth, answer.scores) < log_loss(truth, shown)


def test_temperature__is_the_best_of_a_grid() -> None:
    generator = np.random.Generator(np.random.Philox(4))
    scores = softmax(generator.normal(size=(300, 4)), axis=1)
    truth = np.array([generator.choice(4, p=row) for row in scores])
    chosen = temperature(scores, truth)
    losses = {t: log_loss(truth, softmax(np.log(scores) / t, axis=1)) for t in (chosen, chosen * 0.9, chosen * 1.1)}
    assert min(losses, key=lambda t: losses[t]) == chosen
