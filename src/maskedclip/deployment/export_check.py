"""An export in its own runtime against the model in PyTorch, on the same pictures and texts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskedclip.data.phantom import draw_phantom
from maskedclip.data.prompts import prompts_for
from maskedclip.deployment.exported import Exported
from maskedclip.deployment.inputs import open_inputs
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.features import BATCH, prepare_pixels
from maskedclip.models.saving import Preprocessing

_SEED = 6


@dataclass(frozen=True)
class Limits:
    """What an export may differ by: the largest relative error of an output, and the smallest cosine of a row."""

    relative: float
    cosine: float


LIMITS = {
    "float32": Limits(1e-4, 0.9999),
    "bf16": Limits(0.03, 0.999),
    "int8": Limits(0.25, 0.97),
}
"""By precision.  float32 differs by the order of sums alone; the other two round weights, int8 activations as well."""


@dataclass(frozen=True)
class Material:
    """What an export is checked on.

    images: uint8 (N, 3, S, S).  texts: distinct; shipped prompts where there are none.  origin: in words.
    """

    images: Tensor
    texts: list[str]
    origin: str


@dataclass(frozen=True)
class Agreement:
    """Of one output, over n pictures or texts.

    relative: the largest absolute difference over the largest absolute value.  cosine: the smallest of all rows.
    """

    output: str
    n: int
    relative: float
    cosine: float

    def within(self, limits: Limits) -> bool:
        """Whether it is good enough; NaN never is."""
        return self.relative <= limits.relative and self.cosine >= limits.cosine

    def __str__(self) -> str:
        return f"{self.output}: max relative error {self.relative:.1e}, min cosine {self.cosine:.6f} (n {self.n})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def phantom_material(preprocessing: Preprocessing, count: int) -> Material:
    """Phantoms, for want of photographs: `count` eyes, and their reports."""
    drawn = [draw_phantom(_SEED, place // 2, ("left", "right")[place % 2]) for place in range(count)]
    images = torch.stack([prepare_pixels(phantom.image, preprocessing) for phantom in drawn])
    texts = list(dict.fromkeys(phantom.text for phantom in drawn))
    return Material(images, texts, f"{count} phantoms (drawn pictures, no photographs)")


def material(data: Path, preprocessing: Preprocessing, count: int) -> Material:
    """At most `count` photographs of a store, folder, manifest or archive, evenly over it; a store's test rows first.

    Raises:
        UserError: nothing there can be read.
    """
    inputs = open_inputs(data)
    columns = inputs.table.column_names
    rows = np.arange(len(inputs))
    if "split" in columns:
        held_out = np.flatnonzero(np.asarray(inputs.table.column("split").to_pylist(), object) == "test")
        rows = held_out if len(held_out) else rows
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    read = [found for found in inputs.prepared(preprocessing, rows.tolist()) if found.image is not None]
    if not read:
        raise UserError(f"--check {data}: none of its photographs can be read")
    texts: list[str] = []
    if "text" in columns:
        all_texts = inputs.table.column("text").to_pylist()
        texts = list(dict.fromkeys(all_texts[found.row] for found in read if all_texts[found.row]))
    images = torch.stack([found.image for found in read if found.image is not None])
    return Material(images, texts or prompts_for("glaucoma"), f"{len(read)} photographs from {data.name}")


def agreements(exported: Exported, model: Model, given: Material) -> list[Agreement]:
    """Each output of the export against the model in float32 on the processor."""
    theirs = exported_features(exported, given.images)
    ours = model.encode_images(given.images)
    found = [agreement(name, values, ours[name.rpartition(" ")[2]]) for name, values in theirs.items()]
    if exported.has_text and given.texts:
        found.append(agreement("text", exported.encode_text(given.texts), model.encode_text(given.texts)))
    return found


def exported_features(exported: Exported, images: Tensor) -> dict[str, np.ndarray]:
    """All outputs of many images, in batches; the last one is smaller, which tries the dynamic batch."""
    parts = [exported.encode_images(batch) for batch in images.split(min(BATCH, max(1, len(images) * 2 // 3)))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def agreement(output: str, theirs: np.ndarray, ours: np.ndarray) -> Agreement:
    """Compare (N, E) with (N, E); another shape, NaN or infinity differ without bound."""
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        return Agreement(output, len(ours), float("inf"), -1.0)
    first, second = theirs.astype(np.float64), ours.astype(np.float64)
    relative = np.abs(first - second).max() / max(np.abs(second).max(), 1e-30)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = ((first * second).sum(axis=1) / np.maximum(norms, 1e-30)).min()
    return Agreement(output, len(ours), float(relative), float(cosine))


def lines(found: list[Agreement]) -> list[str]:
    """For a terminal."""
    return [str(entry) for entry in found]


def failures(found: list[Agreement], limits: Limits) -> list[Agreement]:
    """Those beyond the limits."""
    return [entry for entry in found if not entry.within(limits)]


def to_json(found: list[Agreement], limits: Limits, given: Material) -> Mapping[str, Any]:
    """What export.json keeps of a check."""
    return {"on": given.origin, "limits": asdict(limits), "outputs": [entry.to_dict() for entry in found]}
