"""Evaluations for the tests of comparison: models that see the same store more or less clearly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.evaluation.evaluate import evaluate
from tests.evaluation.stand_ins import ArrayModel, ArrayStore, make_case

STORE, MODEL = make_case()


def blurred(noise: float, seed: int = 8, *, text: bool = True) -> ArrayModel:
    """The model with noise on its features; without text it has neither bridge nor projection."""
    generator = np.random.Generator(np.random.Philox(seed))
    tables = {name: table + noise * generator.normal(size=table.shape) for name, table in MODEL.tables.items()}
    if not text:
        tables = {"encoder": tables["encoder"]}
    return replace(MODEL, tables=tables, has_text=text, fingerprint=f"model-{noise}-{seed}")


def evaluated(model: ArrayModel, out: Path, store: ArrayStore = STORE, *, replicates: int = 20) -> Path:
    """The folder of an evaluation with all frozen protocols."""
    evaluate(model, store, out, replicates=replicates)
    return out


def rewritten(source: Path, target: Path, **columns: list) -> Path:
    """A copy of an evaluation with other columns of predictions; rows from the top where they are fewer."""
    target.mkdir()
    table = pq.read_table(source / "predictions.parquet")
    for name, values in columns.items():
        table = table.slice(0, len(values))
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, target / "predictions.parquet")
    (target / "results.json").write_bytes((source / "results.json").read_bytes())
    return target
