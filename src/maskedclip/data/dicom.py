"""DICOM to 8-bit RGB, where pydicom is installed (the extra `medical`).

- MONOCHROME1 is inverted, so that bright is always more signal; MONOCHROME2 is taken as it is.
- Grey values pass the rescale slope and intercept or the modality table, then the window asked for; else the file's VOI
  table, or its first window (linear, linear exact or sigmoid, PS3.3 C.11.2.1); without either, the 0.05 and 99.95
  percentiles become 0 and 255.  Values that the file calls padding are black and count for no percentile.
- RGB, all YBR kinds and palettes become RGB; samples above 8 bits keep their high bits.  Overlays are not drawn.
- Of several frames the first is taken, or the one asked for; where frames have windows or rescales of their own
  (enhanced CT and MR), these are used.
- JPEG, JPEG-LS and JPEG 2000 are decoded by whichever of pydicom's plugins is installed, RLE by pydicom itself.
"""

from __future__ import annotations

import importlib
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np

from maskedclip.data.pixels import (
    MAX_BYTES,
    MAX_PIXELS,
    UndecodableImage,
    Window,
    WindowFunction,
    apply_window,
    first_line,
    grey_to_rgb,
    no_such_frame,
    stretch,
    too_large,
    too_many_bytes,
)

# Real files bend the standard in many small ways; pydicom reads them and says so at length.
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")

_FIRST_ELEMENTS = tuple(  # how files without preamble begin: group 2 or 8, and an element that comes first
    struct.pack(order, group, element)
    for order in ("<HH", ">HH")
    for group, elements in ((2, (0, 1, 2)), (8, (0, 1, 5, 8, 0x12, 0x16)))
    for element in elements
)
_RUN_LENGTH = "1.2.840.10008.1.2.5"
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_OF_A_FRAME = {  # functional groups (PS3.3 C.7.6.16.2) and what they say of their frames
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}


def is_dicom(data: bytes, name: str = "") -> bool:
    """Whether bytes are DICOM: by the mark at byte 128, or, for files without preamble, by their first element."""
    if data[128:132] == b"DICM" or data[:4] in _FIRST_ELEMENTS:
        return True
    return name.lower().endswith((".dcm", ".dicom")) and data[:2] in (b"\x08\0", b"\x02\0", b"\0\x08", b"\0\x02")


def decode_dicom(data: bytes, *, frame: int | None = None, window: Window | None = None) -> np.ndarray:
    """A DICOM file's frame as 8-bit RGB, (H, W, 3).

    Args:
        data: the whole file.
        frame: from 1; the first, if not given.
        window: of grey pictures, in rescaled units; replaces the file's.

    Raises:
        UndecodableImage: there is no such frame, or none that can be read; a window is given for a picture in colour.
    """
    pydicom = pydicom_module()
    try:
        _check_deflated(data)
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        return _rendered(dataset, frame, window)
    except UndecodableImage:
        raise
    except MemoryError as error:
        raise UndecodableImage("is a DICOM file that needs more memory than there is") from error
    except Exception as error:  # as for other formats: whatever the decoder raises is the file's fault, and is told
        raise UndecodableImage(_damage(error)) from error


def pydicom_module() -> Any:
    """The optional library, with its module of pixels loaded; UndecodableImage names the extra."""
    try:
        importlib.import_module("pydicom.pixels")
        return importlib.import_module("pydicom")
    except ImportError as error:
        raise UndecodableImage("is a DICOM file: install maskedclip[medical] to read it") from error


def frame_values(dataset: Any, frame: int | None = None) -> np.ndarray:
    """A grey frame after the modality's rescale, (H, W); frames are counted from 1.

    Raises:
        UndecodableImage: there is no such frame, it is too large, or in colour.
    """
    pixels = _pixels(dataset, frame)
    if pixels.ndim != 2:
        raise UndecodableImage("is in colour, not grey")
    return np.asarray(pydicom_module().pixels.apply_modality_lut(pixels, _of_frame(dataset, frame)))


def file_window(dataset: Any, frame: int | None = None) -> tuple[Window, WindowFunction] | None:
    """The first window that a file gives for a frame; None without one that can be used."""
    described = _of_frame(dataset, frame)
    centre, width = _first(described.get("WindowCenter")), _first(described.get("WindowWidth"))
    if centre is None or width is None or not (np.isfinite([centre, width]).all() and width > 0):
        return None
    return Window(centre=centre, width=width), _function(described)


def _check_deflated(data: bytes) -> None:
    """A deflated file is unpacked by pydicom whatever its size: see first that it stays within the limit."""
    if _DEFLATED not in data[132:1024] or data[132:136] != b"\2\0\0\0":
        return
    start = 144 + struct.unpack_from("<I", data, 140)[0]  # the length of the file's own group
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    size, rest = 0, data[start:]
    while rest and not unpacker.eof:
        size += len(unpacker.decompress(rest, 1 << 24))
        rest = unpacker.unconsumed_tail
        if size > MAX_BYTES:
            raise too_many_bytes(size)


