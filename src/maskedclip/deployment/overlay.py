"""Maps on photographs: back into the photograph's own pixels, coloured, with a colour bar, outlines and words.

H x W pixels of a photograph, S on a side of the square that the model sees, h x w cells of a map over that square.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from maskedclip.data.imaging import Transform

# Dark blue to white over cyan.  Red and orange photographs have no such colours, and blue beside orange is told apart
# with every kind of colour blindness; lightness rises evenly, so that order is seen without colour.
_ANCHORS = np.array(
    [[8, 29, 88], [18, 70, 148], [16, 116, 190], [22, 162, 210], [92, 205, 218], [178, 236, 228], [255] * 3]
)
_GROUND, _INK, _FAINT = (20, 20, 22), (240, 240, 240), (170, 170, 175)
OUTLINES = ((92, 205, 218), (255, 255, 255), (255, 214, 64), (196, 160, 255), (120, 255, 160), (255, 150, 190))
"""Colours of outlines, one a label, in turn; each is drawn on a dark edge."""


def colours(values: NDArray) -> NDArray[np.uint8]:
    """The colour map, 0 to 1 (...) -> RGB (..., 3); its lightness rises evenly."""
    place = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
    steps = np.arange(len(_ANCHORS))
    return np.stack([np.interp(place, steps, channel) for channel in _ANCHORS.T], axis=-1).round().astype(np.uint8)


def overlay(picture: NDArray[np.uint8], heat: NDArray, *, opacity: float = 0.5) -> Image.Image:
    """A heat map over a picture: transparent at 0, then ever less so, up to `opacity` from a third on.

    Args:
        picture: uint8 RGB (H, W, 3).
        heat: 0 to 1, (h, w) over the same extent; magnified bilinearly where it is smaller.
        opacity: 0 to 1.
    """
    height, width = picture.shape[:2]
    full = heat if heat.shape == (height, width) else _sampled(heat, *_centres(heat.shape, height, width))
    share = np.clip(np.nan_to_num(full, nan=0.0), 0, 1).astype(np.float32)
    alpha = (opacity * np.clip(share * 3, 0, 1))[..., None]
    table = colours(np.linspace(0, 1, 256))
    mixed = picture * (1 - alpha) + table[(share * 255).round().astype(np.uint8)] * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def to_photograph(
    values: NDArray, transform: Transform, size: tuple[int, int] | None = None, *, outside: float = np.nan
) -> NDArray[np.float32]:
    """A map over the model's square, in the photograph's own coordinates, bilinear.

    Args:
        values: (h, w) over the square that `standardise` made.
        transform: the way there, of `standardise`.
        size: height and width of the result, where it isn't the photograph's own: the same extent in fewer pixels.
        outside: where the square shows nothing of the photograph.

    Returns: float32 (H, W).
    """
    height, width = size or transform.source
    rows, inside_rows = _places(values.shape[0], transform, 0, height)
    columns, inside_columns = _places(values.shape[1], transform, 1, width)
    result = np.full((height, width), outside, dtype=np.float32)
    result[np.ix_(inside_rows, inside_columns)] = _sampled(values, rows[inside_rows], columns[inside_columns])
    return result


def visible_part(image: NDArray[np.uint8], transform: Transform, *, fundus: bool) -> NDArray[np.bool_]:
    """Which pixels of the model's square show something, bool (S, S): no padding, and of a fundus only its field.

    The field is the convex hull of the largest part that is not black, so dark lesions and dark sides belong to it.

    image: uint8 (S, S, 3), of `standardise`.  transform: of `standardise`.
    """
    side = image.shape[0]
    row, column, height, width = (round(entry * side / transform.size) for entry in transform.placed)
    placed = np.zeros((side, side), dtype=bool)
    placed[row : row + height, column : column + width] = True
    if not fundus:
        return placed
    light = ndimage.uniform_filter(image.max(axis=2).astype(np.float32), 3)
    bright = (light > max(8.0, 0.12 * float(np.percentile(light, 98)))) & placed
    found: Any = ndimage.label(bright)
    numbers, count = found
    if not count:
        return placed
    largest = numbers == 1 + np.bincount(numbers.ravel())[1:].argmax()
    if largest.sum() < 0.2 * placed.sum():
        return placed
    return _hull(largest) & placed


def with_legend(
    picture: Image.Image,
    title: str,
    *,
    note: str = "",
    bar: tuple[float, float] | None = None,
    swatches: Sequence[tuple[str, tuple[int, int, int]]] = (),
) -> Image.Image:
    """A strip below a picture, which stays as it is at (0, 0): title, note, and a colour bar or the outlines' names.

    bar: what the ends of the colour map stand for.  swatches: names with their colours.
    """
    width = max(picture.width, 320)
    size = int(np.clip(width // 28, 13, 40))
    font, small = _font(size), _font(max(12, size * 4 // 5))
    line, edge = round(size * 1.5), size // 2
    rows = [(title, font, _INK), (note, small, _FAINT)]
    wrapped = [
        (piece, used, ink) for text, used, ink in rows if text for piece in _wrapped(text, used, width - 2 * edge)
    ]
    listed = _swatch_lines(swatches, small, width - 2 * edge, size)
    height = edge * 2 + line * (len(wrapped) + len(listed)) + (line * 2 if bar else 0)
    sheet = Image.new("RGB", (width, picture.height + height), _GROUND)
    sheet.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(sheet), picture.height + edge
    for text, used, ink in wrapped:
        draw.text((edge, top), text, fill=ink, font=used)
        top += line
    for entries in listed:
        for left, name, colour in entries:
            draw.rectangle((edge + left, top + size // 5, edge + left + size * 4 // 5, top + size), fill=colour)
            draw.text((edge + left + round(size * 1.1), top), name, fill=_INK, font=small)
        top += line
    if bar:
        _draw_bar(sheet, (edge, top, width - edge, top + size), bar, small)
    return sheet


def outlined(
    picture: Image.Image, masks: Sequence[tuple[NDArray[np.bool_], tuple[int, int, int]]], thickness: int = 0
) -> Image.Image:
    """Outlines of masks bool (H, W), each in its colour on a dark edge.  thickness: px; 0 suits the picture."""
    result = np.asarray(picture).copy()
    wide = thickness or max(1, round(max(picture.size) / 350))
    for mask, colour in masks:
        inner = mask & ~np.asarray(ndimage.binary_erosion(mask, iterations=wide, border_value=0), dtype=bool)
        dark = np.asarray(ndimage.binary_dilation(inner, iterations=max(1, wide // 2)), dtype=bool) & ~inner
        result[dark] = result[dark] // 4
        result[inner] = colour
    return Image.fromarray(result)


def panel(cells: Sequence[tuple[str, Image.Image]], *, side: int = 420, columns: int = 4) -> Image.Image:
    """Pictures of one size side by side, each below its words."""
    font = _font(15)
    across = min(columns, len(cells))
    shown = [(words, _fitted(picture, side)) for words, picture in cells]
    texts = [_wrapped(words, font, side - 4) for words, _ in shown]
    head = 22 * max(len(lines) for lines in texts) + 6
    tall = max(picture.height for _, picture in shown)
    down = -(-len(shown) // across)
    sheet = Image.new("RGB", (across * (side + 8) - 8, down * (tall + head + 8) - 8), _GROUND)
    draw = ImageDraw.Draw(sheet)
    for place, ((_, picture), lines) in enumerate(zip(shown, texts, strict=True)):
        left, top = place % across * (side + 8), place // across * (tall + head + 8)
        for number, text in enumerate(lines):
            draw.text((left + 2, top + 3 + 22 * number), text, fill=_INK if number == 0 else _FAINT, font=font)
        sheet.paste(picture, (left, top + head))
    return sheet


def _places(cells: int, transform: Transform, axis: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of each row (axis 0) or column of the result its place in the map, in cells, and whether the square shows it."""
    first, last = transform.box[axis], transform.box[axis + 2]
    start, extent = transform.placed[axis], transform.placed[axis + 2]
    source = (np.arange(count) + 0.5) * transform.source[axis] / count
    square = start + (source - first) * extent / (last - first)
    inside = (source >= first) & (source <= last)
    return square * cells / transform.size - 0.5, inside


