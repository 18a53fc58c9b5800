"""What one evaluation works on: the rows in use, their features, tasks, and the bootstrap of the test rows.

n rows of the store in use, m of them in the test split, R bootstrap replicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskedclip.data.prompts import Overrides
from maskedclip.data.store import Store
from maskedclip.evaluation.tasks import Prediction, Task

PREDICTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("patient", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("class", pa.string()),  # null for a binary label
        ("protocol", pa.string()),
        ("feature", pa.string()),
        ("score", pa.float64()),
        ("truth", pa.float32()),  # 1 where the row has the finding, or is of the class
    ]
)


class EvaluationStore(Protocol):
    """The columns of a store that evaluation reads; every one has `len(store)` entries."""

    @property
    def ids(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def patients(self) -> NDArray[np.object_]:
        """Patient of each row, '' where none is known."""
        ...

    @property
    def splits(self) -> NDArray[np.str_]:
        """Split of each row ("train", "val", "test"), '' where it has none."""
        ...

    @property
    def texts(self) -> Sequence[str | None]: ...  # noqa: D102
    @property
    def labels(self) -> Mapping[str, NDArray]:
        """By name: float32 with NaN, or objects with None, where the value is unknown."""
        ...

    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    def __len__(self) -> int: ...


# Store fits the protocol; a type checker cannot see it, as Store caches its columns (cached_property).
AnyStore = Store | EvaluationStore


class EvaluationModel(Protocol):
    """What evaluation asks of a model."""

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower, and `features` gives "projected"."""
        ...

    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    def features(self, store: Any, rows: NDArray[np.int64]) -> Mapping[str, NDArray]:
        """Of the given rows of the store: "encoder" (n, D); where there are any "bridge" (n, D), "projected" (n, E)."""
        ...

    def encode_text(self, texts: list[str]) -> NDArray:
        """Unit text embeddings (n, E)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One evaluation.

    model, store: what is evaluated, and on what.  rows: of the store, (n,).  features: by name (n, .); empty where no
    protocol reads frozen features.  tasks: on `rows`.  refused: label columns that are no task, and why.  weights:
    (R, m).  prompts: for zero-shot.
    """

    model: EvaluationModel
    store: AnyStore
    rows: NDArray[np.int64]
    features: Mapping[str, NDArray]
    tasks: Mapping[str, Task]
    refused: Mapping[str, str]
    weights: NDArray
    seed: int
    prompts: Overrides | None

    @property
    def splits(self) -> NDArray[np.str_]:
        """Split of each row in use, (n,)."""
        return self.store.splits[self.rows]

    @property
    def patients(self) -> NDArray[np.object_]:
        """Patient of each row in use, (n,)."""
        return self.store.patients[self.rows]

    @property
    def test(self) -> NDArray[np.bool_]:
        """Which of the rows in use are test rows, (n,)."""
        return self.splits == "test"

    @property
    def test_tasks(self) -> dict[str, Task]:
        """The tasks on the m test rows."""
        return {name: task.on(self.test) for name, task in self.tasks.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """What a protocol found out on one feature: the answers on the test rows, kept for predictions.parquet."""

    protocol: str
    feature: str
    answers: Mapping[str, Prediction | str]


def prediction_tables(case: Case, answered: Answered) -> list[pa.Table]:
    """The known test rows of each label (and class that could be scored) in PREDICTION_SCHEMA."""
    tables = []
    test = case.rows[case.test]
    test_tasks = case.test_tasks
    for name, answer in answered.answers.items():
        if isinstance(answer, str):
            continue
        task = test_tasks[name]
        rows = test[task.known]
        same = {
            "id": [case.store.ids[row] for row in rows],
            "patient": [case.store.patients[row] or None for row in rows],
            "split": ["test"] * len(rows),
            "label": [name] * len(rows),
            "protocol": [answered.protocol] * len(rows),
            "feature": [answered.feature] * len(rows),
        }
        columns = (
            {None: answer.scores} if task.kind == "binary" else dict(zip(task.classes, answer.scores.T, strict=True))
        )
        for place, (value, scores) in enumerate(columns.items()):
            if not np.isnan(scores[task.known]).any():
                truth = task.truth[task.known] == (1 if value is None else place)
                own = {
                    "class": [None if value is None else str(value)] * len(rows),
                    "score": scores[task.known],
                    "truth": truth.astype(np.float32),
                }
                tables.append(pa.Table.from_pydict(same | own, schema=PREDICTION_SCHEMA))
    return tables
