"""MedMNIST files: read picture by picture, never unpickled; volumes only as slices (P8)."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskedclip.data.imaging import decode
from maskedclip.errors import UserError
from tests.data.sources_given import curated, make, rows_of


def _random(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(len(shape))).integers(0, 256, shape, np.uint8)


def _npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "set.npz"
    np.savez_compressed(path, **arrays)
    return path


def _grey(folder: Path) -> tuple[Path, np.ndarray]:
    pictures = _random(5, 28, 28)
    return _npz(
        folder,
        train_images=pictures[:3],
        train_labels=np.array([[0], [2], [1]], np.uint8),
        test_images=pictures[3:],
        test_labels=np.array([[2], [0]], np.int64),
    ), pictures


def test_make_manifest__pictures_and_labels(tmp_path: Path) -> None:
    source, pictures = _grey(tmp_path)
    made = make(source, tmp_path / "m.csv")
    assert made.kind == "medmnist"
    rows = rows_of(made.path)
    assert [(row["split"], row["label.class"]) for row in rows] == [
        ("train", 0.0), ("train", 2.0), ("train", 1.0), ("test", 2.0), ("test", 0.0),
    ]  # fmt: skip
    assert rows[4]["image"] == "m_images/test/000001.png"
    for row, picture in zip(rows, pictures, strict=True):
        assert np.array_equal(decode((tmp_path / row["image"]).read_bytes())[:, :, 0], picture)
    assert curated(made.path).counts["stored"] == 5


def test_make_manifest__names_and_sentences(tmp_path: Path) -> None:
    source, _ = _grey(tmp_path)
    made = make(source, tmp_path / "m.csv", class_names=("normal", "drusen", "amd"), texts={"amd": ["an old macula"]})
    rows = rows_of(made.path)
    assert [row["label.class"] for row in rows] == ["normal", "amd", "drusen", "amd", "normal"]
    assert [row["text"] for row in rows] == [None, "an old macula", None, "an old macula", None]
    with pytest.raises(UserError, match="2 names for 3 classes"):
        make(source, tmp_path / "n.csv", class_names=("a", "b"))
    assert not (tmp_path / "n_images").exists()


def test_make_manifest__colour_and_several_labels(tmp_path: Path) -> None:
    pictures = _random(2, 12, 12, 3)
    source = _npz(tmp_path, val_images=pictures, val_labels=np.array([[0, 1], [1, 1]], np.uint8))
    rows = rows_of(make(source, tmp_path / "m.csv", class_names=("a", "b")).path)
    assert [(row["split"], row["label.a"], row["label.b"]) for row in rows] == [("val", 0.0, 1.0), ("val", 1.0, 1.0)]
    assert np.array_equal(decode((tmp_path / rows[1]["image"]).read_bytes()), pictures[1])


def test_make_manifest__one_hot(tmp_path: Path) -> None:
    source, _ = _grey(tmp_path)
    rows = rows_of(make(source, tmp_path / "m.csv", labels="one-hot").path)
    assert [row["label.2"] for row in rows] == [0.0, 1.0, 0.0, 1.0, 0.0]


def test_make_manifest__volumes_need_slices(tmp_path: Path) -> None:
    volumes = (_random(2, 7, 10, 12) > 128).astype(np.uint8)
    source = _npz(tmp_path, train_images=volumes, train_labels=np.array([[0], [1]], np.uint8))
    with pytest.raises(UserError, match="say --slices 1"):
        make(source, tmp_path / "m.csv")
    rows = rows_of(make(source, tmp_path / "m.csv", slices=3).path)
    assert [row["slice"] for row in rows] == ["2", "3", "4"] * 2
    assert [row["patient"] for row in rows] == ["train-0"] * 3 + ["train-1"] * 3
    middle = decode((tmp_path / rows[4]["image"]).read_bytes())[:, :, 0]
    assert np.array_equal(middle, volumes[1, 3] * 255)
    with pytest.raises(UserError, match=r"the volumes of .* have 7"):
        make(source, tmp_path / "n.csv", slices=8)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"train_images": np.array([{"a": 1}], object)}, "is object"),
        ({"train_images": np.zeros((2, 8, 8), np.float64)}, "give 8-bit pictures"),
        ({"train_images": np.zeros((2, 8, 8), np.uint8), "train_labels": np.zeros((3, 1), np.uint8)}, "train_labels"),
        ({"train_images": np.zeros((2, 8, 8), np.uint8), "train_labels": np.full((2, 1), -1)}, "labels below 0"),
        ({"pictures": np.zeros((2, 8, 8), np.uint8)}, "holds no train_images"),
    ],
)
def test_make_manifest__refusals(tmp_path: Path, arrays: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make(_npz(tmp_path, **arrays), tmp_path / "m.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_make_manifest__damaged_files(tmp_path: Path) -> None:
    source, _ = _grey(tmp_path)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"is a damaged \.npz file"):
        make(source, tmp_path / "m.csv")
    flipped = bytearray(whole)
    flipped[300:340] = bytes(40)
    source.write_bytes(flipped)
    with pytest.raises(UserError, match="damaged"):
        make(source, tmp_path / "m.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_make_manifest__an_array_shorter_than_it_says(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8), np.uint8))
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as archive:
        archive.writestr("train_images.npy", (tmp_path / "a.npy").read_bytes()[:-10])
    with pytest.raises(UserError, match="ends early"):
        make(tmp_path / "set.npz", tmp_path / "m.csv")
    assert not (tmp_path / "m_images.partial").exists()
