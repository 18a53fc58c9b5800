"""DICOM: greys through rescale and window, colours of every kind, and one clear reason where pydicom is missing."""

import io
import sys

import numpy as np
import pytest

from maskedclip.data.imaging import UndecodableImage, Window, decode

_PREAMBLE = b"\0" * 128 + b"DICM" + b"\2\0\0\0"


def test_decode__without_pydicom_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    with pytest.raises(UndecodableImage, match=r"^is a DICOM file: install maskedclip\[medical\] to read it$"):
        decode(_PREAMBLE)


def _dicom(pixels: np.ndarray, kind: str = "MONOCHROME2", **elements: object) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    frames = elements.get("NumberOfFrames") is not None
    dataset.Rows, dataset.Columns = pixels.shape[1:3] if frames else pixels.shape[:2]
    colour = kind in ("RGB", "YBR_FULL")
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = kind
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


RAMP = np.arange(0, 4000, 10, dtype=np.int16).reshape(20, 20)


def test_decode__without_window_percentiles_are_stretched() -> None:
    pixels = decode(_dicom(RAMP))[:, :, 0]
    assert np.abs(pixels - RAMP / 3990 * 255).max() <= 1


def test_decode__monochrome1_is_inverted() -> None:
    assert np.array_equal(decode(_dicom(RAMP, "MONOCHROME1")), 255 - decode(_dicom(RAMP)))


def test_decode__rescale_and_first_window() -> None:
    data = _dicom(
        RAMP, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter=["40", "500"], WindowWidth=["400", "9"]
    )
    pixels = decode(data)[:, :, 0].astype(float)
    expected = ((RAMP - 1024.0 - 39.5) / 399 + 0.5).clip(0, 1) * 255
    assert np.abs(pixels - expected).max() <= 0.5


@pytest.mark.parametrize("function", ["SIGMOID", "LINEAR_EXACT"])
def test_decode__other_window_functions(function: str) -> None:
    data = _dicom(RAMP, WindowCenter="2000", WindowWidth="1000", VOILUTFunction=function)
    pixels = decode(data)[:, :, 0].astype(float)
    scaled = (RAMP - 2000) / 1000
    exact = (scaled + 0.5).clip(0, 1) if function == "LINEAR_EXACT" else 1 / (1 + np.exp(-4 * scaled))
    assert np.abs(pixels - exact * 255).max() <= 0.5


def test_decode__the_first_frame_or_the_one_asked_for() -> None:
    data = _dicom(np.stack([RAMP, RAMP.T, RAMP * 0]), NumberOfFrames=3)
    assert np.array_equal(decode(data), decode(_dicom(RAMP)))
    assert np.array_equal(decode(data, frame=2), decode(_dicom(np.ascontiguousarray(RAMP.T))))
    assert not decode(data, frame=3).any()
    with pytest.raises(UndecodableImage, match=r"^has no frame 4, only 3$"):
        decode(data, frame=4)
    with pytest.raises(UndecodableImage, match=r"^has no frame 2, only 1$"):
        decode(_dicom(RAMP), frame=2)


def test_decode__a_frame_has_its_own_window() -> None:
    pydicom = pytest.importorskip("pydicom")

    def group(centre: float) -> object:
        window, values, outer = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre, 400, "LINEAR_EXACT"
        values.RescaleSlope, values.RescaleIntercept = 2, -1000
        outer.FrameVOILUTSequence, outer.PixelValueTransformationSequence = [window], [values]
        return outer

    data = _dicom(np.stack([RAMP, RAMP]), NumberOfFrames=2, PerFrameFunctionalGroupsSequence=[group(500), group(3000)])
    for frame, centre in ((1, 500), (2, 3000)):
        expected = ((RAMP * 2.0 - 1000 - centre) / 400 + 0.5).clip(0, 1) * 255
        assert np.abs(decode(data, frame=frame)[:, :, 0] - expected).max() <= 0.5


