from pathlib import Path

import numpy as np

from maskedclip.data.store import open_store
from maskedclip.evaluation.development import DevelopmentStore
from tests.stores import make_store


def test_development_store__test_rows_stay_unread_and_no_patient_crosses(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", rows=96))
    moved = DevelopmentStore(store)
    assert set(moved.splits[store.splits == "test"]) == {""}
    assert set(moved.splits[store.splits == "val"]) == {"test"}
    train = moved.splits[store.splits == "train"]
    assert set(train) == {"train", "val"}
    assert 0 < (train == "val").mean() < 0.3
    sides = {split: set(moved.patients[moved.splits == split]) for split in ("train", "val", "test")}
    assert not sides["train"] & sides["val"]
    assert not sides["train"] & sides["test"]
    assert moved.fingerprint != store.fingerprint
    assert (DevelopmentStore(store).splits == moved.splits).all()
    assert len(np.unique(moved.ids)) == len(moved)
