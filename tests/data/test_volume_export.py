"""Slices and cubes of volumes: files, tables, and the verb."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskedclip.cli_verb import VerbParser
from maskedclip.cli_volumes import VOLUME_VERBS
from maskedclip.data.curate import curate
from maskedclip.data.imaging import decode
from maskedclip.data.volume_export import find_volumes, write_cubes, write_slices
from maskedclip.data.volume_slices import SliceSettings
from maskedclip.errors import UserError
from tests.data.volumes_given import SHAPE, body, write_nifti, write_series

nibabel: Any = pytest.importorskip("nibabel")


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_write_slices__of_a_manifest_with_masks_can_be_curated(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "a.nii.gz")
    write_nifti(tmp_path / "in" / "b.nii.gz")
    write_nifti(tmp_path / "in" / "bone.nii.gz", (body() >= 100).astype(np.uint8) * 5)
    write_nifti(tmp_path / "in" / "nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
    lines = ["image,patient,label.kind,mask.bone,window_center,window_width"]
    lines += ["a.nii.gz,p1,ct,bone.nii.gz,50,100", "b.nii.gz,,mr,,,", "nan.nii.gz,,mr,,,"]
    (tmp_path / "in" / "m.csv").write_text("\n".join(lines))
    made = write_slices(tmp_path / "in" / "m.csv", tmp_path / "out", [SliceSettings()], progress=False)
    assert made.not_read == [("nan", "has no finite voxel")]
    assert _rows(tmp_path / "out" / "not_read.csv") == [{"volume": "nan", "reason": "has no finite voxel"}]
    rows = _rows(made.manifest)
    assert made.volumes == 2
    assert len(rows) == made.pictures
    first = next(row for row in rows if row["volume"] == "a")
    assert first == {
        "image": "images/a/axial_0002.png", "mask.bone": "masks/bone/a/axial_0002.png", "patient": "p1",
        "label.kind": "ct", "volume": "a", "axis": "axial", "slice": "2", "position": "6.00",
    }  # fmt: skip
    assert {row["patient"] for row in rows if row["volume"] == "b"} == {"b"}
    picture = decode((tmp_path / "out" / first["image"]).read_bytes())
    assert picture.max() == 255  # by the manifest's window
    mask = np.asarray(Image.open(tmp_path / "out" / first["mask.bone"]))
    assert set(np.unique(mask)) == {0, 5}
    assert mask.shape == picture.shape[:2]
    store = curate(made.manifest, tmp_path / "store", size=32, crop="none", progress=False)
    assert store.counts["stored"] == len(rows)


def test_write_slices__folder_of_both_kinds_and_every_axis(tmp_path: Path) -> None:
    write_nifti(tmp_path / "in.nii.gz")
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in" / "a.nii")
    write_series(tmp_path / "in" / "study" / "ct")
    axes = [SliceSettings(axis=axis, every=4) for axis in ("axial", "coronal", "sagittal")]
    made = write_slices(tmp_path / "in", tmp_path / "out", axes, progress=False)
    rows = _rows(made.manifest)
    assert {row["volume"] for row in rows} == {"a", "ct-4"}
    assert {row["axis"] for row in rows} == {"axial", "coronal", "sagittal"}
    assert {row["patient"] for row in rows if row["volume"] == "ct-4"} == {"p7"}
    same = [
        [decode((made.out / row["image"]).read_bytes()) for row in rows if row["volume"] == v] for v in ("a", "ct-4")
    ]
    for one, other in zip(*same, strict=True):
        assert np.array_equal(one, other)


def test_write_cubes__table_and_what_a_reader_must_know(tmp_path: Path) -> None:
    made = write_cubes(write_nifti(tmp_path / "a.nii.gz"), tmp_path / "out", 16, progress=False)
    (row,) = _rows(made.manifest)
    assert row == {"array": "arrays/a.npy", "about": "arrays/a.json", "patient": "a"}
    array = np.load(made.out / row["array"], allow_pickle=False)
    about = json.loads((made.out / row["about"]).read_text())
    assert list(array.shape) == about["shape"] == [16, 16, 16]
    assert about["orientation"] == "RAS"


def test_write_slices__faults_leave_nothing_behind(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "nan.nii", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(UserError, match=r"no volume can be read \(nan has no finite voxel\)"):
        write_slices(path, tmp_path / "out", [SliceSettings()], progress=False)
    with pytest.raises(UserError, match="no slice is bright enough"):
        write_slices(write_nifti(tmp_path / "a.nii"), tmp_path / "out", [SliceSettings(min_area=0.9)], progress=False)
    with pytest.raises(UserError, match="no such file or folder"):
        write_slices(tmp_path / "none", tmp_path / "out", [SliceSettings()], progress=False)
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="holds no volume"):
        find_volumes(tmp_path / "in")
    with pytest.raises(UserError, match="cube is 1"):
        write_cubes(write_nifti(tmp_path / "a.nii"), tmp_path / "out", 1, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "in", "nan.nii"]
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_slices(write_nifti(tmp_path / "a.nii"), tmp_path / "out", [SliceSettings()], progress=False)


def _verb(*arguments: str) -> None:
    parser = VerbParser(prog="maskedclip slices")
    VOLUME_VERBS["slices"].arguments(parser)
    VOLUME_VERBS["slices"].run(parser.parse_args(list(arguments)))


def test_slices_verb__says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.stack([body()] * 2, axis=3))
    _verb(str(path), "--out", str(tmp_path / "out"), "--window", "50,100")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.nii.gz: time 0 of 2 is taken"
    assert lines[1] == f"10 slices of 1 volumes in {tmp_path}/out"
    assert lines[2] == f"next: maskedclip curate {tmp_path}/out/manifest.csv --crop none --out STORE"
    _verb(str(path), "--out", str(tmp_path / "cubes"), "--cube", "8")
    assert capsys.readouterr().out.splitlines()[1] == f"1 cubes of 1 volumes in {tmp_path}/cubes"
    with pytest.raises(UserError, match="--window 5: give centre and width"):
        _verb(str(path), "--out", str(tmp_path / "x"), "--window", "5")
    with pytest.raises(UserError, match="--every is 0: give at least 1"):
        _verb(str(path), "--out", str(tmp_path / "x"), "--every", "0")


@pytest.mark.shared
def test_write_slices__real_volumes(shared: Path, tmp_path: Path) -> None:
    manifest = shared / "data" / "volumes" / "manifest.csv"
    if not manifest.exists():
        pytest.skip("no volumes there")
    made = write_slices(manifest, tmp_path / "out", [SliceSettings(every=60, min_area=0)], progress=False)
    assert made.volumes == 9
    assert made.not_read == []
    assert {row["label.modality"] for row in _rows(made.manifest)} >= {"ct", "t1", "pd", "t1gd"}
