"""Labels, texts, drift, writing: each finding against a count by hand."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from maskedclip.data.audit.burnt_in import LEAST_LETTERS, letters_outside
from maskedclip.data.audit.drift import drift, is_source
from maskedclip.data.audit.labels import balance
from maskedclip.data.audit.texts import repetition
from maskedclip.data.audit.union import linked_groups
from tests.data.audit.eyes import eye


def test_balance__classes_and_measurements() -> None:
    splits = np.array(["train", "train", "train", "test"])
    labels = {
        "dr": np.array([0, 1, np.nan, 1], np.float32),
        "age": np.arange(4, dtype=np.float32) * 10,
        "side": np.array(["left", None, "right", "left"], object),
    }
    found = {(entry.label, entry.value): entry for entry in balance(labels, splits)}
    assert found["dr", "1"].shares == {"train": 0.5, "test": 1.0}
    assert found["dr", "1"].counts == {"train": 1, "test": 1}
    assert found["side", "left"].shares == {"train": 0.5, "test": 1.0}
    many = balance({"age": np.arange(40, dtype=np.float32)}, np.array(["train"] * 40))
    assert (many[0].value, many[0].shares) == ("", {"train": 19.5})


def test_repetition__counts_by_normalised_text() -> None:
    told = repetition(["Normal fundus.", "normal  fundus", None, "Drusen"])
    assert (told.texts, told.distinct, told.once) == (3, 2, 1)
    assert told.frequent == [("Normal fundus.", 2)]


def test_drift__is_the_standardised_difference() -> None:
    random = np.random.Generator(np.random.Philox(0))
    light = np.concatenate([random.normal(100, 10, 500), random.normal(115, 10, 500)]).astype(np.float32)
    sources = np.array(["a"] * 500 + ["b"] * 500, object)
    first = drift(sources, {"light": light, "words": np.array(["x"] * 1000, object)})
    assert [(entry.source, entry.figure) for entry in first] == [("a", "light"), ("b", "light")]
    assert first[0].difference == pytest.approx(-1.5, abs=0.15)
    assert drift(np.array(["a"] * 1000, object), {"light": light}) == []


def test_is_source__few_repeated_words() -> None:
    assert is_source(np.array(["left", "right", None], object))
    assert not is_source(np.array(["left", None], object))
    assert not is_source(np.array([1, 2], object))
    assert not is_source(np.array([f"patient {k}" for k in range(100)], object))


@pytest.mark.parametrize("seed", range(4))
def test_letters_outside__writing_on_the_background(seed: int) -> None:
    picture = eye(seed, 256)
    assert letters_outside(picture.max(axis=2)) == 0
    written = Image.fromarray(picture)
    ImageDraw.Draw(written).text((4, 4), "12/03/19", fill="white")
    assert letters_outside(np.asarray(written).max(axis=2)) >= LEAST_LETTERS
    assert letters_outside(np.zeros((64, 64), np.uint8)) == 0
    assert letters_outside(np.full((64, 64), 200, np.uint8)) == 0


def test_linked_groups__links_through_others() -> None:
    assert linked_groups(9, [(4, 5), (0, 3), (3, 5), (8, 7)]) == [[0, 3, 4, 5], [7, 8]]
    assert linked_groups(3, []) == []
