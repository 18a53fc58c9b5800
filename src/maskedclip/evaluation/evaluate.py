"""All protocols on one model and one store: features once, then linear probe, k-NN, zero-shot and retrieval.

n rows of the store in use, m of them in the test split.  The model comes in behind a Protocol, so that a run, a bare
encoder and a test's stand-in are evaluated by the same lines.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import maskedclip
from maskedclip.data.prompts import NORMAL, Overrides
from maskedclip.data.store import Store
from maskedclip.data.text import normalise_text
from maskedclip.errors import UserError
from maskedclip.evaluation.knn import nearest_neighbours, unit_rows
from maskedclip.evaluation.probe import linear_probe
from maskedclip.evaluation.retrieval import distinct, retrieval
from maskedclip.evaluation.scoring import score_labels
from maskedclip.evaluation.statistics import cluster_codes, cluster_weights
from maskedclip.evaluation.tasks import Prediction, Task, read_tasks
from maskedclip.evaluation.zero_shot import zero_shot

PROTOCOLS = ("linear", "knn", "zero_shot", "retrieval")
FEATURES = ("encoder", "bridge")
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
class _Case:
    """One evaluation: the rows in use, their features and tasks, and the bootstrap of the test rows."""

    model: EvaluationModel
    store: AnyStore
    rows: NDArray[np.int64]
    features: Mapping[str, NDArray]
    tasks: Mapping[str, Task]  # on `rows`
    refused: Mapping[str, str]
    weights: NDArray  # (R, m)
    seed: int
    prompts: Overrides | None

    @property
    def splits(self) -> NDArray[np.str_]:
        return self.store.splits[self.rows]

    @property
    def test(self) -> NDArray[np.bool_]:
        return self.splits == "test"

    @property
    def test_tasks(self) -> dict[str, Task]:
        return {name: task.on(self.test) for name, task in self.tasks.items()}


def evaluate(
    model: EvaluationModel,
    store: AnyStore,
    out: Path,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    replicates: int = 1000,
    seed: int = 0,
    prompts: Overrides | None = None,
) -> dict:
    """Evaluate `model` on the test split of `store`; write and return the results.

    `out/results.json`: by protocol, and for "linear" and "knn" by feature, {"macro", "per_label"} of {"value", "low",
    "high", "n"} (and "note"), the settings that validation chose, and "about" (fingerprints, rows, labels,
    replicates, seed); a protocol that can't be had is {"skipped": why}.  `out/predictions.parquet`: a row per test
    row, label (and class), protocol and feature, for paired comparison.  Nothing in them depends on time or machine.

    Raises UserError: no test split, an unknown protocol, prompts for unknown labels, features that are not finite,
    an `out` that isn't empty or can't be written.
    """
    _check_request(store, out, protocols, replicates)
    tasks, refused = read_tasks(store.labels)
    _check_prompts(prompts, tasks)
    rows = _rows(store, tasks, protocols)
    patients = store.patients[store.splits == "test"]
    case = _Case(
        model=model,
        store=store,
        rows=rows,
        features=_finite(model.features(store, rows), len(rows)),
        tasks={name: task.on(rows) for name, task in tasks.items()},
        refused=refused,
        weights=cluster_weights(patients, replicates=replicates, seed=seed),
        seed=seed,
        prompts=prompts,
    )
    results, tables = {}, []
    for protocol in PROTOCOLS:
        if protocol in protocols:
            results[protocol], parts = _SECTIONS[protocol](case)
            tables += parts
    results["about"] = _about(case, protocols)
    _write(out, results, tables)
    return results


def _check_request(store: AnyStore, out: Path, protocols: Sequence[str], replicates: int) -> None:
    unknown = [name for name in protocols if name not in PROTOCOLS]
    if unknown or not protocols:
        raise UserError(f"protocols: {', '.join(unknown) or 'none given'}; choose from {', '.join(PROTOCOLS)}")
    if replicates < 2:
        raise UserError(f"replicates: {replicates} give no interval; use 1000")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; give another folder or remove it")
    if not (store.splits == "test").any():
        raise UserError("store: no row has split 'test'; fill the manifest's split column and curate again")


def _check_prompts(prompts: Overrides | None, tasks: Mapping[str, Task]) -> None:
    names = {NORMAL, *tasks}
    for task in tasks.values():
        names |= {f"{task.name}={value}" for value in task.classes if task.kind != "binary"}
        names |= {str(value) for value in task.classes if task.kind == "nominal"}
    strangers = [label for label in prompts or () if label not in names]
    if strangers:
        raise UserError(f"prompts: {strangers[0]!r} is no label of the store; it has {', '.join(tasks) or 'none'}")


def _rows(store: AnyStore, tasks: Mapping[str, Task], protocols: Sequence[str]) -> NDArray[np.int64]:
    """Test rows, and those rows to learn from that have a label, if anything is learnt."""
    used = store.splits == "test"
    if {"linear", "knn"} & set(protocols):
        for task in tasks.values():
            used |= task.known & np.isin(store.splits, ("train", "val"))
    return np.flatnonzero(used)


def _finite(features: Mapping[str, NDArray], rows: int) -> Mapping[str, NDArray]:
    for name, table in features.items():
        assert len(table) == rows, f"{name}: {len(table)} features for {rows} rows"
        broken = int((~np.isfinite(table)).any(axis=1).sum())
        if broken:
            raise UserError(f"model: {broken} of {rows} '{name}' features are not finite; its training diverged")
    return features


def _learnt(case: _Case, protocol: str) -> tuple[dict, list[pa.Table]]:
    """The section of "linear" or "knn": a part for each feature that the model has."""
    if not case.tasks:
        return {"skipped": _no_labels(case)}, []
    if not (case.splits == "train").any():
        return {"skipped": "no row of the split 'train' has a label"}, []
    section, tables = {}, []
    for feature in FEATURES:
        if feature in case.features:
            x = case.features[feature]
            if protocol == "linear":
                patients = case.store.patients[case.rows]
                answers = linear_probe(x, case.tasks, case.splits, patients, seed=case.seed)
            else:
                answers = nearest_neighbours(x, case.tasks, case.splits)
            given = {name: answer for name, answer in answers.items() if isinstance(answer, Prediction)}
            chosen = {name: answer.chosen for name, answer in given.items()}
            section[feature] = score_labels(case.test_tasks, answers, case.weights) | {"chosen": chosen}
            tables += _prediction_tables(case, protocol, feature, given)
    return section, tables


def _zero_shot(case: _Case) -> tuple[dict, list[pa.Table]]:
    if not case.tasks:
        return {"skipped": _no_labels(case)}, []
    if not case.model.has_text:
        return {"skipped": "the model has no text encoder"}, []
    images = case.features["projected"][case.test]
    answers = zero_shot(images, case.test_tasks, case.model.encode_text, prompts=case.prompts)
    section = score_labels(case.test_tasks, answers, case.weights)
    return section, _prediction_tables(case, "zero_shot", "projected", answers)


def _retrieval(case: _Case) -> tuple[dict, list[pa.Table]]:
    if not case.model.has_text:
        return {"skipped": "the model has no text encoder"}, []
    texts = [case.store.texts[row] for row in case.rows[case.test]]
    written = [(place, text) for place, text in enumerate(texts) if text and normalise_text(text)]
    keys, own = distinct([normalise_text(text) for _, text in written])
    if len(keys) < 2:
        return {"skipped": f"the test split has {len(keys)} distinct texts; retrieval needs two"}, []
    # The tower reads a text as it was written (its case may matter); the key only says which texts are one.
    first = {int(key): text for key, (_, text) in reversed(list(zip(own, written, strict=True)))}
    embedded = unit_rows(case.model.encode_text([first[key] for key in range(len(keys))]))
    places = [place for place, _ in written]
    images = unit_rows(case.features["projected"][case.test][places])
    return retrieval(images, embedded, own, case.weights[:, places], seed=case.seed), []


_SECTIONS = {
    "linear": lambda case: _learnt(case, "linear"),
    "knn": lambda case: _learnt(case, "knn"),
    "zero_shot": _zero_shot,
    "retrieval": _retrieval,
}


def _no_labels(case: _Case) -> str:
    reasons = [f"label.{name} {reason}" for name, reason in case.refused.items()]
    return "; ".join(reasons) or "the store has no label.* column"


def _about(case: _Case, protocols: Sequence[str]) -> dict:
    splits = ("train", "val", "test")
    return {
        "version": maskedclip.__version__,
        "model": case.model.fingerprint,
        "store": case.store.fingerprint,
        "rows": {split: int((case.store.splits == split).sum()) for split in splits},
        "rows_used": {split: int((case.splits == split).sum()) for split in splits},
        "test_patients": int(cluster_codes(case.store.patients[case.store.splits == "test"]).max()) + 1,
        "labels": {
            name: {"kind": task.kind, "classes": list(task.classes), "test": _class_counts(task.on(case.test))}
            for name, task in case.tasks.items()
        },
        "labels_left_out": dict(case.refused),
        "protocols": [protocol for protocol in PROTOCOLS if protocol in protocols],
        "replicates": case.weights.shape[0],
        "seed": case.seed,
    }


def _class_counts(task: Task) -> dict[str, int]:
    counts = np.bincount(task.truth[task.known], minlength=len(task.classes))
    return {str(value): int(count) for value, count in zip(task.classes, counts, strict=True)}


def _prediction_tables(case: _Case, protocol: str, feature: str, answers: Mapping[str, Prediction]) -> list[pa.Table]:
    """The known test rows of each label (and class that could be scored) in PREDICTION_SCHEMA."""
    tables = []
    test = case.rows[case.test]
    for name, answer in answers.items():
        task = case.test_tasks[name]
        rows = test[task.known]
        same = {
            "id": [case.store.ids[row] for row in rows],
            "patient": [case.store.patients[row] or None for row in rows],
            "split": ["test"] * len(rows),
            "label": [name] * len(rows),
            "protocol": [protocol] * len(rows),
            "feature": [feature] * len(rows),
        }
        columns = (
            {None: answer.scores} if task.kind == "binary" else dict(zip(task.classes, answer.scores.T, strict=True))
        )
        for place, (value, scores) in enumerate(columns.items()):
            if not np.isnan(scores).any():
                truth = task.truth[task.known] == (1 if value is None else place)
                own = {
                    "class": [None if value is None else str(value)] * len(rows),
                    "score": scores[task.known],
                    "truth": truth.astype(np.float32),
                }
                tables.append(pa.Table.from_pydict(same | own, schema=PREDICTION_SCHEMA))
    return tables


def _write(out: Path, results: dict, tables: list[pa.Table]) -> None:
    """Both files, the results last: a folder that has them is complete."""
    table = pa.concat_tables(tables) if tables else PREDICTION_SCHEMA.empty_table()
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, out / "predictions.parquet", compression="zstd")
        partial = out / "results.json.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(out / "results.json")
    except OSError as error:
        raise UserError(f"{out}: the results can't be written ({error}); free space or give another folder") from error
