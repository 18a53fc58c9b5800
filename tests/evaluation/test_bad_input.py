"""What people give by mistake: every figure is then a value, or undefined with a reason; never a silent 0.5."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.cli import run
from maskedclip.errors import UserError
from maskedclip.evaluation.tasks import read_tasks
from tests.stores import TINY, make_store

PROTOCOLS = "linear,knn,fewshot,label_efficiency,zero_shot,retrieval"
Edit = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    make_store(folder / "store", rows=48)
    command = ["pretrain", "--config", "maskedclip", "--config", "tiny", "--data", str(folder / "store")]
    run([*command, "--out", str(folder / "run"), *TINY, "--training.steps", "1"])
    return folder / "run"


def store_with(folder: Path, edit: Edit, rows: int = 48) -> Path:
    make_store(folder, rows=rows)
    for shard in sorted(folder.glob("shard-*.parquet")):
        pq.write_table(edit(pq.read_table(shard)), shard)
    return folder


def with_label(values: Callable[[int], list], name: str = "label.red") -> Edit:
    def edit(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values(len(table))))

    return edit


def evaluate(trained: Path, store: Path, out: Path) -> dict:
    common = ["--protocols", PROTOCOLS, "--replicates", "20"]
    run(["evaluate", str(trained), "--data", str(store), "--out", str(out), *common])
    return json.loads((out / "results.json").read_text())


def entries(results: dict, label: str) -> list[dict]:
    """Every AUROC of a label in all protocols."""
    found = []

    def walk(part: object) -> None:
        if isinstance(part, dict):
            if label in part and isinstance(part[label], dict) and "auroc" in part[label]:
                found.append(part[label]["auroc"])
            for value in part.values():
                walk(value)

    walk({name: part for name, part in results.items() if name != "about"})
    return found


def test_one_class_only__is_undefined_with_its_reason(trained: Path, tmp_path: Path) -> None:
    store = store_with(tmp_path / "store", with_label(lambda n: [1.0] * n))
    results = evaluate(trained, store, tmp_path / "out")
    found = entries(results, "red")
    assert found
    assert all(entry["value"] is None and entry["note"] for entry in found)
    assert any(entry["value"] is not None for entry in entries(results, "green"))


def test_all_labels_unknown__leaves_the_protocols_out_with_the_reason(trained: Path, tmp_path: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        for name in ("label.red", "label.green"):
            unknown = pa.nulls(len(table), pa.float32())
            table = table.set_column(table.column_names.index(name), name, unknown)
        return table

    results = evaluate(trained, store_with(tmp_path / "store", edit), tmp_path / "out")
    for protocol in ("linear", "knn", "fewshot", "label_efficiency", "zero_shot"):
        assert "no known value" in results[protocol]["skipped"] or "unknown" in results[protocol]["skipped"]
    assert "skipped" not in results["retrieval"]


def test_free_text_of_which_one_is_frequent__is_no_task() -> None:
    """Half of the reports may read "normal fundus", so the mean number of rows a text says little."""
    reports = ["normal fundus"] * 500 + [f"words number {number // 2}" for number in range(100)]
    cameras = [f"camera {number % 30}" for number in range(600)]
    tasks, refused = read_tasks({"report": np.array(reports, object), "camera": np.array(cameras, object)})
    assert list(tasks) == ["camera"]
    assert "51 different texts in 600 rows: free text, not classes" in refused["report"]


def test_against__needs_a_run(trained: Path, tmp_path: Path) -> None:
    store = store_with(tmp_path / "store", lambda table: table)
    given = ["evaluate", "timm:resnet10t", "--data", str(store), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--against: timm:resnet10t is no run"):
        run([*given, "--against", str(tmp_path)])


def test_a_label_of_free_text__is_no_task_and_said_to_be_none(trained: Path, tmp_path: Path) -> None:
    words = (f"free words number {number}" for number in range(1000))
    store = store_with(tmp_path / "store", with_label(lambda n: [next(words) for _ in range(n)]))
    results = evaluate(trained, store, tmp_path / "out")
    assert "free text, not classes" in results["about"]["labels_left_out"]["red"]
    assert entries(results, "red") == []
    assert entries(results, "green")


def test_three_images__give_a_reason_for_everything_that_is_missing(trained: Path, tmp_path: Path) -> None:
    splits = iter(["train", "train", "test"])

    def edit(table: pa.Table) -> pa.Table:
        chosen = pa.array([next(splits) for _ in range(len(table))])
        return table.set_column(table.column_names.index("split"), "split", chosen).set_column(
            table.column_names.index("patient"), "patient", pa.array(table.column("id"))
        )

    results = evaluate(trained, store_with(tmp_path / "store", edit, rows=3), tmp_path / "out")
    found = entries(results, "red") + entries(results, "green")
    assert found or all("skipped" in results[name] for name in ("linear", "knn", "zero_shot"))
    for entry in found:
        assert entry["value"] is None
        assert entry["note"]
    assert "skipped" in results["retrieval"]


def test_no_test_split__is_refused(trained: Path, tmp_path: Path) -> None:
    def edit(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index("split"), "split", pa.array(["train"] * len(table)))

    with pytest.raises(UserError, match="no row has split 'test'"):
        evaluate(trained, store_with(tmp_path / "store", edit), tmp_path / "out")


def test_predictions_with_nan__are_refused_by_compare(trained: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", rows=48)
    evaluate(trained, store, tmp_path / "one")
    evaluate(trained, store, tmp_path / "two")
    path = tmp_path / "two" / "predictions.parquet"
    table = pq.read_table(path)
    score = np.array(table.column("score").to_pylist())
    score[3] = np.nan
    pq.write_table(table.set_column(table.column_names.index("score"), "score", pa.array(score)), path)
    with pytest.raises(UserError, match=r"1 of \d+ scores are not finite"):
        run(["compare", str(tmp_path / "one"), str(tmp_path / "two")])


def test_a_task_that_names_a_missing_column__names_it(trained: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", rows=48)
    (tmp_path / "task.yaml").write_text(
        "name: own\nabout: a task on a store\nlabels:\n  glaucoma: {kind: binary}\n"
        "data:\n  - {layout: store, columns: {glaucoma: glaucoma_suspect}}\n"
    )
    task = ["--task", str(tmp_path / "task.yaml"), "--data", str(store), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="glaucoma_suspect"):
        run(["evaluate", str(trained), *task])
