"""A searched file: any float type, kept copies that notice a change, an index of known recall, filters, threads."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.deployment import search as module
from maskedclip.deployment.search import SearchIndex, compose, open_index
from maskedclip.deployment.search_exact import exact_top
from maskedclip.errors import UserError

ROWS, WIDTH = 3000, 24


def _vectors(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    """Clusters, as features have them."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, WIDTH))
    return (centres[random.integers(0, 40, rows)] + 0.5 * random.normal(size=(rows, WIDTH)) + 1).astype(np.float32)


def _write(path: Path, vectors: np.ndarray, *, dtype: str = "float32", listed: bool = False) -> Path:
    flat = pa.array(vectors.astype(dtype).ravel())
    column: Any = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    if listed:
        column = column.cast(pa.list_(flat.type))
    count = len(vectors)
    table = pa.table(
        {
            "id": [f"row-{row}" for row in range(count)],
            "patient": [f"p{row // 3}" if row % 100 else None for row in range(count)],
            "age": pa.array([row % 90 for row in range(count)], pa.int32()),
            "patches": pa.array([[[1.0, 2.0]]] * count),
            "projected": column,
        }
    )
    pq.write_table(table.replace_schema_metadata({"maskedclip.model": "abcd"}), path, row_group_size=1100)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return _write(tmp_path / "f.parquet", _vectors())


def _unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)


def _ids(found: list[list[module.Hit]]) -> list[list[int]]:
    return [[hit.row for hit in hits] for hits in found]


@pytest.mark.parametrize(("dtype", "listed"), [("float32", False), ("float16", False), ("float64", True)])
@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_search__any_float_type_in_memory_or_mapped(tmp_path: Path, dtype: str, listed: bool, in_memory: int) -> None:
    vectors = _vectors()
    index = open_index(_write(tmp_path / "f.parquet", vectors, dtype=dtype, listed=listed), in_memory=in_memory)
    queries = _vectors(1, 5)
    expected = exact_top(_unit(vectors.astype(dtype)), _unit(queries), 7)
    found = index.search(queries, 7)
    assert _ids(found) == [rows.tolist() for rows, _ in expected]
    assert [hit.score for hit in found[0]] == pytest.approx(expected[0][1].tolist(), abs=1e-6)
    assert found[0][0].id == f"row-{found[0][0].row}"
    assert set(found[0][0].columns) == {"patient", "age"}
    assert (len(index), index.width, index.model, index.kind) == (ROWS, WIDTH, "abcd", "exact")
    assert (tmp_path / "f.projected.vectors.npy").is_file() == (in_memory == 0)
    assert isinstance(np.asarray(index._values), np.memmap | np.ndarray)


def test_search__rows_without_a_vector_are_never_found(tmp_path: Path) -> None:
    vectors = _vectors(rows=50)
    vectors[3], vectors[7, 2], vectors[9] = 0, np.nan, np.inf
    path = _write(tmp_path / "f.parquet", vectors)
    table = pq.read_table(path)
    column = table.column("projected").to_pylist()
    column[11] = None
    place = table.column_names.index("projected")
    table = table.set_column(place, "projected", pa.array(column, pa.list_(pa.float32())))
    pq.write_table(table, path)
    for memory in (0, 1 << 30):
        index = open_index(path, in_memory=memory)
        assert index.left_out.tolist() == [3, 7, 9, 11]
        rows = _ids(index.search(vectors[:1], 50))[0]
        assert sorted(rows) == sorted(set(range(50)) - {3, 7, 9, 11})
        assert not {3, 7, 9, 11} & set(_ids(index.search(-vectors[:1], 50, "age < 20"))[0])


def test_search__a_filter_comes_before_the_ranking(file: Path) -> None:
    index = open_index(file)
    query = _vectors(1, 3)
    every = _ids(index.search(query, ROWS))
    for where in ("age > 80", "age > 80 and patient is not null", "id = 'row-5'", "age > 1000"):
        passing = set(index.rows(where).tolist())  # type: ignore[union-attr]
        assert _ids(index.search(query, 10, where)) == [[row for row in rows if row in passing][:10] for rows in every]
    assert _ids(index.search(query, 4, " ")) == [rows[:4] for rows in every]


