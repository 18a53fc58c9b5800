"""Real photographs with planted difficulties, and pictures that have no field, for fields.py.

Each difficulty takes a disc, 8-bit RGB (d, d, 3), and a generator, and gives a picture with the true box of its field.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Box = tuple[float, float, float, float]  # top, left, bottom, right, px
SIZES = ((480, 640), (600, 600), (512, 768), (768, 1024), (640, 480))


@dataclass(kw_only=True)
class Scene:
    """A planted field while it is made: 8-bit RGB canvas, and the truth; an ellipse (row, column, tall, wide)."""

    canvas: np.ndarray
    row: float
    column: float
    tall: float
    wide: float

    @property
    def box(self) -> Box:
        height, width = self.canvas.shape[:2]
        return (
            max(0.0, self.row - self.tall),
            max(0.0, self.column - self.wide),
            min(float(height), self.row + self.tall),
            min(float(width), self.column + self.wide),
        )


# ---------------------------------------------------------------- sources


def discs_of_drive(folder: Path) -> list[np.ndarray]:
    """The discs of photographs with a mask of their field, cut out, 8-bit RGB (d, d, 3)."""
    discs = []
    for path in sorted((folder / "images").iterdir()):
        mask = np.asarray(Image.open(folder / "field" / f"{path.stem}.png").convert("L")) > 0
        discs.append(_cut_out(np.asarray(Image.open(path).convert("RGB")), mask))
    return discs


def discs_of(folder: Path, count: int) -> list[np.ndarray]:
    """Of evenly chosen photographs, the discs that are whole circles by their dark surroundings alone."""
    paths = sorted(folder.iterdir())
    discs = []
    for path in paths[:: max(1, len(paths) // (6 * count))]:
        image = np.asarray(Image.open(path).convert("RGB"))
        mask = np.asarray(ndimage.binary_fill_holes(ndimage.median_filter(image.max(axis=2), 3) > 20))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            continue
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        whole = abs(high / wide - 1) < 0.02 and abs(mask.sum() / (np.pi / 4 * high * wide) - 1) < 0.02
        if whole and image[mask].mean() > 50:
            discs.append(_cut_out(image, mask))
        if len(discs) == count:
            break
    return discs


def _cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


# ---------------------------------------------------------------- planted difficulties


def place(
    disc: np.ndarray,
    random: np.random.Generator,
    *,
    background: tuple[float, ...] | float = 3.0,
    radius: tuple[float, float] = (0.3, 0.47),
    aspect: float = 1.0,
    size: tuple[int, int] | None = None,
    shift: float = 0.1,
) -> Scene:
    """A disc on an even ground; radius as a share of the shorter side, shift as a share of the room that is left."""
    height, width = size or SIZES[random.integers(len(SIZES))]
    tall = random.uniform(*radius) * min(height, width)
    wide = tall * aspect
    row = height / 2 + random.uniform(-shift, shift) * abs(height - 2 * tall) / 2
    column = width / 2 + random.uniform(-shift, shift) * abs(width - 2 * wide) / 2
    y, x = np.mgrid[:height, :width]
    away = np.hypot((y + 0.5 - row) / tall, (x + 0.5 - column) / wide)
    at = [(y + 0.5 - row) / tall, (x + 0.5 - column) / wide]
    high, broad = disc.shape[:2]
    # Shrunk by 1.5 %: a photograph's own rim is dark, and the planted one would lie outside of what can be seen.
    source = [(at[0] * 0.985 + 1) * high / 2 - 0.5, (at[1] * 0.985 + 1) * broad / 2 - 0.5]
    channels = [
        ndimage.map_coordinates(disc[:, :, c].astype(np.float32), source, order=1, mode="nearest") for c in range(3)
    ]
    share = ((1 - away) * min(tall, wide) + 0.5).clip(0, 1)[:, :, None]
    canvas = share * np.stack(channels, axis=2) + (1 - share) * np.broadcast_to(background, 3)
    return Scene(canvas=to_bytes(canvas), row=row, column=column, tall=tall, wide=wide)


def to_bytes(values: np.ndarray) -> np.ndarray:
    return np.round(values).clip(0, 255).astype(np.uint8)


def plain(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, background=random.uniform(0, 8))
    return scene.canvas, scene.box


def off_centre(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, radius=(0.22, 0.36), shift=0.95)
    return scene.canvas, scene.box


def white_ground(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, background=random.uniform(245, 255))
    return scene.canvas, scene.box


def grey_ground(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, background=random.uniform(40, 225))
    return scene.canvas, scene.box


def bright_border(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, radius=(0.3, 0.485), shift=0.3)
    wide = round(random.uniform(0.004, 0.035) * min(scene.canvas.shape[:2]))
    edge = np.ones(scene.canvas.shape[:2], bool)
    edge[wide:-wide, wide:-wide] = False
    scene.canvas[edge] = random.choice([[255, 255, 255], [200, 200, 200], [230, 220, 60], [40, 90, 200]])
    return scene.canvas, scene.box


def page(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    """A photograph with its own black ground on a white page."""
    scene = place(disc, random, shift=0.3)
    above, below, left, right = (int(random.integers(10, 160)) for _ in range(4))
    height, width = scene.canvas.shape[:2]
    sheet = np.full((height + above + below, width + left + right, 3), 255, np.uint8)
    sheet[above : above + height, left : left + width] = scene.canvas
    scene.canvas, scene.row, scene.column = sheet, scene.row + above, scene.column + left
    return scene.canvas, scene.box


def write_words(
    image: np.ndarray, lines: list[tuple[float, float, str]], size: int, colour: tuple[int, int, int]
) -> np.ndarray:
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for row, column, text in lines:
        pen.text((column, row), text, fill=colour, font=ImageFont.load_default(size))
    return np.asarray(picture)


def text_outside(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, size=(600, 900), radius=(0.3, 0.42), shift=0.2)
    size = int(random.integers(14, 34))
    lines = [(8.0 + 1.3 * size * n, 10.0, text) for n, text in enumerate(("OD", "1957-03-12", "No. 004711"))]
    lines += [(590.0 - 1.3 * size, 12.0, "45 deg"), (590.0 - 1.3 * size, 780.0, "2019-11-02")]
    return write_words(scene.canvas, lines, size, (255, 255, 255)), scene.box


def text_touching(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, shift=0.2)
    size = int(random.integers(18, 40))
    angle = random.uniform(0, 2 * np.pi, 2)
    lines = [
        (scene.row + scene.tall * np.sin(a) - size / 2, scene.column + scene.wide * np.cos(a) - 3 * size, text)
        for a, text in zip(angle, ("Right eye 2019-03-04", "ID 12345 M 61 y"), strict=True)
    ]
    return write_words(scene.canvas, lines, size, (255, 255, int(random.integers(0, 256)))), scene.box


def half_dark(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    """The light falls to a hundredth from one side of the field to the other, along a row or a column."""
    scene = place(disc, random, background=0.0)
    height, width = scene.canvas.shape[:2]
    along = (
        np.arange(width)[None, :] - scene.column if random.random() < 0.5 else np.arange(height)[:, None] - scene.row
    )
    along = along / scene.tall * random.choice([-1, 1])
    light = 0.01 + 0.99 / (1 + np.exp(-(along - random.uniform(-0.6, 0.1)) * random.uniform(3, 7)))
    scene.canvas = to_bytes(scene.canvas * light[:, :, None] + random.normal(1.5, 1.0, scene.canvas.shape))
    return scene.canvas, scene.box


def _cut(disc: np.ndarray, random: np.random.Generator, sides: int, *, bars: bool) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, size=(700, 700), radius=(0.42, 0.48), shift=0.0)
    depth = {"top": 0, "bottom": 0, "left": 0, "right": 0}
    chosen = {1: list(random.choice(list(depth), 1)), 2: [["top", "bottom"], ["left", "right"]][random.integers(2)]}
    for side in chosen.get(sides, list(depth)):
        depth[side] = round(random.uniform(0.06, 0.2 if sides < 4 else 0.14) * 2 * scene.tall)
    top, left = scene.row - scene.tall + depth["top"], scene.column - scene.wide + depth["left"]
    bottom, right = scene.row + scene.tall - depth["bottom"], scene.column + scene.wide - depth["right"]
    rows, columns = slice(round(top), round(bottom)), slice(round(left), round(right))
    if bars:
        canvas = np.full_like(scene.canvas, 3)
        canvas[rows, columns] = scene.canvas[rows, columns]
        return canvas, (top, left, bottom, right)
    margin = {side: round(random.uniform(8, 80)) for side in depth}
    begin = [
        rows.start - (0 if depth["top"] else margin["top"]),
        columns.start - (0 if depth["left"] else margin["left"]),
    ]
    end = [
        rows.stop + (0 if depth["bottom"] else margin["bottom"]),
        columns.stop + (0 if depth["right"] else margin["right"]),
    ]
    begin, end = [max(0, place) for place in begin], [min(700, place) for place in end]
    moved = (top - begin[0], left - begin[1], bottom - begin[0], right - begin[1])
    return np.ascontiguousarray(scene.canvas[begin[0] : end[0], begin[1] : end[1]]), moved


def cut_one(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    return _cut(disc, random, 1, bars=False)


def cut_two(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    return _cut(disc, random, 2, bars=False)


def cut_four(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    return _cut(disc, random, 4, bars=False)


def cut_by_bars(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    """Cut by the camera's own straight edges, with black beyond them."""
    return _cut(disc, random, int(random.choice([1, 2, 4])), bars=True)


