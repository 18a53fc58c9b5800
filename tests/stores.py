"""Small stores for tests, written by hand in the schema that `curate` writes: training tests need no curation."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SENTENCES = ["Normal fundus.", "A red lesion. No drusen.", "A green lesion; mild.", "Red and green lesions."]


def draw(row: int, size: int, kind: int) -> bytes:
    """A noisy disc with a red (bit 1) and a green (bit 2) spot, PNG."""
    random = np.random.Generator(np.random.Philox(key=np.asarray([row, 9], np.uint64)))
    y, x = np.mgrid[:size, :size] / size - 0.5
    picture = np.where((x**2 + y**2 < 0.22)[..., None], [120, 70, 40], [0, 0, 0]) + random.normal(0, 6, (size, size, 3))
    for bit, colour in ((1, [250, 30, 30]), (2, [30, 220, 60])):
        if kind & bit:
            cx, cy = random.uniform(-0.25, 0.25, 2)
            picture[(x - cx) ** 2 + (y - cy) ** 2 < 0.006] = colour
    buffer = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def make_store(folder: Path, *, rows: int = 48, size: int = 32, text_share: float = 1.0, seed: int = 0) -> Path:
    """Write a store of `rows` images, two a patient, in three shards; the first `text_share` of the rows have texts."""
    folder.mkdir(parents=True)
    kinds = [(row // 2 * 7 + seed) % 4 for row in range(rows)]
    images = [{"bytes": draw(row + 1000 * seed, size, kind), "path": f"{row}.png"} for row, kind in enumerate(kinds)]
    splits = ["test" if row // 2 % 6 == 5 else "val" if row // 2 % 6 == 4 else "train" for row in range(rows)]
    ids = [hashlib.sha256(f"{seed}-{row}".encode()).hexdigest()[:16] for row in range(rows)]
    table = pa.table(
        {
            "id": ids,
            "image": images,
            "text": [SENTENCES[kind] if row < text_share * rows else None for row, kind in enumerate(kinds)],
            "patient": [f"p{row // 2}" for row in range(rows)],
            "split": splits,
            "label.red": pa.array([float(kind & 1 > 0) for kind in kinds], pa.float32()),
            "label.green": pa.array([float(kind & 2 > 0) for kind in kinds], pa.float32()),
        }
    )
    for shard in range(3):
        part = table.slice(shard * (rows // 3), rows // 3 if shard < 2 else rows)
        pq.write_table(part, folder / f"shard-{shard:05d}.parquet")
    fingerprint = hashlib.sha256("".join(ids).encode()).hexdigest()
    settings = {"size": size, "crop": "none", "encoding": "png"}
    (folder / "curation.json").write_text(json.dumps({"fingerprint": fingerprint, "settings": settings}))
    return folder


TINY = [
    *("--data.size", "32", "--data.batch_paired", "6", "--data.batch_unpaired", "4", "--data.workers", "0"),
    *("--data.text_fraction", "0.5", "--data.context_length", "16"),
    *("--model.image_encoder_options", '{"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}'),
    *("--model.bridge_depth", "1", "--model.embed_dim", "16", "--model.small_text_width", "32"),
    *("--model.small_text_depth", "1", "--model.small_text_heads", "2"),
    *("--model.image_decoder_width", "24", "--model.image_decoder_depth", "1", "--model.image_decoder_heads", "2"),
    *("--model.feature_decoder_width", "24", "--model.feature_decoder_heads", "2"),
    *("--training.steps", "6", "--training.checkpoint_every", "2", "--training.log_every", "1"),
    *("--training.validate_every", "0", "--training.tensorboard", "false"),
]
"""Overrides of `tiny` that make a step take milliseconds on `make_store`."""
