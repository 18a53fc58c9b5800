import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from maskedclip.evaluation.logistic import logistic_path, probabilities

GRID = (1e-4, 1e-2, 1.0)


def _features(n: int, width: int) -> NDArray[np.float64]:
    """Correlated as a network's are: the spectrum of their covariance falls steeply."""
    generator = np.random.Generator(np.random.Philox(n))
    x = generator.normal(size=(n, width)) @ (generator.normal(size=(width, width)) / np.arange(1, width + 1)[:, None])
    return (x - x.mean(axis=0)) / x.std(axis=0)


def _reference(x: NDArray, y: NDArray, c: float) -> NDArray:
    return LogisticRegression(C=c, solver="lbfgs", tol=1e-9, max_iter=20000).fit(x, y).predict_proba(x)


@pytest.mark.parametrize(("n", "width"), [(300, 20), (25, 40)])  # also fewer rows than features
def test_logistic_path__equals_scikit_learn_for_each_label(n: int, width: int) -> None:
    x = _features(n, width)
    generator = np.random.Generator(np.random.Philox(1))
    y = (x @ generator.normal(size=(width, 3)) + 3 * generator.normal(size=(n, 3)) > [0, 2, -3]).astype(float)
    for c, fitted in zip(GRID, logistic_path(x, y, GRID), strict=True):
        found = probabilities(x, *fitted)
        for label in range(3):
            assert found[:, label] == pytest.approx(_reference(x, y[:, label], c)[:, 1], abs=2e-4)


def test_logistic_path__leaves_unknown_rows_out_label_by_label() -> None:
    x = _features(200, 10)
    generator = np.random.Generator(np.random.Philox(2))
    y = (x[:, :2] + generator.normal(size=(200, 2)) > 0).astype(float)
    y[:80, 0] = np.nan
    (fitted,) = logistic_path(x, y, [0.1])
    known = LogisticRegression(C=0.1, tol=1e-9, max_iter=20000).fit(x[80:], y[80:, 0])
    assert probabilities(x, *fitted)[:, 0] == pytest.approx(known.predict_proba(x)[:, 1], abs=2e-4)


def test_logistic_path__softmax_equals_scikit_learn() -> None:
    x = _features(400, 12)
    generator = np.random.Generator(np.random.Philox(3))
    classes = np.argmax(x[:, :4] + generator.gumbel(size=(400, 4)) + [0, 1, 2, 0], axis=1)
    target = classes[:, None] == np.arange(4)
    for c, fitted in zip(GRID, logistic_path(x, target, GRID, one_of=True), strict=True):
        assert probabilities(x, *fitted, one_of=True) == pytest.approx(_reference(x, classes, c), abs=2e-4)


def test_logistic_path__constant_feature_does_no_harm() -> None:
    x = _features(100, 5)
    x[:, 2] = 0
    y = (x[:, :1] > 0).astype(float)
    (fitted,) = logistic_path(x, y, [1.0])
    assert np.isfinite(probabilities(x, *fitted)).all()
    assert fitted[0][2] == pytest.approx(0, abs=1e-6)
