"""Any picture a clinic has, to 8-bit RGB; and back to bytes.

What becomes of each kind (one policy, for curation and for inference on raw files alike):

- JPEG (baseline, progressive, grey, CMYK): decoded as it is; the EXIF orientation is applied, colour profiles are not.
  CMYK of Adobe's programs is stored inverted and says so by a mark; without the mark it is taken as it is.
- Grey: the channel is repeated three times.
- 16-bit grey (PNG, TIFF), 32-bit integer and floating-point TIFF: the 0.05 and 99.95 percentiles become 0 and 255.
  Such files hold 10 to 14 used bits, or physical units: taking the high byte would leave most of them black.  A window
  that is asked for is used instead, and on 8-bit greys too.
- 16-bit colour, and 16-bit grey with alpha: the high byte of each sample.
- Alpha, or a transparent palette entry: composited on black.
- Palettes and bilevel pictures: their colours.
- Several pictures in a file (animations, pages of a TIFF, the second view of a stereo camera's JPEG): the first, or the
  one asked for.
- TIFFs that Pillow cannot read: see `maskedclip.data.tiff`.  DICOM: see `maskedclip.data.dicom`.

Whatever is not complete is rejected with a reason, never returned half grey.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

from maskedclip.data.dicom import decode_dicom, is_dicom
from maskedclip.data.field import Field, Standardised, Transform, find_field, standardise
from maskedclip.data.pixels import (
    UndecodableImage,
    Window,
    apply_window,
    first_line,
    grey_to_rgb,
    no_such_frame,
    stretch,
    too_large,
)
from maskedclip.data.tiff import decode_tiff, is_tiff

__all__ = [
    "DecodedImage",
    "Field",
    "Standardised",
    "Transform",
    "UndecodableImage",
    "Window",
    "decode",
    "decode_mask",
    "encode_jpeg",
    "encode_png",
    "find_field",
    "perceptual_hash",
    "read_image",
    "standardise",
]

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")  # none of them runs a program
_ORIENTATION = 0x0112
_JPEG_END, _JPEG_SCAN = b"\xff\xd9", b"\xff\xda"

Image.init()  # all formats' readers now: Pillow loads them by and by, which is not safe where threads read at once
# torchvision means to hand its decoders to TorchCodec; until then they are there, and Pillow gives the same pixels.
warnings.filterwarnings("ignore", category=DeprecationWarning, message="The image decoding and encoding capabilities")
# Pillow warns of pictures between half the limit and the limit, and of odd EXIF data; both are read.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A picture, and whether its bytes could be stored as they are.

    Attributes:
        pixels: 8-bit RGB, (H, W, 3).
        plain: the source is a JPEG or PNG of 8-bit RGB, upright, without transparency or further frames.
    """

    pixels: np.ndarray
    plain: bool


def decode(data: bytes, *, name: str = "", frame: int | None = None, window: Window | None = None) -> np.ndarray:
    """A file's bytes to 8-bit RGB, (H, W, 3); see the module for what becomes of each kind of picture.

    Args:
        data: the whole file.
        name: its name, a hint where the content alone does not tell (DICOM without preamble).
        frame: the frame or page of a file that has several, from 1; the first, if not given.
        window: the range of greys that is shown, of a grey picture.

    Raises:
        UndecodableImage: with a reason that follows the file's name in a sentence, such as "is a truncated JPEG".
    """
    return read_image(data, name=name, frame=frame, window=window).pixels


def read_image(data: bytes, *, name: str = "", frame: int | None = None, window: Window | None = None) -> DecodedImage:
    """As `decode`, telling too whether the bytes are plain (see `DecodedImage`)."""
    if not data:
        raise UndecodableImage("is empty (0 bytes)")
    if is_dicom(data, name):
        return DecodedImage(pixels=decode_dicom(data, frame=frame, window=window), plain=False)
    picture = _open(data)
    if picture is None:
        return DecodedImage(pixels=decode_tiff(data, frame=frame, window=window), plain=False)
    kind = picture.format or "image"
    if kind in ("JPEG", "MPO") and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN):
        raise UndecodableImage("is a truncated JPEG")
    try:
        if frame not in (None, 1):
            _turn_to(picture, frame)
        return _decoded(picture, data, window, first=frame in (None, 1))
    except UndecodableImage:
        raise
    except MemoryError as error:
        raise UndecodableImage(f"is a {kind} that needs more memory than there is") from error
    except Exception as error:  # decoders meet hostile bytes: whatever they raise is the file's fault, and is told
        raise UndecodableImage(_damage(kind, error)) from error


