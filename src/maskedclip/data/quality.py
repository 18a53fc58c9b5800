"""How good a stored picture is, in a few numbers: blur, light, and how much of the square the photograph fills.

They are columns of the store, for filters and for the audit; no picture is left out because of them.  All but the
coverage are taken inside the visible part, so that the black frame of a fundus photograph does not count as dark.
"""

from __future__ import annotations

import numpy as np

QUALITY = ("sharpness", "brightness", "contrast", "saturated", "coverage")
SIDE = 224
"""Pictures are measured at about this side, px, so that stores of different sizes can be compared."""
_DARK, _BRIGHT = 10, 250
_EDGE = 5  # px


def quality(image: np.ndarray) -> dict[str, float]:
    """The figures of a picture, float, by the names in `QUALITY`.

    - `sharpness`: standard deviation of the Laplacian of the green channel over that of the channel itself, 0 (no edge)
      upwards; the focus measure of Pech-Pacheco et al., ICPR 2000, divided by the contrast, so that a dark photograph
      is not taken for a blurred one.  An empty picture has 0.
    - `brightness`: mean green of the visible part, 0..1.
    - `contrast`: its standard deviation, 0..0.5.
    - `saturated`: share of it with a channel at 250 or more.
    - `coverage`: share of the square that is visible: above 10 of 255 in some channel.

    Green shows most of a fundus photograph's structure, and is as good as any in a grey picture.

    image: 8-bit RGB, (H, W, 3).
    """
    step = max(1, min(image.shape[:2]) // SIDE)
    small = np.ascontiguousarray(image[::step, ::step].transpose(2, 0, 1))
    light = np.maximum(np.maximum(small[0], small[1]), small[2])
    visible = light > _DARK
    count = int(np.count_nonzero(visible))
    if not count:
        return dict.fromkeys(QUALITY, 0.0)
    green = small[1].astype(np.float32)
    inside = green[visible]
    contrast = float(inside.std()) / 255
    edges = _laplacian(green)[_inner(visible)]
    return {
        "sharpness": float(edges.std()) / 255 / contrast if contrast > 1e-4 and edges.size else 0.0,
        "brightness": float(inside.mean()) / 255,
        "contrast": contrast,
        "saturated": float(np.count_nonzero(light >= _BRIGHT)) / count,
        "coverage": count / visible.size,
    }


def _laplacian(grey: np.ndarray) -> np.ndarray:
    """Sum of the four neighbours less four times the pixel, 0 at the frame; (H, W)."""
    result = np.zeros_like(grey)
    if min(grey.shape) > 2:
        result[1:-1, 1:-1] = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return result


def _inner(visible: np.ndarray) -> np.ndarray:
    """Where the pixels `_EDGE` away in all four directions are visible as well, (H, W): the border of the field is the
    sharpest edge of a blurred photograph."""
    result = visible.copy()
    result[:_EDGE] = result[-_EDGE:] = False
    result[:, :_EDGE] = result[:, -_EDGE:] = False
    result[_EDGE:] &= visible[:-_EDGE]
    result[:-_EDGE] &= visible[_EDGE:]
    result[:, _EDGE:] &= visible[:, :-_EDGE]
    result[:, :-_EDGE] &= visible[:, _EDGE:]
    return result
