"""DICOM: greys through rescale and window, colours of every kind, and one clear reason where pydicom is missing."""

import io
import sys

import numpy as np
import pytest

from maskedclip.data.imaging import UndecodableImage, decode

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


def test_decode__middle_frame() -> None:
    frames = np.stack([RAMP * 0, RAMP, RAMP * 0])
    assert np.array_equal(decode(_dicom(frames, NumberOfFrames=3)), decode(_dicom(RAMP)))


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
