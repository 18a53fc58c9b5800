import numpy as np
import pytest

from maskedclip.evaluation.selection import choose, decide, patient_folds, ranking_quality
from maskedclip.evaluation.tasks import Task


def _binary(name: str, truth: list[int]) -> Task:
    return Task(name=name, kind="binary", classes=(0, 1), truth=np.array(truth))


def test_patient_folds__patients_stay_whole_and_folds_even() -> None:
    patients = np.array([str(row // 3) for row in range(60)], dtype=object)
    folds = patient_folds(patients, seed=1)
    assert all(len(set(folds[patients == patient])) == 1 for patient in set(patients))
    assert np.bincount(folds).tolist() == [12] * 5
    assert (folds == patient_folds(patients, seed=1)).all()
    assert (folds != patient_folds(patients, seed=2)).any()


def test_choose__binary_labels_share_the_best_mean_the_others_choose_alone() -> None:
    good, poor = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.2, 0.8, 0.1])
    truth = [0, 0, 1, 1]
    grade = Task(name="grade", kind="ordinal", classes=(0, 1, 2), truth=np.array([0, 1, 2, 2]))
    clear = np.eye(3)[grade.truth]
    tasks = [_binary("a", truth), _binary("b", truth), _binary("undefined", [0, 0, 0, -1]), grade]
    scores = [[good, poor, good], [poor, good, good], [good, good, good], [clear, clear[::-1], clear]]
    assert choose((1.0, 2.0, 3.0), tasks, scores) == {"a": 3.0, "b": 3.0, "undefined": 3.0, "grade": 1.0}
    assert choose((1.0,), [tasks[2]], [[good]]) == {}


def test_ranking_quality__leaves_unknown_truths_and_scores_out() -> None:
    task = _binary("a", [0, 1, 1, 0, -1])
    assert ranking_quality(task, np.array([0.1, 0.9, np.nan, 0.95, 0.0])) == 0.5
    assert np.isnan(ranking_quality(task, np.full(5, np.nan)))


def test_decide__rare_classes_count_as_much_as_frequent_ones() -> None:
    assert list(decide(_binary("a", [0, 1]), np.array([0.06, 0.04]), np.array([0.95, 0.05])).predicted) == [1, 0]
    task = Task(name="c", kind="nominal", classes=("x", "y", "z"), truth=np.array([0, 1]))
    scores = np.array([[0.7, 0.3, np.nan], [0.95, 0.05, np.nan]])
    assert list(decide(task, scores, np.array([0.9, 0.1, 0.0])).predicted) == [1, 0]


@pytest.mark.parametrize("patients", [1, 2, 7])
def test_patient_folds__few_patients(patients: int) -> None:
    folds = patient_folds(np.array([str(p) for p in range(patients)], dtype=object))
    assert len(set(folds)) == min(5, patients)
