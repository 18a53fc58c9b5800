"""Features of many images in one Parquet file, with ids: what search, maps and other people's tools read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from maskedclip.console import bar, say
from maskedclip.data.store import Store, open_store
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.features import BATCH

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm"}


def embed(model: Model, data: Path, out: Path) -> Path:
    """Write the features of a store's rows, or of the images below a folder.

    Columns: `id` (the store's, or the path below the folder), the store's columns where there is one, then a list of
    float32 for each output: `encoder` (the default feature), `bridge` and `projected` (unit length).

    Raises:
        UserError: `out` exists, or there is no image.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists; choose another file")
    if not data.exists():
        raise UserError(f"--data {data}: no such store or folder")
    if data.is_dir() and any(data.glob("shard-*.parquet")):
        table = _embed_store(model, open_store(data))
    else:
        table = _embed_files(model, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    metadata = {b"maskedclip.model": model.fingerprint.encode()}
    pq.write_table(table.replace_schema_metadata(metadata), partial)
    partial.rename(out)
    return out


def _columns(features: dict[str, np.ndarray]) -> dict[str, pa.Array]:
    """Each output (N, D) as a list column."""
    return {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])
        for name, values in features.items()
    }


def _embed_store(model: Model, store: Store) -> pa.Table:
    parts: list[dict[str, np.ndarray]] = []
    with bar("embed", len(store)) as shown:
        for start in range(0, len(store), BATCH):
            rows = np.arange(start, min(start + BATCH, len(store)))
            parts.append(model.features(store, rows))
            shown.advance(len(rows))
    table = store.table
    for name, values in _columns(_stack(parts)).items():
        table = table.append_column(name, values)
    return table


def _embed_files(model: Model, data: Path) -> pa.Table:
    found = (
        sorted(path for path in data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES) if data.is_dir() else [data]
    )
    if not found:
        raise UserError(f"--data {data}: no images below this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    ids: list[str] = []
    parts: list[dict[str, np.ndarray]] = []
    rejected: list[str] = []
    with bar("embed", len(found)) as shown:
        for start in range(0, len(found), BATCH):
            prepared = []
            for path in found[start : start + BATCH]:
                try:
                    prepared.append(model.preprocess(path))
                    ids.append(str(path.relative_to(data)) if path != data else path.name)
                except UserError as error:
                    rejected.append(str(error))
            if prepared:
                parts.append(model.encode_images(torch.stack(prepared)))
            shown.advance(len(found[start : start + BATCH]))
    for line in rejected[:20]:
        say(f"left out: {line}")
    if rejected:
        say(f"{len(rejected)} of {len(found)} files left out")
    if not parts:
        raise UserError(f"--data {data}: none of its {len(found)} files can be read as an image")
    return pa.table({"id": ids} | _columns(_stack(parts)))


def _stack(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
