"""Volumes: oriented voxels, the right slices and cubes, and reasons for what is none."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskedclip.data.pixels import UndecodableImage, Window
from maskedclip.data.volume_series import find_series, open_series
from maskedclip.data.volume_slices import SliceSettings, cube, slice_picture, slices
from maskedclip.data.volumes import Volume, open_volume
from tests.data.volumes_given import SHAPE, body, write_nifti, write_series

nibabel: Any = pytest.importorskip("nibabel")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "ASL", "SAR"])
def test_open_volume__any_storage_order_gives_the_same_voxels(tmp_path: Path, suffix: str, axes: str) -> None:
    plain = nibabel.Nifti1Image(body(), np.diag([2.0, 1, 3, 1]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(plain.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    stored = plain.as_reoriented(turn)
    path = write_nifti(tmp_path / f"a{suffix}", np.asanyarray(stored.dataobj), stored.affine)
    volume = open_volume(path)
    assert volume.shape == SHAPE
    assert volume.spacing == (2, 1, 3)
    assert np.array_equal(volume.stored, body())
    assert volume.affine is not None
    assert np.allclose(volume.affine, plain.affine)
    assert np.array_equal(volume.values(1, 10), body()[:, 10])


def test_open_volume__slope_and_first_time(tmp_path: Path) -> None:
    series = np.stack([body(), body() * 2, body() * 3], axis=3)
    path = write_nifti(tmp_path / "a.nii.gz", series)
    assert np.array_equal(open_volume(path).stored, body())
    assert open_volume(path).notes == ["time 0 of 3 is taken"]
    assert np.array_equal(open_volume(path, time=2).stored, body() * 3)
    with pytest.raises(UndecodableImage, match="has no time 3, only 3"):
        open_volume(path, time=3)
    raw = bytearray(write_nifti(tmp_path / "b.nii").read_bytes())
    raw[112:120] = np.array([2, -1000], "<f4").tobytes()
    (tmp_path / "b.nii").write_bytes(raw)
    assert np.array_equal(open_volume(tmp_path / "b.nii").values(2, 5), body()[:, :, 5] * 2.0 - 1000)


def test_open_volume__header_alone_is_read_first(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz")
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
        path = write_nifti(tmp_path / "x.nii")
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
        assert np.array_equal(volume.stored, body())


def _big(path: Path, *sides: int) -> Path:
    raw = bytearray(write_nifti(path).read_bytes())
    raw[40:56] = np.array([len(sides), *sides, *[1] * (7 - len(sides))], "<i2").tobytes()
    path.write_bytes(raw)
    return path


def test_open_volume__says_why_not(tmp_path: Path) -> None:
    nan = np.full(SHAPE, np.nan, np.float32)
    with pytest.raises(UndecodableImage, match=r"^has no finite voxel$"):
        open_volume(write_nifti(tmp_path / "nan.nii.gz", nan)).stored  # noqa: B018
    with pytest.raises(UndecodableImage, match=r"^has more voxels than the limit"):
        open_volume(_big(tmp_path / "big.nii", 30000, 30000, 30000))
    with pytest.raises(UndecodableImage, match=r"^has no voxels"):
        open_volume(_big(tmp_path / "none.nii", 10, 0, 14))
    with pytest.raises(UndecodableImage, match=r"^has 5 dimensions"):
        open_volume(_big(tmp_path / "five.nii", 4, 4, 4, 4, 4))
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UndecodableImage, match=r"^holds colours"):
        open_volume(write_nifti(tmp_path / "rgb.nii", colour))
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
    volume = open_volume(write_nifti(tmp_path / "a.nii", affine=np.eye(4)))
    shown = volume.shown(Window(centre=350, width=700))
    axial, sagittal = slice_picture(volume, 2, 6, shown), slice_picture(volume, 0, 5, shown)
    assert axial.shape == (12, 10)
    assert axial[11 - 5, 9 - 8] == round(300 / 700 * 255)  # right: on the left
    assert axial[11 - 10, 9 - 5] == round(500 / 700 * 255)  # in front: up
    assert sagittal.shape == (14, 12)
    assert sagittal[13 - 12, 11 - 5] == 255  # head: up
    assert sagittal[13 - 6, 11 - 10] == round(500 / 700 * 255)  # in front: left


def test_slice_picture__pixels_are_square(tmp_path: Path) -> None:
    volume = open_volume(write_nifti(tmp_path / "a.nii"))  # 2 x 1 x 3 mm
    shown = volume.shown()
    assert slice_picture(volume, 2, 5, shown).shape == (12, 20)
    assert slice_picture(volume, 1, 5, shown).shape == (21, 10)
    assert slice_picture(volume, 0, 5, shown).shape == (42, 12)


def test_slices__every_and_area(tmp_path: Path) -> None:
    volume = open_volume(write_nifti(tmp_path / "a.nii"))
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
    volume = open_volume(write_nifti(tmp_path / "a.nii", affine=affine))
    window = Window(centre=350, width=700)
    array, about = cube(volume, 21, window=window, values="float16")
    assert array.shape == (21, 21, 21)
    assert array.dtype == np.float16
    assert about["spacing"] == pytest.approx([2, 2, 2])
    assert about["orientation"] == "RAS"
    inside = np.argwhere(array > 0.1)
    places = inside @ np.array(about["affine"])[:3, :3].T + np.array(about["affine"])[:3, 3]
    wanted = np.argwhere(body() >= 100) @ affine[:3, :3].T + affine[:3, 3]
    assert np.abs(places.mean(axis=0) - wanted.mean(axis=0)).max() < 0.5
    assert array.astype(float).sum() * 8 == pytest.approx((body() / 700).sum() * 6, rel=0.02)
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


def test_open_series__equals_the_volume_it_was_made_of(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", WindowCenter=["40", "5"], WindowWidth=["400", "5"])
    (tmp_path / "ct" / "notes.txt").write_text("no DICOM")
    volume = open_volume(folder)
    assert np.array_equal(volume.stored, body())
    assert volume.spacing == pytest.approx((2, 1, 3))  # the positions', not the thickness
    assert volume.affine is not None
    assert np.allclose(volume.affine, np.diag([2, 1, 3, 1]))
    assert volume.patient == "p7"
    assert volume.name == "ct-4"
    assert volume.window is not None
    assert (volume.window[0].centre, volume.window[0].width) == (40, 400)
    assert volume.notes == []


def test_open_series__gaps_and_repeats_are_told(tmp_path: Path) -> None:
    volume = open_volume(write_series(tmp_path / "ct", drop=6))
    assert volume.notes == ["its slices are 3.00 to 6.00 mm apart: 3.00 mm is taken"]
    folder = write_series(tmp_path / "twice")
    (folder / "again.dcm").write_bytes((folder / "0.dcm").read_bytes())
    assert open_volume(folder).notes == ["1 further slices at the same positions are left out"]
    assert np.array_equal(open_volume(folder).stored, body())


def test_find_series__a_scout_is_a_series_of_its_own(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    scout = write_series(tmp_path / "scout", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    (folder / "scout.dcm").write_bytes((scout / "3.dcm").read_bytes())
    found = find_series(folder)
    assert sorted(len(series.planes) for series in found) == [1, SHAPE[2]]
    assert {series.name for series in found} == {"ct-4", "ct-4-2"}
    with pytest.raises(UndecodableImage, match="holds 2 DICOM series"):
        open_volume(folder)


def test_open_series__without_positions_by_number(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct", ImagePositionPatient=None, ImageOrientationPatient=None)
    volume = open_volume(folder)
    assert volume.affine is None
    assert np.array_equal(volume.stored, body()[::-1, ::-1])
    assert volume.notes == ["gives no orientation: its axes are taken as RAS"]
    assert volume.spacing == pytest.approx((2, 1, 9))


def test_open_series__frames_of_one_file(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    one = pydicom.dcmread(write_series(tmp_path / "ct") / "0.dcm")
    frames, groups = [], []
    for index in range(SHAPE[2]):
        position, outer = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [-18.0, -11.0, index * 3.0]
        outer.PlanePositionSequence = [position]
        groups.append(outer)
        frames.append(body()[::-1, ::-1, index].T + 24)
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
    assert np.array_equal(volume.stored, body())
    assert volume.affine is not None
    assert np.allclose(volume.affine, np.diag([2, 1, 3, 1]))


def test_open_series__a_damaged_slice_is_named(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "ct")
    (folder / "3.dcm").write_bytes((folder / "3.dcm").read_bytes()[:-40])
    with pytest.raises(UndecodableImage, match=r"^has a damaged slice 3.dcm"):
        open_series(find_series(folder)[0]).stored  # noqa: B018
