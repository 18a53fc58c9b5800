"""Exports of a run against PyTorch: the largest relative error of each output, and images a second of each runtime.

    python benchmarks/exports.py RUN --data STORE [--images 200] [--rounds 5] [--markdown FILE]

Exports each format once (checked on the same photographs, which is the first table), then runs all of them in turn,
`--rounds` times, batches of 32: the median rate and its range.  Eager is `Model.encode_images`, which gives all
outputs; timm and open_clip give one, with their own transforms from Pillow pictures inside the timed part.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from maskedclip.deployment.export import PRECISIONS, Wanted, export
from maskedclip.deployment.export_check import material
from maskedclip.deployment.exported import Exported, open_exported
from maskedclip.deployment.model import load

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--timed", type=int, default=64, help="photographs in a timed pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", default="float32,bf16,int8", metavar="P,P")
    parser.add_argument("--markdown", type=Path, default=None, help="write the tables here, too")
    args = parser.parse_args()
    model = load(args.run, device="cpu")
    chosen = args.precisions.split(",")
    variants = [(kind, one, "encoder") for kind, known in PRECISIONS.items() for one in known if one in chosen]
    variants += [("timm", "float32", "bridge")] if model.has_text else []
    with tempfile.TemporaryDirectory() as scratch:
        told = ["| format | weights | output | max relative error | min cosine | n |", "|---|---|---|---|---|---|"]
        runtimes: dict[str, Exported] = {}
        for kind, precision, output in variants:
            folder = Path(scratch) / f"{kind}-{precision}-{output}"
            wanted = Wanted(format=kind, precision=precision, output=output, check=args.data, images=args.images)
            for entry in export(args.run, folder, wanted).agreements:
                numbers = f"{entry.relative:.1e} | {entry.cosine:.6f} | {entry.n}"
                line = f"| {kind} | {precision} | {entry.output} | {numbers} |"
                told.append(line)
                print(line, flush=True)
            runtimes[f"{kind} {precision}" + (f", {output}" if output != "encoder" else "")] = open_exported(folder)
        images = material(args.data, model.preprocessing, args.timed).images
        runners: dict[str, Callable[[torch.Tensor], Any]] = {"eager": model.encode_images}
        runners |= {name: runtime.encode_images for name, runtime in runtimes.items()}
        rates = alternate(runners, images, args.rounds)
    told += [] if not args.rounds else ["", "| runtime | images/s | range |", "|---|---|---|"]
    for name, values in rates.items() if args.rounds else ():
        told.append(f"| {name} | {statistics.median(values):.0f} | {min(values):.0f}-{max(values):.0f} |")
    print("\n".join(told))
    if args.markdown is not None:
        args.markdown.write_text("\n".join(told) + "\n")


def alternate(
    runners: dict[str, Callable[[torch.Tensor], Any]], images: torch.Tensor, rounds: int
) -> dict[str, list[float]]:
    """Images a second of each runtime in each round; every round runs all, after a warm-up of one batch."""
    for run in runners.values():
        run(images[:BATCH])
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            began = time.perf_counter()
            for batch in images.split(BATCH):
                run(batch)
            rates[name].append(len(images) / (time.perf_counter() - began))
    return rates


if __name__ == "__main__":
    main()
