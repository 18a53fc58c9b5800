"""The manifest: every format read alike, every fault told with its row and column, all at once (P8, P24)."""

import gzip
import json
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedclip.data.manifest import ManifestError, is_url, local_path, read_manifest
from maskedclip.errors import UserError

HEADER = "image,text,patient,split,label.dr,mask.vessel,age"
ROWS = ["a.jpg,normal fundus,p1,train,0,m/a.png,57", "b.jpg,,p1,train,2,,", "c.jpg,drusen,p2,Validation,,,61"]


def _write(folder: Path, content: str | bytes, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _faults(folder: Path, content: str | bytes, name: str = "m.csv") -> list[tuple]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(_write(folder, content, name))
    return [(fault.rows, fault.column, fault.problem) for fault in caught.value.faults]


def _only_fault(folder: Path, content: str | bytes, name: str = "m.csv") -> tuple:
    faults = _faults(folder, content, name)
    assert len(faults) == 1, faults
    return faults[0]


def _expected() -> dict[str, list]:
    return {
        "image": ["a.jpg", "b.jpg", "c.jpg"],
        "text": ["normal fundus", None, "drusen"],
        "patient": ["p1", "p1", "p2"],
        "split": ["train", "train", "val"],
        "label.dr": [0.0, 2.0, None],
        "mask.vessel": ["m/a.png", None, None],
        "age": ["57", None, "61"],
    }


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_read_manifest__separators_marks_and_newlines_are_understood(
    tmp_path: Path, separator: str, encoding: str, newline: str
) -> None:
    text = newline.join([HEADER, *ROWS]).replace(",", separator) + newline
    manifest = read_manifest(_write(tmp_path, text.encode(encoding)))
    assert manifest.table.to_pydict() == _expected()
    assert manifest.rows.tolist() == [2, 3, 4]
    assert any("separator" in note for note in manifest.notes) == (separator != ",")


def test_read_manifest__formats_agree(tmp_path: Path) -> None:
    expected = _expected() | {"age": ["57", None, "61"]}
    records = [dict(zip(expected, row, strict=True)) for row in zip(*expected.values(), strict=True)]
    _write(tmp_path, gzip.compress("\n".join([HEADER, *ROWS]).encode()), "m.csv.gz")
    _write(tmp_path, "\n".join([HEADER, *ROWS]).replace(",", "\t"), "m.tsv")
    _write(tmp_path, "\n\n".join(json.dumps(record) for record in records), "m.jsonl")
    pq.write_table(pa.table(expected), tmp_path / "m.parquet")
    for name in ("m.csv.gz", "m.tsv", "m.jsonl", "m.parquet"):
        assert read_manifest(tmp_path / name).table.to_pydict() == expected, name
    assert read_manifest(tmp_path / "m.jsonl").rows.tolist() == [1, 3, 5]


def test_read_manifest__only_image_is_required(tmp_path: Path) -> None:
    table = read_manifest(_write(tmp_path, "image\na.png\n")).table
    assert table.to_pydict() == {"image": ["a.png"], "text": [None], "patient": [None], "split": [None]}


def test_read_manifest__nested_labels_and_whole_floats(tmp_path: Path) -> None:
    _write(tmp_path, '{"image": "a.png", "patient": 7.0, "label": {"dr": true}}\n', "m.jsonl")
    assert read_manifest(tmp_path / "m.jsonl").table.select(["patient", "label.dr"]).to_pylist() == [
        {"patient": "7", "label.dr": 1.0}
    ]
    nested = pa.table({"image": ["a.png"], "label": [{"dr": 3}], "split": pa.array(["test"]).dictionary_encode()})
    pq.write_table(nested, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").table.select(["split", "label.dr"]).to_pylist() == [
        {"split": "test", "label.dr": 3.0}
    ]


def test_read_manifest__quoted_newlines_count_as_one_row(tmp_path: Path) -> None:
    path = _write(tmp_path, 'image,text,split\na.png,"two\nlines; and, more",train\nb.png,x,nowhere\n')
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert caught.value.faults[0].rows == (3,)
    path.write_text(path.read_text().replace("nowhere", "test"))
    assert read_manifest(path).table.column("text")[0].as_py() == "two\nlines; and, more"


def test_read_manifest__empty_rows_are_skipped_and_keep_the_numbering(tmp_path: Path) -> None:
    manifest = read_manifest(_write(tmp_path, "image,text,\na.png,x,\n\n,,\nb.png,y,\n"))
    assert manifest.rows.tolist() == [2, 5]
    assert manifest.notes == ["skipped 2 empty rows", "ignored empty columns without a name"]


def test_read_manifest__whitespace_text_is_no_text(tmp_path: Path) -> None:
    table = read_manifest(_write(tmp_path, 'image,text\n a.png ,"  \t "\nb.png, drusen \n')).table
    assert table.column("text").to_pylist() == [None, "drusen"]
    assert table.column("image").to_pylist() == ["a.png", "b.png"]


def test_read_manifest__labels_by_kind(tmp_path: Path) -> None:
    text = "image,label.flag,label.grade,label.name,label.none\na,TRUE,1e0,glaucoma,\nb,false,-2.5,,\nc,,,cataract,\n"
    table = read_manifest(_write(tmp_path, text)).table
    assert table.column("label.flag").to_pylist() == [1.0, 0.0, None]
    assert table.column("label.grade").to_pylist() == [1.0, -2.5, None]
    assert table.column("label.name").to_pylist() == ["glaucoma", None, "cataract"]
    kinds = {name: str(table.schema.field(name).type) for name in table.column_names if name.startswith("label.")}
    assert kinds == {
        "label.flag": "float", "label.grade": "float", "label.name": "string", "label.none": "float",
    }  # fmt: skip


def test_read_manifest__all_faults_at_once(tmp_path: Path) -> None:
    text = (
        "image,text,patient,split,label.dr\n"
        "a.png,x,p1,train,0\n"
        ",x,p2,train,1\n"
        "b.png,x,p1,test,ungradable\n"
        "a.png,y,p3,holdout,nan\n"
        "c.png,x,p4\n"
        "../../secret.png,x,p5,train,3\n"
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(_write(tmp_path, text))
    told = str(caught.value)
    places = {(fault.rows, fault.column) for fault in caught.value.faults}
    assert places == {
        ((2, 5), "image"),
        ((3,), "image"),
        ((2, 4), "split"),
        ((4,), "label.dr"),
        ((5,), "split"),
        ((5,), "label.dr"),
        ((6,), ""),
        ((7,), "image"),
    }
    assert told.splitlines()[0].endswith("8 faults in 6 rows; mend the manifest and run again")
    for part in (
        "join",
        "'x. y'",
        "leakage",
        "'p1'",
        "'holdout'",
        "'ungradable'",
        "has 3 fields where the header has 5",
    ):
        assert part in told
    assert isinstance(caught.value, UserError)


def test_manifest_error__shows_twenty_and_counts_the_rest(tmp_path: Path) -> None:
    rows = "\n".join(f"{index}.png,split{index}" for index in range(33))
    with pytest.raises(ManifestError) as caught:
        read_manifest(_write(tmp_path, f"image,split\n{rows}\n"))
    assert len(caught.value.faults) == 33
    assert len(str(caught.value).splitlines()) == 22
    assert str(caught.value).endswith("... and 13 more")


def test_manifest_error__same_problem_is_one_line_of_many_rows(tmp_path: Path) -> None:
    rows = "\n".join(f"{index}.png,holdout" for index in range(9))
    assert _only_fault(tmp_path, f"image,split\n{rows}\n")[0] == tuple(range(2, 11))
    with pytest.raises(ManifestError, match=r"rows 2, 3, 4, 5, 6 and 4 more, column split: 'holdout'"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("header", "mend"),
    [("filename", "rename 'filename' to 'image'"), ("imgae", "rename 'imgae' to 'image'"), ("x", "'image'")],
)
def test_read_manifest__no_image_column_names_the_nearest(tmp_path: Path, header: str, mend: str) -> None:
    rows, column, problem = _only_fault(tmp_path, f"{header},text\na.png,x\n")
    assert (rows, column) == ((), "")
    assert mend in problem


def test_read_manifest__near_names_are_not_silently_carried(tmp_path: Path) -> None:
    faults = _faults(tmp_path, "image,Text,LABEL.dr,label.\na.png,x,1,1\n")
    assert {(column, problem) for _, column, problem in faults} == {
        ("Text", "write it as 'text'"),
        ("LABEL.dr", "write it as 'label.dr'"),
        ("label.", "has no name after the point: write label.NAME"),
    }
    manifest = read_manifest(_write(tmp_path, "image,label_dr,id\na.png,1,7\n"))
    assert any("label.dr" in note for note in manifest.notes)
    assert manifest.table.column("manifest.id").to_pylist() == ["7"]


def test_read_manifest__latin1_is_told_by_row_and_column_and_read_when_named(tmp_path: Path) -> None:
    content = "image,text,notes\na.png,normal,é\nb.png,Rétinopathie,x\n".encode("latin-1")
    faults = _faults(tmp_path, content)
    assert {(rows, column) for rows, column, _ in faults} == {((2,), "notes"), ((3,), "text")}
    assert all("--encoding latin-1" in problem for _, _, problem in faults)
    table = read_manifest(tmp_path / "m.csv", encoding="latin-1").table
    assert table.column("text").to_pylist() == ["normal", "Rétinopathie"]
    with pytest.raises(UserError, match="'klingon' is unknown"):
        read_manifest(tmp_path / "m.csv", encoding="klingon")


@pytest.mark.parametrize(
    ("content", "name", "place", "part"),
    [
        ("image,text\n", "m.csv", ((), ""), "there are no rows"),
        ("image\na.png\n./a.png\n", "m.csv", ((2, 3), "image"), "given 2 times: keep one row"),
        ("image,text,text\na.png,x,y\n", "m.csv", ((), "text"), "given 2 times"),
        (",image\n0,a.png\n", "m.csv", ((), ""), "column 1 has no name"),
        ('image,text\na.png,"x\nb.png,y\n', "m.csv", ((2,), ""), "never closed"),
        ("image,label.dr\na.png,\"0,5\"\nb.png,1\n", "m.csv", ((2,), "label.dr"), "decimal comma"),
        ("image,label.dr\na.png,inf\n", "m.csv", ((2,), "label.dr"), "leave the cell empty"),
        ("image,label.dr\na.png,1e99\n", "m.csv", ((2,), "label.dr"), "not a finite number"),
        ("image,label.dr\na.png,few\nb.png,few\nc.png,3\n", "m.csv", ((4,), "label.dr"), "mixes 1 numbers and 2 words"),
        ('{"image": "a.png"}\n{"image": \n', "m.jsonl", ((2,), ""), "is not valid JSON"),
        ('{"image": "a.png"}\n["b.png"]\n', "m.jsonl", ((2,), ""), "is not a JSON object"),
        ('{"image": {"bytes": "x"}}\n', "m.jsonl", ((), "image"), "give a path or a text"),
    ],
)  # fmt: skip
def test_read_manifest__faults(tmp_path: Path, content: str, name: str, place: tuple, part: str) -> None:
    faults = _faults(tmp_path, content, name)
    assert any((rows, column) == place and part in problem for rows, column, problem in faults), faults


def test_read_manifest__empty_file_and_unreadable_files(tmp_path: Path) -> None:
    assert any("no rows" in problem for _, _, problem in _faults(tmp_path, b""))
    for name, content, part in (
        ("m.xlsx", b"PK", "a manifest is a .csv"),
        ("m.parquet", b"PAR1", "is not a readable Parquet file"),
        ("m.csv.gz", b"\x1f\x8bxx", "gzip"),
    ):
        with pytest.raises(UserError, match=part):
            read_manifest(_write(tmp_path, content, name))
    with pytest.raises(UserError, match="no such file"):
        read_manifest(tmp_path / "absent.csv")


def test_read_manifest__parquet_faults(tmp_path: Path) -> None:
    table = pa.table({"image": ["a", "b"], "label.dr": pa.array([float("nan"), 1.0])})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "m.parquet")
    assert [(fault.rows, fault.column) for fault in caught.value.faults] == [((1,), "label.dr")]


def test_read_manifest__paths_stay_below_its_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "other"
    (inside / "images").mkdir(parents=True)
    outside.mkdir()
    for path in (inside / "images" / "a.png", outside / "b.png"):
        path.write_bytes(b"x")
    (inside / "link.png").symlink_to(outside / "b.png")
    (inside / "folder").symlink_to(outside)
    (inside / "own.png").symlink_to(inside / "images" / "a.png")
    good = ["images/a.png", f"{inside}/images/../images/c.png", "https://host/x.png", "s3://bucket/../y.png", "own.png"]
    bad = ["../other/b.png", f"{outside}/b2.png", "link.png", "folder/b3.png", f"file://{outside}/b4.png", "/x.png"]
    path = _write(inside, "image,mask.v\n" + "".join(f"{value},\n" for value in good) + "e.png,../m.png\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert [(fault.rows, fault.column) for fault in caught.value.faults] == [((7,), "mask.v")]
    path.write_text("image\n" + "\n".join([*good, *bad]) + "\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert {row for fault in caught.value.faults for row in fault.rows} == set(range(7, 13))
    assert len(read_manifest(path, allow_outside=True)) == 11


def test_read_manifest__backslashes_are_read(tmp_path: Path) -> None:
    manifest = read_manifest(_write(tmp_path, "image\nimages\\a.png\n"))
    assert manifest.table.column("image").to_pylist() == ["images/a.png"]
    assert manifest.notes == ["read '\\' in paths as '/'"]


def test_read_manifest__folder_of_images(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a.dcm", ".hidden.png", ".git/x.png", "__MACOSX/y.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    manifest = read_manifest(tmp_path)
    assert manifest.table.column("image").to_pylist() == ["a.dcm", "b/1.png", "b/2.JPG"]
    assert manifest.root == tmp_path
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="holds no image files"):
        read_manifest(tmp_path / "void")


def test_read_manifest__a_patient_with_and_without_split_is_noted(tmp_path: Path) -> None:
    manifest = read_manifest(_write(tmp_path, "image,patient,split\na,p1,test\nb,p1,\nc,p2,\n"))
    assert manifest.notes == ["1 patients have rows with and rows without a split, such as 'p1'"]


def test_read_manifest__nested_carried_columns_become_json(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a"], "boxes": [[1, 2]], "void": pa.nulls(1)}), tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").table.select(["boxes", "void"]).to_pylist() == [
        {"boxes": "[1, 2]", "void": None}
    ]


def test_is_url_and_local_path(tmp_path: Path) -> None:
    assert is_url("https://a/b.png")
    assert is_url("s3://a/b.png")
    assert not any(map(is_url, ("a/b.png", "/a/b.png", "file:///a/b.png", "C:/b.png")))
    assert local_path("file:///a/b%20c.png", tmp_path) == Path("/a/b c.png")
    assert local_path("b.png", tmp_path) == tmp_path / "b.png"


_CELL = st.text(alphabet=string.ascii_letters + string.digits + " ,;\"'\n\té", max_size=12)


@given(rows=st.lists(st.tuples(_CELL, _CELL), min_size=1, max_size=6), separator=st.sampled_from([",", ";", "\t"]))
def test_read_manifest__any_texts_survive(
    rows: list[tuple[str, str]], separator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = [separator.join(["image", "text", "notes"])]
    for index, cells in enumerate(rows):
        lines.append(separator.join([f"{index}.png", *map(quoted, cells)]))
    path = _write(tmp_path_factory.mktemp("m"), "\n".join(lines) + "\n")
    table = read_manifest(path).table
    assert table.column("text").to_pylist() == [text.strip() or None for text, _ in rows]
    assert table.column("notes").to_pylist() == [notes if notes.strip() else None for _, notes in rows]


@given(
    patients=st.lists(st.sampled_from(["p1", "p2", "p3", ""]), min_size=1, max_size=8),
    splits=st.lists(st.sampled_from(["train", "val", "test", ""]), min_size=8, max_size=8),
)
def test_read_manifest__leakage_is_found_exactly(
    patients: list[str], splits: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [
        f"{index}.png,{patient},{split}" for index, (patient, split) in enumerate(zip(patients, splits, strict=False))
    ]
    path = _write(tmp_path_factory.mktemp("m"), "image,patient,split\n" + "\n".join(lines) + "\n")
    seen: dict[str, set[str]] = {}
    for patient, split in zip(patients, splits, strict=False):
        if patient and split:
            seen.setdefault(patient, set()).add(split)
    leaking = {patient for patient, found in seen.items() if len(found) > 1}
    try:
        read_manifest(path)
        told = set()
    except ManifestError as error:
        told = {fault.problem.split("'")[1] for fault in error.faults}
    assert told == leaking


@pytest.mark.shared
def test_read_manifest__real_sets(shared: Path) -> None:
    odir = read_manifest(shared / "data" / "odir" / "manifest.csv")
    assert len(odir) == 5117
    assert len(odir.names("label")) == 9
    assert np.isin(odir.table.column("split").to_pylist(), ["train", "val", "test"]).all()
    assert len(read_manifest(shared / "data" / "drive" / "manifest.csv").names("mask")) == 2
