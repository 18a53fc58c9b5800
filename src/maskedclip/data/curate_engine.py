"""The curation engine: one Daft plan, run by its embedded engine on all cores, or by Ray on a cluster.

The plan fetches what is not local, then decodes, crops, resizes, encodes and hashes batch by batch; rows come back in
manifest order and only a few batches are in memory at a time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from maskedclip.data.address import split_address
from maskedclip.data.curate_row import RowSettings, Source, curate_row
from maskedclip.data.manifest import Manifest, is_url, local_path
from maskedclip.data.manifest_checks import WINDOW_COLUMNS
from maskedclip.data.pixels import Window
from maskedclip.data.quality import QUALITY
from maskedclip.errors import UserError

# Daft tells a server that it is used unless told not to; a clinic's tool stays silent.  It has to know before it loads.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")  # curate shows its own

import daft
from daft.exceptions import DaftCoreException
from daft.io import AzureConfig, GCSConfig, HTTPConfig, IOConfig, S3Config

Engine = Literal["local", "ray"]

BATCH = 32  # rows a call: small enough that raw photographs of 5 MB each stay harmless
RAY_PARTITION = 256  # rows a task on a cluster
RAY_WINDOW = 16_384  # rows a plan on a cluster, whose tasks end in any order: bounds what waits for its turn
MANY_CORES, MANY_ROWS = 4, 2_000  # from here on processes: threads share one interpreter lock, processes start slowly
SETTLE = 0.1  # s

FETCH = IOConfig(  # Daft's defaults retry for minutes
    http=HTTPConfig(num_tries=3, connect_timeout_ms=10_000),
    s3=S3Config(num_tries=3, connect_timeout_ms=10_000),
    gcs=GCSConfig(num_tries=3, connect_timeout_ms=10_000),
    azure=AzureConfig(),
)


def result_type(masks: list[str]) -> pa.StructType:
    """What the engine returns for a row: `curate_row`'s columns."""
    fields: list[tuple[str, pa.DataType]] = [
        ("reason", pa.string()),
        ("image", pa.binary()),
        ("sha256", pa.string()),
        ("perceptual_hash", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
        ("field_found", pa.bool_()),
        *((f"quality.{name}", pa.float32()) for name in QUALITY),
    ]
    return pa.struct(fields + [(name, pa.binary()) for name in masks])


def use_engine(engine: Engine) -> None:
    """Choose Daft's runner, once a process; a UserError where it cannot be had."""
    if engine not in ("local", "ray"):
        raise UserError(f"engine is '{engine}': give local or ray")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UserError("engine is 'ray', but Ray is not installed: pip install ray, or take engine local")
    wanted = "native" if engine == "local" else "ray"
    with contextlib.suppress(DaftCoreException):  # it was chosen before
        daft.set_runner_native() if engine == "local" else daft.set_runner_ray(noop_if_initialized=True)
    chosen = daft.get_or_create_runner().name
    if chosen != wanted:
        raise UserError(f"engine is '{engine}', but this process already runs Daft's {chosen} engine: start a new one")


def run_engine(manifest: Manifest, settings: RowSettings, engine: Engine, start: int) -> Iterator[tuple[int, pa.Table]]:
    """Curate the manifest's rows from `start` on.

    Yields:
        the first row's position and the results of consecutive rows, as columns of `result_type`, in order.
    """
    stop = len(manifest)
    window = stop if engine == "local" else RAY_WINDOW
    processes = engine == "local" and _cores() >= MANY_CORES and stop - start >= MANY_ROWS
    try:
        for first in range(start, stop, window):
            table = _inputs(manifest, first, min(stop, first + window))
            frame = daft.from_arrow(table)
            if engine == "ray":
                frame = frame.into_partitions(-(-len(table) // RAY_PARTITION))
            yield from _in_order(_plan(frame, table, manifest.names("mask"), settings, processes=processes), first)
    finally:
        # Daft's threads still drop Python objects for a moment; an interpreter that ends meanwhile can abort.
        time.sleep(SETTLE)


def _cores() -> int:
    """Cores that this process may use; fewer than the machine has in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _inputs(manifest: Manifest, first: int, stop: int) -> pa.Table:
    """Position, and for the image and each mask its name, local path or URL (one of the two)."""
    table = manifest.table.slice(first, stop - first)
    root = Path(os.path.abspath(manifest.root))
    columns: dict[str, pa.Array] = {"position": pa.array(range(first, stop), pa.int64())}
    for name in ["image", *manifest.names("mask")]:
        values = table.column(name).to_pylist()
        remote = [value is not None and is_url(value) for value in values]
        columns[f"name:{name}"] = pa.array(values, pa.string())
        columns[f"path:{name}"] = pa.array(
            [
                None if value is None or url else str(local_path(value, root))
                for value, url in zip(values, remote, strict=True)
            ],
            pa.string(),
        )
        columns[f"url:{name}"] = pa.array(
            [split_address(value).file if url else None for value, url in zip(values, remote, strict=True)], pa.string()
        )
    for name in WINDOW_COLUMNS:
        given = table.column(name) if name in table.column_names else pa.nulls(len(table))
        columns[name] = given.cast(pa.float64())
    return pa.table(columns)


def _window(centre: float | None, width: float | None) -> Window | None:
    return None if centre is None or width is None else Window(centre=centre, width=width)


def _plan(
    frame: daft.DataFrame, table: pa.Table, masks: list[str], settings: RowSettings, *, processes: bool
) -> daft.DataFrame:
    kind = result_type(masks)
    files = ["image", *masks]

    @daft.func.batch(return_dtype=daft.DataType.from_arrow_type(kind), batch_size=BATCH, use_process=processes)
    def curate_rows(*columns: daft.Series) -> pa.Array:
        values = [column.to_pylist() for column in columns]
        sources = [
            [_source(*cells) for cells in zip(*values[3 * index : 3 * index + 3], strict=True)]
            for index in range(len(files))
        ]
        windows = [_window(*pair) for pair in zip(*values[-2:], strict=True)]
        rows = []
        for window, image, *parts in zip(windows, *sources, strict=True):
            assert image is not None, "a manifest's row has an image"
            rows.append(curate_row(image, dict(zip(masks, parts, strict=True)), settings, window))
        return pa.array(rows, kind)

    inputs = []
    for name in files:
        inputs += [daft.col(f"name:{name}"), daft.col(f"path:{name}"), _fetched(table, name)]
    inputs += [daft.col(name) for name in WINDOW_COLUMNS]
    return frame.select(daft.col("position"), curate_rows(*inputs).alias("result"))


def _fetched(table: pa.Table, name: str) -> daft.Expression:
    """The bytes behind URLs, null where there is no URL or nothing came; no fetching step where all is local."""
    if table.column(f"url:{name}").null_count == len(table):
        return daft.lit(None).cast(daft.DataType.binary())
    return daft.col(f"url:{name}").download(max_connections=16, on_error="null", io_config=FETCH)


def _source(name: str | None, path: str | None, fetched: bytes | None) -> Source | None:
    return None if name is None else Source(name=name, path=path, fetched=fetched)


def _in_order(frame: daft.DataFrame, first: int) -> Iterator[tuple[int, pa.Table]]:
    """Batches by position; one that comes early waits for its turn (the embedded engine's never do)."""
    early: dict[int, pa.Table] = {}
    batches: Any = frame.to_arrow_iter()
    try:
        for batch in batches:
            if not batch.num_rows:
                continue
            results = pa.Table.from_batches([batch])
            position = results.column("position")[0].as_py()
            early[position] = (
                results.select(["result"])
                .flatten()
                .rename_columns([field.name for field in results.schema.field("result").type])
            )
            while first in early:
                table = early.pop(first)
                yield first, table
                first += len(table)
    finally:
        batches.close()
    assert not early, "the engine returned every row"
