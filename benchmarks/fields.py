"""The fundus field: ours and two published finders on real photographs with planted difficulties, and on others.

python benchmarks/fields.py --drive drive/ --photographs odir/images eyepacs/images --volumes volumes/ --sheets sheets/

`--drive` holds images/ and field/ (masks of the field).  Of the photographs those are used whose field is a whole
circle, by a test that no finder takes part in: what is not black fills an upright circle of the picture's size.  Their
discs are cut out and planted, so that the truth is known exactly.  The peers are retinalysis-fundusprep (AGPL-3.0) and
fundus-image-toolbox (MIT); a peer that cannot be imported is left out, and that is said.  Run it in an environment of
its own: both bring OpenCV, and the first needs a version below 5.  Figures are in docs/fields.md.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from fields_others import OTHERS, slices
from fields_planted import DIFFICULTIES, Box, discs_of, discs_of_drive
from PIL import Image, ImageDraw

from maskedclip.console import bar
from maskedclip.data.field import find_field

Finder = Callable[[np.ndarray], tuple[Box, bool]]
GOOD, FAILED = 0.95, 0.8  # intersection over union


def ours(image: np.ndarray) -> tuple[Box, bool]:
    field = find_field(image)
    return (field.top, field.left, field.bottom, field.right), field.found


def finders() -> dict[str, Finder]:
    known: dict[str, Finder] = {"ours": ours}
    try:
        import cv2  # type: ignore[import-not-found]
        from rtnls_fundusprep.mask_extraction import get_cfi_bounds  # type: ignore[import-not-found]

        if not hasattr(cv2, "linearPolar"):  # it would return the frame for every picture, without a word
            raise ImportError(f"OpenCV {cv2.__version__} has no linearPolar")

        def fundusprep(image: np.ndarray) -> tuple[Box, bool]:
            bounds = get_cfi_bounds(image)
            top, bottom = max(bounds.min_y, bounds.cy - bounds.radius), min(bounds.max_y, bounds.cy + bounds.radius)
            left, right = max(bounds.min_x, bounds.cx - bounds.radius), min(bounds.max_x, bounds.cx + bounds.radius)
            box = float(top), float(left), float(bottom), float(right)
            return box, box != (0.0, 0.0, *map(float, image.shape[:2]))

        known["retinalysis-fundusprep"] = fundusprep
    except ImportError as error:
        print(f"retinalysis-fundusprep left out: {error}")
    try:
        from fundus_image_toolbox.circle_crop.eyeq_preprocess import get_mask  # type: ignore[import-not-found]

        def toolbox(image: np.ndarray) -> tuple[Box, bool]:
            height, width = image.shape[:2]
            frame = (0.0, 0.0, float(height), float(width))
            try:
                _, (top, left, rows, columns), _, _ = get_mask(image)
            except (ValueError, IndexError):
                return frame, False
            box = float(top), float(left), min(float(top + rows), height), min(float(left + columns), width)
            return (box, True) if rows > 0 and columns > 0 else (frame, False)

        known["fundus-image-toolbox"] = toolbox
    except ImportError as error:
        print(f"fundus-image-toolbox left out: {error}")
    return known


def overlap(one: Box, two: Box) -> float:
    """Intersection over union of two boxes."""
    high, wide = min(one[2], two[2]) - max(one[0], two[0]), min(one[3], two[3]) - max(one[1], two[1])
    shared = max(0.0, high) * max(0.0, wide)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return shared / max(1e-9, sum(areas) - shared)


def _timed(finder: Finder, image: np.ndarray) -> tuple[Box, bool, float]:
    began = time.perf_counter()
    box, found = finder(image)
    return box, found, (time.perf_counter() - began) * 1e6


def planted(discs: list[np.ndarray], per: int, seed: int) -> Iterator[tuple[str, np.ndarray, Box]]:
    for number, (name, plant) in enumerate(DIFFICULTIES.items()):
        random = np.random.Generator(np.random.Philox(key=[seed, number]))
        for _ in range(per):
            yield name, *plant(discs[random.integers(len(discs))], random)


def without_field(
    discs: list[np.ndarray], per: int, seed: int, volumes: Path | None
) -> Iterator[tuple[str, np.ndarray]]:
    for number, (name, draw) in enumerate(OTHERS.items()):
        random = np.random.Generator(np.random.Philox(key=[seed, 1000 + number]))
        for _ in range(per):
            yield name, draw(discs[random.integers(len(discs))], random)
    if volumes is not None:
        yield from (("slices of real volumes", image) for image in slices(volumes, 5 * per, seed))


def table_of_planted(known: dict[str, Finder], cases: list[tuple[str, np.ndarray, Box]]) -> None:
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in known}
    times: dict[str, list[float]] = {name: [] for name in known}
    with bar("planted", len(cases)) as wait:
        for difficulty, image, truth in cases:
            for name, finder in known.items():
                box, _, microseconds = _timed(finder, image)
                scores[name].setdefault(difficulty, []).append(overlap(box, truth))
                times[name].append(microseconds)
            wait.advance()
    print("\nMedian IoU of the box, share with IoU >= 0.95, failures (IoU < 0.8)\n")
    print("| planted | n | " + " | ".join(known) + " |\n|---|---|" + "---|" * len(known))
    for difficulty in [*DIFFICULTIES, "all"]:
        cells, count = [], 0
        for name in known:
            every = scores[name]
            values = np.array(list(chain(*every.values())) if difficulty == "all" else every[difficulty])
            count = len(values)
            cells.append(f"{np.median(values):.3f}, {100 * np.mean(values >= GOOD):.3g} %, {(values < FAILED).sum()}")
        print(f"| {difficulty} | {count} | " + " | ".join(cells) + " |")
    print("| microseconds, median | | " + " | ".join(f"{np.median(times[name]):,.0f}" for name in known) + " |")


def table_of_others(known: dict[str, Finder], cases: list[tuple[str, np.ndarray]]) -> None:
    counts: dict[str, list[int]] = {}
    for kind, image in cases:
        row = counts.setdefault(kind, [0] * (1 + len(known)))
        row[0] += 1
        frame = (0.0, 0.0, float(image.shape[0]), float(image.shape[1]))
        for place, finder in enumerate(known.values(), start=1):
            box, _, _ = _timed(finder, image)
            row[place] += overlap(box, frame) < 0.98
    print("\nPictures without a field that were cropped\n")
    print("| pictures | n | " + " | ".join(known) + " |\n|---|---|" + "---|" * len(known))
    for kind, row in counts.items():
        print(f"| {kind} | " + " | ".join(map(str, row)) + " |")
    print("| all | " + " | ".join(str(sum(column)) for column in zip(*counts.values(), strict=True)) + " |")


def table_of_drive(known: dict[str, Finder], folder: Path) -> None:
    print("\nPhotographs with a mask of the field: median (least) IoU with it\n")
    print("| finder | photographs | box | circle | found |\n|---|---|---|---|---|")
    for name, finder in known.items():
        boxes, circles, hits = [], [], 0
        for path in sorted((folder / "images").iterdir()):
            mask = np.asarray(Image.open(folder / "field" / f"{path.stem}.png").convert("L")) > 0
            (top, left, bottom, right), found = finder(np.asarray(Image.open(path).convert("RGB")))
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            truth = float(rows[0]), float(columns[0]), float(rows[-1] + 1), float(columns[-1] + 1)
            boxes.append(overlap((top, left, bottom, right), truth))
            y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
            away = ((2 * y + 1 - top - bottom) / (bottom - top)) ** 2 + (
                (2 * x + 1 - left - right) / (right - left)
            ) ** 2
            circles.append(float(((away <= 1) & mask).sum() / ((away <= 1) | mask).sum()))
            hits += found
        print(
            f"| {name} | {len(boxes)} | {np.median(boxes):.3f} ({min(boxes):.3f}) |"
            f" {np.median(circles):.3f} ({min(circles):.3f}) | {hits} |"
        )


def contact_sheet(path: Path, pictures: list[tuple[np.ndarray, Box, bool]], tile: int = 120) -> None:
    """Pictures with their box, green where found and red where not."""
    columns = 16
    sheet = Image.new("RGB", (columns * tile, -(-len(pictures) // columns) * tile), (90, 0, 120))
    for number, (image, (top, left, bottom, right), found) in enumerate(pictures):
        scale = (tile - 10) / max(image.shape[:2])
        small = Image.fromarray(image).resize((round(image.shape[1] * scale) or 1, round(image.shape[0] * scale) or 1))
        corner = (number % columns * tile + 5, number // columns * tile + 5)
        sheet.paste(small, corner)
        edges = (left * scale, top * scale, right * scale - 1, bottom * scale - 1)
        colour = (0, 255, 0) if found else (255, 0, 0)
        ImageDraw.Draw(sheet).rectangle([edge + corner[n % 2] for n, edge in enumerate(edges)], outline=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--drive", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, nargs="*", default=[])
    parser.add_argument("--volumes", type=Path)
    parser.add_argument("--each", type=int, default=20, help="variants of each difficulty")
    parser.add_argument("--discs", type=int, default=40, help="discs of each folder of photographs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets of what our finder does")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    known = finders()
    discs = discs_of_drive(args.drive)
    for folder in args.photographs:
        discs += discs_of(folder, args.discs)
    print(f"{len(discs)} discs of real photographs")
    cases = list(planted(discs, args.each, args.seed))
    others = list(without_field(discs, args.each, args.seed, args.volumes))
    table_of_drive(known, args.drive)
    table_of_planted(known, cases)
    table_of_others(known, others)
    if args.sheets is not None:
        contact_sheet(args.sheets / "planted.png", [(image, *ours(image)) for _, image, _ in cases])
        contact_sheet(args.sheets / "others.png", [(image, *ours(image)) for _, image in others])
        for folder in [args.drive / "images", *args.photographs]:
            paths = sorted(folder.iterdir())
            chosen = [np.asarray(Image.open(path).convert("RGB")) for path in paths[:: max(1, len(paths) // 300)]]
            name = folder.parent.name if folder.name == "images" else folder.name
            contact_sheet(args.sheets / f"{name}.png", [(image, *ours(image)) for image in chosen])


if __name__ == "__main__":
    main()
