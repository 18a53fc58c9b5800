"""Batches for inference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from maskedclip.data.images import image_batches, stored_image, undecodable
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from tests.stores import make_store


@pytest.mark.parametrize("batch", [1, 5, 100])
def test_image_batches__are_the_rows_in_their_order(tmp_path: Path, batch: int) -> None:
    store = open_store(make_store(tmp_path / "store", rows=24))
    rows = np.array([20, 3, 3, 17, 0, 5, 11, 23, 8, 1, 2, 19, 4])
    batches = list(image_batches(store, rows, size=16, batch=batch))
    assert max(len(part) for part in batches) <= batch
    assert torch.equal(torch.cat(batches), torch.stack([stored_image(store, int(row), 16) for row in rows]))
    assert list(image_batches(store, np.empty(0, np.int64), size=16, batch=batch)) == []


def test_image_batches__raises_where_an_image_is_damaged(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", rows=12))
    store.image_bytes = lambda row: b"nothing"  # type: ignore[method-assign]
    with pytest.raises(UserError, match=rf"row 0 \(id {store.ids[0]}\) cannot be decoded; the store is damaged"):
        list(image_batches(store, np.arange(8), size=16, batch=4))


def test_undecodable__are_the_damaged_rows(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", rows=12))
    read = store.image_bytes
    store.image_bytes = lambda row: b"nothing" if row in (3, 7) else read(row)  # type: ignore[method-assign]
    assert undecodable(store, np.array([1, 3, 5, 7, 9])).tolist() == [False, True, False, True, False]
    assert undecodable(store, np.empty(0, np.int64)).tolist() == []
