import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from maskedclip.evaluation.intervals import Uncertain, difference_interval


def _interval(value: float, error: float, **shape: float) -> tuple[float, float]:
    return Uncertain(value=value, error=error, **shape).interval  # pyright: ignore[reportArgumentType]


def test_interval__logit_scale_by_hand() -> None:
    # logit(0.8) = 1.3863; 1.96 x 0.05 / (0.8 x 0.2) = 0.6125; the logistic function of 0.7738 and 1.9988.
    assert _interval(0.8, 0.05) == pytest.approx((0.6843, 0.8807), abs=1e-4)


def test_interval__value_without_skewness_by_hand() -> None:
    # The logit bends it, which is undone: c = -(1 - 1.6) x 0.3125 / 2, y = (cbrt(1 + 3 c x) - 1) / c for x = +-1.96.
    c = 0.09375
    logits = [np.log(4) - 0.3125 * (np.cbrt(1 + 3 * c * x) - 1) / c for x in (1.95996, -1.95996)]
    assert _interval(0.8, 0.05, skewness=0.0) == pytest.approx([1 / (1 + np.exp(-x)) for x in logits], abs=1e-5)


def test_interval__where_the_logit_undoes_the_skewness_only_a_shift_is_left() -> None:
    skewness = 3 * (1 - 2 * 0.8) * 0.3125 / 2
    logits = np.log(4) - 0.3125 * (np.array([1.95996, -1.95996]) - skewness / 6)
    assert _interval(0.8, 0.05, skewness=skewness) == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)


def test_interval__little_more_skewness_moves_it_little() -> None:
    """Hall's cubic turns flat where the skewness is strong: the lower end of this one jumped from 0.42 to 0.27."""
    lows = np.array([_interval(0.605, 0.04, skewness=skewness)[0] for skewness in np.arange(-0.3, -1.5, -0.05)])
    assert np.abs(np.diff(lows)).max() < 0.02
    plain = 0.605 - 1 / (1 + np.exp(-(np.log(0.605 / 0.395) - 1.96 * 0.04 / (0.605 * 0.395))))
    assert (0.605 - lows).max() < 1.7 * plain


def test_interval__other_bounds_are_the_same_scaled() -> None:
    low, high = _interval(0.8, 0.05, support=9, skewness=-0.3)
    found = Uncertain(value=0.6, error=0.1, bounds=(-1, 1), support=9, skewness=-0.3).interval
    assert found == pytest.approx((2 * low - 1, 2 * high - 1))


def test_interval__mirrored_value_has_the_mirrored_interval() -> None:
    low, high = _interval(0.9, 0.04, support=12, skewness=-0.5)
    assert _interval(0.1, 0.04, support=12, skewness=0.5) == pytest.approx((1 - high, 1 - low))


def test_interval__fewer_patients_are_less_certain() -> None:
    widths = [high - low for low, high in (_interval(0.8, 0.05, support=m) for m in (3, 10, 100, np.inf))]
    assert widths == sorted(widths, reverse=True)
    assert widths[2] < 1.03 * widths[3]


def test_interval__at_a_bound_is_wilsons() -> None:
    square = student.ppf(0.975, 9) ** 2
    assert _interval(1.0, 0.0, support=10) == pytest.approx((10 / (10 + square), 1.0))
    assert _interval(0.0, 0.0, support=10) == pytest.approx((0.0, square / (10 + square)))
    assert _interval(1.0, 0.0) == (1.0, 1.0)
    assert _interval(0.5, 0.0, support=10) == pytest.approx((0.5, 0.5))


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 500), st.floats(-3, 3))
def test_interval__holds_the_value_within_the_bounds(
    value: float, error: float, support: float, skewness: float
) -> None:
    low, high = _interval(value, error, support=support, skewness=skewness)
    assert 0 <= low <= value + 1e-9
    assert value - 1e-9 <= high <= 1


def test_difference_interval__independent_equal_errors_by_hand() -> None:
    first, second = Uncertain(value=0.9, error=0.03, support=20), Uncertain(value=0.7, error=0.03, support=20)
    low, high = difference_interval(first, second, 0.0)
    down = (first.value - first.interval[0]) * (second.interval[1] - second.value)
    up = (first.interval[1] - first.value) * (second.value - second.interval[0])
    assert (low, high) == pytest.approx((0.2 - np.sqrt(2 * down), 0.2 + np.sqrt(2 * up)))


def test_difference_interval__far_from_the_bounds_is_the_plain_one() -> None:
    first, second = Uncertain(value=0.52, error=0.02), Uncertain(value=0.48, error=0.01)
    error = np.sqrt(0.02**2 + 0.01**2 - 2 * 0.6 * 0.02 * 0.01)
    low, high = difference_interval(first, second, 0.6)
    assert (low, high) == pytest.approx((0.04 - 1.96 * error, 0.04 + 1.96 * error), abs=2e-4)


def test_difference_interval__swapped_models_swap_the_sign() -> None:
    first = Uncertain(value=0.95, error=0.02, support=9, skewness=-0.8)
    second = Uncertain(value=0.8, error=0.05, support=9, skewness=-0.2)
    low, high = difference_interval(first, second, 0.4)
    assert difference_interval(second, first, 0.4) == pytest.approx((-high, -low))


@pytest.mark.parametrize("correlation", [1.0, 1 - 1e-15])
def test_difference_interval__nothing_is_left_of_models_that_err_alike(correlation: float) -> None:
    model = Uncertain(value=0.95, error=0.02, support=9, skewness=-0.8)
    assert difference_interval(model, model, correlation) == (0.0, 0.0)
    nearly = difference_interval(model, model, 0.99)
    assert nearly[1] - nearly[0] < 0.25 * (model.interval[1] - model.interval[0])


def test_difference_interval__perfect_model_keeps_its_own_uncertainty() -> None:
    perfect, other = Uncertain(value=1.0, error=0.0, support=10), Uncertain(value=0.8, error=0.05, support=10)
    low, high = difference_interval(perfect, other, 0.0)
    assert low == pytest.approx(0.2 - np.hypot(1 - perfect.interval[0], other.interval[1] - 0.8))
    assert high == pytest.approx(0.2 + 0.8 - other.interval[0])
