"""Class folders, and what every source shares: names, order, and that nothing is overwritten (P8)."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from maskedclip.data.manifest import ManifestError
from maskedclip.errors import UserError
from tests.data.sources_given import curated, make, png, put, remarks_of, rows_of


def test_make_manifest__image_folder(tmp_path: Path) -> None:
    put(tmp_path / "set", "glaucoma/p1_left.jpg", "glaucoma/deep/p2.png", "normal/p1_right.jpg", "loose.png")
    (tmp_path / "set" / "glaucoma" / "notes.txt").write_text("x")
    made = make(tmp_path / "set", tmp_path / "m.csv", patient=r"^(p\d)")
    assert made.kind == "classes"
    assert rows_of(made.path) == [
        {"image": "set/glaucoma/deep/p2.png", "patient": "p2", "label.class": "glaucoma"},
        {"image": "set/glaucoma/p1_left.jpg", "patient": "p1", "label.class": "glaucoma"},
        {"image": "set/loose.png", "patient": None, "label.class": None},
        {"image": "set/normal/p1_right.jpg", "patient": "p1", "label.class": "normal"},
    ]
    assert remarks_of(made) == {"loose.png": (True, "lies in no class folder: its label is unknown")}
    assert "passed over 1 other files (1 .txt)" in made.notes
    assert any("--patient is found in none of 1 names" in note for note in made.notes)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "TEST")])
def test_make_manifest__retfound_with_one_hot_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    put(tmp_path, *(f"{split}/{label}/{split}.png" for split in names for label in ("a", "b")))
    made = make(tmp_path, tmp_path / "m.csv", labels="one-hot")
    found = sorted((row["split"], row["label.a"], row["label.b"]) for row in rows_of(made.path))
    assert found == [(split, a, 1 - a) for split in ("test", "train", "val") for a in (0.0, 1.0)]


def test_make_manifest__curates(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "test/b/2.png")
    done = curated(make(tmp_path, tmp_path / "m.csv", texts=True).path)
    assert done.counts["stored"] == done.counts["paired"] == 2
    assert done.counts["splits"] == {"train": 1, "test": 1}


def test_make_manifest__one_folder_is_no_class(tmp_path: Path) -> None:
    put(tmp_path, "images/1.png", "images/2.png")
    made = make(tmp_path, tmp_path / "m.csv")
    assert rows_of(made.path) == [{"image": "images/1.png"}, {"image": "images/2.png"}]
    assert any("no label is made of it" in note for note in made.notes)


def test_make_manifest__numbers_and_words_as_classes(tmp_path: Path) -> None:
    put(tmp_path, "0/1.png", "mild/2.png")
    with pytest.raises(UserError, match="--labels one-hot"):
        make(tmp_path, tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()
    rows = rows_of(make(tmp_path, tmp_path / "m.csv", labels="one-hot").path)
    assert [(row["label.0"], row["label.mild"]) for row in rows] == [(1.0, 0.0), (0.0, 1.0)]


def test_make_manifest__numbers_as_classes(tmp_path: Path) -> None:
    put(tmp_path, "0/1.png", "3/2.png")
    assert [row["label.class"] for row in rows_of(make(tmp_path, tmp_path / "m.csv").path)] == [0.0, 3.0]


def test_make_manifest__splits_beside_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "glaucoma/2.png")
    with pytest.raises(UserError, match="'glaucoma' lies beside 'train', a split"):
        make(tmp_path, tmp_path / "m.csv")


ODD = [
    "a b/with space.png",
    'a b/quote".png',
    "a b/comma, semicolon;.png",
    "c/line\nbreak.png",
    "c/return\r.png",
    "c/ü.png",
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_make_manifest__odd_names_are_kept(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, *ODD, "c/=1+2.png", "c/'single.png", "c/a\tb.png")
    made = make(tmp_path, tmp_path / f"m{suffix}")
    rows = rows_of(made.path)
    assert len(rows) == len(ODD) + 3
    assert all((tmp_path / row["image"]).is_file() for row in rows)
    assert {row["label.class"] for row in rows} == {"a b", "c"}
    assert not made.remarks


def test_make_manifest__names_that_a_manifest_cannot_hold_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/back\\slash.png", " lead/2.png")
    for name in (b"a/latin\xe9.png", b"caf\xe9/3.png"):
        place = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(png(0))
    made = make(tmp_path, tmp_path / "m.csv")
    assert [row["image"] for row in rows_of(made.path)] == ["a/1.png"]
    reasons = {os.fsencode(name): reason for name, (_, reason) in remarks_of(made).items()}
    assert reasons == {
        b"a/latin\xe9.png": "its path is not UTF-8: rename it",
        b"caf\xe9/3.png": "its path is not UTF-8: rename it",
        b"b/back\\slash.png": "its path has a backslash, which a manifest reads as a folder: rename it",
        b" lead/2.png": "its path begins or ends with white space: rename it",
    }
    assert made.remarks_file is not None
    listed = made.remarks_file.read_text()
    assert "a/latin\\xe9.png,left out,its path is not UTF-8" in listed
    assert len(listed.splitlines()) == 5


def test_make_manifest__links(tmp_path: Path) -> None:
    put(tmp_path / "set", "a/1.png", "b/2.png")
    (tmp_path / "set/a/loop").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set/a/self.png").symlink_to(tmp_path / "set/a/self.png")
    (tmp_path / "set/b/again.png").symlink_to(tmp_path / "set/a/1.png")
    made = make(tmp_path / "set", tmp_path / "m.csv")
    assert [row["image"] for row in rows_of(made.path)] == ["set/a/1.png", "set/b/2.png", "set/b/again.png"]
    assert remarks_of(made) == {
        "a/loop": (False, "is a link to a folder, which is not followed: put the files themselves there"),
        "a/self.png": (False, "is a broken link: put the files themselves there"),
    }


def test_make_manifest__leakage_is_told_of_what_was_written(tmp_path: Path) -> None:  # P24
    put(tmp_path, "train/a/p1_l.png", "test/a/p1_r.png", "test/b/p2.png")
    made = make(tmp_path, tmp_path / "m.csv", patient=r"p\d")
    with pytest.raises(ManifestError, match="patient 'p1' is in test and train"):
        rows_of(made.path)


@pytest.mark.parametrize("existing", ["m.csv", "m_remarks.csv", "m_images", "m_images.partial"])
def test_make_manifest__nothing_is_overwritten(tmp_path: Path, existing: str) -> None:
    put(tmp_path / "set", "a/1.png", "b/2.png")
    (tmp_path / existing).write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        make(tmp_path / "set", tmp_path / "m.csv")
    assert (tmp_path / existing).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({existing, "set"})


def test_make_manifest__outside(tmp_path: Path) -> None:
    put(tmp_path / "set", "a/1.png", "b/2.png")
    with pytest.raises(UserError, match=r"lies outside the folder of .*--out .*set/m.csv"):
        make(tmp_path / "set", tmp_path / "elsewhere" / "m.csv")
    made = make(tmp_path / "set", tmp_path / "elsewhere" / "m.csv", allow_outside=True)
    rows = rows_of(made.path, allow_outside=True)
    assert [row["image"] for row in rows] == [str(tmp_path.resolve() / "set" / name) for name in ("a/1.png", "b/2.png")]


def test_make_manifest__refusals(tmp_path: Path) -> None:
    put(tmp_path / "set", "a/1.png")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"patient": "("}, "is no regular expression"),
        ({"slices": 2}, "--slices: is not for class folders"),
        ({"kind": "nonsense"}, "no such kind"),
    ]
    for options, told in cases:
        with pytest.raises(UserError, match=told):
            make(tmp_path / "set", tmp_path / "m.csv", **options)
    with pytest.raises(UserError, match="a manifest is written as"):
        make(tmp_path / "set", tmp_path / "m.xlsx")
    with pytest.raises(UserError, match="no such file or folder"):
        make(tmp_path / "nowhere", tmp_path / "m.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        make(tmp_path / "empty", tmp_path / "m.csv")
    with pytest.raises(UserError, match="gives no rows"):
        make(tmp_path / "empty", tmp_path / "m.csv", kind="classes")
    assert not (tmp_path / "m.csv").exists()


def test_make_manifest__is_repeatable(tmp_path: Path) -> None:
    put(tmp_path / "set", "b/2.png", "a/1.png", "a/0.png")
    first = make(tmp_path / "set", tmp_path / "m.csv", texts=True)
    second = make(tmp_path / "set", tmp_path / "n.csv", texts=True)
    assert first.path.read_bytes() == second.path.read_bytes()
    parquet = make(tmp_path / "set", tmp_path / "m.parquet", texts=True)
    assert pq.read_table(parquet.path).column("image").to_pylist() == ["set/a/0.png", "set/a/1.png", "set/b/2.png"]
