import json

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from maskedclip.errors import UserError
from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.metrics import auroc
from maskedclip.evaluation.statistics import Distribution, cluster_weights, paired_difference, with_point
from maskedclip.evaluation.subgroups import group_rows, subgroup_columns, subgroup_scores
from maskedclip.evaluation.tasks import Prediction, Task

M = 300
GENERATOR = np.random.Generator(np.random.Philox(12))
PATIENTS = np.array([f"p{row // 2}" for row in range(M)], dtype=object)
WEIGHTS = cluster_weights(PATIENTS, replicates=200)
EYE = ["left" if row % 2 else "right" for row in range(M)]
TRUTH = {name: GENERATOR.integers(0, 2, M) for name in ("glaucoma", "drusen")}
GRADE = GENERATOR.integers(0, 3, M)
TASKS = {name: Task(name=name, kind="binary", classes=(0, 1), truth=truth) for name, truth in TRUTH.items()}
TASKS["dr_grade"] = Task(name="dr_grade", kind="ordinal", classes=(0, 1, 2), truth=GRADE)


def _answer(scores: NDArray) -> Prediction:
    return Prediction(scores=scores, predicted=np.zeros(M, np.int64))


# Glaucoma is seen in left eyes only.
SEEN = np.where(np.array(EYE) == "left", 2.0, 0.0)
ANSWERS = {
    "glaucoma": _answer(SEEN * TRUTH["glaucoma"] + GENERATOR.normal(size=M)),
    "drusen": _answer(TRUTH["drusen"] + GENERATOR.normal(size=M)),
    "dr_grade": _answer(np.eye(3)[GRADE] + GENERATOR.random((M, 3))),
    "unlearnt": "the training split has one class only",
}


def test_subgroup_scores__values_are_those_of_the_rows() -> None:
    found = subgroup_scores({"eye": EYE}, TASKS, ANSWERS, WEIGHTS, PATIENTS)
    assert list(found["eye"]) == ["left", "right"]
    for eye, group in found["eye"].items():
        rows = np.array(EYE) == eye
        assert (group["n"], group["patients"]) == (150, 150)
        assert list(group["per_label"]) == ["glaucoma", "drusen", "dr_grade"]
        for name in ("glaucoma", "drusen"):
            entry, truth = group["per_label"][name], TRUTH[name][rows]
            area = roc_auc_score(truth, ANSWERS[name].scores[rows])
            assert entry["auroc"]["value"] == pytest.approx(area)
            assert entry["auroc"]["low"] < area < entry["auroc"]["high"]
            assert entry["positives"] == truth.sum()
        grades = group["per_label"]["dr_grade"]
        assert grades["counts"] == {str(k): int((GRADE[rows] == k).sum()) for k in range(3)}
        values = [entry["auroc"]["value"] for entry in group["per_label"].values()]
        assert group["macro"]["auroc"]["value"] == pytest.approx(np.mean(values))
    json.dumps(found, allow_nan=False)


def test_subgroup_scores__difference_is_paired_on_the_same_replicates() -> None:
    groups = subgroup_scores({"eye": EYE}, TASKS, ANSWERS, WEIGHTS, PATIENTS)["eye"]
    rows = np.array(EYE) == "left"
    sides = [
        auroc(TRUTH["glaucoma"][side], ANSWERS["glaucoma"].scores[side], with_point(WEIGHTS[:, side]))
        for side in (rows, ~rows)
    ]
    found = groups["left"]["difference"]["per_label"]["glaucoma"]["auroc"]
    assert found["value"] == pytest.approx(sides[0][0] - sides[1][0])
    support = [min(int((TRUTH["glaucoma"][side] == k).sum()) for k in (0, 1)) for side in (rows, ~rows)]
    parts = [
        Distribution.from_rows(values, 150, bounds=SHARE, support=m)  # one row a patient on either side
        for values, m in zip(sides, support, strict=True)
    ]
    expected = paired_difference(*parts)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert found["low"] > 0.1  # glaucoma is seen in left eyes only
    other = groups["right"]["difference"]["per_label"]["glaucoma"]["auroc"]
    assert (other["value"], other["low"]) == pytest.approx((-found["value"], -found["high"]))
    drusen = groups["left"]["difference"]["per_label"]["drusen"]["auroc"]
    assert drusen["low"] < 0 < drusen["high"]
    assert groups["left"]["difference"]["macro"]["auroc"]["note"] == "mean of 3 of 3 labels"


