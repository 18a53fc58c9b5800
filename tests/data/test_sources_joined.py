"""A folder and a spreadsheet: the right report on the right image, and both sides' unmatched listed (P8)."""

from pathlib import Path
from typing import Any

import pytest

from maskedclip.data.manifest import ManifestError
from maskedclip.data.sources.joined import AMBIGUOUS
from maskedclip.errors import UserError
from tests.data.sources_given import curated, make, put, remarks_of, rows_of


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    put(tmp_path / "images", "s1/eye1.jpg", "s1/eye2.png", "s2/eye3.jpg")
    return tmp_path / "images"


def _table(folder: Path, text: str, name: str = "r.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    ("values", "how"),
    [
        ("s1/eye1.jpg s1/eye2.png s2/eye3.jpg", "path"),
        ("./s1/eye1.jpg s1\\eye2.png s2//eye3.jpg", "path"),
        ("images/s1/eye1.jpg images/s1/eye2.png images/s2/eye3.jpg", "path from"),
        ("eye1.jpg eye2.png eye3.jpg", "file name"),
        ("eye1 eye2 eye3", "name without suffix"),
        ("D:\\x\\eye1.jpg D:\\x\\eye2.png D:\\y\\eye3.jpg", "file name, without the folders before it"),
        ("eye1.dcm eye2.dcm eye3.dcm", "name without suffix, with another suffix"),
    ],
)
def test_make_manifest__the_column_may_name_images_in_several_ways(
    pictures: Path, tmp_path: Path, values: str, how: str
) -> None:
    a, b, c = values.split()
    table = _table(tmp_path, f"image_id,report,dr,who\n{b},two,1,p2\n{a},one,0,p1\n{c},three,2,p3\n")
    made = make(pictures, tmp_path / "m.csv", table=table, on="image_id", text="report", label=("dr",), patient="who")
    assert made.kind == "table"
    rows = rows_of(made.path)
    assert [(row["image"], row["text"], row["patient"], row["label.dr"]) for row in rows] == [
        ("images/s1/eye1.jpg", "one", "p1", 0.0),
        ("images/s1/eye2.png", "two", "p2", 1.0),
        ("images/s2/eye3.jpg", "three", "p3", 2.0),
    ]
    assert made.notes[0].startswith(f"'image_id' is the image's {how}")
    assert not made.remarks
    assert curated(made.path).counts["paired"] == 3


def test_make_manifest__unmatched_on_both_sides_are_listed(pictures: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "id,text\neye1,one\nnobody,x\n,y\n")
    made = make(pictures, tmp_path / "m.csv", table=table, on="id")
    assert [row["text"] for row in rows_of(made.path)] == ["one", None, None]
    assert remarks_of(made) == {
        "s1/eye2.png": (True, "no row of r.csv describes it: unpaired"),
        "s2/eye3.jpg": (True, "no row of r.csv describes it: unpaired"),
        "r.csv row 3: nobody": (False, "row without an image"),
        "r.csv row 4": (False, "row with an empty column to join on"),
    }
    assert made.remarks_file is not None
    assert len(made.remarks_file.read_text().splitlines()) == 5
    assert any(line.startswith("kept: 2 x no row of r.csv describes it") for line in made.told_remarks())
    only = make(pictures, tmp_path / "n.csv", table=table, on="id", only_matched=True)
    assert [row["image"] for row in rows_of(only.path)] == ["images/s1/eye1.jpg"]


def test_make_manifest__a_name_that_two_images_have_gets_no_report(tmp_path: Path) -> None:
    put(tmp_path / "images", "s1/eye.jpg", "s2/eye.jpg", "s2/other.jpg")
    table = _table(tmp_path, "id,text\neye,whose\nother,mine\n")
    made = make(tmp_path / "images", tmp_path / "m.csv", table=table, on="id")
    assert [row["text"] for row in rows_of(made.path)] == [None, None, "mine"]
    assert remarks_of(made)["r.csv row 2: eye"] == (False, "row without an image")
    assert [remark.reason for remark in made.remarks if remark.name == "s1/eye.jpg"] == [
        AMBIGUOUS,
        "no row of r.csv describes it: unpaired",
    ]


def test_make_manifest__a_study_of_several_images_by_key(pictures: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "study,text\ns1,both eyes\ns2,one eye\n")
    made = make(pictures, tmp_path / "m.csv", table=table, on="study", key="^([^/]+)/")
    assert [row["text"] for row in rows_of(made.path)] == ["both eyes", "both eyes", "one eye"]


def test_make_manifest__two_rows_for_one_image(pictures: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "id,text\neye1,one\neye2,x\neye1,another\n")
    with pytest.raises(ManifestError, match=r"rows 2, 4, column id: 'eye1' is in 2 different rows"):
        make(pictures, tmp_path / "m.csv", table=table, on="id")
    same = _table(tmp_path, "id,text\neye1,one\neye1,one\n", "same.csv")
    made = make(pictures, tmp_path / "m.csv", table=same, on="id")
    assert rows_of(made.path)[0]["text"] == "one"
    assert not any(name.startswith("same.csv") for name in remarks_of(made))


