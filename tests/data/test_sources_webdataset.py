"""WebDataset tars: nothing is written outside the new folder, and every part left out is listed (P8, P25)."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from maskedclip.errors import UserError
from tests.data.sources_given import curated, jpeg, make, png, remarks_of, rows_of

Member = tuple[str, bytes]


def _tar(path: Path, *members: Member | tarfile.TarInfo, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def _json(**content: object) -> bytes:
    return json.dumps(content).encode()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_make_manifest__texts_classes_and_json(tmp_path: Path, mode: str) -> None:
    source = _tar(
        tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"),
        ("d/1.jpg", jpeg(1)),
        ("d/1.txt", b" drusen\n"),
        ("d/1.cls", b"3"),
        ("d/2.v1.PNG", png(2)),
        ("d/2.json", _json(text="from json", patient=7, split="val", label={"dr": 2}, eye="left", codes=[1, 2])),
        ("3.png", png(3)),
        mode=mode,
    )
    made = make(source, tmp_path / "m.csv")
    assert made.kind == "webdataset"
    assert not made.remarks
    rows = rows_of(made.path)
    assert [row["key"] for row in rows] == ["d/1", "d/2", "3"]
    assert [row["text"] for row in rows] == ["drusen", "from json", None]
    assert [row["label.class"] for row in rows] == [3.0, None, None]
    assert rows[1] | {"image": "", "label.class": 0} == {
        "image": "", "text": "from json", "patient": "7", "split": "val", "label.class": 0, "label.dr": 2.0,
        "key": "d/2", "eye": "left", "codes": "[1, 2]",
    }  # fmt: skip
    assert (tmp_path / rows[0]["image"]).read_bytes() == jpeg(1)
    assert curated(made.path).counts["stored"] == 3


def test_make_manifest__shards_and_their_splits(tmp_path: Path) -> None:
    _tar(tmp_path / "s" / "train-0000.tar", ("p1_l.jpg", jpeg(0)), ("p2_l.jpg", jpeg(1)))
    _tar(tmp_path / "s" / "val-0000.tar", ("p3_l.jpg", jpeg(2)))
    made = make(tmp_path / "s", tmp_path / "m.csv", patient="(p.)_")
    assert [(row["split"], row["patient"], row["key"]) for row in rows_of(made.path)] == [
        ("train", "p1", "p1_l"), ("train", "p2", "p2_l"), ("val", "p3", "p3_l"),
    ]  # fmt: skip


def test_make_manifest__hostile_members_are_left_out(tmp_path: Path) -> None:
    link, hard, device = (tarfile.TarInfo(name) for name in ("l.jpg", "h.jpg", "n.jpg"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "1.jpg"
    device.type = tarfile.CHRTYPE
    source = _tar(
        tmp_path / "in" / "a.tar",
        ("1.jpg", jpeg(1)), ("../out.jpg", jpeg(2)), ("/abs.jpg", jpeg(3)), ("a/../../b.jpg", jpeg(4)),
        ("c:\\d.jpg", jpeg(5)), link, hard, device,
    )  # fmt: skip
    made = make(source, tmp_path / "in" / "m.csv")
    assert [row["key"] for row in rows_of(made.path)] == ["1"]
    leads, linked = (False, "its name leads out of the archive"), (False, "is a link, which is never followed")
    assert remarks_of(made) == {
        "a.tar: ../out.jpg": leads, "a.tar: /abs.jpg": leads, "a.tar: a/../../b.jpg": leads, "a.tar: c:\\d.jpg": leads,
        "a.tar: l.jpg": linked, "a.tar: h.jpg": linked, "a.tar: n.jpg": (False, "is no ordinary file"),
    }  # fmt: skip
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix == ".jpg"]
    assert [path.relative_to(tmp_path).as_posix() for path in written] == ["in/m_images/00000/000001.jpg"]


def test_make_manifest__faulty_samples_are_listed(tmp_path: Path) -> None:
    source = _tar(
        tmp_path / "a.tar",
        ("1.jpg", jpeg(1)), ("1.png", png(1)), ("1.npy", b"x"), ("2.txt", b"no image"), ("3.gif", b"GIF89a"),
        ("4.jpg", jpeg(4)), ("4.json", b"{'a'"), ("5.jpg", jpeg(5)), ("5.txt", b"caf\xe9"), ("6.jpg", jpeg(6)),
        ("6.json", b"[1]"), ("7.png", b""), ("8.jpg", jpeg(8)), ("8.json", b'{"eye": "\\ud800", "n": NaN}'),
    )  # fmt: skip
    made = make(source, tmp_path / "m.csv")
    assert [(row["key"], row.get("eye")) for row in rows_of(made.path)] == [("1", None), ("3", None), ("8", "?")]
    assert {name: reason for name, (_, reason) in remarks_of(made).items()} == {
        "a.tar: 1.png": "is a second image of its sample",
        "a.tar: 1.npy": "a .npy is not read",
        "a.tar: 2": "has no image, only txt",
        "a.tar: 4": "its .json is not valid JSON",
        "a.tar: 5": "its .txt is not UTF-8",
        "a.tar: 6": "its .json is not a JSON object",
        "a.tar: 7": "its image is empty (0 bytes)",
    }


def test_make_manifest__odd_keys(tmp_path: Path) -> None:
    keys = ['a "quoted", one', "line\nbreak", "ret\rurn", "ü"]
    source = _tar(tmp_path / "a.tar", *((f"{key}.jpg", jpeg(seed)) for seed, key in enumerate(keys)))
    assert [row["key"] for row in rows_of(make(source, tmp_path / "m.csv").path)] == keys


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_make_manifest__damaged_tars_leave_nothing(tmp_path: Path, keep: float) -> None:
    source = _tar(tmp_path / "a.tar.gz", *((f"{n}.jpg", jpeg(n)) for n in range(6)), mode="w:gz")
    data = source.read_bytes()
    source.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(UserError, match="is a damaged or incomplete tar"):
        make(source, tmp_path / "m.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
    source.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(UserError, match="is a damaged or incomplete tar"):
        make(source, tmp_path / "m.csv")
