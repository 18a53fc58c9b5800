import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from maskedclip.evaluation.calibration import (
    calibration_distribution,
    calibration_error,
    calibration_line,
    calibration_section,
    logistic_line,
    platt,
    recalibrate,
    reliability_curve,
)
from maskedclip.evaluation.metrics import auroc
from maskedclip.evaluation.statistics import cluster_weights, with_point
from maskedclip.evaluation.tasks import Prediction, Task

N = 400
GENERATOR = np.random.Generator(np.random.Philox(8))
PROBABILITY = GENERATOR.beta(1, 2, N)
TRUTH = (GENERATOR.random(N) < PROBABILITY).astype(np.int64)
WEIGHTS = cluster_weights([str(row // 2) for row in range(N)], replicates=50)


def _task(truth: NDArray) -> Task:
    return Task(name="a", kind="binary", classes=(0, 1), truth=truth)


def _prediction(scores: NDArray, *, probabilities: bool = True) -> Prediction:
    return Prediction(scores=scores, predicted=np.zeros(len(scores), np.int64), probabilities=probabilities)


def _naive_error(truth: NDArray, probability: NDArray, weight: NDArray, edges: NDArray) -> float:
    """Bin by bin in a plain loop."""
    total = 0.0
    for low, high in zip([-np.inf, *edges], [*edges, np.inf], strict=True):
        rows = (probability > low) & (probability <= high) & (weight > 0)
        if rows.any():
            mean, share = (np.average(x[rows], weights=weight[rows]) for x in (probability, truth))
            total += weight[rows].sum() * abs(mean - share)
    return total / weight.sum()


@pytest.mark.parametrize("bins", [1, 3, 10, 15])
def test_calibration_error__equals_a_naive_loop_on_each_replicate(bins: int) -> None:
    values = calibration_error(TRUTH, PROBABILITY, WEIGHTS, bins=bins)
    edges = np.quantile(PROBABILITY, np.arange(1, bins) / bins)
    expected = [_naive_error(TRUTH, PROBABILITY, weight, edges) for weight in WEIGHTS]
    assert values == pytest.approx(expected)


def test_calibration_error__hand_worked() -> None:
    # Two bins of two rows: |0.2 - 0.5| and |0.8 - 1|.
    assert calibration_error([0, 1, 1, 1], np.array([0.1, 0.3, 0.7, 0.9]), bins=2)[0] == pytest.approx(0.25)


def test_calibration_error__several_classes_judge_the_likeliest() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6], [np.nan, 0.9, 0.1]])
    truth = np.array([0, 0, 2, 1])
    assert calibration_error(truth, scores, bins=1)[0] == pytest.approx(abs(np.mean([0.7, 0.6, 0.6, 0.9]) - 0.75))


def test_calibration_error__without_rows_is_undefined() -> None:
    assert np.isnan(calibration_error([], np.zeros(0), np.zeros((3, 0)))).all()
    assert reliability_curve([], np.zeros(0)) == []


def test_calibration_error__constant_probability_is_one_bin() -> None:
    assert calibration_error([0, 0, 0, 1], np.full(4, 0.4))[0] == pytest.approx(0.15)
    assert len(reliability_curve([0, 0, 0, 1], np.full(4, 0.4))) == 1


def test_calibration_distribution__interval_of_perfect_probabilities_reaches_to_zero() -> None:
    found = calibration_distribution(TRUTH, PROBABILITY, with_point(WEIGHTS)).estimate()
    assert found.value > 0  # chance alone
    assert found.low < 0.4 * found.value
    wrong = calibration_distribution(TRUTH, PROBABILITY / 3, with_point(WEIGHTS)).estimate()
    assert 0.1 < wrong.low < wrong.value < wrong.high


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=1, max_size=60), st.integers(1, 12))
def test_reliability_curve__equals_scikit_learn_with_ties(rows: list, bins: int) -> None:
    truth, probability = (np.array(column) for column in zip(*rows, strict=True))
    curve = reliability_curve(truth, probability / 12, bins=bins)
    observed, predicted = calibration_curve(truth, probability / 12, n_bins=bins, strategy="quantile")
    assert [entry.observed for entry in curve] == pytest.approx(observed)
    assert [entry.predicted for entry in curve] == pytest.approx(predicted)
    assert sum(entry.n for entry in curve) == len(truth)
    assert all(0 <= entry.low <= entry.observed <= entry.high <= 1 for entry in curve)


