"""What the tests of classifiers and heads share: a store whose splits have both labels, a model that knows words."""

import copy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskedclip.data.store import Store, open_store
from maskedclip.deployment.heads import Head, Kind
from maskedclip.deployment.model import Model
from tests.stores import make_store

WORDS = ["clear", "red", "green", "red and green"]


def labelled_store(folder: Path, *, rows: int = 160) -> Path:
    """`make_store` with splits in which every kind occurs, and with the kind in words and as a grade."""
    make_store(folder, rows=rows)
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(shard)
        patients = [int(name[1:]) for name in table.column("patient").to_pylist()]
        kinds = [patient * 7 % 4 for patient in patients]
        splits = [("train", "train", "val", "test", "val")[patient % 5] for patient in patients]
        table = table.set_column(table.column_names.index("split"), "split", pa.array(splits))
        table = table.append_column("label.colour", pa.array([WORDS[kind] for kind in kinds]))
        table = table.append_column("label.grade", pa.array([float(kind) for kind in kinds], pa.float32()))
        pq.write_table(table, shard)
    return folder


def told(model: Model, store: Store) -> Model:
    """The model with words that it understands: each text points to the mean of the images it speaks of."""
    images = model.features(store, np.arange(len(store)))["projected"].astype(np.float64)
    red, green = (store.labels[name] == 1 for name in ("red", "green"))
    groups = {"red": red & ~green, "green": green & ~red, "": ~red & ~green}

    def encode_text(texts: str | list[str]) -> NDArray:
        listed = [texts] if isinstance(texts, str) else list(texts)
        chosen = ["red" if "red" in text else "green" if "green" in text else "" for text in listed]
        means = np.stack([images[groups[name]].mean(axis=0) for name in chosen])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    knowing = copy.copy(model)
    knowing.encode_text = encode_text  # type: ignore[method-assign]
    return knowing


def open_labelled(folder: Path) -> Store:
    """The store, opened."""
    return open_store(folder)


def linear_map(kind: Kind, count: int, scale: float = 1.0) -> Head:
    """A head whose scores are the features."""
    return Head(
        labels=tuple(f"l{place}" for place in range(count)),
        kind=kind,
        method="linear",
        output="encoder",
        weight=np.eye(count),
        bias=np.zeros(count),
        slopes=np.full(count, scale),
        intercepts=np.zeros(count),
        calibrated=np.zeros(count, bool),
        cuts=np.zeros(count),
    )
