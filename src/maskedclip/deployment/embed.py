"""Features of many images in one Parquet file, with ids: what search, maps and other people's tools read.

The work is done in parts that outlive a crash, by one process or several; the file is the same to the bit either way.
"""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import maskedclip
from maskedclip.console import bar, say
from maskedclip.deployment.embed_outputs import Encode, chosen_outputs
from maskedclip.deployment.embed_parts import Parts, feature_array, rows_a_part
from maskedclip.deployment.embed_ranks import embedding_ranks
from maskedclip.deployment.external_open_clip import OpenClipModel
from maskedclip.deployment.inputs import Inputs, Rejected, open_inputs
from maskedclip.deployment.model import Model
from maskedclip.deployment.publishing import publish
from maskedclip.errors import UserError
from maskedclip.models.features import BATCH
from maskedclip.ranks import everybody, wait_for_all

DTYPES = ("float32", "float16")
_TOLD = 20
_VOLUMES_A_PART = 16  # what a crash costs: a volume may be a thousand tiles


@dataclass(frozen=True)
class Embedded:
    """What `embed` made: the file, its rows, what was left out, its outputs; `leads` on the rank that wrote it."""

    out: Path
    rows: int
    rejected: list[Rejected]
    outputs: tuple[str, ...]
    leads: bool


def embed(
    model: Model | OpenClipModel,
    data: Path,
    out: Path,
    *,
    outputs: Sequence[str] | None = None,
    dtype: str = "float32",
    precision: str = "float32",
    batch: int = BATCH,
    encoding: str = "utf-8",
    allow_outside: bool = False,
) -> Embedded:
    """Write the features of photographs, see `open_inputs` for what `data` may be, or of the volumes of a store.

    Columns: `id`, the columns of a store or manifest, then a list of fixed length for each output: `encoder` (the
    default feature), `bridge`, `projected` (unit length); `patches` and `bridge_patches` are lists of lists (L, D).
    The schema's metadata has `maskedclip.model` (fingerprint), `maskedclip.source` (absolute path of the data) and
    `maskedclip.settings` (JSON).  Photographs that cannot be read are told, and listed in FILE.rejected.csv.

    A call that was killed goes on where it stopped when it is made again.  Processes of torchrun share the work.

    Args:
        model: what encodes.
        data: where the photographs are.
        out: new file.
        outputs: names of the above; None is all but tokens.
        dtype: `float32`, or `float16` for half the space.
        precision: `float32`, or `bf16-mixed`, faster and less exact.
        batch: photographs in a forward pass.
        encoding: of a manifest's or list's text.
        allow_outside: let a manifest name files outside its folder.

    Raises:
        UserError: `out` exists, there is no photograph that can be read, or an unfinished `out` was begun otherwise.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists; choose another file")
    if dtype not in DTYPES:
        raise UserError(f"--dtype: {dtype!r} is not known; give {' or '.join(DTYPES)}")
    if batch < 1:
        raise UserError(f"--batch: {batch} photographs are no batch; give 1 or more")
    chosen = chosen_outputs(model, outputs)
    encode = Encode(model, chosen, precision)
    volumes = isinstance(model, Model) and model.module.reads_volumes
    inputs = open_inputs(data, volumes=volumes, encoding=encoding, allow_outside=allow_outside)
    inputs = _renamed(inputs, chosen)
    size = model.preprocessing.size
    probe = torch.zeros(1, 1, size, size, size) if volumes else torch.zeros(1, 3, size, size, dtype=torch.uint8)
    row_bytes = sum(values[0].nbytes for values in encode(probe).values())
    batch = 1 if volumes else batch  # volumes differ in their sides
    settings = {
        "version": maskedclip.__version__,
        "model": model.fingerprint,
        "data": inputs.fingerprint,
        "outputs": list(chosen),
        "dtype": dtype,
        "precision": precision,
        "batch": batch,
        "device": model.device.type,
        "rows_a_part": _VOLUMES_A_PART if volumes else rows_a_part(batch, row_bytes),
    }
    parts = Parts(out, len(inputs), settings)
    listing = out.with_suffix(".rejected.csv")
    if listing.exists() and not parts.begun:
        raise UserError(f"{listing}: exists; it would be replaced, so move it or choose another --out")
    with embedding_ranks() as (rank, world), ExitStack() as claim:
        _begin(parts, inputs, claim, leads=rank == 0)
        _work(parts, inputs, encode, dtype, rank, world)
        wait_for_all()
        if rank:
            return Embedded(out, 0, [], chosen, leads=False)
        return _finish(parts, inputs, listing, settings)


def _renamed(inputs: Inputs, outputs: Sequence[str]) -> Inputs:
    """Columns that came along make room for outputs of the same name."""
    taken = [name for name in inputs.table.column_names if name in outputs]
    if taken:
        inputs.table = inputs.table.rename_columns(
            [f"data.{name}" if name in taken else name for name in inputs.table.column_names]
        )
        inputs.notes += [f"column '{name}' is kept as 'data.{name}': it is the name of an output" for name in taken]
    return inputs


def _begin(parts: Parts, inputs: Inputs, claim: ExitStack, *, leads: bool) -> None:
    """The first rank makes the folder; where it cannot, all ranks say so and end."""
    fault = ""
    if leads:
        for note in inputs.notes:
            say(note)
        try:
            parts.begin()
            claim.enter_context(parts.claimed())
        except UserError as error:
            fault = str(error)
    fault = everybody(fault)[0]
    if fault:
        raise UserError(fault)


def _work(parts: Parts, inputs: Inputs, encode: Encode, dtype: str, rank: int, world: int) -> None:
    """This rank's parts, those apart that are there already."""
    mine, batch = range(rank, parts.count, world), parts.settings["batch"]
    left = [part for part in mine if not parts.is_done(part)]
    total, missing = (sum(len(parts.range(part)) for part in some) for some in (mine, left))
    if missing < total and rank == 0:
        say(f"going on: {total - missing:,} of {total:,} are done" + (" by this process" if world > 1 else ""))
    preparing = inputs.prepared(encode.model.preprocessing, (row for part in left for row in parts.range(part)))
    with bar("embed", total, total - missing, shown=rank == 0) as shown:
        for part in left:
            places, rejected, waiting, features = [], [], [], []
            for row in parts.range(part):
                photograph = next(preparing)
                if photograph.image is None:
                    rejected.append(Rejected(photograph.id, photograph.reason))
                else:
                    places.append(row)
                    waiting.append(photograph.image)
                if len(waiting) == batch or (waiting and row == parts.range(part)[-1]):
                    features.append(encode(torch.stack(waiting)))
                    waiting = []
                shown.advance()
            parts.write(part, _table(inputs, places, features, dtype), rejected)


