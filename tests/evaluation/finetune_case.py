"""A tiny encoder and store for the tests of fine-tuning."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskedclip.data.store import Store, open_store
from maskedclip.deployment.model import Model
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.evaluation.tasks import Task, read_tasks
from maskedclip.models.maskedclip import ModelConfig, model_from_config
from maskedclip.models.saving import Preprocessing, SavedModel
from maskedclip.recipe_sections import IMAGENET_MEAN, IMAGENET_STD
from tests.stores import make_store

OPTIONS: dict[str, Any] = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}


def make_model(**options: Any) -> Model:
    """An untrained encoder of 32 px, the same bits at each call."""
    config = ModelConfig(
        image_encoder="vit_tiny_patch16_224",
        size=32,
        bridge_depth=0,
        bridge_heads=3,
        image_encoder_options=OPTIONS | options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = model_from_config(config).eval()
    preprocessing = Preprocessing(crop="none", stored_size=32, size=32, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Model(SavedModel(module, None, preprocessing, "untrained"), torch.device("cpu"))


def open_case(folder: Path, rows: int = 48) -> tuple[Store, dict[str, Task]]:
    """A store whose labels `red` and `green` say which spots a picture has, and `kind`, their four combinations."""
    store = open_store(make_store(folder, rows=rows))
    labels = dict(store.labels)
    labels["kind"] = labels["red"] + 2 * labels["green"]
    return store, read_tasks(labels)[0]


def spots(count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Pictures of every tint, uint8 (n, 3, 32, 32), each with a red or a green spot, and which are green, 0/1 (n,).

    The tint hides the spot's share of the mean colour, so a probe of an untrained encoder hardly sees it.
    """
    random = np.random.Generator(np.random.Philox(0))
    green = random.integers(0, 2, count)
    pictures = random.normal(128, 60, (count, 3, 1, 1)) + random.normal(0, 20, (count, 3, 32, 32))
    for picture, chosen, (top, left) in zip(pictures, green, random.integers(0, 26, (count, 2)), strict=True):
        colour = np.array([[200, 40, 40], [40, 200, 40]][chosen])
        picture[:, top : top + 6, left : left + 6] = colour[:, None, None]
    return torch.from_numpy(pictures.clip(0, 255).astype(np.uint8)), green


def settings(**changes: Any) -> FineTuneSettings:
    """Two short epochs in which every source of randomness takes part."""
    fields: dict[str, Any] = {"epochs": 2, "batch": 8, "warmup": 0.5, "colour_jitter": 0.2, "drop_path": 0.5}
    return FineTuneSettings(**(fields | changes))


def all_rows(store: Store) -> np.ndarray:
    return np.arange(len(store))
