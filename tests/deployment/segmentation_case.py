"""A small world of coloured spots for zero-shot segmentation: pictures with masks, and a model that knows the colours.

Training pictures are spots on the fill colour, as masked crops are, and spots on a fundus.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from maskedclip.deployment.model import Model, load
from maskedclip.deployment.proposals_crops import fill_colour
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.stores import TINY

COLOURS = {
    "red": (215, 45, 40),
    "orange": (225, 120, 40),
    "green": (50, 190, 60),
    "blue": (60, 70, 215),
    "white": (235, 235, 235),
}
SIDE = 32
_MEAN = (0.485, 0.456, 0.406)


def spots(row: int, colours: list[str], side: int = SIDE) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A fundus uint8 (side, side, 3) with a spot in each of the colours, in different quarters, and their masks."""
    random = np.random.Generator(np.random.Philox(key=np.asarray([row, 77], np.uint64)))
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    picture = np.where(((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.24)[..., None], [120, 70, 40], [0, 0, 0]).astype(float)
    masks = {}
    for colour, quarter in zip(colours, random.permutation(4), strict=False):
        centre = 0.32 + 0.36 * np.array([quarter % 2, quarter // 2]) + random.uniform(-0.03, 0.03, 2)
        masks[colour] = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < random.uniform(0.1, 0.15) ** 2
        picture[masks[colour]] = COLOURS[colour] + random.normal(0, 18, 3)
    noisy = picture + random.normal(0, 8, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8), masks


def write_store(folder: Path, rows: int = 240) -> Path:
    """Rows with one spot each, every other one a masked crop of it; text, label and mask of its colour."""
    folder.mkdir(parents=True)
    names = list(COLOURS)
    table: dict[str, list] = {name: [] for name in ("id", "image", "text", "patient", "split")}
    table |= {f"mask.{name}": [] for name in names}
    for row in range(rows):
        colour = names[row // 2 % len(names)]
        picture, masks = spots(row, [colour])
        mask = masks[colour]
        if row % 2:
            inside = np.argwhere(mask)
            (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0) + 1
            part = np.where(mask[..., None], picture, fill_colour(_MEAN))[top:bottom, left:right]
            picture = np.asarray(Image.fromarray(part.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        table["id"].append(hashlib.sha256(f"spots-{row}".encode()).hexdigest()[:16])
        table["image"].append({"bytes": _png(picture), "path": f"{row}.png"})
        table["text"].append(f"{colour} lesion")
        table["patient"].append(f"p{row}")
        table["split"].append("val" if row % 20 == 19 else "train")
        for name in names:
            there = name == colour and not row % 2
            table[f"mask.{name}"].append({"bytes": _png(mask.astype(np.uint8) * 255), "path": ""} if there else None)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {key: pa.array(values, kind) if key.startswith("mask.") else values for key, values in table.items()}
    pq.write_table(pa.table(columns), folder / "shard-00000.parquet")
    fingerprint = hashlib.sha256("".join(table["id"]).encode()).hexdigest()
    settings = {"size": SIDE, "crop": "none", "encoding": "png"}
    (folder / "curation.json").write_text(json.dumps({"fingerprint": fingerprint, "settings": settings}))
    return folder


def train(folder: Path, store: Path, steps: int = 60) -> Model:
    """A model of the store, trained with texts alone."""
    options = [*TINY, "--training.steps", str(steps), "--data.batch_paired", "32", "--data.text_fraction", "1"]
    options += ["--training.checkpoint_every", str(steps), "--training.log_every", str(steps)]
    pretrain(load_recipe(["clip", "tiny"], options), store, folder)
    return load(folder, device="cpu")


def _png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()
