import numpy as np
import pytest

from maskedclip.evaluation.tasks import read_tasks


def test_read_tasks__kinds_and_unknown_values() -> None:
    tasks, refused = read_tasks(
        {
            "finding": np.array([0, 1, np.nan, 1], dtype=np.float32),
            "grade": np.array([0, 4, 2, np.nan], dtype=np.float32),
            "camera": np.array(["b", None, "a", "b"], dtype=object),
            "absent": np.array([0, 0, np.nan, 0], dtype=np.float32),
        }
    )
    assert refused == {}
    assert {name: task.kind for name, task in tasks.items()} == {
        "finding": "binary",
        "grade": "ordinal",
        "camera": "nominal",
        "absent": "binary",
    }
    assert list(tasks["finding"].truth) == [0, 1, -1, 1]
    assert tasks["grade"].classes == (0, 2, 4)
    assert list(tasks["grade"].truth) == [0, 2, 1, -1]
    assert tasks["camera"].classes == ("a", "b")
    assert list(tasks["camera"].truth) == [1, -1, 0, 1]
    assert list(tasks["camera"].on(np.array([3, 2])).truth) == [1, 0]


@pytest.mark.parametrize(
    ("column", "classes", "said"),
    [
        (["NA", "left", "right", None, "unknown", "NA"], ("left", "right"), "'NA' (2 rows), 'unknown' (1 row) taken"),
        (["none", "mild", "severe", "n/a"], ("mild", "none", "severe"), "'n/a' (1 row) taken as unknown"),
        (["none", "glaucoma", "amd", "none"], ("amd", "glaucoma", "none"), ""),
        (["None", "glaucoma", "healthy", "none"], ("glaucoma", "healthy"), "'None' (1 row), 'none' (1 row) taken"),
    ],
)
def test_read_tasks__words_for_unknown_are_no_classes(
    column: list, classes: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task = read_tasks({"x": np.array(column, dtype=object)})[0]["x"]
    assert task.classes == classes
    known = {value: place for place, value in enumerate(classes)}
    assert task.truth.tolist() == [known.get(value, -1) for value in column]
    told = capsys.readouterr().err
    assert said in told
    assert told == "" or told.startswith("label.x: ")
    assert bool(told) == bool(said)


def test_read_tasks__what_is_left_without_unknown_words_may_be_one_class() -> None:
    assert read_tasks({"x": np.array(["NA", "none", "normal"], dtype=object)})[1] == {"x": "has one value only"}


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (np.array([0.5, 1, 2], dtype=np.float32), "has fractions: a quantity, not classes"),
        (np.array([np.nan, np.nan], dtype=np.float32), "has no known value"),
        (np.array([3, 3], dtype=np.float32), "has one value only"),
        (np.array(["a", "a", None], dtype=object), "has one value only"),
        (np.array([None], dtype=object), "has no known value"),
    ],
)
def test_read_tasks__columns_that_are_no_classes(column: np.ndarray, reason: str) -> None:
    assert read_tasks({"x": column}) == ({}, {"x": reason})