def test_search__a_changed_file_is_converted_and_indexed_again(file: Path) -> None:
    first = open_index(file, kind="approximate", in_memory=0)
    copy, graph = (file.with_name(f"f.projected.{name}") for name in ("vectors.npy", "usearch"))
    stamp = json.loads(graph.with_name(graph.name + ".json").read_text())
    assert stamp["of"] == "f.parquet"
    assert stamp["recall"]["image"] >= 0.95
    states = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (copy, graph)]
    again = open_index(file, kind="approximate", in_memory=0)
    assert states == [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (copy, graph)]
    os.utime(file, ns=(1, 1))  # copied elsewhere and back: the content decides
    open_index(file, kind="approximate", in_memory=0)
    assert states == [(path.stat().st_ino, path.stat().st_mtime_ns) for path in (copy, graph)]
    query = _vectors(1, 4)
    assert _ids(first.search(query)) == _ids(again.search(query))
    _write(file, _vectors(5))
    changed = open_index(file, kind="approximate", in_memory=0)
    assert graph.stat().st_mtime_ns != states[1][1]
    assert _ids(changed.search(query, 5)) == [
        rows.tolist() for rows, _ in exact_top(_unit(_vectors(5)), _unit(query), 5)
    ]


def test_search__a_stranger_of_the_same_name_is_not_replaced(file: Path) -> None:
    stranger = file.with_name("f.projected.usearch")
    stranger.write_text("mine")
    with pytest.raises(UserError, match="not made by"):
        open_index(file, kind="approximate")
    assert stranger.read_text() == "mine"


def test_search__damaged_copies_are_named_or_made_again(file: Path) -> None:
    open_index(file, kind="approximate", in_memory=0)
    graph = file.with_name("f.projected.usearch")
    graph.write_bytes(graph.read_bytes()[:100])  # cut: its size is not that of its JSON
    assert open_index(file, kind="approximate", in_memory=0).search(_vectors(1, 1))[0]
    stamp = file.with_name("f.projected.vectors.npy.json")
    stamp.write_text("{")
    assert open_index(file, in_memory=0).search(_vectors(1, 1))[0]
    assert json.loads(stamp.read_text())["rows"] == ROWS


def test_search__a_folder_that_cannot_be_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    open_index(file, in_memory=0)
    assert len(list((tmp_path / "cache").rglob("f.projected.vectors.npy"))) == 1
    assert not file.with_name("f.projected.vectors.npy").exists()


def test_index__recall_order_and_filters(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = open_index(file)
    index = open_index(file, kind="approximate", texts=_unit(_vectors(7, 20)))
    assert index.graph is not None
    assert index.kind == "approximate"
    assert set(index.graph.recall) == {"image", "text"}
    assert len(index.graph) == ROWS
    queries = _vectors(1, 100)
    monkeypatch.setattr(module, "_EXACT_SUBSET", 0)  # so that filtered searches go through the index, too
    for where in (None, "age >= 30", "age = 7"):
        found, truth = index.search(queries, 10, where), exact.search(queries, 10, where)
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(_ids(found), _ids(truth), strict=True)]
        assert np.mean(shares) >= 0.95
        for hits, true in zip(found, truth, strict=True):
            scores = {hit.row: hit.score for hit in true}
            assert all(hit.score == scores[hit.row] for hit in hits if hit.row in scores)
            assert [(-hit.score, hit.row) for hit in hits] == sorted((-hit.score, hit.row) for hit in hits)
            assert len(hits) == 10
    assert len(index.search(queries[:1], ROWS + 5)[0]) == ROWS
    assert index.search(queries[:1], 10, "age = 1000") == [[]]


