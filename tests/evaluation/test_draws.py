import numpy as np
import pytest
from numpy.typing import NDArray

from maskedclip.evaluation.draws import Drawn, over_draws, score_draws
from maskedclip.evaluation.statistics import Distribution
from maskedclip.evaluation.tasks import Task


def _part(value: float, replicates: NDArray) -> Distribution:
    return Distribution(value=value, replicates=replicates, n=50, bounds=(0.0, 1.0), support=50.0)


def _parts(values: list[float], *, error: float = 0.0, replicates: int = 2000, seed: int = 0) -> list[Distribution]:
    """Draws whose replicates deviate alike, as those on the same test patients do."""
    noise = error * np.random.Generator(np.random.Philox(seed)).normal(size=replicates)
    return [_part(value, value + noise) for value in values]


def test_over_draws__mean_and_spread() -> None:
    drawn = over_draws(_parts([0.6, 0.7, 0.9]), key="a", seed=0)
    result = drawn.to_json()
    assert result["value"] == pytest.approx(np.mean([0.6, 0.7, 0.9]))
    assert result["spread"] == pytest.approx(np.std([0.6, 0.7, 0.9], ddof=1))
    assert result["draws"] == 3


def test_over_draws__error_holds_the_draw_and_the_patients() -> None:
    values = [0.6, 0.7, 0.9, 0.75, 0.65]
    for error in (0.0, 0.02, 0.2):
        expected = np.hypot(np.std(values, ddof=1) / np.sqrt(5), error)
        assert over_draws(_parts(values, error=error), key="a", seed=0).mean.replicates.std() == pytest.approx(
            expected, rel=0.05
        )


def test_over_draws__interval_covers_the_expectation() -> None:
    """Draws with an effect of their own, patients with theirs: 95 % of the intervals hold the true mean."""
    generator = np.random.Generator(np.random.Philox(7))
    hits, sets = 0, 300
    for _ in range(sets):
        patients, effects = 0.5 + 0.05 * generator.normal(size=40), 0.01 * generator.normal(size=6)
        weights = generator.multinomial(40, np.full(40, 1 / 40), size=300) / 40
        parts = [_part(patients.mean() + e, weights @ patients + e) for e in effects]
        estimate = over_draws(parts, key="a", seed=1).mean.estimate()
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.92 <= hits / sets <= 0.98


def test_over_draws__equal_keys_draw_alike_and_others_do_not() -> None:
    parts = _parts([0.5, 0.7, 0.9])
    first, again, other = (over_draws(parts, key=key, seed=0).mean.replicates for key in ("a", "a", "b"))
    assert (first == again).all()
    assert (first != other).any()
    assert (first != over_draws(parts, key="a", seed=1).mean.replicates).any()


def test_over_draws__draws_without_a_value_are_left_out_and_said() -> None:
    missing = Distribution(value=np.nan, replicates=np.full(2000, np.nan), n=50)
    result = over_draws([*_parts([0.6, 0.8]), missing], key="a", seed=0).to_json()
    assert result["value"] == pytest.approx(0.7)
    assert (result["draws"], result["note"]) == (2, "1 of 3 draws have no value and are left out")
    nothing = over_draws([missing, missing], key="a", seed=0).to_json()
    assert nothing["value"] is None
    assert (nothing["draws"], nothing["spread"]) == (0, None)


def test_over_draws__one_draw_is_itself() -> None:
    part = _parts([0.7], error=0.1)[0]
    drawn = over_draws([part], key="a", seed=0)
    assert (drawn.mean.replicates == part.replicates).all()
    assert drawn.mean.estimate() == part.estimate()
    assert drawn.to_json()["spread"] is None


def test_score_draws__macro_spread_is_that_of_the_mean_over_labels() -> None:
    task = Task(name="a", kind="binary", classes=(0, 1), truth=np.array([0, 1, -1]))
    first, second = (over_draws(_parts(values), key="k", seed=0) for values in ([0.5, 0.7], [0.9, 0.5]))
    drawn: dict[str, Drawn | str] = {"a": first, "b": second, "c": "too few"}
    section = score_draws(dict.fromkeys("abc", task), drawn)
    macro = section["macro"]["auroc"]
    assert macro["value"] == pytest.approx(0.65)
    assert macro["spread"] == pytest.approx(np.std([0.7, 0.6], ddof=1))
    assert macro["note"] == "mean of 2 of 3 labels; undefined: c"
    assert section["per_label"]["c"]["auroc"] == {
        "value": None,
        "low": None,
        "high": None,
        "n": 2,
        "note": "undefined (n=2, too few)",
    }


def test_score_draws__nothing_learnt_counts_the_test_rows() -> None:
    task = Task(name="a", kind="binary", classes=(0, 1), truth=np.array([0, 1, -1]))
    macro = score_draws({"a": task}, {"a": "one class"})["macro"]["auroc"]
    assert (macro["n"], macro["note"]) == (2, "undefined (n=2, no label is defined)")
    assert score_draws({}, {})["macro"]["auroc"]["n"] == 0
