import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, skew

from maskedclip.errors import UserError
from maskedclip.evaluation.intervals import SHARE, Uncertain, difference_interval
from maskedclip.evaluation.metrics import auroc
from maskedclip.evaluation.statistics import (
    Distribution,
    Estimate,
    check_seed,
    class_supports,
    cluster_codes,
    cluster_weights,
    difference,
    joint_support,
    paired_difference,
    undefined,
    weighted_median,
    with_point,
)
from maskedclip.randomness import generator


def test_cluster_weights__rows_of_a_patient_are_drawn_together() -> None:
    patients = ["a", "b", "a", "c", "b", "a"]
    weights = cluster_weights(patients, replicates=200)
    assert weights.shape == (200, 6)
    assert (weights[:, [0]] == weights[:, [2, 5]]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()  # three draws of three patients


def test_cluster_weights__row_without_patient_is_its_own() -> None:
    assert list(cluster_codes(["a", None, "", "a", ""])) == [0, 1, 2, 0, 3]
    weights = cluster_weights([None, "", None], replicates=300)
    assert (weights.sum(axis=1) == 3).all()
    assert (weights[:, 0] != weights[:, 1]).any()


def test_cluster_weights__pure_function_of_the_seed() -> None:
    patients = [str(row // 2) for row in range(50)]
    first, again, other = (cluster_weights(patients, replicates=20, seed=seed) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_cluster_weights__slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = [str(row) for row in range(40)]
    whole = cluster_weights(patients, replicates=30)
    monkeypatch.setattr("maskedclip.evaluation.statistics._CHUNK", 7 * 40)
    assert (cluster_weights(patients, replicates=30) == whole).all()


def test_cluster_weights__no_rows() -> None:
    assert cluster_weights([], replicates=5).shape == (5, 0)


def test_with_point__first_row_is_the_set_itself() -> None:
    weights = cluster_weights(["a", "b"], replicates=3)
    assert (with_point(weights)[0] == 1).all()
    assert (with_point(weights)[1:] == weights).all()


def test_estimate__json_of_defined_and_undefined() -> None:
    assert Estimate(value=0.5, low=0.25, high=0.75, n=4).to_json() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    assert undefined(7).to_json() == {
        "value": None,
        "low": None,
        "high": None,
        "n": 7,
        "note": "undefined (n=7, one class only)",
    }


def test_distribution__percentiles_leave_undefined_replicates_out_and_say_so() -> None:
    replicates = np.concatenate([np.arange(90.0), np.full(10, np.nan)])
    estimate = Distribution(value=45.0, replicates=replicates, n=9).estimate("mean of 2 labels")
    assert (estimate.low, estimate.high) == tuple(np.percentile(np.arange(90.0), [2.5, 97.5]))
    assert estimate.note == "mean of 2 labels; 10% of the replicates lack a class and are left out"
    few = np.concatenate([np.arange(96.0), np.full(4, np.nan)])
    assert Distribution(value=45.0, replicates=few, n=9).estimate().note == ""


def test_distribution__bounds_and_support_take_the_place_of_percentiles() -> None:
    replicates = np.random.Generator(np.random.Philox(4)).normal(0.9, 0.05, 500)
    plain = Distribution(value=0.9, replicates=replicates, n=40)
    bounded = Distribution(value=0.9, replicates=replicates, n=40, bounds=SHARE, support=10)
    assert plain.estimate().high == np.percentile(replicates, 97.5) > 0.98
    deviation, lean = float(replicates.std(ddof=1)), float(skew(replicates))
    expected = Uncertain(value=0.9, error=deviation, support=10, skewness=lean).interval
    assert (bounded.estimate().low, bounded.estimate().high) == pytest.approx(expected, abs=1e-4)
    assert bounded.estimate().high < 1
    assert bounded.estimate().low < plain.estimate().low


def test_distribution__reason_of_an_undefined_value() -> None:
    nothing = Distribution(value=np.nan, replicates=np.full(3, np.nan), n=5, reason="2 of 5 scores are not finite")
    assert nothing.estimate().note == "undefined (n=5, 2 of 5 scores are not finite)"


def test_class_supports__patients_of_the_rarer_side() -> None:
    patients = [str(row // 2) for row in range(400)]
    weights = cluster_weights(patients, replicates=20)
    truth = np.zeros(400, dtype=np.int64)
    truth[:20] = 1  # both eyes of ten patients
    truth[20:40:2] = 1  # one eye of ten more
    truth[100:103] = 2  # three eyes of two
    assert class_supports(truth, 4, weights) == [22, 20, 2, 0]
    assert class_supports(np.zeros(400, dtype=np.int64), 2, with_point(weights)) == [0, 0]


def test_joint_support__between_the_weakest_and_all_together() -> None:
    generator = np.random.Generator(np.random.Philox(5))

    def part(deviation: float, support: float) -> Distribution:
        return Distribution(value=0.8, replicates=generator.normal(0.8, deviation, 5000), n=9, support=support)

    assert joint_support([part(0.1, 8), part(0.1, 8)]) == pytest.approx(1 + 2 * 7, rel=0.05)
    assert joint_support([part(0.1, 8), part(0.001, 900)]) == pytest.approx(8, rel=0.05)
    assert joint_support([part(0.0, 8), part(0.0, 5)]) == 5
    assert joint_support([part(0.1, np.inf)]) == np.inf
    assert joint_support([]) == np.inf


def test_distribution__value_without_any_defined_replicate_has_no_interval() -> None:
    estimate = Distribution(value=0.8, replicates=np.full(5, np.nan), n=2).estimate()
    assert estimate.to_json()["low"] is None
    assert estimate.value == 0.8


@settings(deadline=None)  # a busy machine is no fault
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_weighted_median__equals_numpy_on_repeated_values(rows: list[tuple[int, int]]) -> None:
    values, weights = np.array([row[0] for row in rows]), np.array([[row[1] for row in rows]])
    expected = np.median(np.repeat(values, weights[0])) if weights.sum() else np.nan
    assert weighted_median(values, weights)[0] == pytest.approx(expected, nan_ok=True)


def test_paired_difference__cancels_what_the_models_share() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    truth = generator.random(300) < 0.4
    score = truth + generator.normal(size=300)
    better = score + 0.3 * truth
    weights = with_point(cluster_weights([None] * 300, replicates=400))
    first, second = (Distribution.from_rows(auroc(truth, s, weights), 300) for s in (better, score))
    found = paired_difference(first, second)
    assert found.value == pytest.approx(first.value - second.value)
    assert 0 < found.low < found.value < found.high
    assert found.high - found.low < 0.5 * (first.estimate().high - first.estimate().low)


def test_difference__from_the_intervals_of_both_where_bounds_are_known() -> None:
    replicates = np.random.Generator(np.random.Philox(6)).normal(0.8, 0.05, (2, 300))
    first, second = (Distribution(value=0.8, replicates=part, n=50, bounds=SHARE, support=12) for part in replicates)
    correlation = float(np.asarray(np.corrcoef(replicates))[0, 1])
    expected = difference_interval(first.uncertain(), second.uncertain(), correlation)
    found = difference(first, second).estimate()
    assert (found.low, found.high) == pytest.approx(expected)
    plain = Distribution(value=0.8, replicates=replicates[1], n=50)
    low = np.percentile(replicates[0] - replicates[1], 2.5)
    assert difference(first, plain).estimate().low == pytest.approx(low)


def test_difference__of_a_model_and_itself_is_nothing() -> None:
    replicates = np.random.Generator(np.random.Philox(7)).beta(9, 1, 300)
    part = Distribution(value=0.9, replicates=replicates, n=50, bounds=SHARE, support=12)
    found = difference(part, part).estimate()
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_difference__of_other_rows_must_be_asked_for() -> None:
    first, second = (Distribution(value=0.8, replicates=np.full(3, 0.8), n=n) for n in (50, 49))
    with pytest.raises(AssertionError, match="not the same rows"):
        difference(first, second)
    assert difference(first, second, n=50).n == 50
    with pytest.raises(AssertionError, match="not the same bootstrap"):
        difference(first, Distribution(value=0.8, replicates=np.full(4, 0.8), n=50))


def test_interval__coverage_of_a_known_auroc_by_simulation() -> None:
    """Four images a patient that share the truth and most of the score: the clustered interval covers, the other not.

    score = shift * truth + patient's part + image's part, all normal, so AUROC = Phi(shift / (sqrt(2) * deviation)).
    """
    patients, eyes, sets, shift, shared, own = 100, 4, 300, 1.0, 0.9, 0.5
    true = norm.cdf(shift / np.sqrt(2 * (shared**2 + own**2)))
    codes = np.repeat(np.arange(patients), eyes).astype(str)
    clustered = cluster_weights(list(codes), replicates=250)
    independent = cluster_weights([None] * (patients * eyes), replicates=250)
    generator = np.random.Generator(np.random.Philox(11))
    covered = {"clustered": 0, "independent": 0}
    for _ in range(sets):
        truth = np.repeat(generator.random(patients) < 0.4, eyes)
        score = shift * truth + np.repeat(shared * generator.normal(size=patients), eyes)
        score += own * generator.normal(size=patients * eyes)
        for name, weights in (("clustered", clustered), ("independent", independent)):
            low, high = np.nanpercentile(auroc(truth, score, weights), [2.5, 97.5])
            covered[name] += low <= true <= high
    assert 0.91 <= covered["clustered"] / sets <= 0.985
    assert covered["independent"] / sets < 0.80


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**32))
def test_cluster_weights__as_many_draws_as_patients(patients: int, seed: int) -> None:
    weights = cluster_weights([str(p) for p in range(patients)], replicates=3, seed=seed)
    assert (weights.sum(axis=1) == patients).all()


def test_check_seed__what_no_generator_takes_is_refused() -> None:
    for seed, said in ((-1, "negative"), (2**64, "64 bits")):
        with pytest.raises(UserError, match=f"seed: {seed} .*{said}"):
            check_seed(seed)
    check_seed(2**64 - 1)
    assert generator(5, stream=2**64 - 1).random() < 1  # as few-shot draws