def test_make_manifest__columns_of_the_schema_and_names_that_clash(pictures: Path, tmp_path: Path) -> None:
    put(tmp_path / "masks", "v1.png")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mask.png").write_bytes((tmp_path / "masks" / "v1.png").read_bytes())
    table = _table(
        tmp_path / "tables",
        "key,image,Text,SPLIT,text2,label.dr,mask.vessel,id\neye1,other.png,own,Train,better,3,mask.png,77\n",
    )
    made = make(pictures, tmp_path / "m.csv", table=table, on="key", text="text2", only_matched=True)
    assert rows_of(made.path) == [
        {
            "image": "images/s1/eye1.jpg",
            "text": "better",
            "split": "train",
            "label.dr": 3.0,
            "mask.vessel": "tables/mask.png",
            "key": "eye1",
            "table.image": "other.png",
            "table.Text": "own",
            "manifest.id": "77",
        }
    ]
    assert curated(made.path).counts["stored"] == 1


def test_make_manifest__image_column_is_an_exact_path(pictures: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "file,text\neye1.jpg,x\ns2/eye3.jpg,y\n")
    made = make(pictures, tmp_path / "m.csv", table=table, image_column="file")
    assert [row["text"] for row in rows_of(made.path)] == [None, None, "y"]


def test_make_manifest__odd_cells_survive(pictures: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, 'id,text\neye1,"two\nlines, ""quoted""; and; more"\neye2,"ü\tπ"\n')
    rows = rows_of(make(pictures, tmp_path / "m.csv", table=table, on="id").path)
    assert [row["text"] for row in rows] == ['two\nlines, "quoted"; and; more', "ü\tπ", None]


def test_make_manifest__latin_1_tables(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes("id;text\neye1;Aderhaut schön\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="--encoding latin-1"):
        make(pictures, tmp_path / "m.csv", table=tmp_path / "r.csv", on="id")
    made = make(pictures, tmp_path / "m.csv", table=tmp_path / "r.csv", on="id", encoding="latin-1")
    assert rows_of(made.path)[0]["text"] == "Aderhaut schön"


def test_make_manifest__refusals(pictures: Path, tmp_path: Path) -> None:
    table = _table(tmp_path, "id,text\nx,one\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"on": "nothing"}, "--on nothing: .* has no such column; it has id, text"),
        ({}, "--on: say which column"),
        ({"on": "id"}, "none of the 1 values, such as 'x', names one of the 3 images, such as 's1/eye1.jpg'"),
        ({"on": "id", "text": "report"}, "--text report: .* has no such column"),
        ({"on": "id", "image_column": "id"}, "give one of them"),
        ({"on": "id", "key": "["}, "--key .* is no regular expression"),
        ({"on": "id", "sheet": "one"}, "is no .xlsx file"),
    ]
    for options, told in cases:
        with pytest.raises(UserError, match=told):
            make(pictures, tmp_path / "m.csv", table=table, **options)
    with pytest.raises(UserError, match="no such file"):
        make(pictures, tmp_path / "m.csv", table=tmp_path / "none.csv", on="id")
    with pytest.raises(UserError, match=r"\.xls files are not read"):
        make(pictures, tmp_path / "m.csv", table=_table(tmp_path, "x", "r.xls"), on="id")
    assert not (tmp_path / "m.csv").exists()


def test_make_manifest__xlsx(pictures: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["nothing"])
    sheet = book.create_sheet("reports")
    import datetime

    for row in (
        ["id", "text", "grade", "seen", None],
        ["eye1", "one", 2.0, datetime.datetime(2020, 1, 2), None],
        [None] * 5,
    ):
        sheet.append(row)
    sheet.append(["eye2", None, 0, None, None])
    book.save(tmp_path / "r.xlsx")
    made = make(pictures, tmp_path / "m.csv", table=tmp_path / "r.xlsx", on="id", sheet="reports", label=("grade",))
    rows = rows_of(made.path)
    assert [(row["text"], row["label.grade"], row["seen"]) for row in rows] == [
        ("one", 2.0, "2020-01-02"), (None, 0.0, None), (None, None, None),
    ]  # fmt: skip
    with pytest.raises(UserError, match="it has Sheet, reports"):
        make(pictures, tmp_path / "n.csv", table=tmp_path / "r.xlsx", on="id", sheet="x")
    (tmp_path / "bad.xlsx").write_bytes(b"PK\x03\x04 no")
    with pytest.raises(UserError, match=r"is not a readable \.xlsx file"):
        make(pictures, tmp_path / "n.csv", table=tmp_path / "bad.xlsx", on="id")


def test_make_manifest__xlsx_without_its_library(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"maskedclip\[tables\]', or save the sheet as"):
        make(pictures, tmp_path / "m.csv", table=_table(tmp_path, "x", "r.xlsx"), on="id")
