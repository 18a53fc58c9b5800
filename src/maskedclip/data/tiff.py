"""TIFFs that Pillow does not know, by tifffile (the extra `medical`): half and double floats, signed or 32-bit colour,
JPEG 2000 and other packings.

Greys are stretched or windowed as everywhere.  Colours of up to 16 bits without sign keep their high byte; others share
one stretch over all channels.  A fourth channel is alpha, and black where it is 0.  Other numbers of channels are
refused: which of them are red, green and blue is for the user to say.
"""

from __future__ import annotations

import importlib
import io
import logging
from typing import Any

import numpy as np

from maskedclip.data.pixels import (
    MAX_PIXELS,
    UndecodableImage,
    Window,
    apply_window,
    first_line,
    grey_to_rgb,
    no_such_frame,
    stretch,
    too_large,
)

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it tells of every tag it doubts


def is_tiff(data: bytes) -> bool:
    """Whether bytes begin as a TIFF or BigTIFF does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def decode_tiff(data: bytes, *, frame: int | None = None, window: Window | None = None) -> np.ndarray:
    """A page as 8-bit RGB, (H, W, 3); arguments and errors as of `imaging.decode`."""
    try:
        tifffile: Any = importlib.import_module("tifffile")
    except ImportError as error:
        raise UndecodableImage(
            "is a TIFF of a rare kind: install maskedclip[medical] to read it, or save it as 8-bit RGB or as PNG"
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = _page(file, frame)
            samples = int(page.samplesperpixel)
            if int(page.imagewidth) * int(page.imagelength) * int(page.imagedepth) > MAX_PIXELS or samples > 64:
                raise too_large()
            pixels = np.asarray(page.asarray(maxworkers=1))
            channels_first = int(page.planarconfig) == 2 and samples > 1
    except UndecodableImage:
        raise
    except MemoryError as error:
        raise UndecodableImage("is a TIFF that needs more memory than there is") from error
    except Exception as error:  # as for other formats: whatever the decoder raises is the file's fault, and is told
        raise UndecodableImage(f"is a damaged TIFF, or of a kind that cannot be read ({first_line(error)})") from error
    return _to_rgb(np.moveaxis(pixels, 0, -1) if channels_first and pixels.ndim == 3 else pixels, window)


def _page(file: Any, frame: int | None) -> Any:
    try:
        if frame is not None and frame < 1:
            raise IndexError
        return file.pages[(frame or 1) - 1]
    except IndexError:
        raise no_such_frame(frame or 1, len(file.pages)) from None


def _to_rgb(pixels: np.ndarray, window: Window | None) -> np.ndarray:
    if pixels.dtype.kind not in "iuf" or pixels.ndim not in (2, 3) or not pixels.size:
        raise UndecodableImage("is a TIFF of a kind that cannot be read: save it as 8-bit RGB or as PNG")
    if pixels.ndim == 2:
        grey = stretch(pixels) if window is None else apply_window(pixels, window)
        return grey_to_rgb(grey)
    if pixels.shape[2] not in (3, 4):
        raise UndecodableImage(f"has {pixels.shape[2]} channels: save those that are red, green and blue")
    if window is not None:
        raise UndecodableImage("is in colour: leave its window_center and window_width empty")
    colour = pixels[:, :, :3]
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        colour = (colour >> 8 * (pixels.dtype.itemsize - 1)).astype(np.uint8)
    else:
        colour = stretch(colour)
    if pixels.shape[2] == 4:
        colour = np.where(pixels[:, :, 3:] > 0, colour, 0)
    return np.ascontiguousarray(colour.astype(np.uint8))
