"""The figures of each test image of a dense probe: how they are kept, and their mean on the replicates of a bootstrap.

m images, R replicates.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.statistics import Distribution, cluster_codes, with_point

METRICS = ("auroc", "auprc", "dice")
DENSE_TABLE = "dense.parquet"
DENSE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("patient", pa.string()),
        ("label", pa.string()),
        ("feature", pa.string()),
        *((name, pa.float64()) for name in METRICS),  # null where the image has one class only
    ]
)


def image_mean(values: NDArray[np.float64], patients: NDArray[np.object_], weights: NDArray) -> Distribution:
    """Mean over the images that have a value, on the set and on each replicate; one patient alone has no replicates.

    values (m,) with NaN where an image has none; patients (m,); weights (R, m).
    """
    known = ~np.isnan(values)
    if not known.any():
        nothing = np.full(len(weights), np.nan)
        return Distribution(value=np.nan, replicates=nothing, n=0, reason="no test image has both classes")
    rows = with_point(weights[:, known]).astype(np.float64)
    total = rows.sum(axis=1)
    means = np.divide(rows @ values[known], total, out=np.full(len(rows), np.nan), where=total > 0)
    support = int(cluster_codes(patients[known]).max()) + 1
    if support < 2:
        means[1:] = np.nan
    return Distribution.from_rows(means, int(known.sum()), bounds=SHARE, support=support)