def test_subgroup_scores__missing_classes_are_said_and_left_out() -> None:  # P11
    clinic = ["a" if truth else "b" for truth in TRUTH["glaucoma"]]  # every positive comes from one clinic
    groups = subgroup_scores({"clinic": clinic}, TASKS, ANSWERS, WEIGHTS, PATIENTS)["clinic"]
    n = int(TRUTH["glaucoma"].sum())
    assert groups["a"]["per_label"]["glaucoma"]["auroc"]["note"] == f"undefined (n={n}, one class only)"
    assert groups["a"]["per_label"]["glaucoma"]["positives"] == n
    assert groups["a"]["macro"]["auroc"]["note"] == "mean of 2 of 3 labels; undefined: glaucoma"
    difference = groups["a"]["difference"]
    assert difference["per_label"]["glaucoma"]["auroc"]["note"] == f"undefined (n={n}, one class only in the group)"
    assert difference["macro"]["auroc"]["note"] == "mean of 2 of 3 labels"
    everybody = subgroup_scores({"site": ["x"] * M}, TASKS, ANSWERS, WEIGHTS, PATIENTS)["site"]["x"]
    assert everybody["n"] == M
    assert everybody["difference"]["macro"]["auroc"]["value"] is None
    assert "no row with a known value outside the group" in str(everybody["difference"]["per_label"])


def test_subgroup_scores__nothing_learnt() -> None:
    refused = {"glaucoma": "the training split has one class only"}
    group = subgroup_scores({"eye": EYE}, TASKS, refused, WEIGHTS, PATIENTS)["eye"]["left"]
    assert group["per_label"] == {}
    assert group["macro"]["auroc"]["note"] == "undefined (n=150, no label is defined)"


def test_group_rows__ages_become_decades() -> None:
    groups = group_rows("age", ["39", "40", "49", None, "85", "69.5", "", "NA"])
    assert {name: list(np.flatnonzero(rows)) for name, rows in groups.items()} == {
        "<40": [0],
        "40-49": [1, 2],
        "60-69": [5],
        ">=80": [4],
        "unknown": [3, 6, 7],
    }


def test_group_rows__many_numbers_become_bands_of_like_size() -> None:
    groups = group_rows("pressure", GENERATOR.normal(15, 3, 400))
    assert [int(rows.sum()) for rows in groups.values()] == [100] * 4
    low, high = (float(edge) for edge in next(iter(groups)).split(" to "))
    assert low < high < 15


def test_group_rows__few_whole_numbers_and_words_stay_groups() -> None:
    assert list(group_rows("grade", np.array([10, 2, np.nan, 2]))) == ["2", "10", "unknown"]
    assert list(group_rows("sex", ["Male", "Female", " Male", None])) == ["Female", "Male", "unknown"]
    assert list(group_rows("dilated", [True, False, True])) == ["False", "True"]
    assert list(group_rows("mixed", ["1", "b"])) == ["1", "b"]
    assert list(group_rows("empty", [None, ""])) == ["unknown"]


@pytest.mark.parametrize("name", ["age", "pressure", "grade"])
def test_group_rows__each_row_is_in_one_group(name: str) -> None:
    values = GENERATOR.integers(0, 7 if name == "grade" else 100, 200).astype(object)
    values[::9] = None
    assert (np.sum(list(group_rows(name, values).values()), axis=0) == 1).all()


def test_group_rows__a_column_of_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"'operator' has 300 groups; give a column of at most 50 values"):
        group_rows("operator", [f"operator {row}" for row in range(M)])


def test_subgroup_columns__faults_name_the_columns_there_are() -> None:
    table = pa.table({"id": ["a", "b", "c"], "eye": ["left", None, "right"], "label.drusen": [0.0, 1.0, None]})
    assert subgroup_columns(table, ["eye"], np.array([2, 0])) == {"eye": ["right", "left"]}
    with pytest.raises(UserError, match=r"no column 'sex'; it has eye, label\.drusen$"):
        subgroup_columns(table, ["eye", "sex"], np.arange(3))
    with pytest.raises(UserError, match="'id' differs from row to row"):
        subgroup_columns(table, ["id"], np.arange(3))
