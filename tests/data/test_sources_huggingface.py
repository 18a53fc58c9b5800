"""Hugging Face data sets, local ones: images as the bytes they are, class names as labels, no hub (P8, P31)."""

import io
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.errors import UserError
from tests.data.sources_given import curated, jpeg, make, png, put, remarks_of, rows_of

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A local source must not ask a hub."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a local data set reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def _set(*, first: int = 0) -> Any:
    content = {
        "image": [{"bytes": jpeg(first), "path": None}, {"bytes": png(first + 1), "path": "x/odd name.png"}, None],
        "label": [1, 0, 1],
        "findings": [[0], [], [0, 1]],
        "text": ["drusen", None, "x"],
        "age": [61, None, 4],
        "box": [[1.0], [2.0], [3.0]],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["normal", "amd"]),
            "findings": datasets.List(datasets.ClassLabel(names=["drusen", "scar"])),
            "text": datasets.Value("string"),
            "age": datasets.Value("int64"),
            "box": datasets.List(datasets.Value("float32")),
        }
    )
    return datasets.Dataset.from_dict(content, features=features)


EXPECTED = [
    {"image": "m_images/train/000000.jpg", "text": "drusen", "split": "train", "label.class": "amd",
     "label.drusen": 1.0, "label.scar": 0.0, "age": "61"},
    {"image": "m_images/train/000001.png", "text": None, "split": "train", "label.class": "normal",
     "label.drusen": None, "label.scar": None, "age": None},
]  # fmt: skip


@pytest.mark.parametrize("how", ["saved", "folder of parquet", "parquet"])
def test_make_manifest__local_data_sets(tmp_path: Path, how: str) -> None:
    source = tmp_path / ("set.parquet" if how == "parquet" else "set")
    if how == "saved":
        datasets.DatasetDict({"train": _set()}).save_to_disk(source)
    elif how == "parquet":
        _set().to_parquet(source)
    else:
        (source / "data").mkdir(parents=True)
        _set().to_parquet(source / "data" / "train-00000-of-00001.parquet")
    made = make(source, tmp_path / "m.csv")
    assert made.kind == "huggingface"
    assert rows_of(made.path) == EXPECTED
    assert (tmp_path / EXPECTED[0]["image"]).read_bytes() == jpeg(0)
    assert remarks_of(made) == {"train row 2": (False, "has no image")}
    assert "columns left aside, as they hold neither words nor numbers: box" in made.notes
    assert curated(made.path).counts["stored"] == 2


def test_make_manifest__parts_and_one_hot(tmp_path: Path) -> None:
    parts = {"train": _set(), "validation": _set(first=5), "extra": _set(first=9)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    rows = rows_of(make(tmp_path / "set", tmp_path / "m.csv", labels="one-hot").path)
    assert [row["split"] for row in rows] == ["train", "train", "val", "val", None, None]
    assert [row["source_split"] for row in rows] == [None] * 4 + ["extra"] * 2
    assert [(row["label.amd"], row["label.normal"]) for row in rows[:2]] == [(1.0, 0.0), (0.0, 1.0)]


def test_make_manifest__columns_by_name_from_another_writer(tmp_path: Path) -> None:
    pictures = [{"bytes": jpeg(n), "path": f"{n}.jpg"} for n in range(2)]
    table = {"photo": pictures, "report": ["a", "b"], "who": ["p1", "p2"], "grade": [0, 4]}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    made = make(tmp_path / "set.parquet", tmp_path / "m.csv", text="report", patient="who", label=("grade",))
    assert [tuple(row.values())[1:] for row in rows_of(made.path)] == [
        ("a", "p1", "train", 0.0), ("b", "p2", "train", 4.0),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"--text caption: .* has no such column"):
        make(tmp_path / "set.parquet", tmp_path / "n.csv", text="caption")
    with pytest.raises(UserError, match="--image-column report"):
        make(tmp_path / "set.parquet", tmp_path / "n.csv", image_column="report")


def test_make_manifest__image_folder_with_metadata(tmp_path: Path) -> None:
    put(tmp_path / "set", "a.png", "b.png")
    (tmp_path / "set" / "metadata.csv").write_text("file_name,text\na.png,drusen\nb.png,scar\n")
    rows = rows_of(make(tmp_path / "set", tmp_path / "m.csv", kind="huggingface").path)
    assert sorted(row["text"] for row in rows) == ["drusen", "scar"]


def test_make_manifest__a_path_in_the_data_is_not_followed_out(tmp_path: Path) -> None:
    put(tmp_path, "secret.png")
    inside = tmp_path / "set"
    put(inside, "ok.png")
    paths = [str(tmp_path / "secret.png"), "../secret.png", "ok.png"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    pq.write_table(pa.table({"image": rows}), inside / "data.parquet")
    made = make(inside, tmp_path / "m.csv", kind="huggingface")
    assert [row["image"] for row in rows_of(made.path)] == ["m_images/train/000002.png"]
    assert {reason for _, reason in remarks_of(made).values()} == {
        "names a file outside the data set instead of holding its bytes"
    }


def test_make_manifest__refusals(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "words")
    with pytest.raises(UserError, match="has no column of images but text"):
        make(tmp_path / "words", tmp_path / "m.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(UserError, match="cannot be read"):
        make(tmp_path / "bad.parquet", tmp_path / "m.csv", kind="huggingface")
    buffer = io.BytesIO()
    _set().to_parquet(buffer)
    (tmp_path / "cut.parquet").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(UserError, match="cannot be read"):
        make(tmp_path / "cut.parquet", tmp_path / "m.csv", kind="huggingface")
    assert not (tmp_path / "m.csv").exists()
    assert not (tmp_path / "m_images.partial").exists()
