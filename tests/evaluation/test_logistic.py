import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from maskedclip.evaluation.logistic import logistic_path

GRID = (1e-4, 1e-2, 1.0, 10.0)


def _features(n: int, width: int, seed: int = 0) -> NDArray:
    """Correlated as a network's features are: a few strong axes, many weak ones."""
    generator = np.random.Generator(np.random.Philox(seed))
    x = generator.normal(size=(n, width)) @ (generator.normal(size=(width, width)) / np.arange(1, width + 1)[:, None])
    return (x - x.mean(axis=0)) / x.std(axis=0)


def _reference(x: NDArray, truth: NDArray, c: float, query: NDArray) -> NDArray:
    solver = "newton-cholesky" if len(np.unique(truth)) == 2 else "lbfgs"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tolerance that rounding does not reach
        return LogisticRegression(C=c, solver=solver, tol=1e-11, max_iter=50_000).fit(x, truth).predict_proba(query)


@pytest.mark.parametrize(("n", "width"), [(200, 30), (40, 90)])
def test_logistic_path__columns_equal_scikit_learn(n: int, width: int) -> None:
    x, query = _features(n, width), _features(25, width, seed=1)
    noise = np.random.Generator(np.random.Philox(2)).normal(size=(n, 3))
    target = x[:, :3] + noise > np.array([0.0, 1.0, 1.8])  # from frequent to rare
    for c, fit in zip(GRID, logistic_path(x[None], target[None], GRID), strict=True):
        given = fit.probabilities(query[None])[0]
        for column in range(3):
            assert given[:, column] == pytest.approx(_reference(x, target[:, column], c, query)[:, 1], abs=1e-6)


@pytest.mark.parametrize(("n", "width"), [(200, 30), (40, 90)])
def test_logistic_path__coupled_columns_equal_scikit_learn(n: int, width: int) -> None:
    x, query = _features(n, width), _features(25, width, seed=1)
    noise = np.random.Generator(np.random.Philox(2)).normal(size=n)
    truth = np.digitize(x[:, 0] + noise, [-0.5, 0.3, 1.4])
    target = truth[:, None] == np.arange(4)
    for c, fit in zip(GRID, logistic_path(x[None], target[None], GRID, coupled=True), strict=True):
        assert fit.probabilities(query[None])[0] == pytest.approx(_reference(x, truth, c, query), abs=1e-5)


def test_logistic_path__rows_that_do_not_count_are_not_there() -> None:
    x = _features(120, 10)
    target = (x[:, :2] > 0.3).astype(float)
    counted = np.ones((120, 2))
    counted[::3, 0] = 0
    target[::3, 0] = 1 - target[::3, 0]  # wrong where it does not count
    fit = logistic_path(x[None], target[None], [0.1], counted=counted[None])[0]
    rows = counted[:, 0] == 1
    assert fit.probabilities(x[None])[0][:, 0] == pytest.approx(
        _reference(x[rows], target[rows, 0], 0.1, x)[:, 1], abs=1e-6
    )
    assert fit.probabilities(x[None])[0][:, 1] == pytest.approx(_reference(x, target[:, 1], 0.1, x)[:, 1], abs=1e-6)


def test_logistic_path__problems_with_rows_of_their_own() -> None:
    x = np.stack([_features(12, 20, seed=seed) for seed in range(5)])
    target = np.tile(np.repeat([1.0, 0.0], 6)[None, :, None], (5, 1, 1))
    query = _features(7, 20, seed=9)
    given = logistic_path(x, target, [0.05])[0].probabilities(query[None])
    for problem in range(5):
        expected = _reference(x[problem], target[problem, :, 0], 0.05, query)[:, 1]
        assert given[problem, :, 0] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from([1e-3, 1.0, 100.0]))
def test_logistic_path__gradient_vanishes_at_the_optimum(n: int, width: int, seed: int, c: float) -> None:
    generator = np.random.Generator(np.random.Philox(seed))
    x = generator.normal(size=(n, width)) * generator.choice([0.0, 1.0, 30.0], size=width)
    target = np.arange(n)[:, None] < generator.integers(1, n)
    fit = logistic_path(x[None], target[None], [c])[0]
    wrong = fit.probabilities(x[None])[0] - target
    gradient = x.T @ wrong + fit.coefficients[0] / c
    assert np.abs(gradient).max() <= 1e-3 * max(1.0, np.abs(x).sum())
    assert abs(wrong.sum()) <= 1e-3 * n


def test_logistic_path__the_path_is_where_single_fits_lead() -> None:
    x = _features(150, 25)
    target = (x[:, :2] > 0.5).astype(float)
    for c, fit in zip(GRID, logistic_path(x[None], target[None], GRID), strict=True):
        alone = logistic_path(x[None], target[None], [c])[0]
        assert fit.probabilities(x[None]) == pytest.approx(alone.probabilities(x[None]), abs=1e-6)