def decode_mask(data: bytes, *, frame: int | None = None) -> np.ndarray:
    """A mask's bytes to one 8-bit channel, (H, W), values kept.

    Colour palettes are class indices (as in VOC-style masks), grey palettes are greys; of colour pictures the largest
    channel is taken (a lesion painted in red); bilevel is 0 and 255.

    Raises:
        UndecodableImage: as `decode`, and for values above 255.
    """
    if not data:
        raise UndecodableImage("is empty (0 bytes)")
    picture = _open(data)
    if picture is None:
        raise UndecodableImage("is a TIFF of a kind that cannot be a mask: save it as 8-bit PNG")
    try:
        if frame not in (None, 1):
            _turn_to(picture, frame)
        if picture.mode == "P":
            palette = np.array(picture.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
            coloured = bool((palette != palette[:, :1]).any())
            return np.array(picture if coloured else picture.convert("L"))
        if picture.mode in ("L", "1"):
            return np.array(picture.convert("L"))
        values = np.array(picture.convert("RGB") if picture.mode not in ("I;16", "I;16B", "I", "F") else picture)
    except UndecodableImage:
        raise
    except Exception as error:
        raise UndecodableImage(_damage(picture.format or "image", error)) from error
    if values.ndim == 3:
        return values.max(axis=2)
    if values.min() < 0 or values.max() > 255:
        raise UndecodableImage("has values outside 0..255")
    return values.astype(np.uint8)


def encode_jpeg(image: np.ndarray, *, quality: int = 95) -> bytes:
    """8-bit RGB (H, W, 3) or grey (H, W) as JPEG, 4:4:4, so that small vessels keep their colour."""
    return _encoded(image, "JPEG", quality=quality, subsampling=0)


def encode_png(image: np.ndarray) -> bytes:
    """8-bit RGB (H, W, 3) or one channel (H, W) as PNG."""
    return _encoded(image, "PNG", compress_level=6)


def perceptual_hash(image: np.ndarray) -> str:
    """A 64-bit hash that small changes of size, light or compression barely change, as 16 hex digits.

    The signs, against their median, of the 8 x 8 lowest frequencies of the cosine transform of the picture's grey at
    32 x 32; compare two by the number of bits that differ.  image: 8-bit RGB, (H, W, 3).
    """
    grey = np.asarray(Image.fromarray(image).convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    bits = low > np.median(low[1:])  # the first is the mean light, far from all others
    return f"{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}"


_COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None, :] + 1) / 64)  # DCT-II, 8 lowest of 32


def _open(data: bytes) -> Image.Image | None:
    """The picture with its header read; None for a TIFF that Pillow does not know."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise too_large() from error
    except Exception as error:  # Pillow's UnidentifiedImageError, and what damaged headers make it stumble on
        if is_tiff(data) and not isinstance(error, MemoryError):
            return None
        raise UndecodableImage(_why_unknown(data, error)) from error


def _turn_to(picture: Image.Image, frame: int) -> None:
    frames = getattr(picture, "n_frames", 1)
    if not 1 <= frame <= frames:
        raise no_such_frame(frame, frames)
    picture.seek(frame - 1)


def _decoded(picture: Image.Image, data: bytes, window: Window | None, *, first: bool) -> DecodedImage:
    mode = picture.mode
    upright = picture.getexif().get(_ORIENTATION, 1) in (0, 1)
    if picture.format in ("JPEG", "MPO") and mode in ("RGB", "L") and upright and first and window is None:
        # libjpeg-turbo as in Pillow, the same pixels, 1.3 to 4 times faster
        coded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        tensor = cast(torch.Tensor, decode_jpeg(coded, mode=ImageReadMode.RGB))
        pixels = np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())
        return DecodedImage(pixels=pixels, plain=mode == "RGB" and picture.format == "JPEG")
    picture.load()
    plain = picture.format == "PNG" and mode == "RGB" and upright and first and _is_plain_png(picture, data)
    if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
        picture = ImageChops.invert(picture)  # Pillow inverts them all, as if all were Adobe's
    if not upright:
        picture = ImageOps.exif_transpose(picture)
    return DecodedImage(pixels=_to_rgb(picture, window), plain=plain and window is None)


def _is_plain_png(picture: Image.Image, data: bytes) -> bool:
    eight_bit_rgb = data[24:26] == b"\x08\x02"  # bit depth and colour type of the IHDR chunk
    return eight_bit_rgb and "transparency" not in picture.info and getattr(picture, "n_frames", 1) == 1


def _to_rgb(picture: Image.Image, window: Window | None) -> np.ndarray:
    """A loaded picture of any mode to 8-bit RGB, (H, W, 3)."""
    deep = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    if window is not None:
        if not deep and picture.mode != "L":
            raise UndecodableImage("is not plain grey: leave its window_center and window_width empty")
        return grey_to_rgb(apply_window(np.asarray(picture), window))
    if deep:
        return grey_to_rgb(stretch(np.asarray(picture)))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        picture = Image.alpha_composite(black, picture)
    return np.array(picture.convert("RGB"))


def _encoded(image: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def _damage(kind: str, error: Exception) -> str:
    told = str(error).lower()
    if any(word in told for word in ("truncated", "premature", "unexpected end", "incomplete")):
        return f"is a truncated {kind}"
    return f"is a damaged {kind}" if isinstance(error, RuntimeError) else f"is a damaged {kind} ({first_line(error)})"


def _why_unknown(data: bytes, error: Exception) -> str:
    """What a file is instead of an image, in a clause."""
    head = data[:512]
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return what
    if head.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image"
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "is a NIfTI volume, not an image: make pictures of it with maskedclip slices"
    if not any(data):
        return "is all zeros, not an image"
    if _is_text(head):
        return "is a text file, not an image"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is of no known image format"
    return f"cannot be opened as an image ({first_line(error)})"


_MAGIC = {  # known only by their start: the rest is missing, broken or of an unknown kind
    b"\xff\xd8": "is a truncated JPEG",
    b"\x89PNG": "is a truncated PNG",
    b"GIF8": "is a truncated GIF",
    b"BM": "is a truncated BMP",
    b"RIFF": "is a truncated WEBP",
    b"\0\0\0\x0cjP": "is a truncated JPEG2000",
    b"%PDF": "is a PDF, not an image",
    b"%!PS": "is a PostScript file, not an image",
    b"PK\x03\x04": "is a ZIP archive, not an image: name its members, as in scans.zip!a.png",
    b"\x1f\x8b": "is a gzip file, not an image (of a compressed volume, maskedclip slices makes pictures)",
    b"PAR1": "is a Parquet file, not an image",
}


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a letter was cut by the end of the sample
            return False
        text = head[: error.start].decode("utf-8")
    return text != "" and all(letter.isprintable() or letter in "\r\n\t\ufeff" for letter in text)
