import numpy as np
import pytest
from scipy.stats import t as student

from maskedclip.evaluation.compare_seeds import (
    SeedVariance,
    block_variance,
    estimate_with_seeds,
    mean_over_seeds,
    seed_variance,
)
from maskedclip.evaluation.statistics import Distribution, difference

PATIENTS, REPLICATES = 100, 200


def _distribution(value: float, replicates: np.ndarray, bounds: tuple[float, float] | None = None) -> Distribution:
    return Distribution(value=value, replicates=np.asarray(replicates, float), n=10, bounds=bounds)


def _simulated(
    generator: np.random.Generator, methods: int, seeds: int, *, between: float, own: float, shared: float = 0.0
) -> dict[str, list[Distribution]]:
    """Methods that are equal: a patient's value is what all share, what a method and what a training make of it.

    between: deviation of the seeds; own: of a training's error on one patient; shared: deviation of what a seed does to
    all methods alike.
    """
    shape = (methods, seeds, PATIENTS)
    values = generator.normal(size=PATIENTS) + 0.5 * generator.normal(size=(methods, 1, PATIENTS))
    values = values + between * generator.normal(size=(methods, seeds, 1)) + own * generator.normal(size=shape)
    values = values + shared * generator.normal(size=(1, seeds, 1))
    weights = generator.multinomial(PATIENTS, np.full(PATIENTS, 1 / PATIENTS), size=REPLICATES) / PATIENTS
    replicates = np.einsum("msp,rp->msr", values, weights)
    return {
        str(method): [
            Distribution(
                value=float(values[method, s].mean()),
                replicates=replicates[method, s],
                n=PATIENTS,
                support=PATIENTS,
            )
            for s in range(seeds)
        ]
        for method in range(methods)
    }


def _coverage(methods: int, seeds: int, between: float, own: float, trials: int = 400) -> tuple[float, float]:
    """How often the interval of a difference holds 0, the truth: with the variance between seeds, and without."""
    generator = np.random.Generator(np.random.Philox(methods * 100 + seeds))
    inside = np.zeros(2)
    for _ in range(trials):
        made = _simulated(generator, methods, seeds, between=between, own=own)
        delta = difference(mean_over_seeds(made["0"]), mean_over_seeds(made["1"]))
        for place, variance in enumerate((seed_variance(made), SeedVariance())):
            estimate = estimate_with_seeds(delta, variance, 2 / seeds)
            inside[place] += estimate.low <= 0 <= estimate.high
    return tuple(inside / trials)


@pytest.mark.parametrize(
    ("methods", "seeds", "between", "own"),
    [(6, 2, 0.0, 0.5), (6, 2, 0.1, 0.5), (6, 2, 0.3, 0.5), (3, 3, 0.1, 1.0), (2, 5, 0.2, 0.5)],
)
def test_estimate_with_seeds__covers_the_truth(methods: int, seeds: int, between: float, own: float) -> None:
    with_seeds, patients_alone = _coverage(methods, seeds, between, own)
    assert 0.925 <= with_seeds <= 0.98
    if between >= 0.1 and own < 1:
        assert patients_alone < 0.9


def test_estimate_with_seeds__two_trainings_of_two_methods_are_few() -> None:
    """The worst case: four trainings, and next to nothing but the seeds differs."""
    covered, patients_alone = _coverage(2, 2, 0.6, 0.2)
    assert 0.87 <= covered <= 0.96
    assert patients_alone < 0.5


@pytest.mark.parametrize(
    ("methods", "seeds", "between", "shared"),
    [(6, 2, 0.1, 0.3), (2, 4, 0.2, 0.4), (2, 3, 0.0, 0.3), (4, 3, 0.2, 0.0)],
)
def test_block_variance__covers_the_truth_and_leaves_out_what_seeds_do_to_all_methods(
    methods: int, seeds: int, between: float, shared: float
) -> None:
    trials = 400
    generator = np.random.Generator(np.random.Philox(methods * 100 + seeds))
    inside, widths = 0, np.zeros(2)
    for _ in range(trials):
        made = _simulated(generator, methods, seeds, between=between, own=0.5, shared=shared)
        blocks = [dict(enumerate(parts)) for parts in made.values()]
        delta = difference(mean_over_seeds(made["0"]), mean_over_seeds(made["1"]))
        paired, pooled = (
            estimate_with_seeds(delta, variance, 2 / seeds)
            for variance in (block_variance(blocks, range(seeds)), seed_variance(made))
        )
        inside += paired.low <= 0 <= paired.high
        widths += (paired.high - paired.low, pooled.high - pooled.low)
    assert 0.93 <= inside / trials <= 0.995
    if shared >= 0.3:
        assert widths[0] < 0.8 * widths[1]


