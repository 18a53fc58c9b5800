"""Curation against decode + resize + encode alone, by the size of the photographs.

python benchmarks/curate_sizes.py --sizes 256 1024 2048 --images 400 --rounds 3

Phantoms, each re-encoded at several qualities so that no two files are equal.  The command `maskedclip curate` (its
start included) and the bare loop of benchmarks/planted_faults.py run in alternation on the same files and cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from planted_faults import baseline

from maskedclip.data.phantom import write_phantoms

DRAWN = 16


def photographs(folder: Path, size: int, count: int) -> list[Path]:
    """`count` JPEG files of one size."""
    drawn = write_phantoms(folder / "drawn", images=DRAWN, seed=size, size=size).parent
    pictures = [Image.open(path).convert("RGB") for path in sorted((drawn / "images").iterdir())]
    (folder / "files").mkdir()
    paths = []
    for number in range(count):
        path = folder / "files" / f"{number:05d}.jpg"
        pictures[number % len(pictures)].save(path, quality=80 + number // len(pictures) % 16)
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| side, px | curate, images/s | alone, images/s | ratio, median of pairs | without the start |")
    print("|---|---|---|---|---|")
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            paths = photographs(folder, size, args.images)
            whole, inner, alone = [], [], []
            for number in range(args.rounds):
                began = time.perf_counter()
                out = folder / f"store-{number}"
                command = [sys.executable, "-m", "maskedclip", "curate", str(folder / "files"), "--out", str(out)]
                subprocess.run(command, check=True, capture_output=True)
                whole.append(args.images / (time.perf_counter() - began))
                inner.append(json.loads((out / "curation.json").read_text())["images_per_second"])
                alone.append(baseline([str(path) for path in paths])[0])
            ratio = statistics.median(a / b for a, b in zip(whole, alone, strict=True))
            work = statistics.median(a / b for a, b in zip(inner, alone, strict=True))
            row = (statistics.median(whole), statistics.median(alone))
            print(f"| {size} | {row[0]:.0f} | {row[1]:.0f} | {ratio:.2f} | {work:.2f} |", flush=True)


if __name__ == "__main__":
    main()