def noise_in_the_dark(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random)
    noise = random.normal(0, random.uniform(6, 18), scene.canvas.shape)
    return to_bytes(scene.canvas + np.abs(ndimage.gaussian_filter(noise, (0.7, 0.7, 0)) * 1.5)), scene.box


def strong_jpeg(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random)
    buffer = io.BytesIO()
    Image.fromarray(scene.canvas).save(buffer, "jpeg", quality=int(random.integers(5, 20)))
    return np.asarray(Image.open(buffer).convert("RGB")), scene.box


def rotated_frame(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    """A scan of a print that lay askew: the frame is turned, its corners are white, grey or black."""
    scene = place(disc, random, radius=(0.26, 0.36), shift=0.1)
    degrees = random.uniform(4, 25) * random.choice([-1, 1])
    fill = tuple([int(random.choice([0, 128, 255]))] * 3)
    turned = Image.fromarray(scene.canvas).rotate(degrees, Image.Resampling.BILINEAR, fillcolor=fill)
    height, width = scene.canvas.shape[:2]
    y, x, angle = scene.row - height / 2, scene.column - width / 2, np.deg2rad(degrees)
    scene.row = height / 2 + np.cos(angle) * y - np.sin(angle) * x
    scene.column = width / 2 + np.sin(angle) * y + np.cos(angle) * x
    scene.canvas = np.asarray(turned)
    return scene.canvas, scene.box


def widefield(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    """An ellipse in two colours, as scanning lasers see, with eyelids from above and below."""
    scene = place(disc, random, size=(768, 1024), radius=(0.36, 0.46), aspect=random.uniform(1.15, 1.4), shift=0.2)
    height, width = scene.canvas.shape[:2]
    y, x = np.mgrid[:height, :width]
    inside = np.hypot((y - scene.row) / scene.tall, (x - scene.column) / scene.wide) < 1
    canvas = scene.canvas * np.array([0.75, 1.1, 0.25])
    for side in (-1, 1):
        reach = scene.row + side * scene.tall * random.uniform(0.72, 0.95)
        lid = inside & (side * (y - reach - side * 0.1 * (x - scene.column) ** 2 / scene.wide) > 0)
        hair = 30 + 25 * ndimage.gaussian_filter(random.normal(0, 6, (height, width)), (8, 1))
        canvas[lid] = hair[lid, None] * np.array([0.9, 1.0, 0.6]) + 6
    return to_bytes(canvas), scene.box


def squashed(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random, radius=(0.3, 0.36), aspect=float(random.choice([0.75, 1.25])), shift=0.1)
    return scene.canvas, scene.box


def hazy_ground(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    """Stray light beside the field, brightest near to it."""
    scene = place(disc, random)
    height, width = scene.canvas.shape[:2]
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y - scene.row, x - scene.column) / scene.tall
    haze = random.uniform(10, 35) * np.exp(-np.maximum(0, away - 1) / random.uniform(0.2, 1.0))
    haze = np.where(away < 1, 0, haze)[:, :, None] * np.array([1.0, 0.6, 0.4])
    return to_bytes(scene.canvas + haze + random.normal(0, 1.5, scene.canvas.shape)), scene.box


def red_free(disc: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Box]:
    scene = place(disc, random)
    return np.repeat(scene.canvas[:, :, 1:2], 3, axis=2), scene.box


DIFFICULTIES = {
    "black ground": plain,
    "off-centre": off_centre,
    "red-free, grey": red_free,
    "white ground": white_ground,
    "grey ground": grey_ground,
    "hazy ground": hazy_ground,
    "bright border": bright_border,
    "on a white page": page,
    "text outside": text_outside,
    "text touching": text_touching,
    "half dark": half_dark,
    "cut at one side": cut_one,
    "cut at two sides": cut_two,
    "cut at four sides": cut_four,
    "cut by straight bars": cut_by_bars,
    "noise in the dark": noise_in_the_dark,
    "JPEG, quality 5 to 19": strong_jpeg,
    "turned frame": rotated_frame,
    "ultra-widefield, eyelids": widefield,
    "squashed to an ellipse": squashed,
}


# ---------------------------------------------------------------- pictures without a field