def test_reliability_curve__wilson_interval_by_its_formula() -> None:
    entry = reliability_curve([1, 0, 0, 0, 0, 0, 0, 0, 1, 0], np.full(10, 0.3))[0]
    z = 1.959964
    centre, reach = (0.2 + z**2 / 20) / (1 + z**2 / 10), z * np.sqrt(0.2 * 0.8 / 10 + z**2 / 400) / (1 + z**2 / 10)
    assert (entry.low, entry.high) == pytest.approx((centre - reach, centre + reach), abs=1e-6)


def test_logistic_line__equals_scikit_learn_on_each_replicate() -> None:
    x = logit(PROBABILITY) * 3 + 20
    slopes, intercepts = logistic_line(x, TRUTH.astype(float), WEIGHTS)
    for slope, intercept, weight in list(zip(slopes, intercepts, WEIGHTS, strict=True))[:10]:
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=2000, solver="newton-cholesky")
        model.fit(x[:, None] - 20, TRUTH, sample_weight=weight)
        assert slope == pytest.approx(model.coef_[0, 0], rel=1e-5)
        assert intercept == pytest.approx(np.ravel(model.intercept_)[0] - 20 * slope, rel=1e-5)


@pytest.mark.parametrize(
    ("x", "truth"), [([1, 2, 3, 4], [0, 0, 1, 1]), ([1, 1, 1], [0, 1, 1]), ([1, 2], [1, 1]), ([], [])]
)
def test_logistic_line__without_a_maximum_is_undefined(x: list, truth: list) -> None:
    assert np.isnan(logistic_line(np.array(x, dtype=float), np.array(truth, dtype=float))).all()


def test_logistic_line__undefined_replicates_leave_the_others_alone() -> None:
    x, truth = np.array([1.0, 2, 3, 4, 5]), np.array([0.0, 1, 0, 1, 1])
    weights = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 1], [2, 1, 2, 1, 1]])
    slopes, _ = logistic_line(x, truth, weights)
    alone = logistic_line(x, truth, weights[2:])[0][0]
    assert np.isnan(slopes).tolist() == [False, True, False]
    assert slopes[2] == pytest.approx(alone)


@pytest.mark.parametrize(
    ("x", "truth", "drawn"),
    [
        ([1, 1, 2, 3], [0, 1, 0, 1], [1, 1, 1, 0]),  # separated but for the rows of one x: Newton's step was infinite
        ([1, 1, 2, 3], [0, 1, 0, 1], [2, 1, 0, 0]),  # rows of one x: it was said to settle at 0
        ([3, 0, 3, 1], [0, 1, 1, 0], [2, 1, 0, 0]),  # separated: at -24.8
        ([1, 1, 2, 3], [0, 1, 0, 1], [0, 3, 0, 0]),
        ([1, 1, 2, 3], [0, 1, 0, 1], [0, 0, 0, 0]),
    ],
)
def test_logistic_line__replicates_without_a_maximum_are_undefined_and_warn_of_nothing(
    x: list, truth: list, drawn: list
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slopes, intercepts = logistic_line(np.array(x, float), np.array(truth, float), np.array([drawn, [1, 2, 2, 1]]))
    assert np.isnan(slopes).tolist() == np.isnan(intercepts).tolist() == [True, False]


def test_calibration_line__finds_how_the_probabilities_were_bent() -> None:
    generator = np.random.Generator(np.random.Philox(3))
    true = generator.normal(size=40_000)
    truth = generator.random(40_000) < expit(true)
    slope, intercept = calibration_line(truth, expit(2 * true + 1))  # true logit = (bent - 1) / 2
    assert slope[0] == pytest.approx(0.5, abs=0.02)
    assert intercept[0] == pytest.approx(-0.5, abs=0.03)


def test_calibration_line__probabilities_of_zero_and_one() -> None:
    slope, _ = calibration_line([0, 1, 0, 1, 1], np.array([0.0, 0.0, 0.5, 1.0, 0.6]))
    assert np.isfinite(slope[0])


def test_platt__makes_probabilities_of_cosines() -> None:
    scores = 0.05 * logit(PROBABILITY) - 0.2
    fit = platt(scores[:200], TRUTH[:200])
    assert not isinstance(fit, str)
    before, after = (calibration_error(TRUTH[200:], x)[0] for x in (expit(scores[200:]), fit(scores[200:])))
    assert after < 0.5 * before
    assert fit.n == 200
    assert auroc(TRUTH[200:], fit(scores[200:]))[0] == auroc(TRUTH[200:], scores[200:])[0]


def test_platt__separated_classes_stay_within_the_evidence() -> None:
    fit = platt(np.array([1.0, 2, 3, 4]), np.array([0, 0, 1, 1]))
    assert not isinstance(fit, str)
    low, high = fit([1.0, 4.0])
    assert 0.1 < low < 0.4  # two negatives: 1 / (2 + 2)
    assert high == pytest.approx(1 - low, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "truth", "says"),
    [
        ([0.1, 0.2], [1, 1], "has one class only (n=2); Platt scaling needs both classes"),
        ([0.1, 0.2], [-1, -1], "has no known value (n=0)"),
        ([0.1, np.nan, 0.3], [0, 1, 1], "1 of 3 validation scores are not finite"),
        ([0.3, 0.2, 0.1], [0, 0, 1], "a higher score is not a likelier finding"),
        ([0.3, 0.3, 0.3], [0, 1, 1], "a higher score is not a likelier finding"),
    ],
)
def test_platt__refuses_in_one_line(scores: list, truth: list, says: str) -> None:  # P11
    refusal = platt(np.array(scores), np.array(truth))
    assert isinstance(refusal, str)
    assert says in refusal
    assert "\n" not in refusal


