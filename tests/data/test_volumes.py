"""Volumes: oriented voxels, the right slices and cubes, and reasons for what is none."""

import csv
import gzip
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
from maskedclip.data.pixels import UndecodableImage, Window
from maskedclip.data.volume_export import find_volumes, write_cubes, write_slices
from maskedclip.data.volume_series import find_series, open_series
from maskedclip.data.volume_slices import SliceSettings, cube, slice_picture, slices
from maskedclip.data.volumes import Volume, open_volume
from maskedclip.errors import UserError

nibabel: Any = pytest.importorskip("nibabel")
SHAPE = (10, 12, 14)


def _body() -> np.ndarray:
    """A body in RAS: 100 inside, with a mark of 300 at the patient's right, of 500 in front and of 700 at the head."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[2:8, 2:10, 2:12] = 100
    voxels[8, 5, 6], voxels[5, 10, 6], voxels[5, 5, 12] = 300, 500, 700
    return voxels


def _nifti(path: Path, voxels: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    image = nibabel.Nifti1Image(
        _body() if voxels is None else voxels, np.diag([2.0, 1, 3, 1]) if affine is None else affine
    )
    path.write_bytes(gzip.compress(image.to_bytes()) if path.suffix == ".gz" else image.to_bytes())
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "ASL", "SAR"])
def test_open_volume__any_storage_order_gives_the_same_voxels(tmp_path: Path, suffix: str, axes: str) -> None:
    plain = nibabel.Nifti1Image(_body(), np.diag([2.0, 1, 3, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(plain.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    stored = plain.as_reoriented(turn)
    path = _nifti(tmp_path / f"a{suffix}", np.asanyarray(stored.dataobj), stored.affine)
    volume = open_volume(path)
    assert volume.shape == SHAPE
    assert volume.spacing == (2, 1, 3)
    assert np.array_equal(volume.stored, _body())
    assert volume.affine is not None
    assert np.allclose(volume.affine, plain.affine)
    assert np.array_equal(volume.values(1, 10), _body()[:, 10])


def test_open_volume__slope_and_first_time(tmp_path: Path) -> None:
    series = np.stack([_body(), _body() * 2, _body() * 3], axis=3)
    path = _nifti(tmp_path / "a.nii.gz", series)
    assert np.array_equal(open_volume(path).stored, _body())
    assert open_volume(path).notes == ["time 0 of 3 is taken"]
    assert np.array_equal(open_volume(path, time=2).stored, _body() * 3)
    with pytest.raises(UndecodableImage, match="has no time 3, only 3"):
        open_volume(path, time=3)
    raw = bytearray(_nifti(tmp_path / "b.nii").read_bytes())
    raw[112:120] = np.array([2, -1000], "<f4").tobytes()
    (tmp_path / "b.nii").write_bytes(raw)
    assert np.array_equal(open_volume(tmp_path / "b.nii").values(2, 5), _body()[:, :, 5] * 2.0 - 1000)


def test_open_volume__header_alone_is_read_first(tmp_path: Path) -> None:
    path = _nifti(tmp_path / "a.nii.gz")
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:400]))
    volume = open_volume(path)
    assert volume.shape == SHAPE
    with pytest.raises(UndecodableImage, match=r"^is a truncated NIfTI volume$"):
        volume.stored  # noqa: B018
    (tmp_path / "b.nii").write_bytes(whole[:400])
    with pytest.raises(UndecodableImage, match=r"^is a truncated NIfTI volume$"):
        open_volume(tmp_path / "b.nii").stored  # noqa: B018


def test_open_volume__without_orientation_axes_are_as_stored(tmp_path: Path) -> None:
    for name in ("no codes", "flat affine"):
        path = _nifti(tmp_path / "x.nii")
        raw = bytearray(path.read_bytes())
        raw[252:254] = b"\0\0"  # qform_code
        if name == "no codes":
            raw[254:256] = b"\0\0"  # sform_code
        else:
            raw[280:328] = np.diag([2.0, 1, 0, 1])[:3].astype("<f4").tobytes()
        path.write_bytes(raw)
        volume = open_volume(path)
        assert volume.affine is None
        assert volume.spacing == (2, 1, 3)
        assert "its axes are taken as RAS" in volume.notes[0]
        assert np.array_equal(volume.stored, _body())


def _big(path: Path, *sides: int) -> Path:
    raw = bytearray(_nifti(path).read_bytes())
    raw[40:56] = np.array([len(sides), *sides, *[1] * (7 - len(sides))], "<i2").tobytes()
    path.write_bytes(raw)
    return path


def test_open_volume__says_why_not(tmp_path: Path) -> None:
    nan = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(UndecodableImage, match=r"^has no finite voxel$"):
        open_volume(_nifti(tmp_path / "nan.nii.gz", nan)).stored  # noqa: B018
    with pytest.raises(UndecodableImage, match=r"^has more voxels than the limit"):
        open_volume(_big(tmp_path / "big.nii", 30000, 30000, 30000))
    with pytest.raises(UndecodableImage, match=r"^has no voxels"):
        open_volume(_big(tmp_path / "none.nii", 10, 0, 14))
    with pytest.raises(UndecodableImage, match=r"^has 5 dimensions"):
        open_volume(_big(tmp_path / "five.nii", 4, 4, 4, 4, 4))
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UndecodableImage, match=r"^holds colours"):
        open_volume(_nifti(tmp_path / "rgb.nii", colour))
    (tmp_path / "empty.nii").write_bytes(b"")
    with pytest.raises(UndecodableImage, match=r"^is empty \(0 bytes\)$"):
        open_volume(tmp_path / "empty.nii")
    (tmp_path / "text.nii").write_bytes(b"no volume at all" * 40)
    with pytest.raises(UndecodableImage, match=r"^is no NIfTI volume that can be read"):
        open_volume(tmp_path / "text.nii")
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(UndecodableImage, match=r"^is neither a NIfTI file"):
        open_volume(tmp_path / "a.png")


def test_slice_picture__hangs_as_radiologists_expect(tmp_path: Path) -> None:
    volume = open_volume(_nifti(tmp_path / "a.nii", affine=np.eye(4)))
    shown = volume.shown(Window(centre=350, width=700))
    axial, sagittal = slice_picture(volume, 2, 6, shown), slice_picture(volume, 0, 5, shown)
    assert axial.shape == (12, 10)
    assert axial[11 - 5, 9 - 8] == round(300 / 700 * 255)  # right: on the left
    assert axial[11 - 10, 9 - 5] == round(500 / 700 * 255)  # in front: up
    assert sagittal.shape == (14, 12)
    assert sagittal[13 - 12, 11 - 5] == 255  # head: up
    assert sagittal[13 - 6, 11 - 10] == round(500 / 700 * 255)  # in front: left


def test_slice_picture__pixels_are_square(tmp_path: Path) -> None:
    volume = open_volume(_nifti(tmp_path / "a.nii"))  # 2 x 1 x 3 mm
    shown = volume.shown()
    assert slice_picture(volume, 2, 5, shown).shape == (12, 20)
    assert slice_picture(volume, 1, 5, shown).shape == (21, 10)
    assert slice_picture(volume, 0, 5, shown).shape == (42, 12)


def test_slices__every_and_area(tmp_path: Path) -> None:
    volume = open_volume(_nifti(tmp_path / "a.nii"))
    window = Window(centre=50, width=100)
    taken = [index for index, _ in slices(volume, SliceSettings(window=window))]
    assert taken == list(range(2, 12))
    assert [index for index, _ in slices(volume, SliceSettings(window=window, min_area=0))] == list(range(14))
    assert [index for index, _ in slices(volume, SliceSettings(window=window, every=3))] == [4, 7, 10]
    with pytest.raises(ValueError, match="every is 0"):
        SliceSettings(every=0)


def test_volume__shown_by_percentiles_of_the_whole() -> None:
    voxels = np.linspace(0, 1000, 8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10)
    voxels[0, 0, :4] = np.nan
    volume = Volume(name="x", shape=(8, 9, 10), spacing=None, affine=None, load=lambda: voxels)
    shown = volume.shown()(voxels)
    assert not shown[0, 0, :4].any()
    assert np.abs(shown[1:] - voxels[1:] / 1000 * 255).max() <= 2
    even = Volume(name="x", shape=(2, 2, 2), spacing=None, affine=None, load=lambda: np.ones((2, 2, 2), np.float32))
    assert not even.shown()(np.ones((2, 2))).any()


def test_cube__keeps_place_and_mean(tmp_path: Path) -> None:
    affine = np.diag([2.0, 1, 3, 1])
    affine[:3, 3] = -7, 5, 11
    volume = open_volume(_nifti(tmp_path / "a.nii", affine=affine))
    window = Window(centre=350, width=700)
    array, about = cube(volume, 21, window=window, values="float16")
    assert array.shape == (21, 21, 21)
    assert array.dtype == np.float16
    assert about["spacing"] == pytest.approx([2, 2, 2])
    assert about["orientation"] == "RAS"
    inside = np.argwhere(array > 0.1)
    places = inside @ np.array(about["affine"])[:3, :3].T + np.array(about["affine"])[:3, 3]
    wanted = np.argwhere(_body() >= 100) @ affine[:3, :3].T + affine[:3, 3]
    assert np.abs(places.mean(axis=0) - wanted.mean(axis=0)).max() < 0.5
    assert array.astype(float).sum() * 8 == pytest.approx((_body() / 700).sum() * 6, rel=0.02)
    fine, about = cube(volume, 8, spacing=1.0, window=window)
    assert fine.dtype == np.uint8
    assert fine.min() == round(100 / 700 * 255)  # the middle 8 mm lie within the body
    assert about["spacing"] == pytest.approx([1, 1, 1])


def test_cube__needs_spacing() -> None:
    volume = Volume(name="x", shape=(2, 2, 2), spacing=None, affine=None, load=lambda: np.ones((2, 2, 2)))
    with pytest.raises(UndecodableImage, match="does not say how far its voxels are apart"):
        cube(volume, 8)
    with pytest.raises(ValueError, match="cube is 1"):
        cube(volume, 1)


def _series(folder: Path, *, gap: float = 3.0, drop: int | None = None, rename: bool = True, **elements: Any) -> Path:
    """The body as an axial series, in files whose names tell no order."""
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(SHAPE[2]):
        if index == drop:
            continue
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{index}"
        dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.PatientID = "1.9", 4, "p7"
        dataset.InstanceNumber = index + 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]  # rows to the left, columns to the back
        dataset.ImagePositionPatient = [-9 * 2.0, -11 * 1.0, index * gap]
        dataset.PixelSpacing, dataset.SliceThickness = [1.0, 2.0], 9.0
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -24
        pixels = _body()[::-1, ::-1, index].T + 24  # (rows, columns): from the front, from the right
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.PixelData = np.ascontiguousarray(pixels).astype("<i2").tobytes()
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.save_as(folder / f"{(index * 5) % 14}.dcm", enforce_file_format=True)
    return folder


def test_open_series__equals_the_volume_it_was_made_of(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct", WindowCenter=["40", "5"], WindowWidth=["400", "5"])
    (tmp_path / "ct" / "notes.txt").write_text("no DICOM")
    volume = open_volume(folder)
    assert np.array_equal(volume.stored, _body())
    assert volume.spacing == pytest.approx((2, 1, 3))  # the positions', not the thickness
    assert volume.affine is not None
    assert np.allclose(volume.affine, np.diag([2, 1, 3, 1]))
    assert volume.patient == "p7"
    assert volume.name == "ct-4"
    assert volume.window is not None
    assert (volume.window[0].centre, volume.window[0].width) == (40, 400)
    assert volume.notes == []


def test_open_series__gaps_and_repeats_are_told(tmp_path: Path) -> None:
    volume = open_volume(_series(tmp_path / "ct", drop=6))
    assert volume.notes == ["its slices are 3.00 to 6.00 mm apart: 3.00 mm is taken"]
    folder = _series(tmp_path / "twice")
    (folder / "again.dcm").write_bytes((folder / "0.dcm").read_bytes())
    assert open_volume(folder).notes == ["1 further slices at the same positions are left out"]
    assert np.array_equal(open_volume(folder).stored, _body())


def test_find_series__a_scout_is_a_series_of_its_own(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct")
    scout = _series(tmp_path / "scout", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    (folder / "scout.dcm").write_bytes((scout / "3.dcm").read_bytes())
    found = find_series(folder)
    assert sorted(len(series.planes) for series in found) == [1, SHAPE[2]]
    assert {series.name for series in found} == {"ct-4", "ct-4-2"}
    with pytest.raises(UndecodableImage, match="holds 2 DICOM series"):
        open_volume(folder)


def test_open_series__without_positions_by_number(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct", ImagePositionPatient=None, ImageOrientationPatient=None)
    volume = open_volume(folder)
    assert volume.affine is None
    assert np.array_equal(volume.stored, _body()[::-1, ::-1])
    assert volume.notes == ["gives no orientation: its axes are taken as RAS"]
    assert volume.spacing == pytest.approx((2, 1, 9))


def test_open_series__frames_of_one_file(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    one = pydicom.dcmread(_series(tmp_path / "ct") / "0.dcm")
    frames, groups = [], []
    for index in range(SHAPE[2]):
        position, outer = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [-18.0, -11.0, index * 3.0]
        outer.PlanePositionSequence = [position]
        groups.append(outer)
        frames.append(_body()[::-1, ::-1, index].T + 24)
    measures, orientation, shared = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.0, 2.0], 3.0
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(one, name)
    one.SharedFunctionalGroupsSequence, one.PerFrameFunctionalGroupsSequence = [shared], groups
    one.NumberOfFrames, one.PixelData = SHAPE[2], np.stack(frames).astype("<i2").tobytes()
    one.save_as(tmp_path / "multi.dcm", enforce_file_format=True)
    volume = open_volume(tmp_path / "multi.dcm")
    assert np.array_equal(volume.stored, _body())
    assert volume.affine is not None
    assert np.allclose(volume.affine, np.diag([2, 1, 3, 1]))


def test_open_series__a_damaged_slice_is_named(tmp_path: Path) -> None:
    folder = _series(tmp_path / "ct")
    (folder / "3.dcm").write_bytes((folder / "3.dcm").read_bytes()[:-40])
    with pytest.raises(UndecodableImage, match=r"^has a damaged slice 3.dcm"):
        open_series(find_series(folder)[0]).stored  # noqa: B018


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_write_slices__of_a_manifest_with_masks_can_be_curated(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _nifti(tmp_path / "in" / "a.nii.gz")
    _nifti(tmp_path / "in" / "b.nii.gz")
    _nifti(tmp_path / "in" / "bone.nii.gz", (_body() >= 100).astype(np.uint8) * 5)
    _nifti(tmp_path / "in" / "nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
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
    _nifti(tmp_path / "in.nii.gz")
    (tmp_path / "in").mkdir()
    _nifti(tmp_path / "in" / "a.nii")
    _series(tmp_path / "in" / "study" / "ct")
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
    made = write_cubes(_nifti(tmp_path / "a.nii.gz"), tmp_path / "out", 16, progress=False)
    (row,) = _rows(made.manifest)
    assert row == {"array": "arrays/a.npy", "about": "arrays/a.json", "patient": "a"}
    array = np.load(made.out / row["array"], allow_pickle=False)
    about = json.loads((made.out / row["about"]).read_text())
    assert list(array.shape) == about["shape"] == [16, 16, 16]
    assert about["orientation"] == "RAS"


def test_write_slices__faults_leave_nothing_behind(tmp_path: Path) -> None:
    path = _nifti(tmp_path / "nan.nii", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(UserError, match=r"no volume can be read \(nan has no finite voxel\)"):
        write_slices(path, tmp_path / "out", [SliceSettings()], progress=False)
    with pytest.raises(UserError, match="no slice is bright enough"):
        write_slices(_nifti(tmp_path / "a.nii"), tmp_path / "out", [SliceSettings(min_area=0.9)], progress=False)
    with pytest.raises(UserError, match="no such file or folder"):
        write_slices(tmp_path / "none", tmp_path / "out", [SliceSettings()], progress=False)
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match="holds no volume"):
        find_volumes(tmp_path / "in")
    with pytest.raises(UserError, match="cube is 1"):
        write_cubes(_nifti(tmp_path / "a.nii"), tmp_path / "out", 1, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii", "in", "nan.nii"]
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_slices(_nifti(tmp_path / "a.nii"), tmp_path / "out", [SliceSettings()], progress=False)


def _verb(*arguments: str) -> None:
    parser = VerbParser(prog="maskedclip slices")
    VOLUME_VERBS["slices"].arguments(parser)
    VOLUME_VERBS["slices"].run(parser.parse_args(list(arguments)))


def test_slices_verb__says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _nifti(tmp_path / "a.nii.gz", np.stack([_body()] * 2, axis=3))
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
