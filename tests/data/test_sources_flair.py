"""FLAIR-style tables: lists as Python or JSON spells them, never run, all faults at once (P8)."""

import csv
from pathlib import Path

import pytest

from maskedclip.data.manifest import ManifestError
from maskedclip.errors import UserError
from tests.data.sources_given import curated, make, put, remarks_of, rows_of


def _table(folder: Path, *rows: tuple[str, ...], header: str = "image,attributes,categories") -> Path:
    path = folder / "flair.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def test_make_manifest__one_category_each_is_nominal(tmp_path: Path) -> None:
    put(tmp_path, "SET/1.png", "SET/2.png", "SET/3.png")
    source = _table(
        tmp_path,
        ("SET/1.png", "[]", "['no diabetic retinopathy']"),
        ("SET/2.png", "['noisy', 'dark']", '["mild diabetic retinopathy"]'),
        ("SET/3.png", "", "[]"),
    )
    made = make(source, tmp_path / "m.csv")
    assert made.kind == "flair"
    assert rows_of(made.path) == [
        {"image": "SET/1.png", "label.class": "no diabetic retinopathy", "attributes": None},
        {"image": "SET/2.png", "label.class": "mild diabetic retinopathy", "attributes": "noisy; dark"},
        {"image": "SET/3.png", "label.class": None, "attributes": None},
    ]
    assert curated(made.path).counts["stored"] == 3


def test_make_manifest__several_categories_are_one_hot_and_columns_are_carried(tmp_path: Path) -> None:
    put(tmp_path / "pictures", "1.png", "2.png")
    source = _table(
        tmp_path,
        ("7", "1.png", "[]", "['drusen', 'amd']", "an eye", "p1"),
        ("8", "2.png", "[]", "['drusen']", "", "p2"),
        header="site,image,attributes,categories,caption,patient",
    )
    made = make(source, tmp_path / "m.csv", image_root=tmp_path / "pictures", text="caption")
    first, second = rows_of(made.path)
    assert first == {
        "image": "pictures/1.png",
        "text": "an eye",
        "patient": "p1",
        "label.amd": 1.0,
        "label.drusen": 1.0,
        "site": "7",
    }
    assert [second["label.amd"], second["label.drusen"], second["text"]] == [0.0, 1.0, None]
    with pytest.raises(UserError, match="several categories; say --labels one-hot"):
        make(source, tmp_path / "n.csv", image_root=tmp_path / "pictures", labels="nominal")


def test_make_manifest__bad_lists_are_told_at_once_and_never_run(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    bad = [
        "__import__('os').mkdir('ran')",
        "['open'",
        "[1, 2]",
        "{'a': 1}",
        '"' + "[" * 9_000 + '"',
        '"[' + "'a'," * 9_000 + ']"',
    ]
    source = _table(tmp_path, *(("1.png", "[]", cell) for cell in bad))
    with pytest.raises(ManifestError) as caught:
        make(source, tmp_path / "m.csv")
    assert sorted(row for fault in caught.value.faults for row in fault.rows) == [2, 3, 4, 5, 6, 7]
    assert not Path("ran").exists()
    assert not (tmp_path / "m.csv").exists()


def test_make_manifest__missing_images_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "1.png")
    source = _table(tmp_path, ("1.png", "[]", "['a']"), ("gone.png", "[]", "['b']"), ("", "[]", "['b']"))
    assert remarks_of(make(source, tmp_path / "m.csv")) == {
        "gone.png": (False, "there is no such file"),
        "row 4": (False, "names no image"),
    }
    with pytest.raises(UserError, match="--image-root FOLDER"):
        make(source, tmp_path / "n.csv", image_root=tmp_path / "nowhere", allow_outside=True)


def test_make_manifest__paths_that_lead_out(tmp_path: Path) -> None:
    put(tmp_path, "secret.png", "set/1.png")
    source = _table(tmp_path / "set", ("../secret.png", "[]", "['a']"), ("1.png", "[]", "['a']"))
    made = make(source, tmp_path / "set" / "m.csv")
    with pytest.raises(ManifestError, match="leads out of the manifest's folder"):
        rows_of(made.path)