def test_recalibrate__uses_validation_rows_and_keeps_the_decisions() -> None:
    prediction = _prediction(np.array([-0.1, 0.2]), probabilities=False)
    bent = recalibrate(prediction, _task(TRUTH), logit(PROBABILITY), np.where(np.arange(N) < 100, TRUTH, -1))
    assert isinstance(bent, Prediction)
    fit = platt(logit(PROBABILITY[:100]), TRUTH[:100])
    assert not isinstance(fit, str)
    assert bent.scores == pytest.approx(fit([-0.1, 0.2]))
    assert bent.probabilities
    assert bent.predicted is prediction.predicted
    grades = Task(name="g", kind="ordinal", classes=(0, 1, 2), truth=TRUTH)
    assert recalibrate(prediction, grades, PROBABILITY, TRUTH) == "Platt scaling is for labels of two classes"


def test_calibration_section__everything_with_intervals() -> None:
    section = calibration_section(_task(TRUTH), _prediction(PROBABILITY), WEIGHTS)
    assert len(section["bins"]) == 10
    for name, within in (("brier", (0, 0.25)), ("calibration_error", (0, 0.1)), ("slope", (0.7, 1.4))):
        assert within[0] < section[name]["value"] < within[1]
        assert section[name]["low"] <= section[name]["value"] <= section[name]["high"]
        assert section[name]["n"] == N
    assert section["intercept"]["low"] < 0.1
    json.dumps(section, allow_nan=False)


def test_calibration_section__undefined_says_why() -> None:
    raw = calibration_section(_task(TRUTH), _prediction(PROBABILITY, probabilities=False), WEIGHTS)
    assert raw["skipped"].startswith("the scores are no probabilities")
    broken = np.where(np.arange(N) < 3, np.nan, PROBABILITY)
    section = calibration_section(_task(TRUTH), _prediction(broken), WEIGHTS)
    assert section == {"skipped": f"3 of {N} scores are not finite"}
    ones = calibration_section(_task(np.ones(N, np.int64)), _prediction(PROBABILITY), WEIGHTS)
    assert ones["slope"]["note"] == f"undefined (n={N}, one class only)"
    assert ones["brier"]["value"] > 0
    nothing = calibration_section(_task(np.full(N, -1)), _prediction(PROBABILITY), WEIGHTS)
    assert nothing["bins"] == []
    assert nothing["slope"]["note"] == nothing["brier"]["note"] == "undefined (n=0, no row with a known value)"
    separated = calibration_section(_task(TRUTH), _prediction(0.1 + 0.8 * TRUTH), WEIGHTS)
    assert "separate the classes" in separated["slope"]["note"]
