"""How fast batches are made, against how fast the same bytes can be decoded on the same cores."""

import statistics
import time
from typing import Any

from torch.utils.data import DataLoader, Dataset

from maskedclip.data.decoded import decode_store
from maskedclip.data.loader import StepDataset, step_loader
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import Store, open_store
from maskedclip.data.transforms import decode
from maskedclip.data.workers import worker_options
from maskedclip.recipe import Recipe

_WARM = 4


class _DecodeOnly(Dataset[int]):
    """Item k decodes what step k decodes, and sends nothing back."""

    def __init__(self, dataset: StepDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, step: int) -> int:
        paired, unpaired = self.dataset.sampler.rows(step)
        rows = [*paired.tolist(), *unpaired.tolist()]
        for row in rows:
            decode(self.dataset.store.image_bytes(row))
        return len(rows)


def measure_loader(store: Store, recipe: Recipe, *, workers: int, rounds: int = 3) -> dict[str, Any]:
    """Images a second of whole batches (decode, crop, resize, mirror, stack, texts aside), and of decoding alone.

    Args:
        store: of images.
        recipe: for sizes, batch and augmentation.
        workers: processes of both.
        rounds: alternating runs; medians are told.
    """
    recipe = recipe.replace(data={"workers": workers, "pool": "all"}, objective={"clip_weight": 0, "mkd_weight": 0})
    batch = sum(recipe.batch_sizes)
    steps = max(2 * _WARM, min(200, 6 * len(store) // batch)) + _WARM
    recipe = recipe.replace(training={"steps": steps})
    encoded, decoded = open_store(store.folders), open_store(store.folders)
    decode_store(decoded, "on", shown=False)
    makers = {
        name: StepDataset(part, make_pools(part, recipe), recipe, None)
        for name, part in (("encoded", encoded), ("decoded", decoded))
    }
    taken: dict[str, list[float]] = {"limit": [], "encoded": [], "decoded": []}
    for _ in range(rounds):
        taken["limit"].append(_rate(_plain(makers["encoded"], workers, steps), batch, steps))
        for name, dataset in makers.items():
            taken[name].append(_rate(step_loader(dataset, 0, steps), batch, steps))
    limit, from_bytes, from_pixels = (statistics.median(taken[name]) for name in ("limit", "encoded", "decoded"))
    chosen = open_store(store.folders)
    decode_store(chosen, recipe.data.decoded_cache, shown=False)
    told = from_bytes if chosen.decoded is None else from_pixels
    return {
        "images_per_second": told,
        "decode_limit": limit,
        "ratio": told / limit,
        "decoded_cache": chosen.decoded is not None,
        "images_per_second_from_bytes": from_bytes,
        "ratio_from_bytes": from_bytes / limit,
        "images_per_second_from_pixels": from_pixels,
        "workers": workers,
        "stored_size": store.crop["size"],
        "size": recipe.data.size,
    }


def _plain(dataset: StepDataset, workers: int, steps: int) -> Any:
    options = worker_options(workers)
    return iter(DataLoader(_DecodeOnly(dataset), batch_size=None, sampler=range(steps), **options))


def _rate(batches: Any, batch: int, steps: int) -> float:
    """Images a second after the first batches, which wait for the processes to start."""
    for _ in range(_WARM):
        next(batches)
    began = time.perf_counter()
    for _ in range(steps - _WARM):
        next(batches)
    return batch * (steps - _WARM) / (time.perf_counter() - began)
