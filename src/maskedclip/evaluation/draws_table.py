"""The means over draws as an evaluation keeps them, replicate by replicate: draws.parquet.

A draw is a pure function of seed and label, and all models see the same replicates of draws and patients, so the
difference of two models' replicates is paired in both.  R replicates.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.statistics import Distribution

DRAWS_TABLE = "draws.parquet"
DRAWS_SCHEMA = pa.schema(
    [
        ("protocol", pa.string()),
        ("feature", pa.string()),  # with its setting: "encoder, 5" of 5 shots
        ("label", pa.string()),
        ("value", pa.float64()),  # NaN where undefined
        ("n", pa.int64()),
        ("support", pa.float64()),
        ("replicates", pa.list_(pa.float64())),
    ]
)
_METADATA = b"maskedclip.draws"
DrawnKey = tuple[str, str, str]  # protocol, feature with its setting, label


@dataclass(frozen=True, kw_only=True)
class DrawnMeans:
    """means: AUROC over the draws, by key.  bootstrap: replicates and seed that they were made with.

    rows, patients: of the test split.
    """

    means: Mapping[DrawnKey, Distribution] = field(default_factory=dict)
    bootstrap: tuple[int, int] = (0, 0)
    rows: int = 0
    patients: int = 0


def draws_table(drawn: DrawnMeans) -> pa.Table:
    """In DRAWS_SCHEMA, with the rest as metadata."""
    means = drawn.means
    columns = {
        "protocol": [key[0] for key in means],
        "feature": [key[1] for key in means],
        "label": [key[2] for key in means],
        "value": [part.value for part in means.values()],
        "n": [part.n for part in means.values()],
        "support": [part.support for part in means.values()],
        "replicates": [part.replicates for part in means.values()],
    }
    rest = {"bootstrap": list(drawn.bootstrap), "rows": drawn.rows, "patients": drawn.patients}
    return pa.Table.from_pydict(columns, schema=DRAWS_SCHEMA.with_metadata({_METADATA: json.dumps(rest).encode()}))


def read_draws(table: pa.Table) -> DrawnMeans:
    """What `draws_table` wrote.

    Raises:
        KeyError, TypeError, ValueError: another table.
    """
    rest = json.loads((table.schema.metadata or {})[_METADATA])
    rows = table.select(DRAWS_SCHEMA.names).cast(DRAWS_SCHEMA).to_pydict()
    means = {
        (protocol, feature, label): Distribution(
            value=value, replicates=np.asarray(replicates, np.float64), n=n, bounds=SHARE, support=support
        )
        for protocol, feature, label, value, n, support, replicates in zip(*rows.values(), strict=True)
    }
    replicates, seed = rest["bootstrap"]
    return DrawnMeans(
        means=means, bootstrap=(int(replicates), int(seed)), rows=int(rest["rows"]), patients=int(rest["patients"])
    )
