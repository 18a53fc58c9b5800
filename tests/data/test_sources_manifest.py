"""A manifest as a source, and the check of one: all faults, missing files, and what a good one holds (P8)."""

from pathlib import Path

import pytest

from maskedclip.data.manifest import ManifestError
from maskedclip.data.sources.check import check_manifest, summarise
from maskedclip.data.sources.detect import detect_kind
from maskedclip.errors import UserError
from tests.data.sources_given import curated, make, put, rows_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    put(tmp_path / "set", "a.png", "b.png", "c.png", "mask.png")
    lines = [
        "image,text,patient,split,label.dr,label.kind,mask.disc,age,id",
        "a.png,,p1,train,0,x,mask.png,57.5,1",
        "b.png,own,p2,val,3,y,,,2",
        "c.png,,p2,val,,,,60,3",
    ]
    path = tmp_path / "set" / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_make_manifest__copies_with_texts_and_moves_paths(source: Path, tmp_path: Path) -> None:
    made = make(source, tmp_path / "new.csv", texts={"dr=0": ["no retinopathy"], "dr=3": ["severe"]})
    assert made.kind == "manifest"
    rows = rows_of(made.path)
    assert [row["image"] for row in rows] == ["set/a.png", "set/b.png", "set/c.png"]
    assert [row["text"] for row in rows] == ["no retinopathy", "own", None]
    assert rows[0] | {"text": ""} == {
        "image": "set/a.png", "text": "", "patient": "p1", "split": "train", "label.dr": 0.0, "label.kind": "x",
        "mask.disc": "set/mask.png", "age": "57.5", "manifest.id": "1",
    }  # fmt: skip
    assert curated(made.path).counts["paired"] == 2


def test_check_manifest__a_good_one_is_summarised(source: Path) -> None:
    assert summarise(check_manifest(source)) == [
        "rows: 3, 1 with text (1 distinct), 2 without",
        "patients: 2",
        "splits: train 1, val 2",
        "label.dr: 0 1, 3 1; 1 unknown",
        "label.kind: x 1, y 1; 1 unknown",
        "mask.disc: 1 of 3 rows",
        "carried: age, manifest.id",
    ]


def test_check_manifest__missing_files_are_told_together(source: Path) -> None:
    (source.parent / "b.png").unlink()
    (source.parent / "mask.png").unlink()
    with pytest.raises(ManifestError) as caught:
        check_manifest(source)
    assert [(fault.rows, fault.column) for fault in caught.value.faults] == [((2,), "mask.disc"), ((3,), "image")]


def test_check_manifest__urls_are_not_looked_for(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("image\nhttps://example.org/a.png\n")
    assert len(check_manifest(tmp_path / "m.csv")) == 1


def test_check_manifest__faults_of_the_content(source: Path) -> None:
    source.write_text("image,split,patient\na.png,trian,p\n,val,q\nb.png,val,q\nc.png,train,q\n")
    with pytest.raises(ManifestError) as caught:
        check_manifest(source)
    assert len(caught.value.faults) == 3


def test_detect_kind__tables(source: Path, tmp_path: Path) -> None:
    assert detect_kind(source) == "manifest"
    (tmp_path / "flair.csv").write_text('image,attributes,categories\na.png,[],"[]"\n')
    assert detect_kind(tmp_path / "flair.csv") == "flair"
    (tmp_path / "reports.csv").write_text("id,text\n1,x\n")
    with pytest.raises(UserError, match="name their folder as SOURCE and this file as --table"):
        detect_kind(tmp_path / "reports.csv")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="unpack it"):
        detect_kind(tmp_path / "a.zip")