def test_auto__is_exact_until_it_is_large(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_index(file).kind == "exact"
    monkeypatch.setattr(module, "EXACT_ROWS", ROWS - 1)
    assert open_index(file).kind == "approximate"
    assert open_index(file, kind="exact").kind == "exact"


def test_search__without_usearch_says_what_to_install(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "usearch.index", None)
    with pytest.raises(UserError, match=r"maskedclip\[search\]"):
        open_index(file, kind="approximate")


def test_search__many_threads_find_the_same(file: Path) -> None:
    for index in (open_index(file, in_memory=0), open_index(file, kind="approximate")):
        queries = _vectors(1, 16)
        expected = _ids(index.search(queries, 5, "age > 3"))

        def work(_: int, index: SearchIndex = index, queries: Any = queries) -> list[list[int]]:
            return _ids(index.search(queries, 5, "age > 3"))

        with ThreadPoolExecutor(6) as threads:
            assert all(found == expected for found in threads.map(work, range(60)))


def test_search__leaves_rows_out(file: Path) -> None:
    index = open_index(file)
    assert index.same_patient(4) == {3, 4, 5}
    assert index.same_patient(100) == {100}
    rows = _ids(index.search(_vectors(1, 1), 20))[0]
    skip = {rows[0], rows[3]}
    left = _ids(index.search(_vectors(1, 1), 18, leave_out=[skip]))[0]
    assert left == [row for row in rows if row not in skip]
    assert index.copy_of(index.vector(8)) == 8
    assert index.copy_of(_vectors(1, 1)[0]) is None
    assert index.row("row-17") == 17


def test_search__refuses_what_does_not_fit(file: Path, tmp_path: Path) -> None:
    index = open_index(file)
    for query, says in (
        (np.ones(WIDTH), "shape"),
        (np.ones((2, WIDTH + 1)), "shape"),
        (np.zeros((1, WIDTH)), "zero"),
        (np.full((1, WIDTH), np.nan), "not finite"),
    ):
        with pytest.raises(UserError, match=says):
            index.search(query)
    with pytest.raises(UserError, match="top"):
        index.search(np.ones((1, WIDTH)), 0)
    with pytest.raises(UserError, match="no row with the id"):
        index.row("nobody")
    with pytest.raises(UserError, match="give one of projected"):
        open_index(file, output="encoder")
    with pytest.raises(UserError, match="give auto"):
        open_index(file, kind="quick")  # type: ignore[arg-type]
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column id"):
        open_index(tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="maskedclip embed"):
        open_index(tmp_path / "b.parquet")
    pq.write_table(pq.read_table(file).slice(0, 0), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="no rows"):
        open_index(tmp_path / "c.parquet")
    ragged = pa.table({"id": ["a", "b"], "projected": pa.array([[1.0, 2.0], [1.0]])})
    pq.write_table(ragged, tmp_path / "d.parquet")
    with pytest.raises(UserError, match="row 1 is not 2 wide"):
        open_index(tmp_path / "d.parquet")
    damaged = bytearray(file.read_bytes())
    damaged[4:60_000] = bytes(59_996)
    (tmp_path / "e.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        open_index(tmp_path / "e.parquet")


def test_compose__is_the_weighted_sum_of_directions() -> None:
    image, text, other = np.random.default_rng(0).normal(size=(3, 9))

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.linalg.norm(vector)

    assert compose(image, None) == pytest.approx(unit(image), abs=1e-6)
    assert compose(None, text, 0.1) == pytest.approx(unit(text), abs=1e-6)
    assert compose(image, text, 0.3) == pytest.approx(unit(0.7 * unit(image) + 0.3 * unit(text)), abs=1e-6)
    assert compose(3 * image, 5 * text) == pytest.approx(compose(image, text), abs=1e-6)
    without = unit(unit(image) - 0.4 * unit(other))
    assert compose(image, None, 0.4, without=other) == pytest.approx(without, abs=1e-6)
    assert compose(image, text, 0) == pytest.approx(unit(image), abs=1e-6)
    assert np.linalg.norm(compose(image, text)) == pytest.approx(1, abs=1e-6)
    for wrong in (
        lambda: compose(None, None),
        lambda: compose(None, None, without=other),
        lambda: compose(image, text, 1.5),
        lambda: compose(image, text, float("nan")),
        lambda: compose(image, text[:3]),
        lambda: compose(image, -image),
        lambda: compose(image, 0 * text),
    ):
        with pytest.raises(UserError):
            wrong()
