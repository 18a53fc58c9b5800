"""Holm's correction: p-values of several labels at once, so that one of many does not shine by chance alone."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjusted p-values (m,), in the order of `p_values` (m,), each in 0 to 1.

    The i-th smallest of m is multiplied by m - i + 1, and is at least the adjusted one before it: Holm, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).  Rejecting where the
    result is at most 0.05 keeps the chance of any false rejection at 5 %, however the tests depend on each other.  NaN
    (a test that could not be had) stays NaN and does not count in m.
    """
    raw = np.asarray(p_values, dtype=np.float64)
    assert not (raw < 0).any(), raw
    assert not (raw > 1).any(), raw
    tests = np.flatnonzero(~np.isnan(raw))
    ascending = tests[np.argsort(raw[tests], kind="stable")]
    adjusted = np.full(len(raw), np.nan)
    adjusted[ascending] = np.minimum(np.maximum.accumulate(raw[ascending] * np.arange(len(tests), 0, -1)), 1)
    return adjusted
