"""From a store and a model to a composed-retrieval head: triplets, features, training, judgement."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.data.store import Store
from maskedclip.data.transforms import resize
from maskedclip.deployment.composed import RetrievalHead, SumHead
from maskedclip.deployment.composed_features import image_directions, text_directions
from maskedclip.deployment.composed_finetune import FinetuneSettings, finetune_encoders
from maskedclip.deployment.composed_report import judge
from maskedclip.deployment.composed_training import Features, Settings, train_combiner
from maskedclip.deployment.composed_triplets import Triplets, write_triplets
from maskedclip.deployment.model import Model, load
from maskedclip.errors import UserError
from maskedclip.evaluation.evaluate import check_patients
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.models.saving import save_model


@dataclass(frozen=True, kw_only=True, eq=False)
class ComposedRun:
    """head: ready for use.  about: of its making, plain values.  report: on the test rows; None without any."""

    head: RetrievalHead
    about: dict[str, Any]
    report: dict[str, Any] | None


def read_features(model: Model, store: Store, triplets: Triplets) -> Features:
    """What the frozen encoders say of the triplets' rows and captions; pictures are cached as `evaluate` does."""
    rows = np.unique(np.concatenate([triplets.reference, triplets.target]))
    captions = sorted(set(triplets.captions))
    words = text_directions(model, captions)
    bridge = CachedFeatures(model, store).features(store, rows)["bridge"]
    images = np.zeros((len(store), words.shape[1]), np.float32)
    images[rows] = image_directions(model, bridge)
    return Features(images, words, {caption: place for place, caption in enumerate(captions)})


def by_split(store: Store, triplets: Triplets) -> Mapping[str, Triplets]:
    """The triplets of `train`, `val` and `test` rows; those across splits are left out."""
    splits = store.splits
    reference, target = splits[triplets.reference], splits[triplets.target]
    return {name: triplets.on((reference == name) & (target == name)) for name in ("train", "val", "test")}


def learn(
    model: Model, store: Store, triplets: Triplets, *, combiner: bool = True, settings: Settings | None = None
) -> ComposedRun:
    """Train on the triplets of the training rows, choose by the validation rows, judge on the test rows.

    Args:
        model: with texts; it is not changed.
        store: of the triplets' rows.
        triplets: see `composed_triplets`.
        combiner: train one; otherwise the sum is judged alone.
        settings: of the training.

    Raises:
        UserError: a model without texts, or too few triplets among the training rows.
    """
    settings = settings or Settings()
    check_patients(store)
    parts = by_split(store, triplets)
    if combiner and len(parts["train"]) < 2:
        raise UserError(
            f"{len(parts['train'])} of {len(triplets)} triplets lie within the training rows: too few to train on"
        )
    features = read_features(model, store, triplets)
    head: RetrievalHead = SumHead()
    about: dict[str, Any] = {"data": store.fingerprint, "counts": {name: len(some) for name, some in parts.items()}}
    about["across_splits"] = len(triplets) - sum(about["counts"].values())
    if combiner:
        head, record = train_combiner(features, parts["train"], parts["val"], settings)
        about["training"] = record
    report = judge(head, features, parts["test"], store.patients, seed=settings.seed) if len(parts["test"]) else None
    return ComposedRun(head=head, about=about | {"test": report}, report=report)


def tune(
    model: Model, store: Store, triplets: Triplets, folder: Path, settings: FinetuneSettings
) -> tuple[Model, dict[str, Any]]:
    """Stage 1: the encoders tuned on the triplets of the training rows, saved as a new model folder, and read from it.

    Returns: the tuned model, and a record.
    """
    size = model.preprocessing.size

    def pictures(rows: NDArray[np.int64]) -> Tensor:
        return torch.stack([resize(store.image(int(row)), size) for row in rows])

    tuned, record = finetune_encoders(model, pictures, by_split(store, triplets)["train"], settings)
    save_model(folder, tuned.module, tuned.tokenizer, tuned.preprocessing, {})
    return load(folder, device=str(model.device)), record | {"base": model.fingerprint}


def as_table(triplets: Triplets, store: Store) -> str:
    """The triplets as a CSV, as `read_triplets` reads it."""
    buffer = io.StringIO(newline="")
    write_triplets(buffer, triplets, store.ids)
    return buffer.getvalue()
