"""The store's shards: the schema, and Parquet files that appear complete or not at all.

Images and masks are structs of bytes and path, as Hugging Face datasets keeps pictures; the schema's metadata says so,
whence `datasets.load_dataset` decodes them.  Nothing in a shard depends on the time or the machine's load.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.data.quality import QUALITY

SCHEMA_VERSION = 2
"""1: without quality columns and checksums.  `store_migrate` brings a store up to date."""
SHARD_ROWS = 1_000
GROUP_ROWS = 100
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COMPUTED = {
    "sha256": pa.string(),
    "perceptual_hash": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "source_width": pa.int32(),
    "source_height": pa.int32(),
    "field_found": pa.bool_(),
    **{f"quality.{name}": pa.float32() for name in QUALITY},
}
_HF_NAMES = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date32"}


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:05d}.parquet"


def store_schema(manifest: pa.Schema) -> pa.Schema:
    """The schema of the store of a manifest's table, with the metadata that makes pictures decode."""
    names = [field.name for field in manifest]
    fields = [pa.field("id", pa.string()), pa.field("image", PICTURE)]
    for name in ("text", "patient", "split"):
        fields.append(pa.field(name, pa.string()))
    fields += [manifest.field(name) for name in names if name.startswith("label.")]
    fields += [pa.field(name, PICTURE) for name in names if name.startswith("mask.")]
    known = {field.name for field in fields}
    fields += [manifest.field(name) for name in names if name not in known]
    fields += [pa.field(name, kind) for name, kind in COMPUTED.items()]
    return stored_schema(pa.schema(fields))


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """A schema with the metadata that makes pictures decode in Hugging Face datasets."""
    features = {field.name: _feature(field.type) for field in schema}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> dict[str, str]:
    if kind == PICTURE:
        return {"_type": "Image"}
    return {"dtype": hf_name(kind), "_type": "Value"}


def hf_name(kind: pa.DataType) -> str:
    """What Hugging Face datasets calls an Arrow type."""
    return _HF_NAMES.get(str(kind), str(kind).replace("date64[ms]", "date64").replace("decimal(", "decimal128("))


def row_id(image: str, sha256: str) -> str:
    """A row's id, the same in every run: a hash of what the manifest calls the image and of the source's bytes."""
    return hashlib.sha256(f"{image}\0{sha256}".encode()).hexdigest()[:32]


def store_rows(manifest: pa.Table, results: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows of the store from rows of a manifest and what the engine made of their files, (n,) each."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    images = manifest.column("image").to_pylist()
    hashes = results.column("sha256").to_pylist()
    for field in schema:
        name = field.name
        if name == "id":
            ids = [row_id(image, digest) for image, digest in zip(images, hashes, strict=True)]
            columns[name] = pa.array(ids, pa.string())
        elif field.type == PICTURE:
            columns[name] = _pictures(results.column(name), manifest.column(name))
        elif name in COMPUTED:
            columns[name] = results.column(name).cast(field.type)
        else:
            columns[name] = manifest.column(name)
    return pa.table(columns).cast(schema)


def _pictures(encoded: pa.ChunkedArray, paths: pa.ChunkedArray) -> pa.Array:
    """Bytes and paths as pictures; null where there is no picture."""
    content, place = encoded.combine_chunks().cast(pa.binary()), paths.combine_chunks().cast(pa.string())
    return pa.StructArray.from_arrays([content, place], fields=list(PICTURE), mask=content.is_null())


def write_shard(rows: pa.Table, path: Path) -> int:
    """Write a shard and return its size in bytes.  It appears under its name when it is complete and on the disk."""
    pictures = {field.name for field in rows.schema if field.type == PICTURE}
    plain = [field.name for field in rows.schema if field.name not in pictures]
    options: dict[str, Any] = {
        "use_dictionary": [name for name in plain if pa.types.is_string(rows.schema.field(name).type)],
        "write_statistics": plain,
    }
    buffer = io.BytesIO()  # in memory first: pyarrow's own files hide why a write failed
    pq.write_table(rows, buffer, row_group_size=GROUP_ROWS, compression="zstd", write_page_index=True, **options)
    write_atomically(path, buffer.getbuffer())
    return buffer.getbuffer().nbytes


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is there completely or not at all, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