def test_decode__a_window_that_is_asked_for_replaces_the_files() -> None:
    data = _dicom(RAMP, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter="40", WindowWidth="400")
    pixels = decode(data, window=Window(centre=300, width=1500))[:, :, 0]
    expected = ((RAMP - 1024.0 - 299.5) / 1499 + 0.5).clip(0, 1) * 255  # the file's function, linear
    assert np.abs(pixels - expected).max() <= 0.5
    rgb = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(UndecodableImage, match=r"^is in colour: leave its window_center"):
        decode(_dicom(rgb, "RGB"), window=Window(centre=300, width=1500))


def test_decode__voi_table() -> None:
    pydicom = pytest.importorskip("pydicom")
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [400, 0, 16])  # 400 entries from the value 0 on, 16 bits
    table.add_new("LUTData", "OW", ((np.arange(400) // 2 + 20) * 256).astype("<u2").tobytes())
    small = np.arange(400, dtype=np.uint16).reshape(20, 20)
    data = _dicom(small, VOILUTSequence=[table])
    assert np.array_equal(decode(data)[:, :, 0], small // 2 + 20)
    windowed = decode(data, window=Window(centre=200, width=100))[:, :, 0]
    assert windowed.min() == 0
    assert windowed.max() == 255


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_decode__padding_is_black_and_no_percentile(kind: str) -> None:
    padded = RAMP.copy()
    padded[:10] = -2000
    pixels = decode(_dicom(padded, kind, PixelPaddingValue=-2000))[:, :, 0]
    assert not pixels[:10].any()
    below = decode(_dicom(np.ascontiguousarray(RAMP[10:]), kind))[:, :, 0]
    assert np.array_equal(pixels[10:], below)


def test_decode__palette() -> None:
    indices = np.tile(np.arange(20, dtype=np.uint8), (20, 1))
    levels = {"Red": np.arange(20) * 3000, "Green": np.arange(20)[::-1] * 2000, "Blue": np.full(20, 500)}
    elements: dict[str, object] = {}
    for name, values in levels.items():
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [20, 0, 16]
        elements[f"{name}PaletteColorLookupTableData"] = values.astype("<u2").tobytes()
    pixels = decode(_dicom(indices, "PALETTE COLOR", **elements))
    for channel, values in enumerate(levels.values()):
        assert np.array_equal(pixels[0, :, channel], values >> 8)


def test_decode__ybr_422() -> None:
    pairs = np.tile(np.array([77, 77, 128, 128], np.uint8), (20, 10)).reshape(20, 40)  # Y Y Cb Cr of two pixels
    data = bytearray(_dicom(np.zeros((20, 20), np.uint8), SamplesPerPixel=3, PlanarConfiguration=0))
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(bytes(data)))
    dataset.PhotometricInterpretation, dataset.PixelData = "YBR_FULL_422", pairs.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    pixels = decode(buffer.getvalue())
    assert pixels.shape == (20, 20, 3)
    assert np.abs(pixels.astype(int) - 77).max() <= 1


def test_decode__without_preamble_the_first_element_tells() -> None:
    whole = _dicom(RAMP)
    assert decode(whole[132:]).shape == (20, 20, 3)
    assert decode(whole[132:], name="IM0001").shape == (20, 20, 3)


def test_decode__a_deflated_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(_dicom(RAMP)))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    assert np.array_equal(decode(buffer.getvalue()), decode(_dicom(RAMP)))
    monkeypatch.setattr("maskedclip.data.dicom.MAX_BYTES", 700)
    with pytest.raises(UndecodableImage, match="is too large for one picture"):
        decode(buffer.getvalue())


def test_decode__colour() -> None:
    rgb = np.random.Generator(np.random.Philox(0)).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    assert np.array_equal(decode(_dicom(rgb, "RGB")), rgb)
    grey = np.full((20, 20, 3), 128, np.uint8)
    grey[..., 0] = 77
    assert np.abs(decode(_dicom(grey, "YBR_FULL")).astype(int) - 77).max() <= 1


def test_decode__says_why_not() -> None:
    whole = _dicom(RAMP)
    with pytest.raises(UndecodableImage, match="is a truncated DICOM file"):
        decode(whole[:-100])
    without = _dicom(RAMP)
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(without))
    del dataset.PixelData
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    with pytest.raises(UndecodableImage, match="without a picture"):
        decode(buffer.getvalue())
