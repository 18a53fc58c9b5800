"""Both collections of files that ship inside pydicom: each one is decoded, or refused with a reason that is known."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from maskedclip.data.imaging import UndecodableImage, decode

pydicom = pytest.importorskip("pydicom")
FOLDER = Path(str(find_spec("pydicom.data").origin)).parent  # type: ignore[union-attr]
FILES = sorted(
    path.relative_to(FOLDER).as_posix()
    for part in ("test_files", "charset_files")
    for path in (FOLDER / part).rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
)
WITHOUT = "is a DICOM file without a picture"
REFUSED = {  # a file, or a pattern of names -> its reason; all others are decoded
    r"test_files/.*DICOMDIR.*": WITHOUT,
    r".*TINY_ALPHA/PT000000/.*": WITHOUT,
    r".*/ExplVR_(Big|Lit)EndNoMeta.dcm": WITHOUT,
    r".*/(UN_sequence|empty_charset_LEI|no_meta_group_length|priv_SQ|nested_priv_SQ|meta_missing_tsyntax).dcm": WITHOUT,
    r".*/(reportsi.*|rtplan|rtplan_truncated|rtstruct|test-SR|waveform_ecg).dcm": WITHOUT,
    r".*/chr(JapMulti|JapMultiExplicitIR6|KoreanMulti|SQEncoding|SQEncoding1).dcm": WITHOUT,
    r".*/MR_truncated.dcm": "is a truncated DICOM file",
    r".*/no_meta.dcm": "is of no known image format",
    r".*/crayons.icc": "is of no known image format",
    r".*/badVR.dcm": "is a damaged DICOM file .*'1A'",
    r".*/JPEG-lossy.dcm": "is a DICOM file whose picture cannot be decoded",
    r".*/JPEG2000-embedded-sequence-delimiter.dcm": "is a DICOM file whose picture cannot be decoded",
    r".*(\.txt|README|\.dump|\.json)": "is a text file, not an image",
    r".*/zipMR.gz": "is a gzip file",
}
COMPRESSED = re.compile(r".*(J2K|JPEG|JPG|jpeg|jpg|jls|jp2k|_KY|\+eb\+c|ybr_color|jpeg2k).*")
DECODERS = find_spec("pylibjpeg") is not None and find_spec("libjpeg") is not None


@pytest.mark.parametrize("name", FILES)
def test_decode__every_file_of_pydicom(name: str) -> None:
    data = (FOLDER / name).read_bytes()
    reason = next((reason for pattern, reason in REFUSED.items() if re.fullmatch(pattern, name)), None)
    if not DECODERS and COMPRESSED.fullmatch(name):
        try:
            assert decode(data, name=name).ndim == 3
        except UndecodableImage as error:
            told = str(error)
        else:
            return
        assert re.search("needs a decoder: install maskedclip|cannot be decoded", told)
    elif reason is None:
        pixels = decode(data, name=name)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert pixels.max() > 0
    else:
        with pytest.raises(UndecodableImage, match=f"^{reason}"):
            decode(data, name=name)


def test_decode__the_collections_are_there() -> None:
    assert len(FILES) > 150


def _read(name: str) -> np.ndarray:
    return decode((FOLDER / "test_files" / name).read_bytes(), name=name)


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm"]
)
def test_decode__packings_without_loss_agree(name: str) -> None:
    assert np.array_equal(_read(name), _read("MR_small.dcm"))


@pytest.mark.skipif(not DECODERS, reason="needs pylibjpeg and its plugins")
@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_decode__compressed_without_loss_agrees(name: str) -> None:
    assert np.array_equal(_read(name), _read("MR_small.dcm"))


@pytest.mark.skipif(not DECODERS, reason="needs pylibjpeg and its plugins")
@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_rle_32bit.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_gdcm_KY.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_decode__one_picture_in_many_packings_looks_the_same(name: str) -> None:
    """Bars of ten rows: red, its half, green, its half, blue, its half, black, two greys, white."""
    pixels = _read(name).astype(int)
    middle = [tuple(pixels[5 + 10 * bar, 50]) for bar in range(10)]
    expected = [
        (255, 0, 0), (255, 128, 128), (0, 255, 0), (128, 255, 128), (0, 0, 255), (128, 128, 255),
        (0, 0, 0), (64, 64, 64), (192, 192, 192), (255, 255, 255),
    ]  # fmt: skip
    assert np.abs(np.array(middle) - np.array(expected)).max() <= 6


def test_decode__without_plugins_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to decompress 'JPEG-LS': all plugins are missing dependencies: pylibjpeg")

    monkeypatch.setattr("pydicom.pixels.pixel_array", missing)
    with pytest.raises(UndecodableImage, match=r"whose compression needs a decoder: install maskedclip\[medical\]$"):
        _read("MR_small_jpeg_ls_lossless.dcm")
