"""Each kind of picture with pixels that are known: what is written down in `imaging` is what comes out (P21)."""

import io
import struct
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskedclip.data.curate_row import RowSettings, Source, curate_row
from maskedclip.data.imaging import UndecodableImage, Window, decode, decode_mask, read_image
from maskedclip.data.pixels import apply_window, stretch


def _picture(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 5 * y, 255 - 2 * x - 2 * y], axis=2).clip(0, 255).astype(np.uint8)


RGB = Image.fromarray(_picture())


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _plain_tiff(samples: np.ndarray, **more: int) -> bytes:
    """An uncompressed TIFF of one strip, little endian, (H, W) or (H, W, C)."""
    height, width, channels = (*samples.shape, 1)[:3]
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    values = {256: width, 257: height, 258: 8 * samples.itemsize, 259: 1, 262: 2 if channels >= 3 else 1, 273: 0}
    values |= {277: channels, 278: height, 279: samples.nbytes, 284: 1, 339: kind}
    values |= {int(tag.removeprefix("tag")): value for tag, value in more.items()}
    arrays = {tag: [values[tag]] * channels for tag in (258, 339)} if channels > 1 else {}
    start = 8 + 2 + 12 * len(values) + 4
    extra, entries = b"", b""
    for tag in sorted(values):
        if tag in arrays:
            entries += struct.pack("<HHII", tag, 3, channels, start + len(extra))
            extra += struct.pack(f"<{channels}H", *arrays[tag])
        else:
            entries += struct.pack("<HHII", tag, 4, 1, values[tag])
    place = entries.index(struct.pack("<HHI", 273, 4, 1)) + 8
    entries = entries[:place] + struct.pack("<I", start + len(extra)) + entries[place + 4 :]
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + extra + samples.tobytes()


# --- JPEG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_decode__jpeg_is_near_its_source(options: dict[str, Any]) -> None:
    pixels = decode(_bytes(RGB, "JPEG", quality=98, subsampling=0, **options))
    assert np.abs(pixels.astype(int) - _picture()).mean() < 1.5


def _without_adobe(data: bytes) -> bytes:
    place = data.index(b"\xff\xee")
    length = struct.unpack_from(">H", data, place + 2)[0]
    return data[:place] + data[place + 2 + length :]


def test_decode__cmyk_of_adobe_and_of_others_are_both_right() -> None:
    colour = np.zeros((32, 32, 4), np.uint8)
    colour[:16], colour[16:] = (0, 255, 255, 0), (255, 0, 0, 0)  # inks of red, and of cyan
    inverted = _bytes(Image.fromarray(colour, "CMYK"), "JPEG", quality=100)  # Pillow writes as Adobe does
    pixels = decode(inverted)
    assert np.abs(pixels[4, 4].astype(int) - (255, 0, 0)).max() < 6
    assert np.abs(pixels[28, 4].astype(int) - (0, 255, 255)).max() < 6
    plain = decode(_without_adobe(_bytes(Image.fromarray(255 - colour, "CMYK"), "JPEG", quality=100)))
    assert np.abs(plain.astype(int) - pixels).max() < 6


