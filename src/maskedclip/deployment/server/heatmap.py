"""A map on the patch grid as a layer for a browser: laid where the model looked, clear where there is nothing."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from maskedclip.data.imaging import Transform
from maskedclip.deployment.overlay import colours, to_photograph, visible_part
from maskedclip.deployment.server.engine import Ready
from maskedclip.deployment.server.photographs import png, preview_size

_LEAST_RANGE = 0.05


def visible(ready: Ready, *, fundus: bool) -> NDArray[np.bool_]:
    """Where the model's input shows the photograph, and of a fundus its field: bool (S, S)."""
    return visible_part(ready.pixels.permute(1, 2, 0).numpy(), ready.transform, fundus=fundus)


def value_range(grid: NDArray[np.float32], shown: NDArray[np.bool_], *, contrast: bool) -> tuple[float, float]:
    """The cosines of a map (h, w) that are drawn as nothing and as strongest.

    With contrast nothing is 0, as near to the text as to a normal fundus; else it is the median of what is shown.  A
    range below 0.05 is not stretched: what is nowhere must not look like something.

    Args:
        grid: (h, w).
        shown: (S, S), see `visible`; patches that are mostly outside do not count.
        contrast: whether the map is less that of a normal fundus.
    """
    rows, columns = (len(shown) // count for count in grid.shape)
    cut = shown[: rows * grid.shape[0], : columns * grid.shape[1]]
    inside = cut.reshape(grid.shape[0], rows, grid.shape[1], columns).mean(axis=(1, 3)) >= 0.5
    values = grid[inside] if inside.any() else grid
    low = 0.0 if contrast else float(np.median(values))
    return low, max(float(values.max()), low + _LEAST_RANGE)


def layer(
    grid: NDArray[np.float32],
    shown: NDArray[np.bool_],
    transform: Transform,
    size: tuple[int, int],
    ends: tuple[float, float],
) -> bytes:
    """PNG, RGBA, of the photograph's preview size, to be laid over it.

    Args:
        grid: (h, w), over the square that the model saw.
        shown: (S, S), what of it is drawn on.
        transform: from the photograph to that square.
        size: of the photograph, width and height in px.
        ends: the values that are drawn as nothing and as strongest.
    """
    width, height = preview_size(size)
    heat = np.clip((grid - ends[0]) / (ends[1] - ends[0]), 0, 1)
    drawn = to_photograph(heat, transform, (height, width), outside=0.0)
    seen = to_photograph(shown.astype(np.float32), transform, (height, width), outside=0.0)
    strength = np.where(seen > 0, drawn, 0)
    soft = np.clip(2 * seen - 0.5, 0, 1)  # the field's edge, whose pixels are larger than the layer's
    alpha = (255 * soft * np.clip(1.5 * strength, 0, 1)).round().astype(np.uint8)[..., None]
    return png(Image.fromarray(np.concatenate([colours(strength), alpha], axis=-1), "RGBA"))
