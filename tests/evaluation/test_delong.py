import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, skew
from sklearn.metrics import roc_auc_score

from maskedclip.evaluation.delong import (
    areas_and_covariance,
    delong_area,
    delong_difference,
    placements,
    third_moment,
)
from maskedclip.evaluation.metrics import auroc
from maskedclip.evaluation.statistics import cluster_weights

# The example of DeLong, DeLong & Clarke-Pearson (1988): albumin, total protein, K-G score and whether an operation
# helped, of the 43 patients for whom all are known.  Numbers as in the SAS/STAT user's guide, PROC LOGISTIC, "Comparing
# receiver operating characteristic curves", whose output is what is expected here.
OVARIAN = (
    "3.0 5.8 10 0, 3.2 6.3 5 1, 3.9 6.8 3 1, 2.8 4.8 6 0, 3.2 5.8 3 1, 0.9 4.0 5 0, 2.5 5.7 8 0, 1.6 5.6 5 1, "
    "3.8 5.7 5 1, 3.7 6.7 6 1, 3.2 5.4 4 1, 3.8 6.6 6 1, 4.1 6.6 5 1, 3.6 5.7 5 1, 4.3 7.0 4 1, 3.6 6.7 4 0, "
    "2.3 4.4 6 1, 4.2 7.6 4 0, 4.0 6.6 6 0, 3.5 5.8 6 1, 3.8 6.8 7 1, 3.0 4.7 8 0, 4.5 7.4 5 1, 3.7 7.4 5 1, "
    "3.1 6.6 6 1, 4.1 8.2 6 1, 4.3 7.0 5 1, 4.3 6.5 4 1, 3.2 5.1 5 1, 2.6 4.7 6 1, 3.3 6.8 6 0, 1.7 4.0 7 0, "
    "3.7 6.1 5 1, 3.3 6.3 7 1, 4.2 7.7 6 1, 3.5 6.2 5 1, 2.9 5.7 9 0, 2.1 4.8 7 1, 2.8 6.2 8 0, 4.0 7.0 7 1, "
    "3.3 5.7 6 1, 3.7 6.9 5 1, 3.6 6.6 5 1"
)
ALBUMIN, PROTEIN, SCORE, HELPED = np.array([row.split() for row in OVARIAN.split(",")], dtype=float).T
KG = -SCORE  # a low score is a good one
# Hanley & McNeil, Radiology 143 (1982), table 1: ratings 1 to 5 of 58 normal and 51 abnormal CT images.
RATINGS = np.concatenate([np.repeat(np.arange(1, 6), [33, 6, 6, 11, 2]), np.repeat(np.arange(1, 6), [3, 2, 2, 11, 33])])
ABNORMAL = np.repeat([0, 1], [58, 51])

# Few distinct scores, so that there are ties within and across the classes.
ROWS = st.lists(
    st.tuples(st.booleans(), st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 5)), min_size=8, max_size=40
)


def _naive(truth: NDArray, scores: NDArray, codes: NDArray) -> tuple[NDArray, NDArray]:
    """Obuchowski's covariance from all pairs, cluster by cluster, in plain loops."""
    wins = [
        [[1.0 if p > q else 0.5 if p == q else 0.0 for q in s[~truth]] for p in s[truth]] for s in scores.astype(float)
    ]
    tables = np.array(wins)  # (k, M, N)
    areas = tables.mean(axis=(1, 2))
    upper, lower = tables.mean(axis=2), tables.mean(axis=1)
    names = sorted(set(codes.tolist()))
    m, n = int(truth.sum()), int((~truth).sum())
    covariance = np.zeros((len(scores), len(scores)))
    seen = {side: len(set(codes[truth == side].tolist())) for side in (True, False)}
    for a in range(len(scores)):
        for b in range(len(scores)):
            s10 = s01 = s11 = s11_swapped = 0.0
            for name in names:
                xa, xb = ((upper[k][codes[truth] == name] - areas[k]).sum() for k in (a, b))
                ya, yb = ((lower[k][codes[~truth] == name] - areas[k]).sum() for k in (a, b))
                s10, s01 = s10 + xa * xb, s01 + ya * yb
                s11, s11_swapped = s11 + xa * yb, s11_swapped + xb * ya
            s10 *= seen[True] / ((seen[True] - 1) * m)
            s01 *= seen[False] / ((seen[False] - 1) * n)
            both = len(names) / (len(names) - 1)
            covariance[a, b] = s10 / m + s01 / n + both * (s11 + s11_swapped) / (m * n)
    return areas, covariance


