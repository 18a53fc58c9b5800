import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from maskedclip.data.store import Store, open_store
from maskedclip.evaluation.feature_cache import CachedFeatures
from tests.stores import make_store


class Counting:
    """Features are functions of the row; counts what was asked of it."""

    has_text = False
    fingerprint = "one"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def features(self, store: Store, rows: NDArray[np.int64]) -> Mapping[str, NDArray]:
        self.asked += rows.tolist()
        return {"encoder": np.stack([rows, rows**2], axis=1).astype(np.float32), "bridge": -rows[:, None].astype("f4")}

    def encode_text(self, texts: list[str]) -> NDArray:
        raise AssertionError(texts)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(make_store(tmp_path / "store"))


def test_features__are_computed_once_and_come_in_the_order_asked(store: Store) -> None:
    model = Counting()
    first = CachedFeatures(model, store).features(store, np.array([7, 3, 11]))
    assert first["encoder"].tolist() == [[7, 49], [3, 9], [11, 121]]
    again = CachedFeatures(model, store).features(store, np.array([11, 5, 3, 3]))
    assert again["bridge"].tolist() == [[-11], [-5], [-3], [-3]]
    assert sorted(model.asked) == [3, 5, 7, 11]


def test_features__another_model_or_store_has_its_own(store: Store, tmp_path: Path) -> None:
    model, other = Counting(), Counting()
    other.fingerprint = "two"
    more = open_store(make_store(tmp_path / "more", seed=1))
    folder = tmp_path / "kept"
    for entry, where in ((model, store), (other, store), (model, more)):
        CachedFeatures(entry, where, folder).features(where, np.array([1]))
    assert (model.asked, other.asked) == ([1, 1], [1])
    assert len(list(folder.iterdir())) == 3


def test_features__the_same_photographs_prepared_otherwise_have_their_own(store: Store) -> None:
    model = Counting()
    before = CachedFeatures(model, store)
    before.features(store, np.array([1]))
    place = store.folders[0] / "curation.json"
    about = json.loads(place.read_text())
    about["settings"]["size"] = 2 * about["settings"]["size"]
    place.write_text(json.dumps(about))
    again = open_store(store.folders[0])
    assert again.fingerprint == store.fingerprint
    after = CachedFeatures(model, again)
    after.features(again, np.array([1]))
    assert model.asked == [1, 1]
    assert after.folder != before.folder


@pytest.mark.parametrize("damage", [b"", b"no tensors", None])
def test_features__a_damaged_file_is_named_and_replaced(
    store: Store, damage: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Counting()
    cached = CachedFeatures(model, store)
    cached.features(store, np.arange(6))
    whole = cached.file.read_bytes()
    cached.file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert cached.features(store, np.arange(6))["encoder"].shape == (6, 2)
    assert cached.file.name in capsys.readouterr().err.replace("\n", "")
    assert cached.file.read_bytes() == whole


def test_features__of_no_rows_have_their_widths(store: Store) -> None:
    assert CachedFeatures(Counting(), store).features(store, np.empty(0, np.int64))["encoder"].shape == (0, 2)
