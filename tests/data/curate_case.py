"""A small curation, and what it made."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from maskedclip.data import curate_work as curate_module
from maskedclip.data.curate import curate

SIZE = 64


def eye(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(seed))
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y - height / 2, x - width / 2) / (0.45 * height)
    colour = rng.uniform(60, 200, 3) * np.where(away < 1, 1 - 0.4 * away, 0)[:, :, None]
    return (colour + rng.normal(0, 2, colour.shape)).clip(0, 255).astype(np.uint8)


def curate_small(manifest: Path, out: Path, **options: Any) -> curate_module.Curation:
    return curate(manifest, out, **({"size": SIZE, "progress": False} | options))


def rows_of(store: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(store.glob("shard-*.parquet")) for row in pq.read_table(path).to_pylist()]


def content_of(store: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in store.iterdir()
        if path.name != "curation.json"
    }