def _case(rows: list) -> tuple[NDArray, NDArray, NDArray]:
    truth, first, second, codes = (np.array(column) for column in zip(*rows, strict=True))
    truth[:4] = [True, True, False, False]
    codes[:4] = [0, 1, 0, 2]  # each class in two clusters
    return truth, np.stack([first, second]) / 3, codes


def test_delong_area__published_example_of_1988() -> None:
    found = [delong_area(HELPED, s, small_sample=False) for s in (KG, PROTEIN, ALBUMIN)]
    assert [round(area.auroc, 4) for area in found] == [0.7258, 0.6478, 0.7366]
    assert [round(area.standard_error, 4) for area in found] == [0.1028, 0.1000, 0.0927]


def test_delong_difference__published_example_of_1988() -> None:
    albumin = delong_difference(HELPED, ALBUMIN, KG, small_sample=False)
    assert (round(albumin.difference, 4), round(albumin.standard_error, 4)) == (0.0108, 0.0953)
    assert (round(albumin.low, 4), round(albumin.high, 4)) == (-0.1761, 0.1976)
    assert (round(albumin.z**2, 4), round(albumin.p_value, 4)) == (0.0127, 0.9102)
    protein = delong_difference(HELPED, PROTEIN, KG, small_sample=False)
    assert (round(protein.difference, 4), round(protein.standard_error, 4)) == (-0.0780, 0.1046)
    assert (round(protein.z**2, 4), round(protein.p_value, 4)) == (0.5554, 0.4561)


def test_areas_and_covariance__published_test_of_three_models() -> None:
    areas, covariance = areas_and_covariance(HELPED == 1, np.stack([ALBUMIN, KG, PROTEIN]), np.arange(len(HELPED)))
    contrast = np.array([[1, -1, 0], [0, -1, 1]])
    difference = contrast @ areas
    statistic = difference @ np.linalg.solve(contrast @ covariance @ contrast.T, difference)
    assert (round(float(statistic), 4), round(float(chi2.sf(statistic, 2)), 4)) == (2.5340, 0.2817)


def test_delong_area__published_ratings_with_many_ties() -> None:
    # Stata's manual, [R] roctab, on the same table: 0.8932, standard error 0.0307.
    found = delong_area(ABNORMAL, RATINGS, small_sample=False)
    assert (round(found.auroc, 4), round(found.standard_error, 4)) == (0.8932, 0.0307)
    assert found.low < 0.8932 < found.high < 1


@settings(deadline=None, max_examples=60)  # a busy machine is no fault
@given(ROWS)
def test_areas_and_covariance__equal_the_naive_loops_with_clusters(rows: list) -> None:
    truth, scores, codes = _case(rows)
    areas, covariance = areas_and_covariance(truth, scores, np.unique(codes, return_inverse=True)[1])
    expected, naive = _naive(truth, scores, codes)
    assert areas == pytest.approx(expected)
    assert covariance == pytest.approx(naive, abs=1e-12)
    assert areas == pytest.approx([roc_auc_score(truth, row) for row in scores])


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_areas_and_covariance__a_cluster_for_each_row_is_plain_delong(rows: list) -> None:
    truth, scores, _ = _case(rows)
    _, covariance = areas_and_covariance(truth, scores, np.arange(len(truth)))
    upper, lower = placements(truth, scores)
    expected = np.cov(upper) / truth.sum() + np.cov(lower) / (~truth).sum()
    assert covariance == pytest.approx(expected, abs=1e-12)
    patients = [f"p{row}" for row in range(len(truth))]
    assert delong_difference(truth, *scores, clusters=patients) == delong_difference(truth, *scores)
    assert delong_area(truth, scores[0], clusters=[None] * len(truth)) == delong_area(truth, scores[0])


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_third_moment__equals_the_naive_loops(rows: list) -> None:
    truth, scores, codes = _case(rows)
    codes = np.unique(codes, return_inverse=True)[1]
    score = scores[0]
    wins = np.array([[float(p > q) + (p == q) / 2 for q in score[~truth]] for p in score[truth]])
    upper, lower = wins.mean(axis=1) - wins.mean(), wins.mean(axis=0) - wins.mean()
    total = np.zeros(codes.max() + 1)
    for value, code in zip(upper / truth.sum(), codes[truth], strict=True):
        total[code] += value
    for value, code in zip(lower / (~truth).sum(), codes[~truth], strict=True):
        total[code] += value
    expected = sum(total**3)
    for i, code in enumerate(codes[truth]):
        for j, other in enumerate(codes[~truth]):
            rest = wins[i, j] - wins.mean() - upper[i] - lower[j]
            expected += 6 * total[code] * total[other] * rest / wins.size
    assert third_moment(truth, score, codes) == pytest.approx(expected, abs=1e-12)


