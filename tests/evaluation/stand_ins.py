"""A store and a model made of arrays, with the surface that evaluation asks for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayStore:
    ids: Sequence[str]
    patients: NDArray[np.object_]
    splits: NDArray[np.str_]
    texts: Sequence[str | None]
    labels: Mapping[str, NDArray]
    fingerprint: str = "store-1"

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayModel:
    tables: Mapping[str, NDArray]
    words: Mapping[str, NDArray] = field(default_factory=dict)  # text embeddings are sums of these
    has_text: bool = True
    fingerprint: str = "model-1"

    def features(self, store: ArrayStore, rows: NDArray[np.int64]) -> dict[str, NDArray]:
        return {name: table[rows] for name, table in self.tables.items()}

    def encode_text(self, texts: list[str]) -> NDArray:
        width = self.tables["projected"].shape[1]
        rows = np.full((len(texts), width), 1e-3)
        for row, text in zip(rows, texts, strict=True):
            for word, vector in self.words.items():
                row += vector if word in text.lower() else 0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_case(seed: int = 0, patients: int = 120) -> tuple[ArrayStore, ArrayModel]:
    """Two eyes a patient; glaucoma, drusen, normal, a grade and a camera; a model that sees each of them, noisily."""
    generator = np.random.Generator(np.random.Philox(seed))
    n = 2 * patients
    glaucoma, drusen = generator.random(n) < 0.3, generator.random(n) < 0.25
    grade = generator.integers(0, 3, n)
    camera = np.array(["topcon", "zeiss", "canon"])[generator.integers(0, 3, n)]
    normal = ~(glaucoma | drusen)
    signal = np.stack([glaucoma, drusen, normal, grade / 2, camera == "zeiss", camera == "canon"], axis=1)
    features = signal @ generator.normal(size=(6, 16)) * 0.6 + generator.normal(size=(n, 16))
    words = {word: np.eye(8)[k] for k, word in enumerate(["glaucoma", "drusen", "normal"])}
    projected = np.stack([glaucoma, drusen, normal], axis=1) @ np.eye(8)[:3] + 0.4 * generator.normal(size=(n, 8))
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    findings = [("glaucoma", glaucoma), ("drusen", drusen), ("normal fundus", normal)]
    texts = [", ".join(name for name, given in findings if given[row]) for row in range(n)]
    split = np.array(["train", "val", "test"])[generator.choice(3, size=patients, p=[0.5, 0.2, 0.3])]
    store = ArrayStore(
        ids=[f"row-{row}" for row in range(n)],
        patients=np.array([f"p{row // 2}" for row in range(n)], dtype=object),
        splits=np.repeat(split, 2),
        texts=[text.capitalize() if row % 3 else text + "." for row, text in enumerate(texts)],
        labels={
            "glaucoma": glaucoma.astype(np.float32),
            "drusen": drusen.astype(np.float32),
            "normal": normal.astype(np.float32),
            "dr_grade": grade.astype(np.float32),
            "camera": camera.astype(object),
        },
    )
    tables = {"encoder": features, "bridge": features + generator.normal(size=features.shape), "projected": projected}
    return store, ArrayModel(tables=tables, words=words)


def changed(case: ArrayStore, **fields: object) -> ArrayStore:
    return replace(case, **fields)  # pyright: ignore[reportArgumentType]
