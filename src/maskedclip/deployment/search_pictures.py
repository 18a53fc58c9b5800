"""Thumbnails of found rows, from the data that was embedded: a store, a folder, an archive, a manifest, a list.

Only what lies in that data is read: an id of a Parquet file cannot name a file outside of it.
"""

import io
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from maskedclip.errors import UserError

_KEPT = 1024


class Pictures:
    """The pictures of a table's rows, and why they cannot be had.

    Attributes:
        source: where they are.  why_not: one line where there are none at all, else "".
    """

    def __init__(self, table: pa.Table, source: Path | None) -> None:
        self.table, self.source, self.why_not = table, source, ""
        self._opening = threading.Lock()
        self._opened: Callable[[str], Any] | None = None
        self._thumbnail = lru_cache(maxsize=_KEPT)(self._make)
        if source is None:
            self.why_not = "the file does not say where its pictures are; name a store or folder with --images"
        elif not source.exists():
            self.why_not = f"{source}: the pictures are no longer there; name a store or folder with --images"

    def thumbnail(self, row: int, size: int = 256) -> bytes | None:
        """A JPEG of at most `size` px a side; None where the picture is missing or cannot be read."""
        return None if self.why_not else self._thumbnail(row, size)

    def _make(self, row: int, size: int) -> bytes | None:
        from maskedclip.data.imaging import UndecodableImage

        try:
            pixels = self._reader(str(self.table.column("id")[row].as_py()))
            return None if pixels is None else to_thumbnail(pixels, size)
        except (UndecodableImage, UserError, OSError, KeyError, ValueError):
            return None

    @property
    def _reader(self) -> Callable[[str], Any]:
        """Id -> RGB uint8 (H, W, 3), or None."""
        with self._opening:  # threads may ask for their first pictures at once
            if self._opened is None:
                assert self.source is not None
                self._opened = _open(self.source)
            return self._opened


def _open(source: Path) -> Callable[[str], Any]:
    from maskedclip.data.imaging import decode
    from maskedclip.data.manifest import is_url, local_path
    from maskedclip.deployment.inputs import open_inputs

    if source.is_dir() and not any(source.glob("shard-*.parquet")):  # not listed first: it may hold a million files
        base = source.resolve()

        def read(id: str) -> Any:
            path = Path(local_path(id, base)).resolve()
            inside = not is_url(id) and path.is_relative_to(base) and path.is_file()
            return decode(path.read_bytes(), name=path.name) if inside else None

        return read
    inputs = open_inputs(source)
    places = {id: place for place, id in enumerate(inputs.ids)}

    def pixels(id: str) -> Any:
        place = places.get(id)
        return None if place is None or is_url(id) else inputs.pixels(place)

    return pixels


def to_thumbnail(pixels: Any, size: int) -> bytes:
    """RGB uint8 (H, W, 3) -> JPEG of at most `size` px a side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=88)
    return buffer.getvalue()
