"""What a run was trained on, row by row, so that an evaluation years later can tell what the model has seen."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from maskedclip.data.sampler import Pools
from maskedclip.data.store import Store

SEEN = "seen.parquet"
_RECIPE, _MODEL = "recipe.yaml", "model"
SCHEMA = pa.schema(
    [
        ("store", pa.string()),  # fingerprint
        ("id", pa.string()),
        ("sha256", pa.string()),  # of the source file; null where the store does not say
        ("perceptual_hash", pa.string()),
        ("patient", pa.string()),
        ("with_text", pa.bool_()),
        ("crop", pa.string()),  # of the store: a perceptual hash is of the cropped picture; absent from older runs
    ]
)


def write_seen(folder: Path, store: Store, pools: Pools) -> None:
    """Write FOLDER/seen.parquet: a line for each row of the pools that the sampler draws from."""
    rows = np.concatenate([pools.paired, pools.unpaired]).astype(np.int64)
    with_text = np.concatenate([np.ones(len(pools.paired), bool), np.zeros(len(pools.unpaired), bool)])
    rows, first = np.unique(rows, return_index=True)  # a paired image may be in both pools
    table = store.table.take(pa.array(rows))

    def column(name: str) -> pa.Array | pa.ChunkedArray:
        if name in table.column_names:
            return table.column(name).cast(pa.string())
        return pa.nulls(len(rows), pa.string())

    def of_store(values: list[str | None]) -> pa.Array:
        return pa.array(np.repeat(np.asarray(values, object), store.sizes)[rows], pa.string())

    columns = {name: column(name) for name in ("id", "sha256", "perceptual_hash", "patient")}
    crops = [entry["settings"].get("crop") for entry in store.curation]
    seen = pa.table(
        {
            "store": of_store(list(store.fingerprints)),
            **columns,
            "with_text": with_text[first],
            "crop": of_store(crops),
        }
    )
    partial = folder / f"{SEEN}.partial"
    pq.write_table(seen.select(SCHEMA.names).cast(SCHEMA), partial, compression="zstd")
    partial.replace(folder / SEEN)


def read_seen(run: Path) -> tuple[pa.Table | None, list[str]]:
    """What the weights of a run have seen: of the run, its first stage, and the runs that its first weights come from.

    Returns: rows in SCHEMA, null where an older run did not record it; None where that run's own rows are not recorded
        or cannot be read.  And words for each of the others of which that is so.
    """
    own = _read(run / SEEN)
    if own is None:
        return None, []
    tables, unknown = [own], []
    done = {run.resolve()}  # folders may have been replaced since, so that two runs name each other's weights
    waiting = [_Source(run, "it", "it")]
    while waiting:
        source = waiting.pop(0)
        before = _before(source)
        if before is None:
            unknown.append("its first weights" if source.name == "it" else f"the first weights of {source.name}")
        for entry in before or []:
            if entry.place.resolve() in done:
                continue
            done.add(entry.place.resolve())
            table = _read(entry.place / SEEN)
            if table is None:
                unknown.append(entry.said)
            else:
                tables.append(table)
            if entry.place.is_dir() and (table is not None or (entry.place / _RECIPE).is_file()):
                waiting.append(entry)
    return pa.concat_tables(tables), unknown


class _Source(NamedTuple):
    """What gave a run its first weights: a run's folder or a file of another project; words for it, and a name."""

    place: Path
    said: str
    name: str


def _before(run: _Source) -> list[_Source] | None:
    """What gave a run its first weights; None where its recipe cannot be read."""
    recipe = _recipe(run.place)
    if recipe is None:
        return None
    weights, own = recipe.get("model", {}).get("image_weights"), run.name == "it"
    found = []
    if weights:
        place = _run_of(Path(weights), run.place) or Path(weights)
        said = "the weights it began from" if own else f"the weights that {run.name} began from"
        found.append(_Source(place, f"{said} ({Path(weights).name})", place.name))
    if recipe.get("training", {}).get("first_stage") or (run.place / "first_stage").is_dir():
        said = "its first stage" if own else f"the first stage of {run.name}"
        found.append(_Source(run.place / "first_stage", said, said))
    return found


def _run_of(weights: Path, begun: Path) -> Path | None:
    """The run in whose model folder a file of weights lies, or lay; None for weights of another project.

    A relative path was one from where the run `begun` was started, which is often a folder around it.
    """
    if len(weights.parts) < 2:  # `pretrained`, or a file that was given by its bare name
        return None
    for start in (Path.cwd(), *begun.resolve().parents):
        for path in (start / weights, (start / weights).resolve()):  # the file may be a link into a run
            place = path.parent.parent
            # A project's own folder may hold a recipe too, but no weights in `model`.
            if (place / SEEN).is_file() or (path.parent.name == _MODEL and (place / _RECIPE).is_file()):
                return place
    return None


def _recipe(run: Path) -> dict[str, dict[str, Any]] | None:
    """The sections of a run's recipe as they were written: reading them needs none of the parts that the run used."""
    try:
        values = yaml.safe_load((run / _RECIPE).read_text())
        return {name: part for name, part in values.items() if isinstance(part, dict)}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return None


def _read(path: Path) -> pa.Table | None:
    """One file, in SCHEMA; None where it is missing or damaged."""
    try:
        table = pq.read_table(path)
        for name in SCHEMA.names:
            if name not in (*table.column_names, "store", "id"):  # an older run did not record it
                table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
        return table.select(SCHEMA.names).cast(SCHEMA)
    except (OSError, pa.ArrowException, KeyError):
        return None
