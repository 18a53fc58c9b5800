"""How long the audit takes for a million hashes, and what it finds again of copies planted among real photographs.

python benchmarks/audit.py                                   # 10^6 synthetic hashes
python benchmarks/audit.py --images photographs/ --copies 250   # recall by what was done to the copies

A planted hash differs from another in 1 to 8 bits.  Searched are all hashes and those of the mirrored pictures, each
within 8 bits, as the audit searches whole pictures.  Figures are in benchmarks/RESULTS.md.
"""

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from maskedclip.console import bar
from maskedclip.data.audit.bands import HashIndex
from maskedclip.data.audit.descriptors import describe
from maskedclip.data.audit.duplicates import RADIUS, find_duplicates
from maskedclip.data.curate import curate
from maskedclip.data.store import open_store


def synthetic(count: int, seed: int) -> None:
    random = np.random.Generator(np.random.Philox(seed))
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    planted = count // 1000
    for place in range(planted):
        bits = random.choice(64, 1 + place % RADIUS, replace=False)
        hashes[-1 - place] = hashes[place] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64))
    mirrored = random.integers(0, 2**64, count, dtype=np.uint64)
    began = time.perf_counter()
    index = HashIndex(hashes, RADIUS)
    found: set[tuple[int, int]] = set()
    for queries in (hashes, mirrored):
        for asked, values in index.search(queries):
            rows = [int(index.rows(value)[0]) for value in values.tolist()]
            found |= {
                (min(one, two), max(one, two)) for one, two in zip(asked.tolist(), rows, strict=True) if one != two
            }
    seconds = time.perf_counter() - began
    known = sum((place, count - 1 - place) in found for place in range(planted))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{count:,} hashes, twice: {seconds:.0f} s, {known:,} of {planted:,} planted pairs found, peak {peak:.1f} GB")


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=40)
    return Image.open(buffer).convert("RGB")


def _cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    wide, high = image.size
    return image.crop((round(left * wide), round(top * high), round((1 - right) * wide), round((1 - bottom) * high)))


def _resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded again, quality 40": _jpeg,
    "resized to a half": lambda image: _resized(image, 0.5),
    "resized by 1.7": lambda image: _resized(image, 1.7),
    "cropped 5 % each side": lambda image: _cut(image, 0.05, 0.05, 0.05, 0.05),
    "cropped 2.5 % each side": lambda image: _cut(image, 0.025, 0.025, 0.025, 0.025),
    "cropped 5 % at the left": lambda image: _cut(image, 0.05, 0, 0, 0),
    "cropped 5 % at a corner": lambda image: _cut(image, 0.05, 0.05, 0, 0),
    "flipped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "brightened by 1.3": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "brightened by 40 levels": lambda image: Image.fromarray(
        (np.asarray(image).astype(np.int16) + 40).clip(0, 255).astype(np.uint8)
    ),
    "darkened to 0.7": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
}


def planted(folder: Path, copies: int, seed: int) -> None:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    random = np.random.Generator(np.random.Philox(seed))
    chosen = [files[place] for place in random.choice(len(files), min(copies, len(files)), replace=False)]
    with tempfile.TemporaryDirectory() as made:
        pictures = Path(made) / "pictures"
        pictures.mkdir()
        with bar("changing copies", len(chosen)) as wait:
            for number, path in enumerate(chosen):
                image = Image.open(path).convert("RGB")
                image.save(pictures / f"{number:05d}-00.png")
                for place, change in enumerate(CHANGES.values(), start=1):
                    change(image).save(pictures / f"{number:05d}-{place:02d}.jpg", quality=95)
                wait.advance()
        curate(pictures, Path(made) / "store", size=256)
        store = open_store(Path(made) / "store")
        began = time.perf_counter()
        pairs = find_duplicates(describe(store), len(store))
        seconds = time.perf_counter() - began
    # Rows are sorted by name: of each picture the original comes first, then its copies.
    per = 1 + len(CHANGES)
    direct = {
        (int(one), int(two)) for one, two in zip(pairs.first, pairs.second, strict=True) if one // per == two // per
    }
    for place, change in enumerate(CHANGES, start=1):
        hits = sum((number * per, number * per + place) in direct for number in range(len(chosen)))
        print(f"{change}: {hits} of {len(chosen)} found ({hits / len(chosen):.1%})")
    others = sum(one // per != two // per for one, two in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    print(f"{others} pairs of different photographs; {len(store):,} pictures in {seconds:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--copies", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.images is None:
        synthetic(args.hashes, args.seed)
    else:
        planted(args.images, args.copies, args.seed)


if __name__ == "__main__":
    main()