def _rendered(dataset: Any, frame: int | None, window: Window | None) -> np.ndarray:
    pixels = _pixels(dataset, frame)
    kind = dataset.get("PhotometricInterpretation") or "MONOCHROME2"
    if window is not None and (kind == "PALETTE COLOR" or pixels.ndim == 3):
        raise UndecodableImage("is in colour: leave its window_center and window_width empty")
    if kind == "PALETTE COLOR":
        coloured = pydicom_module().pixels.apply_color_lut(pixels, dataset)
        return _high_byte(coloured, 16 if coloured.dtype.itemsize == 2 else 8)
    if pixels.ndim == 3:
        return _high_byte(pixels, int(dataset.BitsStored))
    padding = _padding(pixels, dataset)
    grey = _shown(pixels, _of_frame(dataset, frame), padding, window)
    grey = 255 - grey if kind == "MONOCHROME1" else grey
    if padding is not None:
        grey[padding] = 0
    return grey_to_rgb(grey)


def _pixels(dataset: Any, frame: int | None) -> np.ndarray:
    """A frame as it is stored: greys (H, W), or colours (H, W, 3) as RGB."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UndecodableImage("is a DICOM file without a picture")
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise UndecodableImage("is a DICOM file without a picture")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is not None and not 1 <= frame <= frames:
        raise no_such_frame(frame, frames)
    if dataset.Rows * dataset.Columns > MAX_PIXELS or int(dataset.get("SamplesPerPixel") or 1) > 4:
        raise too_large()
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    plugin = "pydicom" if syntax == _RUN_LENGTH else ""  # pylibjpeg's own ends the interpreter on a damaged file
    return pydicom_module().pixels.pixel_array(dataset, index=(frame or 1) - 1, decoding_plugin=plugin)


def _of_frame(dataset: Any, frame: int | None) -> Any:
    """The file's elements, with those that its functional groups give for this frame."""
    own = {}
    for groups, place in (
        ("SharedFunctionalGroupsSequence", 0),
        ("PerFrameFunctionalGroupsSequence", (frame or 1) - 1),
    ):
        given = dataset.get(groups) or []
        for name, elements in _OF_A_FRAME.items():
            inner = given[place].get(name) if place < len(given) else None
            if inner:
                own |= {element: inner[0].get(element) for element in elements if element in inner[0]}
    if not own:
        return dataset
    described = pydicom_module().Dataset()
    for name in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"):
        value = own.get(name, dataset.get(name))
        if value is not None:
            setattr(described, name, value)
    return described


def _high_byte(pixels: np.ndarray, bits: int) -> np.ndarray:
    return np.ascontiguousarray((pixels >> max(bits - 8, 0)).astype(np.uint8))


def _padding(pixels: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Where the stored values are padding and no measurement (PS3.3 C.7.5.1.1.2), (H, W); None if nowhere or all."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    padding = (pixels >= low) & (pixels <= high)
    return padding if padding.any() and not padding.all() else None


def _shown(pixels: np.ndarray, dataset: Any, padding: np.ndarray | None, window: Window | None) -> np.ndarray:
    """Grey values through rescale and window, to 0..255, (H, W)."""
    pydicom = pydicom_module()
    values = np.asarray(pydicom.pixels.apply_modality_lut(pixels, dataset))
    if window is not None:
        return apply_window(values, window, _function(dataset))
    if dataset.get("VOILUTSequence") and np.issubdtype(values.dtype, np.integer):
        table = dataset.VOILUTSequence[0]
        return _high_byte(pydicom.pixels.apply_voi(values, dataset), int(table.LUTDescriptor[2]))
    given = file_window(dataset)
    if given is not None:
        return apply_window(values, *given)
    return stretch(values, None if padding is None else ~padding)


def _function(dataset: Any) -> WindowFunction:
    function = str(dataset.get("VOILUTFunction") or "LINEAR").lower()
    return "sigmoid" if function == "sigmoid" else "linear_exact" if function == "linear_exact" else "linear"


def _first(value: Any) -> float | None:
    """Windows may be given several times; the first is the one a viewer shows."""
    if value is None or value == "":
        return None
    if hasattr(value, "__len__") and not isinstance(value, str):
        return float(value[0]) if len(value) else None
    return float(value)


def _damage(error: Exception) -> str:
    told = str(error).lower()
    if "missing dependencies" in told or "missing required dependencies" in told:
        return "is a DICOM file whose compression needs a decoder: install maskedclip[medical]"
    if "less than expected" in told or "unexpected end" in told:
        return "is a truncated DICOM file"
    if "raised by all available plugins" in told:  # each has a line of its own
        said = str(error).splitlines()[1:]
        return f"is a DICOM file whose picture cannot be decoded ({said[0].strip()[:100] if said else 'no plugin can'})"
    return f"is a damaged DICOM file ({first_line(error)})"
