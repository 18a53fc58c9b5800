"""From an upload's bytes to the model's input: what it is, by content; how large, before it is decoded.

Headers lie: a picture of a few bytes may ask for gigabytes when it is decoded.  So the size is read first, of DICOM
files also that of the compressed frame inside, and what is above the limit is refused.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskedclip.data import imaging
from maskedclip.data.dicom import is_dicom, pydicom_module
from maskedclip.data.imaging import Transform
from maskedclip.data.pixels import UndecodableImage
from maskedclip.data.tiff import is_tiff
from maskedclip.data.transforms import resize
from maskedclip.deployment.server.errors import Refusal, too_large, unreadable
from maskedclip.models.saving import Preprocessing

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
SUFFIXES = {"DICOM": ".dcm", "JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}
_DEFLATED, _RUN_LENGTH = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
_PREVIEW = 1024
_MOST_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of itself.  kind: `JPEG`, `DICOM`, ...; width and height in px."""

    kind: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Box:
    """The part of a photograph that the model sees as a square, in px of the photograph; it may reach beyond it."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """One decoded upload.

    Attributes:
        name: as the client calls it, made harmless.
        header: kind and size.
        pixels: 8-bit RGB (H, W, 3), upright.
    """

    name: str
    header: Header
    pixels: NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px, upright."""
        return self.pixels.shape[1], self.pixels.shape[0]


def harmless_name(name: str | None) -> str:
    """A client's file name for showing: no folders, no control characters, at most 100 characters."""
    last = re.split(r"[/\\]", name or "")[-1]
    shown = "".join(letter for letter in last if letter.isprintable()).strip()
    return shown[-100:] or "photograph"


def read_header(data: bytes) -> Header:
    """What a file is and how large, without decoding its picture.

    Raises:
        Refusal: 422, it is no picture.
        UndecodableImage: as `imaging.decode`.
    """
    if not data:
        raise UndecodableImage("is empty (0 bytes)")
    if is_dicom(data):
        return _dicom_header(data)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return Header(kind=picture.format or "image", width=picture.width, height=picture.height)
    except Image.DecompressionBombError:
        raise too_large("the picture has more pixels than can be read", "pixels") from None
    except Exception:  # Pillow meets hostile bytes; `decode` says in words what the file is
        if is_tiff(data):
            return _rare_tiff_header(data)
        imaging.decode(data)
        raise UndecodableImage("is of no known image format") from None


def decode(data: bytes, name: str, *, max_pixels: int, max_inflated: int) -> Photograph:
    """Decode an upload within limits.

    Args:
        data: the whole file.
        name: as the client calls it.
        max_pixels: of the picture.
        max_inflated: bytes of a DICOM file that is compressed as a whole.

    Raises:
        Refusal: 413, too large; 422, no picture, with the reason.
    """
    try:
        check_deflated(data, max_inflated)
        header = read_header(data)
        if header.width * header.height > max_pixels:
            raise too_large(
                f"the picture has {header.width:,} x {header.height:,} pixels, more than this server takes "
                f"({max_pixels / 1e6:.3g} million)",
                "pixels",
            )
        return Photograph(name=name, header=header, pixels=imaging.decode(data))
    except UndecodableImage as error:
        raise unreadable(f"the file {error}") from None
    except Refusal:
        raise
    except MemoryError:
        raise too_large("the picture needs more memory than there is", "pixels") from None
    except Exception as error:  # no hostile file may be a fault of the server's
        raise unreadable(f"the file cannot be read as a picture ({type(error).__name__})") from None


def prepare(photograph: Photograph, preprocessing: Preprocessing) -> tuple[Tensor, Transform, list[str]]:
    """A photograph as `Model.preprocess` makes it, to the bit, uint8 (3, S, S); where that lies; what was done."""
    standard = imaging.standardise(photograph.pixels, size=preprocessing.stored_size, crop=preprocessing.crop)
    transform = standard.transform
    top, left, bottom, right = transform.box
    notes = []
    if preprocessing.crop == "fundus":
        found = standard.field.found
        notes.append("cropped to the fundus field" if found else "no fundus field was found: the whole picture is used")
    if bottom - top != right - left:
        notes.append("padded to a square with black")
    notes.append(f"resized to {preprocessing.size} x {preprocessing.size} px")
    pixels = torch.from_numpy(standard.image.copy()).permute(2, 0, 1).contiguous()
    return resize(pixels, preprocessing.size), transform, notes


