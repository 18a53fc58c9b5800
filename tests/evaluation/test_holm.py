import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedclip.evaluation.holm import holm

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_holm__worked_by_hand() -> None:
    # Ascending 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm__undefined_tests_do_not_count() -> None:
    assert holm([0.02, np.nan, 0.03]) == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)
    assert np.isnan(holm([np.nan])).all()
    assert len(holm([])) == 0


@given(P_VALUES)
def test_holm__between_the_raw_values_and_bonferroni(p_values: list[float]) -> None:
    raw, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(raw * len(raw), 1) + 1e-12).all()


@given(P_VALUES, st.randoms(use_true_random=False))
def test_holm__keeps_the_order_of_the_tests_whatever_it_is(p_values: list[float], random: object) -> None:
    adjusted = holm(p_values)
    by_size = np.argsort(p_values, kind="stable")
    assert (np.diff(adjusted[by_size]) >= 0).all()
    order = np.random.default_rng(random.getrandbits(32)).permutation(len(p_values))  # pyright: ignore[reportAttributeAccessIssue]
    assert holm(np.array(p_values)[order]) == pytest.approx(adjusted[order])


@given(P_VALUES)
def test_holm__rejects_as_the_step_down_procedure_does(p_values: list[float]) -> None:
    rejected, level = set(), 0.05
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] * (len(p_values) - step) > level:
            break
        rejected.add(int(place))
    assert {int(place) for place in np.flatnonzero(holm(p_values) <= level)} == rejected
