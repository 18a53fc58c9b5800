"""Curation of volumes: a source of them -> a store that `open_store` opens, each row a volume.

A store of volumes has the columns of a store of pictures (id, image, text, patient, split, label.*, ...) and
`modality`; its image is the bytes of an .npy file, (C, X, Y, Z), uint8 or float16, intensities mapped, axes to the
patient's right, front and head.  `curation.json` says `kind: volumes`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import maskedclip
from maskedclip.console import bar, say
from maskedclip.data.pixels import UndecodableImage
from maskedclip.data.shards import (
    PICTURE,
    SCHEMA_VERSION,
    file_digest,
    row_id,
    shard_name,
    stored_schema,
    write_atomically,
    write_shard,
)
from maskedclip.data.transforms_volume import encode_volume
from maskedclip.data.volume_intensity import Intensity, chosen_intensity, map_intensity, resampled
from maskedclip.data.volume_sources import Item, list_items, unreadable
from maskedclip.errors import UserError

SHARD_BYTES, SHARD_ITEMS = 256 << 20, 64  # what was read since the last shard is what a crash costs
MAX_STORED_BYTES = 1 << 30
_MOST_SIDE = 4096
_PROGRESS = "volumes.json"
_OWN = {
    "sha256": pa.string(),
    "sides": pa.string(),
    "spacing": pa.string(),
    "source_sides": pa.string(),
    "source_spacing": pa.string(),
    "intensity": pa.string(),
}


@dataclass(frozen=True, kw_only=True)
class VolumeSettings:
    """How volumes are prepared.

    Attributes:
        spacing: mm a voxel, on all axes; None keeps each volume's own voxels.
        cube: voxels on a side of a cube into which the whole volume is fitted, its proportions kept, 0 around it;
            None: none.
        intensity: map of the values (`volume_intensity`); `auto` goes by the modality; uint8 of a MedMNIST file is
            kept as it is.
        modality: of volumes whose source names none.
    """

    spacing: float | None = None
    cube: int | None = None
    intensity: Intensity = "auto"
    modality: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.spacing is not None and not 0 < self.spacing < 1000:
            raise UserError(f"--spacing {self.spacing:g}: give millimetres a voxel, e.g. 1.5")
        if self.cube is not None and not 4 <= self.cube <= 1024:
            raise UserError(f"--cube {self.cube}: give 4 to 1024 voxels")
        if self.cube is not None and self.spacing is not None:
            raise UserError("--cube and --spacing: give one of them")


@dataclass(kw_only=True)
class VolumeCuration:
    """What was made.  stored: volumes.  quarantine: row, name and reason of each one that was not stored."""

    out: Path
    stored: int = 0
    quarantine: list[tuple[int, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    modalities: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""


def curate_volumes(
    source: Path,
    out: Path,
    settings: VolumeSettings | None = None,
    *,
    time: int = 0,
    allow_outside: bool = False,
    progress: bool = True,
) -> VolumeCuration:
    """Read, map and store all volumes of a source; one that cannot be read is quarantined with its reason.

    The store appears under its name when it is complete; after a run that was cut off the same call goes on.

    Args:
        source: see `list_items`.
        out: new folder.
        settings: how volumes are prepared.
        time: which volume of a series in time, from 0.
        allow_outside: a manifest may name files outside its folder.
        progress: show a bar.

    Raises:
        UserError: nothing is found, `out` exists, or no volume can be stored.
    """
    settings = VolumeSettings() if settings is None else settings
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; name another folder with --out, or delete it")
    items = list_items(source, time=time, allow_outside=allow_outside)
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists() and not (partial / _PROGRESS).is_file() and any(partial.iterdir()):
        raise UserError(f"{partial}: is in the way and no half-made store of volumes; move it, or choose another --out")
    done = _Writer(items, partial, settings, time, VolumeCuration(out=out)).run(progress)
    if not done.stored:
        shutil.rmtree(partial)
        _, name, reason = done.quarantine[0]
        raise UserError(f"{source}: no volume can be stored ({name} {reason})")
    partial.rename(out)
    (out / _PROGRESS).unlink()
    return done


class _Writer:
    """The shards of a store below a folder, and what is known of those that are written."""

    def __init__(
        self, items: Sequence[Item], partial: Path, settings: VolumeSettings, time: int, done: VolumeCuration
    ) -> None:
        self.items, self.partial, self.settings, self.done = items, partial, settings, done
        self.schema = _schema(items)
        plan = [maskedclip.__version__, asdict(settings), time, [item.stamp() for item in items]]
        self.plan = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
        self.ids: dict[str, None] = {}
        self.patients: set[str] = set()
        self.paired = self.largest = self.flushed = 0
        self.checksums: dict[str, str] = {}
        self.waiting: list[dict[str, Any]] = []

    def run(self, progress: bool) -> VolumeCuration:
        begin = self._go_on()
        with bar("volumes", len(self.items), done=begin, shown=progress) as shown:
            for number in range(begin, len(self.items)):
                if number - self.flushed == SHARD_ITEMS:
                    self._flush(number)
                self._take(number, self.items[number])
                shown.advance(note=f"{self.done.stored:,} stored")
            self._flush(len(self.items))
        self.done.notes = list(dict.fromkeys(self.done.notes))  # a volume may have been read before and after a crash
        self.done.fingerprint = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()
        write_atomically(self.partial / "quarantine.csv", _quarantine(self.done.quarantine))
        write_atomically(self.partial / "curation.json", (json.dumps(self._about(), indent=2) + "\n").encode())
        return self.done

    def _take(self, number: int, item: Item) -> None:
        try:
            row = _row(item, self.settings, self.done.notes)
        except (UndecodableImage, MemoryError) as error:
            self.done.quarantine.append((number, item.name, unreadable(error)))
            return
        if row["id"] in self.ids:
            self.done.quarantine.append((number, item.name, "is named a second time"))
            return
        taken = sum(len(kept["image"]["bytes"]) for kept in self.waiting) + len(row["image"]["bytes"])
        if taken > SHARD_BYTES:
            self._flush(number)
        self.waiting.append(row)
        self._count(row)

    def _count(self, row: Mapping[str, Any]) -> None:
        done = self.done
        self.ids[row["id"]] = None
        self.patients.add(row["patient"])
        self.paired += row.get("text") is not None
        self.largest = max(self.largest, *map(int, row["sides"].split("x")))
        for counts, value in ((done.splits, row.get("split") or ""), (done.modalities, row["modality"] or "unknown")):
            counts[value] = counts.get(value, 0) + 1
        done.stored += 1

    def _flush(self, number: int) -> None:
        """Write what waits; all items before `number` are then decided."""
        if self.waiting:
            name = shard_name(len(self.checksums))
            write_shard(pa.Table.from_pylist(self.waiting, schema=self.schema), self.partial / name)
            self.checksums[name] = file_digest(self.partial / name)
            self.waiting.clear()
        self.flushed = number
        state = {
            "plan": self.plan,
            "next": number,
            "checksums": self.checksums,
            "quarantine": [entry for entry in self.done.quarantine if entry[0] < number],
            "notes": self.done.notes,
        }
        write_atomically(self.partial / _PROGRESS, json.dumps(state).encode())

    def _go_on(self) -> int:
        """The first item that is still to be read; what an earlier run of the same plan wrote is counted."""
        path = self.partial / _PROGRESS
        if not path.is_file():
            self.partial.mkdir(parents=True, exist_ok=True)
            self._flush(0)
            return 0
        state = json.loads(path.read_text())
        if state["plan"] != self.plan:
            raise UserError(
                f"{self.partial}: was begun with other volumes, settings or another version; give that command again "
                "to go on, or delete the folder to start anew"
            )
        shards: dict[str, str] = state["checksums"]
        for name, digest in shards.items():
            if not (self.partial / name).is_file() or file_digest(self.partial / name) != digest:
                raise UserError(f"{self.partial / name}: is damaged or gone; delete {self.partial} to start anew")
        columns = ["id", "patient", "text", "split", "modality", "sides"]
        for name in shards:
            for row in pq.read_table(self.partial / name, columns=columns).to_pylist():
                self._count(row)
        self.checksums, self.flushed = shards, state["next"]
        self.done.quarantine = [(number, name, reason) for number, name, reason in state["quarantine"]]
        self.done.notes = state["notes"]
        if state["next"]:
            say(f"{self.done.out}: going on after {state['next']:,} of {len(self.items):,} volumes")
        return state["next"]

    def _about(self) -> dict[str, Any]:
        done, settings = self.done, self.settings
        return {
            "schema_version": SCHEMA_VERSION,
            "maskedclip": maskedclip.__version__,
            "fingerprint": done.fingerprint,
            "settings": {
                "kind": "volumes",
                "size": self.largest,
                "crop": "none",
                "encoding": "npy",
                "spacing": settings.spacing,
                "cube": settings.cube,
                "intensity": settings.intensity,
            },
            "counts": {
                "rows": len(self.items),
                "stored": done.stored,
                "quarantined": len(done.quarantine),
                "paired": self.paired,
                "unpaired": done.stored - self.paired,
                "patients": len(self.patients),
                "splits": done.splits,
                "modalities": done.modalities,
            },
            "checksums": self.checksums,
        }


def _row(item: Item, settings: VolumeSettings, notes: list[str]) -> dict[str, Any]:
    """The store's row of one volume."""
    read = item.read()
    modality = item.row.get("modality") or item.row.get("label.modality") or read.modality or settings.modality
    modality = str(modality).strip().lower() or None if modality is not None else None
    notes += [f"{item.name}: {note}" for note in read.notes]
    voxels, kind = read.voxels, "stored"
    if voxels.dtype != np.uint8 or settings.intensity != "auto":
        kind = chosen_intensity(settings.intensity, modality)
        voxels, note = map_intensity(voxels.astype(np.float32), kind, item.window)
        notes += [f"{item.name}: {note}"] if note else []
    elif int(voxels.max()) == int(voxels.min()):
        raise UndecodableImage(f"has one value everywhere ({int(voxels.max())})")
    fitted, spacing = _fitted(voxels, read.spacing, settings)
    if fitted.nbytes > MAX_STORED_BYTES:
        raise UndecodableImage(f"would take {fitted.nbytes:,} bytes: give a --spacing that makes it smaller")
    digest = hashlib.sha256(str(read.voxels.shape).encode() + np.ascontiguousarray(read.voxels).tobytes()).hexdigest()
    return {
        **item.row,
        "id": row_id(item.name, digest),
        "image": {"bytes": encode_volume(fitted[None]), "path": item.name},
        "patient": str(item.row.get("patient") or read.patient or item.name),
        "modality": modality,
        "sha256": digest,
        "sides": "x".join(map(str, fitted.shape)),
        "spacing": None if spacing is None else "x".join(f"{value:.4g}" for value in spacing),
        "source_sides": "x".join(map(str, voxels.shape)),
        "source_spacing": None if read.spacing is None else "x".join(f"{value:.4g}" for value in read.spacing),
        "intensity": kind,
    }


