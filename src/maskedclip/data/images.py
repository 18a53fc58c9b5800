"""Rows of a store, as batches for inference: decoded, resized, never augmented."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from maskedclip.data import transforms, transforms_volume
from maskedclip.data.store import Store
from maskedclip.errors import UserError

_AHEAD = 2  # batches that are decoded while the model works on one
_MOST_THREADS = 8


def image_batches(store: Store, rows: np.ndarray, *, size: int, batch: int) -> Iterator[Tensor]:
    """Uint8 batches (<= batch, 3, size, size) of rows, in their order.

    Threads decode and resize two batches ahead, so that a fast device does not wait; both steps work outside Python's
    lock.

    Raises:
        UserError: a row cannot be decoded.
    """
    starts = range(0, len(rows), batch)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        waiting: deque[list[Future[Tensor]]] = deque()
        for start in starts:
            part = rows[start : start + batch].tolist()
            waiting.append([threads.submit(stored_image, store, row, size) for row in part])
            if len(waiting) > _AHEAD:
                yield torch.stack([image.result() for image in waiting.popleft()])
        while waiting:
            yield torch.stack([image.result() for image in waiting.popleft()])


def stored_image(store: Store, row: int, size: int) -> Tensor:
    """Row of the store at the model's size, uint8 (3, size, size); the middle of a volume, float16 (C, S, S, S).

    Raises:
        UserError: it cannot be decoded.
    """
    image = decoded_image(store, row)
    return transforms_volume.middle(image, size) if store.kind == "volumes" else transforms.resize(image, size)


def decoded_image(store: Store, row: int) -> Tensor:
    """Row of the store as it is stored: `store.image`, its error one line for a person.

    Raises:
        UserError: it cannot be decoded.
    """
    try:
        return store.image(row)
    except RuntimeError:
        raise UserError(
            f"--data: row {row} (id {store.ids[row]}) cannot be decoded; the store is damaged, curate it again"
        ) from None


def undecodable(store: Store, rows: np.ndarray) -> np.ndarray:
    """Which rows cannot be decoded, bool (n,); threads share the work."""

    def fails(row: int) -> bool:
        try:
            store.image(row)
        except RuntimeError:
            return True
        return False

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        return np.fromiter(threads.map(fails, rows.tolist()), bool, len(rows))
