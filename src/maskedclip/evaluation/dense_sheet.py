"""Maps of the dense probe as one picture: photograph, truth, probability, and what was found, missed and invented."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_CELL, _GAP, _HEAD = 224, 6, 16
_FOUND, _MISSED, _INVENTED = (255, 255, 255), (68, 140, 255), (255, 120, 40)  # told apart without red and green
COLUMNS = ("photograph", "mask", "probability", "found white, missed blue, invented orange")


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """One test image.

    image: uint8 (S, S, 3).  truth, field: bool (S, S).  probability: (S, S).  threshold: above it, a pixel is found.
    """

    label: str
    feature: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    probability: NDArray[np.float32]
    field: NDArray[np.bool_]
    threshold: float


def dense_sheet(shown: Sequence[Shown]) -> bytes:
    """A row for each image, as PNG."""
    rows = [(entry, _cells(entry)) for entry in shown]
    width = len(COLUMNS) * (_CELL + _GAP) - _GAP
    sheet = Image.new("RGB", (width, len(rows) * (_CELL + _HEAD + _GAP)), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for number, (entry, cells) in enumerate(rows):
        top = number * (_CELL + _HEAD + _GAP)
        heads = (f"{entry.label}, {entry.feature}", *COLUMNS[1:])
        for place, (head, cell) in enumerate(zip(heads, cells, strict=True)):
            left = place * (_CELL + _GAP)
            draw.text((left + 2, top + 2), head, fill=(220, 220, 220))
            sheet.paste(Image.fromarray(cell).resize((_CELL, _CELL), Image.Resampling.BILINEAR), (left, top + _HEAD))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def _cells(entry: Shown) -> tuple[NDArray[np.uint8], ...]:
    """Four pictures uint8 (S, S, 3)."""
    grey = np.where(entry.field, np.clip(entry.probability, 0, 1) * 255, 0).astype(np.uint8)
    found = (entry.probability > entry.threshold) & entry.field
    truth = entry.truth & entry.field
    errors = np.zeros_like(entry.image)
    for which, colour in ((found & truth, _FOUND), (truth & ~found, _MISSED), (found & ~truth, _INVENTED)):
        errors[which] = colour
    return entry.image, _three(truth.astype(np.uint8) * 255), _three(grey), errors


def _three(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[:, :, None], 3, axis=2)
