"""What a run was trained on, row by row, so that an evaluation years later can tell what the model has seen."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.data.sampler import Pools
from maskedclip.data.store import Store

SEEN = "seen.parquet"
SCHEMA = pa.schema(
    [
        ("store", pa.string()),  # fingerprint
        ("id", pa.string()),
        ("sha256", pa.string()),  # of the source file; null where the store does not say
        ("perceptual_hash", pa.string()),
        ("patient", pa.string()),
        ("with_text", pa.bool_()),
    ]
)


def write_seen(folder: Path, store: Store, pools: Pools) -> None:
    """Write FOLDER/seen.parquet: a line for each row of the pools that the sampler draws from."""
    rows = np.concatenate([pools.paired, pools.unpaired]).astype(np.int64)
    with_text = np.concatenate([np.ones(len(pools.paired), bool), np.zeros(len(pools.unpaired), bool)])
    rows, first = np.unique(rows, return_index=True)  # a paired image may be in both pools
    owners = np.concatenate(
        [np.full(size, name, dtype=object) for name, size in zip(store.fingerprints, store.sizes, strict=True)]
    )
    table = store.table.take(pa.array(rows))

    def column(name: str) -> pa.Array | pa.ChunkedArray:
        if name in table.column_names:
            return table.column(name).cast(pa.string())
        return pa.nulls(len(rows), pa.string())

    columns = {name: column(name) for name in ("id", "sha256", "perceptual_hash", "patient")}
    seen = pa.table({"store": pa.array(owners[rows], pa.string()), **columns, "with_text": with_text[first]})
    partial = folder / f"{SEEN}.partial"
    pq.write_table(seen.select(SCHEMA.names).cast(SCHEMA), partial, compression="zstd")
    partial.replace(folder / SEEN)
