"""Writing that somebody burnt into the pixels: names, dates and numbers beside the field of a photograph.

A heuristic.  The largest lit part of the picture is the field.  What else is lit, has the size of letters and lies in
a line with its like is called a letter.  Writing inside the field is not found, nor is writing on a light background,
nor letters of fewer than three px.  A hit says "look at it", and no hit promises nothing.

H rows, W columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

LEAST_LETTERS = 3
"""Marks in a line from which a picture is told of."""
_LIT, _BRIGHT = 40, 80  # grey levels: not background; surely no haze
_SMALLEST = 3  # px: of a letter's height
_TALLEST, _WIDEST = 0.12, 0.2  # of the side, a mark's height and width (letters may touch each other)


def letters_outside(light: NDArray[np.uint8]) -> int:
    """Most letter-like marks in one line outside of the field, 0 where there are none.

    light: the largest channel of each px, 0 to 255, uint8 (H, W).
    """
    lit = light > _LIT
    labels = np.empty(light.shape, np.int32)
    ndimage.label(lit, np.ones((3, 3), int), output=labels)
    sizes = np.bincount(labels.ravel())
    if len(sizes) <= 1 + LEAST_LETTERS:
        return 0
    sizes[0] = 0
    field = int(sizes.argmax())
    height, width = light.shape
    near = (labels == field).astype(np.uint8)
    for axis in (0, 1):
        near = ndimage.maximum_filter1d(near, 1 + 2 * max(1, round(0.01 * height)), axis=axis)
    touched = set(np.flatnonzero(np.bincount(labels[near > 0])).tolist())  # crumbs at the field's rim are its own
    marks = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None or label in touched:
            continue
        tall, wide = box[0].stop - box[0].start, box[1].stop - box[1].start
        sized = _SMALLEST <= tall <= _TALLEST * height and wide <= _WIDEST * width
        if sized and light[box].max() >= _BRIGHT and _is_stroke(labels[box] == label):
            marks.append((box[0].start, box[0].stop))
    return _longest_line(marks)


def _is_stroke(mark: NDArray[np.bool_]) -> bool:
    """A mark is drawn with strokes: it does not fill its box as a patch does, save one stroke such as I or 1."""
    filled = mark.mean()
    return bool(filled < 0.85 or mark.shape[1] <= max(2, mark.shape[0] // 3))


def _longest_line(marks: list[tuple[int, int]]) -> int:
    """Most marks (top, bottom) of like height at one height of the picture."""
    best = 0
    for top, bottom in marks:
        middle, tall = (top + bottom) / 2, bottom - top
        best = max(
            best,
            sum(
                abs((upper + lower) / 2 - middle) <= 0.5 * tall and 0.5 <= (lower - upper) / tall <= 2
                for upper, lower in marks
            ),
        )
    return best