def _table(inputs: Inputs, rows: list[int], features: list[dict[str, np.ndarray]], dtype: str) -> pa.Table:
    table = inputs.table.take(pa.array(rows, pa.int64()))
    for name in features[0] if features else ():
        table = table.append_column(name, feature_array(np.concatenate([part[name] for part in features]), dtype))
    return table


def _finish(parts: Parts, inputs: Inputs, listing: Path, settings: dict[str, object]) -> Embedded:
    """Join the parts, list what was left out, and give the file its name."""
    rejected = [*inputs.unlisted, *parts.rejected()]
    told = {key: value for key, value in settings.items() if key not in ("model", "data")}
    metadata = {
        b"maskedclip.model": str(settings["model"]).encode(),
        b"maskedclip.source": str(inputs.path.absolute()).encode(),
        b"maskedclip.settings": json.dumps(told | {"rejected": len(rejected)}).encode(),
    }
    rows = parts.join(metadata)
    for entry in rejected[:_TOLD]:
        say(f"left out: {entry.id}: {entry.reason}")
    if not rows:
        parts.remove()
        reasons = Counter(entry.reason for entry in rejected).most_common(3)
        why = "; ".join(f"{reason}: {count:,}" for reason, count in reasons)
        raise UserError(f"--data {inputs.path}: none of its {len(inputs)} files can be read as an image ({why})")
    if rejected:
        with listing.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["file", "reason"])
            writer.writerows([entry.id, entry.reason] for entry in rejected)
        say(f"{len(rejected):,} of {len(inputs) + len(inputs.unlisted):,} left out; every reason is in {listing}")
    publish(parts.joined, parts.out)
    parts.remove()
    return Embedded(parts.out, rows, rejected, tuple(settings["outputs"]), leads=True)  # type: ignore[arg-type]
