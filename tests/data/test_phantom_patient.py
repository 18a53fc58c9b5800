from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from maskedclip.data.phantom_patient import (
    DISEASES,
    FINDINGS,
    SIDES,
    Eye,
    draw_eye,
    draw_patient,
    split_of,
    stream,
)

PATIENTS = 1200


@pytest.fixture(scope="module")
def eyes() -> np.ndarray:
    """Left and right eye of each patient, (patients, 2) of Eye."""
    drawn = np.empty((PATIENTS, 2), object)
    for patient in range(PATIENTS):
        shared = draw_patient(1, patient)
        drawn[patient] = [draw_eye(1, patient, side, shared) for side in SIDES]
    return drawn


def _table(eyes: np.ndarray, of: str) -> np.ndarray:
    """Severity of a finding or grade of a disease, (patients, 2)."""
    return np.vectorize(lambda eye: (eye.findings | eye.diseases)[of])(eyes)


def test_draw_eye__about_half_are_normal(eyes: np.ndarray) -> None:
    assert 0.44 < np.mean([eye.normal for eye in eyes.ravel()]) < 0.56


@pytest.mark.parametrize("of", [*DISEASES, *FINDINGS])
def test_draw_eye__every_grade_occurs_and_eyes_agree_above_chance(eyes: np.ndarray, of: str) -> None:
    grades = _table(eyes, of)
    worst = 4 if of == "diabetic_retinopathy" else 3
    assert set(np.unique(grades)) == set(range(worst + 1))
    present = grades > 0
    both, chance = (present[:, 0] & present[:, 1]).mean(), present[:, 0].mean() * present[:, 1].mean()
    assert both > 2.5 * chance
    affected = present.all(axis=1)
    if of in DISEASES:  # and where both have it, they have it alike
        assert np.corrcoef(grades[affected].T)[0, 1] > 0.4


def test_draw_eye__findings_fit_the_retinopathy_grade(eyes: np.ndarray) -> None:
    for eye in eyes.ravel():
        grade, found = eye.diseases["diabetic_retinopathy"], eye.findings
        bleeding = found["haemorrhage"], found["hard_exudate"]
        if grade == 0:
            assert found["microaneurysm"] == found["hard_exudate"] == found["laser_scar"] == 0
        else:
            assert found["microaneurysm"] > 0
        if grade == 1 and not eye.wet:
            assert found["laser_scar"] == bleeding[1] == 0
        if grade >= 3:
            assert bleeding[0] >= 2


def test_draw_eye__diseases_bring_their_finding(eyes: np.ndarray) -> None:
    for disease, finding in (
        ("glaucoma", "wide_cup"),
        ("cataract", "media_opacity"),
        ("pathological_myopia", "myopic_crescent"),
    ):
        assert np.array_equal(_table(eyes, disease), _table(eyes, finding))
    amd = _table(eyes, "amd")
    assert np.array_equal(_table(eyes, "drusen")[amd > 0], amd[amd > 0])
    assert (_table(eyes, "drusen")[amd == 0] > 0).any()  # drusen alone are no degeneration


def test_draw_eye__cup_grows_with_its_grade(eyes: np.ndarray) -> None:
    grades = _table(eyes, "wide_cup")
    ratio = np.vectorize(lambda eye: eye.cup_ratio)(eyes)
    ends = [(ratio[grades == grade].min(), ratio[grades == grade].max()) for grade in range(4)]
    assert all(mild[1] < worse[0] for mild, worse in pairwise(ends))


def test_draw_eye__age_brings_cataract_and_degeneration(eyes: np.ndarray) -> None:
    age = np.array([draw_patient(1, patient).age for patient in range(PATIENTS)])
    for disease in ("cataract", "amd"):
        ill = (_table(eyes, disease) > 0).any(axis=1)
        assert age[ill].mean() > age[~ill].mean() + 3


def test_split_of__shares_and_pureness() -> None:
    count = Counter(split_of(4, patient) for patient in range(3000))
    assert count["train"] / 3000 == pytest.approx(0.7, abs=0.03)
    assert count["val"] / 3000 == pytest.approx(0.1, abs=0.02)
    assert count["test"] / 3000 == pytest.approx(0.2, abs=0.03)
    assert [split_of(4, patient) for patient in range(50)] == [split_of(4, patient) for patient in range(50)]
    assert [split_of(4, patient) for patient in range(50)] != [split_of(5, patient) for patient in range(50)]


def test_stream__purposes_are_independent() -> None:
    first = stream(1, 2, "a").random(4)
    assert np.array_equal(first, stream(1, 2, "a").random(4))
    others = [stream(1, 2, "b").random(4), stream(1, 3, "a").random(4), stream(2, 2, "a").random(4)]
    assert not any(np.array_equal(first, other) for other in others)


def test_eye__normal_means_no_finding() -> None:
    healthy = Eye(
        side="left",
        findings=dict.fromkeys(FINDINGS, 0),
        diseases=dict.fromkeys(DISEASES, 0),
        cup_ratio=0.3,
        wet=False,
    )
    assert healthy.normal
    ill = Eye(
        side="left", findings=healthy.findings | {"drusen": 1}, diseases=healthy.diseases, cup_ratio=0.3, wet=False
    )
    assert not ill.normal
