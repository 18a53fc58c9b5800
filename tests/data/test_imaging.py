"""Decoding: every kind of picture to 8-bit RGB by one policy, every broken one with its reason (P21, P25)."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskedclip.data import imaging
from maskedclip.data.imaging import (
    UndecodableImage,
    decode,
    decode_mask,
    encode_jpeg,
    encode_png,
    perceptual_hash,
    read_image,
)
from maskedclip.data.pixels import stretch


def _picture(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / width, 255 * y / height
    return np.stack([red, green, (red + green) / 2], axis=2).astype(np.uint8)


def _bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB = Image.fromarray(_picture())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
    ],
)
def test_decode__lossless_formats_keep_every_pixel(kind: str, options: dict) -> None:
    assert np.array_equal(decode(_bytes(RGB, kind, **options)), _picture())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_decode__jpeg_equals_pillow(options: dict, mode: str) -> None:
    data = _bytes(RGB.convert(mode), "JPEG", **options)
    assert np.array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_decode__exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    data = _bytes(RGB, "JPEG", exif=exif, quality=95)
    assert decode(data).shape == (80, 60, 3)
    upright = np.rot90(decode(_bytes(RGB, "JPEG", quality=95)), k=-1)
    assert np.abs(decode(data).astype(int) - upright).max() <= 2
    assert not read_image(data).plain


def test_decode__grey_is_repeated() -> None:
    pixels = decode(_bytes(RGB.convert("L"), "PNG"))
    assert pixels.shape == (60, 80, 3)
    assert np.array_equal(pixels[:, :, 0], pixels[:, :, 2])


def test_decode__transparency_is_on_black() -> None:
    rgba = np.dstack([_picture(), np.full((60, 80), 255, np.uint8)])
    rgba[:30, :, 3] = 0
    pixels = decode(_bytes(Image.fromarray(rgba), "PNG"))
    assert not pixels[:30].any()
    assert np.array_equal(pixels[30:], _picture()[30:])
    palette = RGB.convert("P")
    entry = int(np.asarray(palette)[0, 0])
    shown = decode(_bytes(palette, "PNG", transparency=entry))
    assert not shown[np.asarray(palette) == entry].any()


def test_decode__palette_and_bilevel() -> None:
    palette = RGB.convert("P")
    assert np.array_equal(decode(_bytes(palette, "PNG")), np.asarray(palette.convert("RGB")))
    assert set(np.unique(decode(_bytes(RGB.convert("1"), "PNG")))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_decode__deep_grey_is_stretched(kind: str) -> None:
    ramp = (np.arange(4800).reshape(60, 80) / 4799 * 4095).astype(np.uint16)  # 12 of 16 bits used
    pixels = decode(_bytes(Image.fromarray(ramp), kind))[:, :, 0]
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert np.abs(pixels.astype(float) - ramp / 4095 * 255).max() <= 1


def test_decode__deep_colour_keeps_its_high_bytes() -> None:
    deep = _picture().astype(np.uint16) * 256 + 77
    data = _png16(deep)
    assert np.array_equal(decode(data), _picture())
    assert not read_image(data).plain


def _png16(image: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = image.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in image)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_decode__float_tiff_ignores_what_is_not_finite() -> None:
    values = np.linspace(-3, 5, 4800, dtype=np.float32).reshape(60, 80)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = decode(_bytes(Image.fromarray(values), "TIFF"))[:, :, 0]
    assert pixels[0, :3].tolist() == [0, 255, 0]
    assert pixels[-1, -1] == 255


def test_decode__first_frame_of_several() -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200)]
    data = _bytes(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert decode(data).max() == 10


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"^is empty \(0 bytes\)$"),
        (b"image,text\na.png,x\n", "^is a text file, not an image$"),
        ("Ré,é\n".encode() * 400, "^is a text file, not an image$"),
        (b"<!DOCTYPE html><html>", "^is a web page"),
        (b"%PDF-1.7 ...", "^is a PDF"),
        (b"\0" * 5000, "^is all zeros"),
        (b"\xde\xad\xbe\xef" * 100, "^is of no known image format$"),
        (b"\x1f\x8b\x08" + b"x" * 50, "^is a gzip file"),
        (_bytes(RGB, "PNG")[:40], "^is a truncated PNG$"),
        (_bytes(RGB, "JPEG")[:-200], "^is a truncated JPEG$"),
        (_bytes(RGB, "JPEG")[:-2], "^is a truncated JPEG$"),
        (_bytes(RGB, "JPEG")[:-300] + b"\0" * 300, "^is a truncated JPEG$"),
        (_bytes(RGB, "BMP")[:-2000], "^is a truncated BMP$"),
    ],
)
def test_decode__says_why_not(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        decode(data, name="x.png")


_SAMPLES = {
    "JPEG": _bytes(RGB, "JPEG"),
    "progressive": _bytes(RGB, "JPEG", progressive=True),
    "PNG": _bytes(RGB, "PNG"),
    "TIFF": _bytes(RGB, "TIFF", compression="tiff_lzw"),
    "WEBP": _bytes(RGB, "WEBP"),
    "GIF": _bytes(RGB.convert("P"), "GIF"),
}


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(_SAMPLES)), share=st.floats(0.0, 1.0, exclude_max=True))
def test_decode__a_cut_file_is_rejected_or_complete(kind: str, share: float) -> None:
    data = _SAMPLES[kind]
    try:
        pixels = decode(data[: int(len(data) * share)])
    except UndecodableImage:
        return
    assert np.array_equal(pixels, decode(data))  # only the mark of the end is missing


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(_SAMPLES)), place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_decode__damage_never_raises_anything_else(kind: str, place: int, value: int) -> None:
    data = bytearray(_SAMPLES[kind])
    data[place % len(data)] = value
    with contextlib.suppress(UndecodableImage):
        assert decode(bytes(data)).ndim == 3


def test_decode__bombs_are_rejected_before_they_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # as the 89 million of Pillow: twice it is the limit
    with pytest.raises(UndecodableImage, match="megapixels"):
        decode(_bytes(RGB, "PNG"))
    assert Image.MAX_IMAGE_PIXELS == 2000
    assert imaging.too_large().args


def test_decode__no_format_that_runs_a_program() -> None:
    with pytest.raises(UndecodableImage, match="PostScript"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def test_read_image__plain_sources() -> None:
    assert read_image(_bytes(RGB, "JPEG")).plain
    assert read_image(_bytes(RGB, "PNG")).plain
    for data in (
        _bytes(RGB.convert("L"), "JPEG"),
        _bytes(RGB.convert("CMYK"), "JPEG"),
        _bytes(RGB.convert("P"), "PNG"),
        _bytes(RGB, "PNG", transparency=(0, 0, 0)),
        _bytes(RGB, "BMP"),
        _bytes(RGB, "PNG", save_all=True, append_images=[RGB.transpose(Image.Transpose.ROTATE_180)]),
    ):
        assert not read_image(data).plain


def test_stretch__even_pictures() -> None:
    assert not stretch(np.full((4, 4), 900)).any()
    dot = np.full((100, 100), 900)
    dot[3, 3] = 1000
    assert stretch(dot)[3, 3] == 255
    with pytest.raises(UndecodableImage):
        stretch(np.full((2, 2), np.nan))


def test_decode_mask__values_are_kept() -> None:
    classes = np.arange(4800).reshape(60, 80).astype(np.uint8) % 5
    assert np.array_equal(decode_mask(_bytes(Image.fromarray(classes), "PNG")), classes)
    assert set(np.unique(decode_mask(_bytes(Image.fromarray(classes > 2), "PNG")))) == {0, 255}
    assert np.array_equal(decode_mask(_bytes(Image.fromarray(classes.astype(np.uint16)), "PNG")), classes)
    painted = np.zeros((60, 80, 3), np.uint8)
    painted[..., 0] = classes * 50
    assert np.array_equal(decode_mask(_bytes(Image.fromarray(painted), "TIFF")), classes * 50)


def test_decode_mask__colour_palettes_are_classes_and_grey_palettes_greys() -> None:
    classes = np.tile(np.arange(4, dtype=np.uint8), (4, 1))
    coloured, grey = Image.fromarray(classes).convert("P"), Image.fromarray(classes).convert("P")
    coloured.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    grey.putpalette([value for level in (0, 80, 160, 255) for value in (level,) * 3])
    assert decode_mask(_bytes(coloured, "PNG"))[0].tolist() == [0, 1, 2, 3]
    assert decode_mask(_bytes(grey, "PNG"))[0].tolist() == [0, 80, 160, 255]


def test_decode_mask__says_why_not() -> None:
    with pytest.raises(UndecodableImage, match="outside"):
        decode_mask(_bytes(Image.fromarray(np.full((4, 4), 256, np.uint16)), "PNG"))
    with pytest.raises(UndecodableImage, match="empty"):
        decode_mask(b"")
    with pytest.raises(UndecodableImage, match="text file"):
        decode_mask(b"not a mask")
    with pytest.raises(UndecodableImage, match="truncated"):
        decode_mask(_bytes(RGB, "PNG")[:-200])


def test_encode__png_is_exact_and_jpeg_near() -> None:
    assert np.array_equal(decode(encode_png(_picture())), _picture())
    assert np.abs(decode(encode_jpeg(_picture())).astype(int) - _picture()).max() <= 6
    assert Image.open(io.BytesIO(encode_jpeg(_picture()))).layer[1][1:3] == (1, 1)  # type: ignore[attr-defined]  # 4:4:4


def test_perceptual_hash__stable_under_small_changes_and_distinct_otherwise() -> None:
    rng = np.random.Generator(np.random.Philox(1))
    pictures = [rng.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(6)]
    large = [np.asarray(Image.fromarray(p).resize((256, 256), Image.Resampling.BICUBIC)) for p in pictures]
    first = [perceptual_hash(image) for image in large]
    smaller = [perceptual_hash(decode(encode_jpeg(image[::2, ::2], quality=60)) // 2) for image in large]
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in first)

    def bits(a: str, b: str) -> int:
        return (int(a, 16) ^ int(b, 16)).bit_count()

    assert all(bits(a, b) <= 6 for a, b in zip(first, smaller, strict=True))
    assert all(bits(a, b) >= 12 for i, a in enumerate(first) for b in first[:i])