def _centres(shape: tuple[int, ...], height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return tuple(  # type: ignore[return-value]
        (np.arange(count) + 0.5) * cells / count - 0.5 for cells, count in zip(shape, (height, width), strict=True)
    )


def _sampled(values: NDArray, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float32]:
    """Bilinear values at rows x columns, in cells; beyond the outermost centres, theirs."""
    table = values.astype(np.float32)
    for axis, places in enumerate((rows, columns)):
        bounded = np.clip(places, 0, table.shape[axis] - 1)
        below = np.floor(bounded).astype(np.int64)
        above = np.minimum(below + 1, table.shape[axis] - 1)
        share = (bounded - below).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None, :]
        table = table.take(below, axis) * (1 - share) + table.take(above, axis) * share
    return np.asarray(table, dtype=np.float32)


def _hull(part: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows, columns = np.nonzero(part & ~np.asarray(ndimage.binary_erosion(part), dtype=bool))
    try:
        points = np.stack([columns, rows], axis=1)
        corners = points[ConvexHull(points).vertices]
    except QhullError:
        return part
    picture = Image.new("1", part.shape[::-1])
    ImageDraw.Draw(picture).polygon([(int(x), int(y)) for x, y in corners], fill=1)
    return np.array(picture) | part


def _draw_bar(
    sheet: Image.Image, box: tuple[int, int, int, int], ends: tuple[float, float], font: ImageFont.FreeTypeFont
) -> None:
    """The colour map from its low to its high end, as it looks over mid grey, with three numbers below."""
    left, top, right, bottom = box
    values = np.tile(np.linspace(0, 1, right - left), (bottom - top, 1))
    ground = np.full((*values.shape, 3), 90, dtype=np.uint8)
    sheet.paste(overlay(ground, values, opacity=0.9), (left, top))
    draw = ImageDraw.Draw(sheet)
    for share, anchor in ((0.0, "la"), (0.5, "ma"), (1.0, "ra")):
        number = ends[0] + share * (ends[1] - ends[0])
        words = f"{number:.3g}".replace("-", "−")
        draw.text((left + share * (right - left - 1), bottom + 3), words, fill=_FAINT, font=font, anchor=anchor)


def _swatch_lines(
    swatches: Sequence[tuple[str, tuple[int, int, int]]], font: ImageFont.FreeTypeFont, width: int, size: int
) -> list[list[tuple[int, str, tuple[int, int, int]]]]:
    lines: list[list[tuple[int, str, tuple[int, int, int]]]] = []
    left = width
    for name, colour in swatches:
        needed = round(size * 2.4 + font.getlength(name))
        if left + needed > width:
            lines.append([])
            left = 0
        lines[-1].append((left, name, colour))
        left += needed
    return lines


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Words in lines no wider than `width`."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.BICUBIC)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: Latin, Greek and Cyrillic."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
