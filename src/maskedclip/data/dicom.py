"""DICOM to 8-bit RGB, where pydicom is installed (the extra `medical`).

- MONOCHROME1 is inverted, so that bright is always more signal; MONOCHROME2 is taken as it is.
- Grey values pass the rescale slope and intercept, then the file's first window (linear, linear exact or sigmoid, PS3.3
  C.11.2.1) or its VOI table; without either, the 0.05 and 99.95 percentiles become 0 and 255.
- RGB, all YBR kinds and palettes become RGB; samples above 8 bits keep their high bits.
- Of several frames the middle one is taken: in a volume the first and last often show nothing.
"""

from __future__ import annotations

import importlib
import io
import warnings
from typing import Any

import numpy as np

from maskedclip.data.pixels import MAX_PIXELS, UndecodableImage, first_line, stretch, too_large

# Real files bend the standard in many small ways; pydicom reads them and says so at length.
warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")


def is_dicom(data: bytes, name: str = "") -> bool:
    """Whether bytes are DICOM: by the mark at byte 128, or, for files without preamble, by the name."""
    return data[128:132] == b"DICM" or (
        name.lower().endswith((".dcm", ".dicom")) and data[:2] in (b"\x08\0", b"\x02\0", b"\0\x08", b"\0\x02")
    )


def decode_dicom(data: bytes) -> np.ndarray:
    """A DICOM file's (middle) frame as 8-bit RGB, (H, W, 3); UndecodableImage where there is none."""
    pydicom = _pydicom()
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        return _rendered(dataset)
    except UndecodableImage:
        raise
    except Exception as error:  # as for other formats: whatever the decoder raises is the file's fault, and is told
        raise UndecodableImage(_damage(error)) from error


def _pydicom() -> Any:
    """The optional library, with its module of pixels loaded."""
    try:
        importlib.import_module("pydicom.pixels")
        return importlib.import_module("pydicom")
    except ImportError as error:
        raise UndecodableImage("is a DICOM file: install maskedclip[medical] to read it") from error


def _rendered(dataset: Any) -> np.ndarray:
    pydicom = _pydicom()
    if "PixelData" not in dataset:
        raise UndecodableImage("is a DICOM file without a picture")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if dataset.Rows * dataset.Columns * dataset.get("SamplesPerPixel", 1) > 3 * MAX_PIXELS:
        raise too_large()
    kind = dataset.PhotometricInterpretation
    pixels = pydicom.pixels.pixel_array(dataset, index=frames // 2 if frames > 1 else 0)
    if kind == "PALETTE COLOR":
        coloured = pydicom.pixels.apply_color_lut(pixels, dataset)
        return _high_byte(coloured, 16 if coloured.dtype.itemsize == 2 else 8)
    if pixels.ndim == 3:
        return _high_byte(pixels, int(dataset.BitsStored))
    grey = _windowed(pixels, dataset)
    return np.repeat((255 - grey if kind == "MONOCHROME1" else grey)[:, :, None], 3, axis=2)


def _high_byte(pixels: np.ndarray, bits: int) -> np.ndarray:
    return np.ascontiguousarray((pixels >> max(bits - 8, 0)).astype(np.uint8))


def _windowed(pixels: np.ndarray, dataset: Any) -> np.ndarray:
    """Grey values through rescale and window, to 0..255, (H, W)."""
    pydicom = _pydicom()
    values = np.asarray(pydicom.pixels.apply_modality_lut(pixels, dataset))
    if "VOILUTSequence" in dataset and np.issubdtype(values.dtype, np.integer):
        table = dataset.VOILUTSequence[0]
        return _high_byte(pydicom.pixels.apply_voi(values, dataset), int(table.LUTDescriptor[2]))
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is None or width is None or width <= 0:
        return stretch(values)
    values = values.astype(np.float32)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        shown = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT" or width <= 1:
        shown = (values - centre) / width + 0.5
    else:
        shown = (values - (centre - 0.5)) / (width - 1) + 0.5
    return (shown.clip(0, 1) * 255).round().astype(np.uint8)


def _first(value: Any) -> float | None:
    """Windows may be given several times; the first is the one a viewer shows."""
    if value is None or value == "":
        return None
    return float(value[0]) if hasattr(value, "__len__") and not isinstance(value, str) else float(value)


def _damage(error: Exception) -> str:
    told = str(error).lower()
    if "missing dependencies" in told or "missing required dependencies" in told:
        return "is a DICOM file whose compression needs a decoder: install maskedclip[medical]"
    if "less than expected" in told or "unexpected end" in told:
        return "is a truncated DICOM file"
    return f"is a damaged DICOM file ({first_line(error)})"
