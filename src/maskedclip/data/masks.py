"""The masks of a store's rows: what is where in an image, as `mask.NAME` columns hold it."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskedclip.data.imaging import UndecodableImage, decode_mask
from maskedclip.data.store import Store, shard_files
from maskedclip.errors import UserError

PREFIX = "mask."
FIELD = "field"
"""The mask of the visible circle: no target, but where pixels count."""


def mask_names(store: Store) -> list[str]:
    """The masks that some shard has a column for, without `field`, in order of appearance."""
    found = (name for folder in store.folders for shard in shard_files(folder) for name in pq.read_schema(shard).names)
    names = [name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)]
    return [name for name in dict.fromkeys(names) if name != FIELD]


def read_masks(store: Store, rows: Sequence[int] | NDArray[np.int64], name: str) -> list[NDArray[np.bool_] | None]:
    """One mask of some rows, in their order: bool (H, W), true where it is not 0; None where a row has none.

    Only the row groups that hold a wanted row are read.

    Raises:
        UserError: a mask cannot be decoded.
    """
    wanted = {int(row): place for place, row in enumerate(rows)}
    masks: list[NDArray[np.bool_] | None] = [None] * len(rows)
    first = 0
    for shard in (shard for folder in store.folders for shard in shard_files(folder)):
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                here = [row for row in range(first, first + count) if row in wanted]
                if here and PREFIX + name in file.schema_arrow.names:
                    column = file.read_row_group(group, columns=[PREFIX + name]).column(0)
                    for row in here:
                        value = column[row - first].as_py()
                        if value is not None and value["bytes"] is not None:
                            masks[wanted[row]] = _decoded(value["bytes"], store.ids[row], name)
                first += count
    return masks


def _decoded(data: bytes, row: str, name: str) -> NDArray[np.bool_]:
    try:
        return decode_mask(data) > 0
    except UndecodableImage as error:
        raise UserError(f"{PREFIX}{name} of row {row} {error}; the store is damaged, curate again") from None
