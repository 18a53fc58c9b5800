"""Some of a store's pictures on one sheet, for its data card."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from maskedclip.data.imaging import decode, encode_jpeg

COLUMNS, ROWS, SIDE = 6, 2, 128


def example_sheet(shards: Sequence[Path]) -> bytes:
    """Twelve pictures, evenly spaced over the rows of the shards, as one JPEG of 768 x 256 px; or all of fewer rows."""
    sizes = [pq.read_metadata(shard).num_rows for shard in shards]
    total = sum(sizes)
    count = min(COLUMNS * ROWS, total)
    rows = [place * total // count for place in range(count)]
    starts = np.cumsum([0, *sizes])
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-count // COLUMNS) * SIDE))
    for place, row in enumerate(rows):
        shard = int(np.searchsorted(starts, row, side="right")) - 1
        data = _picture(shards[shard], row - int(starts[shard]))
        picture = Image.fromarray(decode(data)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
    return encode_jpeg(np.asarray(sheet), quality=85)


def _picture(shard: Path, row: int) -> bytes:
    with pq.ParquetFile(shard) as file:
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row < count:
                return file.read_row_group(group, columns=["image"]).column(0)[row].as_py()["bytes"]
            row -= count
    raise AssertionError("a row of the shard")
