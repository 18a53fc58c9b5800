"""Rows of a store, as batches for inference: decoded, resized, never augmented."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskedclip.data import transforms
from maskedclip.data.store import Store


class StoredImages(Dataset[Tensor]):
    """Item i is row i of the store at the model's size, uint8 (3, S, S)."""

    def __init__(self, store: Store, size: int) -> None:
        self.store, self.size = store, size

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> Tensor:
        """Decode and resize one image."""
        return transforms.resize(self.store.image(row), self.size)


def image_batches(store: Store, rows: np.ndarray, *, size: int, batch: int, workers: int = 0) -> Iterator[Tensor]:
    """Uint8 batches (<= batch, 3, size, size) of rows, in their order."""
    loader = DataLoader(
        StoredImages(store, size),
        batch_size=batch,
        sampler=rows.tolist(),
        num_workers=workers,
        collate_fn=torch.stack,
        multiprocessing_context="forkserver" if workers else None,
    )
    return iter(loader)