def test_third_moment__is_the_skewness_of_the_bootstrap() -> None:
    generator = np.random.Generator(np.random.Philox(2))
    truth = np.repeat(generator.random(100) < 0.3, 2)
    score = 2.3 * truth + np.repeat(generator.normal(size=100), 2) * 0.8 + 0.6 * generator.normal(size=200)
    codes = np.repeat(np.arange(100), 2)
    weights = cluster_weights([str(code) for code in codes], replicates=8000)
    found = (
        third_moment(truth, score, codes) / delong_area(truth, score, clusters=codes.astype(str)).standard_error ** 3
    )
    assert found == pytest.approx(skew(auroc(truth, score, weights)), abs=0.1)
    assert found < -0.3


def test_delong__repeated_rows_of_a_patient_are_no_new_evidence() -> None:
    generator = np.random.Generator(np.random.Philox(1))
    truth = generator.random(80) < 0.4
    first, second = truth + generator.normal(size=(2, 80))
    patients = [f"p{row}" for row in range(80)]
    once = delong_difference(truth, first, second, clusters=patients)
    twice = delong_difference(*(np.tile(x, 2) for x in (truth, first, second)), clusters=patients * 2)
    assert twice.standard_error == pytest.approx(once.standard_error)
    assert (twice.low, twice.p_value) == pytest.approx((once.low, once.p_value))
    naive = delong_difference(*(np.tile(x, 2) for x in (truth, first, second)))
    assert naive.standard_error < 0.75 * once.standard_error


def test_delong__few_patients_get_wider_intervals_and_larger_p_values() -> None:
    exact, normal = (delong_difference(HELPED, PROTEIN, KG, small_sample=small) for small in (True, False))
    assert exact.standard_error == normal.standard_error
    assert exact.high - exact.low > normal.high - normal.low
    assert exact.p_value > normal.p_value
    area, plain = delong_area(HELPED, KG), delong_area(HELPED, KG, small_sample=False)
    assert area.low < plain.low < plain.high
    assert plain.high - plain.low == pytest.approx(2 * 1.959964 * plain.standard_error)
    assert area.high < 1


def test_delong_difference__swapped_models_swap_the_sign() -> None:
    one, other = delong_difference(HELPED, ALBUMIN, KG), delong_difference(HELPED, KG, ALBUMIN)
    assert (one.low, one.high, one.p_value) == pytest.approx((-other.high, -other.low, other.p_value))


def test_delong_difference__models_that_order_alike_do_not_differ() -> None:
    found = delong_difference(HELPED, ALBUMIN, np.exp(ALBUMIN))
    assert (found.difference, found.standard_error, found.p_value) == (0, 0, 1)
    assert found.note == "both models order the rows alike"


def test_delong__perfect_model_has_an_honest_lower_bound() -> None:
    found = delong_area([0, 0, 0, 0, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7, 8])
    assert (found.auroc, found.standard_error, found.high) == (1, 0, 1)
    assert 0 < found.low < 0.6  # four patients show little
    opposed = delong_difference([0, 0, 1, 1], [1, 2, 3, 4], [4, 3, 2, 1])
    assert opposed.difference == 1
    assert np.isnan(opposed.p_value)
    assert opposed.note.startswith("no test")


@pytest.mark.parametrize(
    ("truth", "score", "patients", "note"),
    [
        ([], [], [], "undefined (n=0, no row with a known value)"),
        ([1, 1, 1], [1, 2, 3], [None] * 3, "undefined (n=3, one class only)"),
        ([0, 1, 0], [1, np.nan, np.inf], [None] * 3, "undefined (n=3, 2 of 3 scores are not finite)"),
        ([0, 1, 0, 1], [1, 2, 3, 4], ["a", "b", "c", "b"], "undefined (n=4, a class is seen in one patient only)"),
    ],
)
def test_delong__undefined_says_why(truth: list, score: list, patients: list, note: str) -> None:  # P11
    area = delong_area(truth, score, clusters=patients)
    test = delong_difference(truth, score, score, clusters=patients)
    assert area.note == test.note == note
    assert area.to_json()["auroc"] is test.to_json()["p_value"] is None
    json.dumps([area.to_json(), test.to_json()], allow_nan=False)
