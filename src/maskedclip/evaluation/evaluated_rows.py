"""The rows that an evaluation is on, as it keeps them: all test rows, and a fingerprint of what it read of the store.

A bootstrap draws the patients of all test rows, also of those whose label is not known, so a comparison that is to give
the intervals of the evaluations needs them all.
"""

import hashlib

import numpy as np
import pyarrow as pa

from maskedclip.evaluation.case import AnyStore

TEST_TABLE = "test.parquet"
TEST_SCHEMA = pa.schema([("id", pa.string()), ("patient", pa.string())])


def rows_table(store: AnyStore) -> pa.Table:
    """Id and patient (null for none) of the m test rows in the order of the store, in TEST_SCHEMA."""
    rows = np.flatnonzero(store.splits == "test").tolist()
    columns = {"id": [store.ids[row] for row in rows], "patient": [store.patients[row] or None for row in rows]}
    return pa.Table.from_pydict(columns, schema=TEST_SCHEMA)


def labels_fingerprint(store: AnyStore) -> str:
    """Changes with any split, patient or label, which `store.fingerprint` does not see."""
    digest = hashlib.sha256()
    for name, values in {"split": store.splits, "patient": store.patients, **store.labels}.items():
        digest.update(f"{name}\0".encode())
        digest.update("\0".join(map(str, values.tolist())).encode())
    return digest.hexdigest()[:16]
