import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from maskedclip.errors import UserError
from maskedclip.evaluation.compare_read import (
    check_paired,
    on_rows_of,
    rank_table,
    read_predictions,
    read_results,
)
from tests.evaluation.compare_case import MODEL, STORE, evaluated, rewritten


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(MODEL, tmp_path_factory.mktemp("read") / "a")


def test_read_predictions__holds_every_row_of_the_file(folder: Path) -> None:
    read = read_predictions(folder)
    found = {
        (*key, value, read.ids[row], read.patients[row], score, truth)
        for key, classes in read.scores.items()
        for value, part in classes.items()
        for row, score, truth in zip(part.rows, part.score, part.truth, strict=True)
    }
    table = pq.read_table(folder / "predictions.parquet").to_pydict()
    names = ("protocol", "feature", "label", "class", "id", "patient", "score", "truth")
    assert found == set(zip(*(table[name] for name in names), strict=True))
    assert len(found) == len(table["id"])


def test_read_predictions__rows_keep_the_order_of_the_store(folder: Path) -> None:
    test = np.flatnonzero(STORE.splits == "test")
    assert list(read_predictions(folder).ids) == [STORE.ids[int(row)] for row in test]


def test_on_rows_of__another_order_of_the_file_changes_nothing(folder: Path, tmp_path: Path) -> None:
    table = pq.read_table(folder / "predictions.parquet")
    order = np.random.Generator(np.random.Philox(3)).permutation(len(table))
    shuffled = rewritten(folder, tmp_path / "b")
    pq.write_table(table.take(order), shuffled / "predictions.parquet")
    first, other = read_predictions(folder), read_predictions(shuffled)
    assert not np.array_equal(first.ids, other.ids)
    check_paired(first, other)
    moved = on_rows_of(first, other)
    for key, classes in first.scores.items():
        for value, part in classes.items():
            for name in ("rows", "score", "truth"):
                np.testing.assert_array_equal(getattr(moved.scores[key][value], name), getattr(part, name))


def test_check_paired__other_patients_are_refused(folder: Path, tmp_path: Path) -> None:
    patients = pq.read_table(folder / "predictions.parquet").column("patient").to_pylist()
    other = rewritten(folder, tmp_path / "b", patient=["someone", *patients[1:]])
    # The row's patient is said again in the other sections; all of them must change.
    ids = pq.read_table(folder / "predictions.parquet").column("id").to_pylist()
    changed = ["someone" if key == ids[0] else patient for key, patient in zip(ids, patients, strict=True)]
    (other / "predictions.parquet").unlink()
    other = rewritten(folder, tmp_path / "c", patient=changed)
    with pytest.raises(UserError, match="the test rows' patients differ"):
        check_paired(read_predictions(folder), read_predictions(other))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_read_predictions__scores_that_are_not_finite_are_refused(folder: Path, tmp_path: Path, broken: float) -> None:
    scores = pq.read_table(folder / "predictions.parquet").column("score").to_pylist()
    other = rewritten(folder, tmp_path / "b", score=[broken, broken, *scores[2:]])
    with pytest.raises(UserError, match=r"linear/encoder/glaucoma: 2 of \d+ scores are not finite"):
        read_predictions(other)


def test_read_predictions__a_row_that_stands_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    ids = pq.read_table(folder / "predictions.parquet").column("id").to_pylist()
    other = rewritten(folder, tmp_path / "b", id=[ids[1], *ids[1:]])
    with pytest.raises(UserError, match=f"row {ids[1]} stands twice"):
        read_predictions(other)


def test_read_predictions__a_table_without_rows_is_one_of_retrieval_alone(folder: Path, tmp_path: Path) -> None:
    read = read_predictions(rewritten(folder, tmp_path / "b", id=[]))
    assert (len(read.ids), dict(read.scores)) == (0, {})


@pytest.mark.parametrize("content", [b"no", b"", b"PAR1 but no more PAR1"])
def test_read_predictions__no_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "predictions.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"predictions\.parquet: is not a table of predictions .*evaluate again"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"about": []}', '{"about": {"store": 3}}', '{"linear": {}}']
)
def test_read_results__damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results\.json: is damaged") as caught:
        read_results(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_read_results__whole_and_missing(folder: Path, tmp_path: Path) -> None:
    assert read_results(folder) == json.loads((folder / "results.json").read_text())
    with pytest.raises(UserError, match=r"has no results\.json"):
        read_results(tmp_path)


def test_rank_table__is_what_is_read(folder: Path, tmp_path: Path) -> None:
    other = rewritten(folder, tmp_path / "b")
    ids, patients, keys, own = ["x", "y", "z"], ["p", "", "p"], ["drusen", "normal"], np.array([1, 0, 1])
    table = rank_table(np.array([1, 7, 2]), np.array([4, 1]), ids, patients, keys, own)
    pq.write_table(table, other / "retrieval.parquet")
    ranks = read_predictions(other).ranks
    assert list(ranks) == ["image_to_text", "text_to_image"]
    assert list(ranks["image_to_text"].patients) == ["p", "", "p"]
    assert list(ranks["image_to_text"].ranks) == [1, 7, 2]
    assert list(zip(ranks["text_to_image"].ids, ranks["text_to_image"].patients, strict=True)) == [
        ("drusen", ""),
        ("normal", ""),
    ]
    texts = ranks["image_to_text"].texts
    assert texts is not None
    assert list(texts) == ["normal", "drusen", "normal"]
    assert ranks["text_to_image"].texts is None
    pq.write_table(table.drop_columns(["text"]), other / "retrieval.parquet")  # of an evaluation from before
    ranks = read_predictions(other).ranks
    assert ranks["image_to_text"].texts is None
    assert list(ranks["image_to_text"].ranks) == [1, 7, 2]
    (other / "retrieval.parquet").write_text("no")
    with pytest.raises(UserError, match=r"retrieval\.parquet: is not a table of predictions"):
        read_predictions(other)
