"""Labels of a store as columns of numbers, and as the loader gives them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from maskedclip.data.label_columns import column_names, label_columns, resolve_labels
from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.recipe import load_recipe
from tests.stores import TINY, make_store

STORE: Any = SimpleNamespace(
    labels={
        "amd": np.asarray([0, 1, np.nan, 1], np.float32),
        "grade": np.asarray([0, 2, 4, np.nan], np.float32),
        "drusen": np.asarray([0, 0, 1, 0], np.float32),
        "side": np.asarray(["left", None, "right", "left"], object),
        "age": np.asarray([61.5, 70, 1, 2], np.float32),
        "constant": np.asarray(["a", "a", "a", "a"], object),
    }
)


def test_names__all_is_every_finding_and_classes_are_written_out() -> None:
    assert column_names(STORE, ["all"]) == ("amd", "drusen")
    assert column_names(STORE, ["label.grade"]) == ("grade=0", "grade=2", "grade=4")
    assert column_names(STORE, ["side", "all", "amd"]) == ("side=left", "side=right", "amd", "drusen")
    assert column_names(STORE, ["grade=2", "amd"]) == ("grade=2", "amd")
    assert column_names(STORE, []) == ()


def test_columns__are_0_1_or_unknown() -> None:
    found = label_columns(STORE, ["amd", "grade=2", "side=left"])
    nan = np.nan
    np.testing.assert_array_equal(found, np.asarray([[0, 0, 1], [1, 1, nan], [nan, 0, 0], [1, nan, 1]], np.float32))
    assert found.dtype == np.float32


def test_words_for_unknown__are_no_class_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    side = np.asarray(["left", "NA", "right", "unknown", None, "NA"], object)
    store: Any = SimpleNamespace(labels={"side": side})
    recipe = resolve_labels(load_recipe(["mae", "tiny"], [*TINY, "--data.labels", "[side]"]), store)
    assert recipe.data.labels == ("side=left", "side=right")
    assert "data.labels: side: 'NA' (2 rows), 'unknown' (1 row) taken as unknown" in " ".join(
        capsys.readouterr().err.split()
    )
    nan = np.nan
    np.testing.assert_array_equal(label_columns(store, ["side=left"])[:, 0], [1, nan, 0, nan, nan, nan])
    with pytest.raises(UserError, match="side=NA: no row has this class; it has left, right"):
        label_columns(store, ["side=NA"])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["drussen"], "data.labels: drussen: no such label in the store; did you mean drusen"),
        (["age"], "data.labels: age: has fractions"),
        (["constant"], "data.labels: constant: has 1 classes"),
    ],
)
def test_names__refuses_what_is_no_label(names: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        column_names(STORE, names)


def test_columns__refuses_a_class_that_nobody_has() -> None:
    with pytest.raises(UserError, match="grade=7: no row has this class; it has 0, 2, 4"):
        label_columns(STORE, ["grade=7"])
    with pytest.raises(UserError, match="no label of zeros and ones"):
        column_names(SimpleNamespace(labels={"grade": STORE.labels["grade"]}), ["all"])  # type: ignore[arg-type]


def test_loader__gives_the_labels_of_its_rows(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "s"))
    recipe = load_recipe(["mae", "tiny"], [*TINY, "--data.labels", "[all]"])
    batch = StepDataset(store, make_pools(store, recipe), recipe, None)[0]
    assert batch.labels is not None
    expected = np.stack([store.labels["red"], store.labels["green"]], axis=1)[batch.rows.numpy()]
    np.testing.assert_array_equal(batch.labels.numpy(), expected)
    resolved = resolve_labels(recipe, store)
    assert resolved.data.labels == ("red", "green")
    assert resolve_labels(resolved, store) == resolved