def test_block_variance__of_two_methods_is_the_paired_t_interval() -> None:
    """Patients who all agree: what is left is the seeds, pair by pair."""
    first, second = np.array([0.830, 0.817, 0.824]), np.array([0.795, 0.807, 0.825])
    parts = [[_distribution(value, np.full(50, value)) for value in values] for values in (first, second)]
    blocks = [dict(enumerate(own)) for own in parts]
    delta = difference(*(mean_over_seeds(own) for own in parts))
    estimate = estimate_with_seeds(delta, block_variance(blocks, range(3)), 2 / 3)
    paired = first - second
    reach = student.ppf(0.975, 2) * paired.std(ddof=1) / np.sqrt(3)
    assert (estimate.low, estimate.high) == pytest.approx((paired.mean() - reach, paired.mean() + reach))


def test_block_variance__needs_two_methods_and_two_seeds() -> None:
    one = {0: _distribution(0.7, np.zeros(9)), 1: _distribution(0.8, np.zeros(9))}
    assert block_variance([one, one], [0, 1]).freedom == 1
    assert block_variance([one, {0: one[0]}], [0, 1]) == SeedVariance()  # what lacks a seed says nothing
    assert block_variance([one, one], [0]) == SeedVariance()


def test_seed_variance__is_the_pooled_variance() -> None:
    same = np.zeros(4)
    methods = {
        "a": [_distribution(value, value + same) for value in (0.7, 0.8)],
        "b": [_distribution(value, value + same) for value in (0.5, 0.6, 0.7)],
        "c": [_distribution(0.9, 0.9 + same)],
    }
    variance = seed_variance(methods)
    assert variance.freedom == 3
    assert variance.between == pytest.approx((2 * 0.05**2 + 2 * 0.1**2) / 3)
    assert variance.explained == pytest.approx(0)


def test_seed_variance__what_patients_explain_is_told_apart() -> None:
    """Two seeds that differ in nothing but the luck of the patients: the replicates scatter as much as the values."""
    made = _simulated(np.random.Generator(np.random.Philox(4)), 40, 2, between=0.0, own=1.0)
    variance = seed_variance(made)
    assert variance.explained == pytest.approx(1 / PATIENTS, rel=0.15)
    assert variance.between == pytest.approx(variance.explained, rel=0.6)


def test_seed_variance__replicates_without_a_class_are_left_out() -> None:
    methods = {"a": [_distribution(0.7, np.array([0.6, np.nan])), _distribution(0.8, np.array([0.9, np.nan]))]}
    variance = seed_variance(methods)
    # Deviations of the values -0.05, 0.05; of the replicate -0.15, 0.15.
    assert variance.explained == pytest.approx(2 * 0.1**2)
    assert variance.between == pytest.approx(2 * 0.05**2)


def test_estimate_with_seeds__interval_without_patients_is_students() -> None:
    """Patients who all agree: what is left is the t interval of the seeds."""
    values = np.array([0.70, 0.74, 0.72])
    parts = [_distribution(value, np.full(50, value)) for value in values]
    estimate = estimate_with_seeds(mean_over_seeds(parts), seed_variance({"a": parts}), 1 / 3, "three")
    reach = student.ppf(0.975, 2) * values.std(ddof=1) / np.sqrt(3)
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert estimate.note == "three"


def test_estimate_with_seeds__one_seed_is_the_bootstrap_alone() -> None:
    replicates = np.random.Generator(np.random.Philox(2)).normal(0.7, 0.05, 300)
    one = _distribution(0.7, replicates)
    variance = seed_variance({"a": [one], "b": [one]})
    assert variance == SeedVariance()
    assert estimate_with_seeds(mean_over_seeds([one]), variance, 1.0) == one.estimate()


def test_estimate_with_seeds__undefined_stays_undefined() -> None:
    nothing = _distribution(np.nan, np.full(9, np.nan))
    estimate = estimate_with_seeds(mean_over_seeds([nothing, nothing]), seed_variance({"a": [nothing, nothing]}), 0.5)
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()
    assert "undefined" in estimate.note


def test_estimate_with_seeds__share_stays_within_its_bounds() -> None:
    parts = [_distribution(value, np.full(50, value), (0.0, 1.0)) for value in (0.90, 0.98)]
    estimate = estimate_with_seeds(mean_over_seeds(parts), seed_variance({"a": parts}), 1 / 2)
    assert 0 < estimate.low < 0.9
    assert 0.98 < estimate.high <= 1
    scattered = [_distribution(value, value + np.linspace(-0.015, 0.015, 50), (0.0, 1.0)) for value in (0.90, 0.98)]
    wider = estimate_with_seeds(mean_over_seeds(scattered), seed_variance({"a": scattered}), 1 / 2)
    assert 0 < wider.low < 0.9
    assert 0.98 < wider.high < 1
