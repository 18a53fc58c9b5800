"""What a task file says of its labels, kinds and meanings, is what is evaluated."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from maskedclip.cli import run
from maskedclip.data.store import Store, open_store
from maskedclip.errors import UserError
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.task_file import load_task
from maskedclip.evaluation.task_layouts import task_manifest, task_store
from maskedclip.evaluation.task_spec import TaskError, TaskFile
from maskedclip.evaluation.tasks import read_tasks, task_prompts
from tests.evaluation.task_folders import class_folders, picture, table
from tests.stores import make_store

KERATITIS = {0: "clear cornea", 1: "mild keratitis", 2: "dense keratitis"}


class Reader:
    """A model of images that it does not look at, and of texts that it remembers."""

    has_text = True
    fingerprint = "reader"

    def __init__(self) -> None:
        self.read: list[str] = []

    def features(self, store: Store, rows: NDArray[np.int64]) -> dict[str, NDArray]:
        table = np.random.Generator(np.random.Philox(1)).normal(size=(len(store), 8))[rows]
        return {"encoder": table, "projected": table}

    def encode_text(self, texts: list[str]) -> NDArray:
        self.read += texts
        rows = [np.random.Generator(np.random.Philox(sum(text.encode()))).normal(size=8) for text in texts]
        return np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


def _labelled(folder: Path, values: list, rows: int = 48) -> Store:
    """A store whose label `sign` has these values in turn."""
    make_store(folder, rows=rows)
    place = 0
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(shard)
        own = [values[(place + row) % len(values)] for row in range(len(table))]
        pq.write_table(table.append_column("label.sign", pa.array(own)), shard)
        place += len(table)
    return open_store(folder)


def _task(folder: Path, spec: object, name: str = "sign", data: str = "{layout: store}") -> TaskFile:
    path = folder / "task.yaml"
    path.write_text(f"name: own\nabout: a task\nlabels:\n  {name}: {json.dumps(spec)}\ndata: [{data}]\ncrop: none\n")
    path.write_text(path.read_text().replace('"0":', "0:").replace('"1":', "1:").replace('"2":', "2:"))
    return load_task(path)


def test_task_store__grades_of_two_steps_are_grades(tmp_path: Path) -> None:
    store = _labelled(tmp_path / "store", [0.0, 1.0, 1.0, None])
    assert read_tasks(store.labels)[0]["sign"].kind == "binary"
    view = task_store(_task(tmp_path, {"kind": "ordinal", "classes": {0: "clear", 1: "cloudy"}}), store)
    task = read_tasks(view.labels)[0]["sign"]
    assert (task.kind, task.classes, task.meanings) == ("ordinal", (0, 1), {0: "clear", 1: "cloudy"})
    assert task.truth[:4].tolist() == [0, 1, 1, -1]
    assert task.on(np.array([1])).meanings == task.meanings


def test_task_store__words_of_one_class_are_one_class(tmp_path: Path) -> None:
    store = _labelled(tmp_path / "store", ["Left", "left", "right", None])
    assert len(read_tasks(store.labels)[0]["sign"].classes) == 3
    view = task_store(_task(tmp_path, {"kind": "nominal", "classes": ["left", "right"]}), store)
    task = read_tasks(view.labels)[0]["sign"]
    assert (task.kind, task.classes) == ("nominal", ("left", "right"))
    assert task.truth[:4].tolist() == [0, 0, 1, -1]
    assert view.labels["sign"].tolist()[:4] == ["left", "left", "right", None]


@pytest.mark.parametrize(
    ("values", "spec", "kind", "truth"),
    [
        (["True", "False", None], {"kind": "binary"}, "binary", [1, 0, -1]),
        ([2.0, 1.0, None], {"kind": "nominal", "classes": ["1", "2"]}, "nominal", [1, 0, -1]),
        (["2", "0", None], {"kind": "ordinal", "classes": {0: "a", 2: "b"}}, "ordinal", [1, 0, -1]),
    ],
)
def test_task_store__values_however_the_store_writes_them(
    tmp_path: Path, values: list, spec: dict, kind: str, truth: list[int]
) -> None:
    store = _labelled(tmp_path / "store", values)
    task = read_tasks(task_store(_task(tmp_path, spec), store).labels)[0]["sign"]
    assert (task.kind, task.truth[:3].tolist()) == (kind, truth)


def test_task_store__many_rare_classes_that_are_listed_are_classes(tmp_path: Path) -> None:
    words = [f"sign {letter}" for letter in "abcdefghijklmnopqrstuvwx"]
    store = _labelled(tmp_path / "store", words, rows=30)
    assert "free text" in read_tasks(store.labels)[1]["sign"]
    view = task_store(_task(tmp_path, {"kind": "nominal", "classes": words}), store)
    assert read_tasks(view.labels)[0]["sign"].classes == tuple(words)


def test_task_store__unknown_words_are_told_unless_they_are_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = _labelled(tmp_path / "store", ["NA", "left", "right", "none"])
    spec = {"kind": "nominal", "classes": ["left", "right", "none"]}
    task = read_tasks(task_store(_task(tmp_path, spec), store).labels)[0]["sign"]
    assert task.truth[:4].tolist() == [-1, 0, 2, 1]
    assert "label sign: 'NA' (12 rows) taken as unknown" in capsys.readouterr().err
    spec["classes"] = ["left", "right", "none", "na"]
    assert (read_tasks(task_store(_task(tmp_path, spec), store).labels)[0]["sign"].truth >= 0).all()
    assert "unknown" not in capsys.readouterr().err
    with pytest.raises(TaskError, match=r"'none' \(12 rows\) is a class that is not listed"):
        task_store(_task(tmp_path, {"kind": "nominal", "classes": ["left", "right"]}), store)


def test_task_store__of_a_task_on_files_needs_its_labels(tmp_path: Path) -> None:
    spec = {"kind": "ordinal", "classes": {0: "clear", 1: "cloudy"}}
    task = _task(tmp_path, spec, data="{layout: folders, label: sign}")
    store = _labelled(tmp_path / "store", [0.0, 1.0])
    view = task_store(task, store)
    assert list(view.labels) == ["sign"]
    assert read_tasks(view.labels)[0]["sign"].kind == "ordinal"
    with pytest.raises(UserError, match="give their folder with --root"):
        task_store(task, open_store(make_store(tmp_path / "other")))


def test_task_prompts__meanings_below_the_user_and_below_what_is_described_here(tmp_path: Path) -> None:
    store = _labelled(tmp_path / "store", [0.0, 1.0, 2.0])
    view = task_store(_task(tmp_path, {"kind": "ordinal", "classes": KERATITIS}), store)
    tasks = read_tasks(view.labels)[0]
    prompts = task_prompts(tasks, {"sign=2": ["a white cornea"], "normal": ["a healthy eye"]})
    assert prompts is not None
    assert set(prompts) == {"sign=0", "sign=1", "sign=2", "normal"}
    assert prompts["sign=2"] == ["a white cornea"]
    assert {"mild keratitis", "signs of mild keratitis", "sign: mild keratitis"} <= set(prompts["sign=1"])
    assert not set(prompts["sign=0"]) & set(prompts["sign=1"])
    spec = {"kind": "ordinal", "classes": {0: "none", 1: "some"}}
    (tmp_path / "task.yaml").unlink()
    described = _task(tmp_path, spec, "dr_grade", "{layout: store, columns: {dr_grade: sign}}")
    other = _labelled(tmp_path / "other", [0.0, 1.0])
    assert task_prompts(read_tasks(task_store(described, other).labels)[0], None) is None
    assert task_prompts(read_tasks(other.labels)[0], None) is None


def test_evaluate__kappa_of_two_grades_and_their_meanings_in_zero_shot(tmp_path: Path) -> None:
    store = _labelled(tmp_path / "store", [0.0, 1.0, 1.0])
    view = task_store(_task(tmp_path, {"kind": "ordinal", "classes": {0: "clear cornea", 1: "keratitis"}}), store)
    model = Reader()
    results = evaluate(model, view, tmp_path / "out", protocols=("linear", "zero_shot"), replicates=20)
    assert results["about"]["labels"]["sign"]["kind"] == "ordinal"
    assert "quadratic_kappa" in results["linear"]["encoder"]["per_label"]["sign"]
    assert {"clear cornea", "keratitis", "sign: keratitis"} <= set(model.read)
    assert not any(text.startswith("sign grade") for text in model.read)
    assert list(results["about"]["settings"]["prompts"]) == ["sign=0", "sign=1"]  # what zero-shot read is kept


def test_evaluate__kinds_of_a_task_on_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "set", ["clear", "cloudy"], each=4)
    (tmp_path / "own.yaml").write_text(
        "name: own\nabout: two grades\nlabels:\n  sign: {kind: ordinal, classes: {0: clear cornea, 1: keratitis}}\n"
        "data: [{layout: folders, label: sign, folders: {0: [clear], 1: [cloudy]}}]\ncrop: none\n"
    )
    monkeypatch.setattr("maskedclip.cli_evaluate._model", lambda *_: Reader())
    task = ["--task", str(tmp_path / "own.yaml"), "--root", str(tmp_path / "set"), "--protocols", "linear"]
    run(["evaluate", "timm:reader", *task, "--out", str(tmp_path / "out"), "--replicates", "20"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["about"]["labels"]["sign"]["kind"] == "ordinal"


@pytest.mark.parametrize(("values", "empty"), [('{"": 0, o: 0, x: 1}', "0"), ("{o: 0, x: 1}", "")])
def test_task_manifest__an_empty_cell_is_what_the_task_says(tmp_path: Path, values: str, empty: str) -> None:
    table(tmp_path / "all.csv", ["name", "sign"], [(n, ("x", "o", "")[n % 3]) for n in range(30)])
    for n in range(30):
        picture(tmp_path / "images" / f"{n}.png")
    cell = f"{{sign: {{column: sign, values: {values}}}}}"
    tables = f"[{{file: all.csv, image: 'images/{{name}}', labels: {cell}}}]"
    path = _task(tmp_path, {"kind": "binary"}, data=f"{{layout: table, tables: {tables}}}").path
    path.write_text(path.read_text() + "split: {shares: {train: 0.5, val: 0.2, test: 0.3}}\n")
    with task_manifest(load_task(path), tmp_path, tmp_path / "out").open() as file:
        labels = [row["label.sign"] for row in csv.DictReader(file)]
    assert labels == ["1", "0", empty] * 10