def _fitted(
    voxels: np.ndarray, spacing: tuple[float, float, float] | None, settings: VolumeSettings
) -> tuple[np.ndarray, tuple[float, float, float] | None]:
    """The voxels at the wanted spacing, or in the wanted cube, and their spacing."""
    if settings.spacing is None and settings.cube is None:
        return voxels, spacing
    if settings.spacing is not None and spacing is None:
        raise UndecodableImage("does not say how far its voxels are apart, which --spacing needs")
    extent = np.asarray(voxels.shape) * np.asarray((1.0, 1.0, 1.0) if spacing is None else spacing)
    step = settings.spacing if settings.cube is None else float(extent.max()) / settings.cube
    assert step is not None
    shape = [max(1, round(side / step)) for side in extent]
    if max(shape) > _MOST_SIDE:
        raise UndecodableImage(f"is {extent.max():.0f} mm long: a spacing of {step:g} mm is too fine")
    values = resampled(voxels, (shape[0], shape[1], shape[2]))
    values = values.round().clip(0, 255).astype(np.uint8) if voxels.dtype == np.uint8 else values.astype(np.float16)
    if settings.cube is not None:
        pads = [((settings.cube - side) // 2, settings.cube - side - (settings.cube - side) // 2) for side in shape]
        values = np.pad(values, pads)
    if spacing is None:
        return values, None
    step_x, step_y, step_z = (float(value) for value in extent / np.asarray(shape))
    return values, (step_x, step_y, step_z)


def _schema(items: Sequence[Item]) -> pa.Schema:
    """Columns of the store, typed by what the manifest has; known before a volume is read."""
    names = list(dict.fromkeys(name for item in items for name in item.row))
    fields = [pa.field("id", pa.string()), pa.field("image", PICTURE)]
    fields += [pa.field(name, pa.string()) for name in ("text", "patient", "split", "modality")]
    own = {entry.name for entry in fields} | set(_OWN)
    for name in sorted((name for name in names if name not in own), key=lambda name: not name.startswith("label.")):
        try:
            kind = pa.array([item.row.get(name) for item in items]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kind = pa.string()
        fields.append(pa.field(name, pa.string() if pa.types.is_null(kind) else kind))
    fields += [pa.field(name, kind) for name, kind in _OWN.items()]
    return _without_picture(stored_schema(pa.schema(fields)))


def _without_picture(schema: pa.Schema) -> pa.Schema:
    """Hugging Face datasets must not try to decode a volume as a picture."""
    about = json.loads(schema.metadata[b"huggingface"])
    about["info"]["features"]["image"] = {
        "bytes": {"dtype": "binary", "_type": "Value"},
        "path": {"dtype": "string", "_type": "Value"},
    }
    return schema.with_metadata({"huggingface": json.dumps(about)})


def _quarantine(rejected: list[tuple[int, str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "image", "reason"])
    writer.writerows(rejected)
    return text.getvalue().encode()
