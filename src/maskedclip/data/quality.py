"""How good a stored picture is, in a few numbers: blur, light, and how much of the square the photograph fills.

They are columns of the store, for filters and for the audit; no picture is left out because of them.  All but the
coverage are taken inside the visible part, so that the black frame of a fundus photograph does not count as dark.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

QUALITY = ("sharpness", "brightness", "contrast", "saturated", "coverage")
SIDE = 224
"""Pictures are measured at this side, px, so that stores of different sizes can be compared."""
_DARK, _BRIGHT = 10, 250
_EDGE = 5  # px


def quality(image: np.ndarray) -> dict[str, float]:
    """The figures of a picture, float, by the names in `QUALITY`.

    - `sharpness`: standard deviation of the Laplacian of the grey picture over that of the picture itself, 0 (no edge)
      upwards; the focus measure of Pech-Pacheco et al., ICPR 2000, divided by the contrast, so that a dark photograph
      is not taken for a blurred one.  An empty picture has 0.
    - `brightness`: mean grey of the visible part, 0..1.
    - `contrast`: standard deviation of its grey, 0..0.5.
    - `saturated`: share of it with a channel at 250 or more.
    - `coverage`: share of the square that is visible: lighter than 10 of 255 in some channel, holes filled.

    image: 8-bit RGB, (H, W, 3).
    """
    step = max(1, min(image.shape[:2]) // SIDE)
    small = image[::step, ::step]
    light = small.max(axis=2)
    visible = np.asarray(ndimage.binary_fill_holes(light > _DARK), dtype=bool)
    share = float(visible.mean())
    if not visible.any():
        return dict.fromkeys(QUALITY, 0.0)
    grey = small.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    inside = grey[visible]
    contrast = float(inside.std())
    # The border of the field is the sharpest edge of a blurred photograph: it is left out.
    inner = np.asarray(ndimage.binary_erosion(visible, iterations=_EDGE, border_value=1), dtype=bool)
    edges = np.asarray(ndimage.laplace(grey))[inner]
    return {
        "sharpness": float(edges.std()) / contrast if contrast > 1e-4 and edges.size else 0.0,
        "brightness": float(inside.mean()),
        "contrast": contrast,
        "saturated": float((light[visible] >= _BRIGHT).mean()),
        "coverage": share,
    }