def region(transform: Transform) -> Box:
    """The square that a model sees, in px of the photograph."""
    top, left, bottom, right = transform.box
    row, column, height, width = transform.placed
    across, down = (right - left) / width, (bottom - top) / height
    return Box(
        left=left - column * across, top=top - row * down, width=transform.size * across, height=transform.size * down
    )


def preview(photograph: Photograph) -> bytes:
    """The photograph for a browser: PNG, at most 1,024 px on its longer side."""
    picture = Image.fromarray(photograph.pixels)
    picture.thumbnail((_PREVIEW, _PREVIEW))
    return png(picture)


def preview_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a photograph's preview."""
    share = min(1.0, _PREVIEW / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def png(picture: Image.Image) -> bytes:
    """A picture's bytes as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def check_deflated(data: bytes, limit: int) -> None:
    """A deflated DICOM file is unpacked as a whole when it is opened: its size is counted before."""
    if _DEFLATED.encode() not in data[132:1024] or data[132:136] != b"\2\0\0\0":
        return
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    unpacker, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[start:]
    while rest and not unpacker.eof:
        try:
            size += len(unpacker.decompress(rest, 1 << 24))
        except zlib.error:
            return  # damaged: `decode` says so
        rest = unpacker.unconsumed_tail
        if size > limit:
            raise too_large("the file unpacks to more than this server takes", "bomb")


def _dicom_header(data: bytes) -> Header:
    pydicom = pydicom_module()
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        width, height = int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)
        inside = _encapsulated(dataset, width, height)
    except (UndecodableImage, Refusal):
        raise
    except Exception as error:
        raise UndecodableImage(f"is a damaged DICOM file ({type(error).__name__})") from None
    if not width or not height:
        raise UndecodableImage("is a DICOM file without a picture")
    if inside is not None and inside[0] * inside[1] > 4 * width * height:
        raise too_large("the picture inside the DICOM file is larger than the file says", "bomb")
    return Header(kind="DICOM", width=width, height=height)


def _encapsulated(dataset: Any, width: int, height: int) -> tuple[int, int] | None:
    """Width and height that the first compressed frame gives itself; None where it is not compressed, or not known."""
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None or not syntax.is_compressed or syntax == _DEFLATED or "PixelData" not in dataset:
        return None
    encaps = pydicom_module().encaps
    frames = int(dataset.get("NumberOfFrames") or 1)
    first = next(encaps.generate_frames(dataset.PixelData, number_of_frames=frames), b"")
    if syntax == _RUN_LENGTH:
        raw = width * height * int(dataset.get("SamplesPerPixel") or 1) * -(-int(dataset.BitsAllocated) // 8)
        if len(first) > 1.1 * raw + (1 << 16):
            raise too_large("the picture inside the DICOM file is larger than the file says", "bomb")
        return None
    size = _frame_size(first)
    if size is None:  # its decoder would find out only when the memory is taken
        raise UndecodableImage("is a DICOM file whose compressed picture does not tell its size")
    return size


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """Width and height in the header of a JPEG, JPEG-LS or JPEG 2000 code stream."""
    if frame[:2] != b"\xff\xd8":
        start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # a box may stand before the code stream
        return struct.unpack_from(">II", frame, start + 8) if start >= 0 and len(frame) >= start + 16 else None
    place = 2
    while place + 9 <= len(frame) and frame[place] == 0xFF:
        if frame[place + 1] == 0xFF:  # fill bytes may stand before a marker
            place += 1
            continue
        marker, length = frame[place + 1], struct.unpack_from(">H", frame, place + 2)[0]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack_from(">HH", frame, place + 5)
            return width, height
        place += 2 + length
    return None


def _rare_tiff_header(data: bytes) -> Header:
    """Of a TIFF that Pillow does not know."""
    try:
        import tifffile

        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            if int(page.samplesperpixel) > _MOST_CHANNELS:
                raise UndecodableImage(
                    f"has {page.samplesperpixel} channels: save those that are red, green and blue as a picture"
                )
            return Header(kind="TIFF", width=int(page.imagewidth), height=int(page.imagelength) * int(page.imagedepth))
    except UndecodableImage:
        raise
    except ImportError:
        raise UndecodableImage("is a TIFF of a rare kind: save it as 8-bit RGB or as PNG") from None
    except Exception:
        raise UndecodableImage("is a damaged TIFF, or of a kind that cannot be read") from None
