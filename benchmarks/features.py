"""Features of stored images through `Model.features`, against the forward pass alone on the same pixels.

    python benchmarks/features.py RUN --data STORE [--rows 512] [--rounds 5]

Median over pairs in alternation of the ratio of rates, with the extremes.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from maskedclip.data.images import image_batches
from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.models.features import BATCH, image_features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model, store = load(args.run), open_store(args.data)
    rows = np.arange(min(args.rows, len(store)))
    batches = [
        batch.to(model.device) for batch in image_batches(store, rows, size=model.preprocessing.size, batch=BATCH)
    ]

    def forward() -> float:
        began = time.perf_counter()
        for batch in batches:
            image_features(model.module, batch, model.preprocessing)["encoder"].cpu()
        return len(rows) / (time.perf_counter() - began)

    def features() -> float:
        began = time.perf_counter()
        model.features(store, rows)
        return len(rows) / (time.perf_counter() - began)

    forward()
    pairs = [(features(), forward()) for _ in range(args.rounds)]
    ratios = sorted(ours / alone for ours, alone in pairs)
    print(
        f"features {statistics.median(ours for ours, _ in pairs):.0f} images/s, forward alone "
        f"{statistics.median(alone for _, alone in pairs):.0f}; ratio {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f}-{ratios[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
