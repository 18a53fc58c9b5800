"""Tiny images and short ways to make a manifest, for the tests of the sources."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.data.curate import Curation, curate
from maskedclip.data.imaging import encode_jpeg, encode_png
from maskedclip.data.manifest import read_manifest
from maskedclip.data.sources.gathered import SourceOptions
from maskedclip.data.sources.make import Made, make_manifest


def pixels(seed: int, size: int = 24) -> np.ndarray:
    """A picture of its own for each seed, (size, size, 3)."""
    return np.random.Generator(np.random.Philox(seed)).integers(0, 256, (size, size, 3), np.uint8)


def png(seed: int) -> bytes:
    return encode_png(pixels(seed))


def jpeg(seed: int) -> bytes:
    return encode_jpeg(pixels(seed))


def put(folder: Path, *names: str) -> None:
    """Write a picture of its own under each name."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(seed) if name.lower().endswith((".jpg", ".jpeg")) else png(seed))


def make(
    source: Path | str,
    out: Path,
    *,
    kind: str | None = None,
    texts: Mapping[str, Sequence[str]] | bool = False,
    **options: Any,
) -> Made:
    return make_manifest(source, out, kind=kind, texts=texts, options=SourceOptions(**options))


def rows_of(out: Path, **options: Any) -> list[dict[str, Any]]:
    """The manifest as `read_manifest` has it, without what is null throughout."""
    table = read_manifest(out, **options).table
    return table.select([name for name in table.column_names if table.column(name).null_count < len(table)]).to_pylist()


def remarks_of(made: Made) -> dict[str, tuple[bool, str]]:
    return {remark.name: (remark.kept, remark.reason) for remark in made.remarks}


def curated(out: Path) -> Curation:
    return curate(out, out.parent / f"{out.stem}_store", size=16, crop="none", encoding="png", progress=False)
