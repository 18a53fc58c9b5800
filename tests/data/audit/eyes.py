"""Pictures with the structure that the audit compares, and stores of them, written by hand."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import ndimage

from maskedclip.data.imaging import encode_jpeg, encode_png, perceptual_hash, standardise

SIZE = 128


def eye(seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    """A bright disc with a course of lines of its own, uint8 (size, size, 3)."""
    random = np.random.Generator(np.random.Philox(seed))
    noise = ndimage.gaussian_filter(random.normal(size=(160, 160)), 3)
    lines = np.exp(-((noise / noise.std() / 0.35) ** 2))  # dark where the noise crosses zero: thin, long, branching
    lines = ndimage.zoom(lines, size / 160, order=1)
    y, x = np.mgrid[:size, :size] / size - 0.5
    shade = 150 - 120 * ((x - 0.2 * random.uniform(-1, 1)) ** 2 + (y - 0.2 * random.uniform(-1, 1)) ** 2) / 0.25
    grey = np.where(x**2 + y**2 < 0.23, shade.clip(60) - 45 * lines, 0)
    return (grey[..., None] * np.array([1.0, 0.6, 0.35])).clip(0, 255).astype(np.uint8)


def stored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What curation makes of a picture."""
    return standardise(np.ascontiguousarray(image), size=SIZE).image


def write_store(folder: Path, pictures: Sequence[NDArray[np.uint8]], *, png: bool = False, **columns: Any) -> Path:
    """A store of pictures; `labels` is a dictionary, other columns are lists."""
    folder.mkdir(parents=True)
    encoded = [encode_png(picture) if png else encode_jpeg(picture) for picture in pictures]
    count = len(pictures)
    table: dict[str, Any] = {
        "id": [hashlib.sha256(f"{folder.name} {row}".encode()).hexdigest()[:32] for row in range(count)],
        "image": pa.array([{"bytes": data, "path": f"{row}.jpg"} for row, data in enumerate(encoded)]),
    }
    for name in ("text", "patient", "split"):
        table[name] = pa.array(columns.pop(name, [None] * count), pa.string())
    for name, values in columns.pop("labels", {}).items():
        table[f"label.{name}"] = pa.array(values, pa.float32())
    table |= columns
    table["sha256"] = [hashlib.sha256(data).hexdigest() for data in encoded]
    table["perceptual_hash"] = [perceptual_hash(picture) for picture in pictures]
    pq.write_table(pa.table(table), folder / "shard-00000.parquet", row_group_size=7)
    fingerprint = hashlib.sha256("".join(table["id"]).encode()).hexdigest()
    settings = {"size": SIZE, "crop": "fundus", "encoding": "jpeg"}
    (folder / "curation.json").write_text(json.dumps({"fingerprint": fingerprint, "settings": settings}))
    return folder