# --- EXIF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("tag", "turned"), [(3, 2), (6, 3), (8, 1)])
def test_decode__orientation_of_every_kind(kind: str, tag: int, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    options: dict[str, Any] = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = _bytes(RGB, kind, exif=exif, **options)
    expected = np.rot90(_picture(), turned)
    assert decode(data).shape == expected.shape
    assert np.abs(decode(data).astype(int) - expected).mean() < 1.5
    assert not read_image(data).plain


# --- TIFF, BMP, WebP, GIF ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("tiled", [False, True])
def test_decode__tiff_packings_keep_every_pixel(compression: str, tiled: bool) -> None:
    assert np.array_equal(decode(_tiff(_picture(), compression, tiled=tiled)), _picture())


def test_decode__tiff_with_jpeg_inside() -> None:
    assert np.abs(decode(_tiff(_picture(), "jpeg", quality=98)).astype(int) - _picture()).mean() < 3


def _tiff(samples: np.ndarray, compression: str, *, tiled: bool = False, **options: Any) -> bytes:
    if not tiled:
        return _bytes(Image.fromarray(samples), "TIFF", compression=compression, **options)
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    buffer = io.BytesIO()
    packing = {"tiff_lzw": "lzw", "tiff_adobe_deflate": "zlib", "packbits": "packbits"}[compression]
    tifffile.imwrite(buffer, samples, tile=(16, 32), compression=packing, photometric="rgb")
    return buffer.getvalue()


def test_decode__tiff_pages() -> None:
    pages = [Image.fromarray(np.full((9, 8 + page, 3), 40 * page, np.uint8)) for page in range(4)]
    data = _bytes(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode(data).max() == 0
    assert decode(data, frame=3).shape == (9, 10, 3)
    assert np.unique(decode(data, frame=3)).tolist() == [80]
    with pytest.raises(UndecodableImage, match=r"^has no frame 5, only 4$"):
        decode(data, frame=5)
    with pytest.raises(UndecodableImage, match=r"^has no frame 0: the first is 1$"):
        decode(data, frame=0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_decode__animations_give_the_first_frame_or_the_one_asked_for(kind: str) -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 255, 102)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _bytes(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert [int(decode(data, frame=frame).max()) for frame in (None, 1, 2, 3)] == [0, 0, 255, 102]
    assert not read_image(data).plain
    with pytest.raises(UndecodableImage, match="has no frame 4, only 3"):
        decode(data, frame=4)


def test_decode__a_frame_of_a_plain_picture() -> None:
    data = _bytes(RGB, "PNG")
    assert read_image(data, frame=1).plain
    with pytest.raises(UndecodableImage, match="has no frame 2, only 1"):
        decode(data, frame=2)


def test_decode__stereo_jpeg_gives_either_eye() -> None:
    data = _bytes(RGB, "MPO", save_all=True, append_images=[Image.fromarray(255 - _picture())], quality=98)
    assert np.abs(decode(data).astype(int) - _picture()).mean() < 4
    assert np.abs(decode(data, frame=2).astype(int) - (255 - _picture())).mean() < 4


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1"])
def test_decode__bmp_of_every_depth(mode: str) -> None:
    picture = RGB.convert(mode)
    assert np.array_equal(decode(_bytes(picture, "BMP")), np.asarray(picture.convert("RGB")))


def test_decode__webp_and_gif() -> None:
    assert np.array_equal(decode(_bytes(RGB, "WEBP", lossless=True)), _picture())
    palette = RGB.quantize(64)
    assert np.array_equal(decode(_bytes(palette, "GIF")), np.asarray(palette.convert("RGB")))


# --- grey, alpha, depth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "LA"), ("PNG", "RGBA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")])
def test_decode__alpha_is_composited_on_black(kind: str, mode: str) -> None:
    picture = RGB.convert(mode)
    alpha = np.tile(np.array([0, 128, 255, 255], np.uint8), (48, 16))
    picture.putalpha(Image.fromarray(alpha))
    pixels = decode(_bytes(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    expected = np.asarray(RGB.convert("L").convert("RGB") if mode == "LA" else RGB) * (alpha[:, :, None] / 255)
    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_decode__deep_grey_tiff_is_stretched(dtype: str) -> None:
    if dtype in ("f2", "f8"):
        pytest.importorskip("tifffile")
    ramp = np.linspace(100, 4000, 3072).reshape(48, 64).astype(dtype)
    pixels = decode(_plain_tiff(ramp))
    assert np.array_equal(pixels, np.repeat(stretch(ramp.astype(np.float64))[:, :, None], 3, axis=2))
    assert np.abs(pixels[:, :, 0] - (ramp.astype(float) - 100) / 3900 * 255).max() <= 2


@pytest.mark.parametrize("dtype", ["u2", "i2", "f4", "f8"])
def test_decode__deep_colour_tiff(dtype: str) -> None:
    if dtype != "u2":
        pytest.importorskip("tifffile")
    colour = (_picture().astype(np.float64) * (256 if dtype == "u2" else 100)).astype(dtype)
    pixels = decode(_plain_tiff(colour))
    assert np.abs(pixels.astype(int) - _picture()).max() <= (0 if dtype == "u2" else 3)  # the stretch's percentiles


def test_decode__tiff_of_other_channels_is_refused() -> None:
    pytest.importorskip("tifffile")
    with pytest.raises(UndecodableImage, match=r"^has 5 channels: save those that are red, green and blue$"):
        decode(_plain_tiff(np.zeros((9, 9, 5), np.float32)))


def test_decode__rare_tiff_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UndecodableImage, match=r"install maskedclip\[medical\] to read it, or save it as"):
        decode(_plain_tiff(np.zeros((9, 9), np.float64)))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "f4"])
def test_stretch__is_linear_between_its_percentiles(dtype: str) -> None:
    rng = np.random.Generator(np.random.Philox(1))
    values = rng.normal(20, 30, (200, 300)).clip(-100, 120)
    values = (values if dtype[0] != "u" else np.abs(values)).astype(dtype)
    low, high = np.percentile(values.astype(np.float64), (0.05, 99.95))
    expected = ((values.astype(np.float64) - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(stretch(values) - expected).max() <= 0.51
    valid = values > 0
    low, high = np.percentile(values[valid].astype(np.float64), (0.05, 99.95))
    expected = ((values.astype(np.float64) - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(stretch(values, valid) - expected).max() <= 0.51


def test_stretch__a_large_picture_is_judged_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 1, 600 * 500).reshape(600, 500)
    whole = stretch(values)
    monkeypatch.setattr("maskedclip.data.pixels._SAMPLE", 3000)
    assert np.abs(stretch(values).astype(int) - whole).max() <= 1
    values[:] = np.nan
    values[300, 251] = 7  # the sample misses it
    assert stretch(values).max() == 0
    values[300, 252] = 9
    assert stretch(values)[300, 251:253].tolist() == [0, 255]


# --- windows ---------------------------------------------------------------------------------------------------------


def test_decode__a_window_replaces_the_stretch() -> None:
    ramp = np.arange(0, 3072, dtype=np.uint16).reshape(48, 64)
    expected = ((ramp.astype(float) - 1000) / 500 + 0.5).clip(0, 1) * 255
    for data in (_plain_tiff(ramp), _plain_tiff(ramp.astype(np.float32)), _bytes(Image.fromarray(ramp), "PNG")):
        pixels = decode(data, window=Window(centre=1000, width=500))
        assert np.abs(pixels[:, :, 1] - expected).max() <= 0.5
    grey = _bytes(RGB.convert("L"), "PNG")
    pixels = decode(grey, window=Window(centre=100, width=50))[:, :, 0]
    expected = ((np.asarray(RGB.convert("L")).astype(float) - 100) / 50 + 0.5).clip(0, 1) * 255
    assert np.abs(pixels - expected).max() <= 0.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decode__a_window_on_colour_is_refused(kind: str) -> None:
    with pytest.raises(UndecodableImage, match="leave its window_center and window_width empty"):
        decode(_bytes(RGB, kind), window=Window(centre=1, width=2))


def test_apply_window__nan_is_black_and_infinity_is_not() -> None:
    values = np.array([[np.nan, -np.inf, np.inf, 5.0]], np.float32)
    for function in ("linear", "linear_exact", "sigmoid"):
        shown = apply_window(values, Window(centre=5, width=4), function)
        assert shown[0, :3].tolist() == [0, 0, 255]
        assert 100 < shown[0, 3] < 175


@pytest.mark.parametrize(("centre", "width"), [(0, 0), (0, -1), (float("nan"), 1), (0, float("inf"))])
def test_window__must_be_one(centre: float, width: float) -> None:
    with pytest.raises(ValueError, match="a window's"):
        Window(centre=centre, width=width)


# --- frames in a row of a manifest -----------------------------------------------------------------------------------


def test_curate_row__frames_of_one_file_are_different_pictures(tmp_path) -> None:
    pages = [Image.fromarray(np.full((32, 32, 3), 60 * page, np.uint8)) for page in range(3)]
    (tmp_path / "a.tif").write_bytes(_bytes(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    settings = RowSettings(size=32, crop="none", encoding="png")
    rows = []
    for name in ("a.tif", "a.tif#page=2", "a.tif#page=3", "a.tif#page=4"):
        rows.append(curate_row(Source(name=name, path=str(tmp_path / name), fetched=None), {}, settings))
    assert [row["reason"] for row in rows] == [None, None, None, "has no frame 4, only 3"]
    assert [int(decode(row["image"]).max()) for row in rows[:3]] == [0, 60, 120]
    assert len({row["sha256"] for row in rows[:3]}) == 3


def test_curate_row__a_window_decides_what_is_stored(tmp_path) -> None:
    ramp = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    (tmp_path / "a.png").write_bytes(_bytes(Image.fromarray(ramp), "PNG"))
    source = Source(name="a.png", path=str(tmp_path / "a.png"), fetched=None)
    settings = RowSettings(size=32, crop="none", encoding="png")
    row = curate_row(source, {}, settings, Window(centre=100, width=100))
    expected = apply_window(ramp, Window(centre=100, width=100))
    assert np.array_equal(decode(row["image"])[:, :, 0], expected)


def test_curate_row__a_page_of_a_mask(tmp_path) -> None:
    masks = [Image.fromarray(np.full((32, 32), value, np.uint8)) for value in (0, 7)]
    (tmp_path / "m.tif").write_bytes(_bytes(masks[0], "TIFF", save_all=True, append_images=masks[1:]))
    (tmp_path / "a.png").write_bytes(_bytes(Image.fromarray(np.full((32, 32, 3), 9, np.uint8)), "PNG"))
    image, mask = (Source(name=n, path=str(tmp_path / n), fetched=None) for n in ("a.png", "m.tif#page=2"))
    row = curate_row(image, {"mask.disc": mask}, RowSettings(size=32, crop="none", encoding="png"))
    assert np.unique(decode_mask(row["mask.disc"])).tolist() == [7]
