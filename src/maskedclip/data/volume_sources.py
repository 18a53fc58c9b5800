"""Where volumes of a store come from: NIfTI files, DICOM series, a manifest of them, or a MedMNIST-3D file."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.data.pixels import UndecodableImage, Window
from maskedclip.data.volume_export import find_volumes
from maskedclip.errors import UserError

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class ReadVolume:
    """Voxels of one volume, in its file's units.

    voxels: (X, Y, Z); uint8 where the file means 0 to 255 as 0 to 1, else float32.  spacing: mm; None where unknown.
    patient, modality: the file's own; None where it has none.
    """

    voxels: np.ndarray
    spacing: tuple[float, float, float] | None = None
    patient: str | None = None
    modality: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A volume to be stored.

    name: in the store.  read: its voxels; UndecodableImage says why there are none.  row: columns of the manifest.
    files: that it is read from.
    """

    name: str
    read: Callable[[], ReadVolume]
    row: dict[str, Any]
    window: Window | None = None
    files: tuple[Path, ...] = ()

    def stamp(self) -> list[str]:
        """Changes where the volume, or how it is read, does; without reading it."""
        told = [self.name, repr(sorted(self.row.items(), key=lambda entry: entry[0])), repr(self.window)]
        for file in self.files:
            try:
                stat = file.stat()
                told.append(f"{os.path.abspath(file)} {stat.st_size} {stat.st_mtime_ns}")
            except OSError:
                told.append(f"{os.path.abspath(file)} missing")
        return told


def list_items(source: Path, *, time: int = 0, allow_outside: bool = False) -> list[Item]:
    """All volumes of a source, unread.

    Args:
        source: a NIfTI file, a DICOM series, a folder of them, a manifest whose column `image` names them, or an .npz
            file with `train_images` (n, X, Y, Z) and `train_labels`, as MedMNIST-3D has them.
        time: which volume of a series in time, from 0.
        allow_outside: a manifest may name files outside its folder.

    Raises:
        UserError: there is none, or the manifest has faults.
    """
    if source.suffix.lower() == ".npz" and source.is_file():
        return _medmnist(source)
    return [
        Item(name=found.name, read=_reader(found.open), row=found.row, window=found.window, files=found.files)
        for found in find_volumes(source, time=time, allow_outside=allow_outside)
    ]


def _reader(opened: Callable[[], Any]) -> Callable[[], ReadVolume]:
    def read() -> ReadVolume:
        volume = opened()
        voxels = volume.stored.astype(np.float32) * volume.slope + volume.intercept
        return ReadVolume(
            voxels=-voxels if volume.inverted else voxels,
            spacing=volume.spacing,
            patient=volume.patient,
            modality=volume.modality,
            notes=list(volume.notes),
        )

    return read


def _medmnist(source: Path) -> list[Item]:
    arrays = _read_arrays(source)
    items = []
    for split in _SPLITS:
        images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
        if images is None:
            continue
        if images.ndim != 4 or images.dtype != np.uint8:
            raise UserError(
                f"{source}: {split}_images is {images.dtype} {images.shape}, not uint8 (n, X, Y, Z); pictures go "
                "through `maskedclip manifest medmnist`"
            )
        if labels is not None and (labels.ndim < 1 or labels.dtype.kind not in "iub"):
            raise UserError(
                f"{source}: {split}_labels is {labels.dtype} {labels.shape}; give whole numbers, (n,) or (n, labels)"
            )
        if labels is not None and len(labels) != len(images):
            raise UserError(f"{source}: {split} has {len(images)} volumes and {len(labels)} labels; download it again")
        for place, voxels in enumerate(images):
            cells = {} if labels is None else _cells(labels.reshape(len(images), -1)[place])
            name = f"{split}-{place:06d}"
            items.append(
                Item(
                    name=name,
                    read=lambda voxels=voxels: ReadVolume(voxels=voxels),
                    row={"patient": name, "split": split, **cells},
                    files=(source,),
                )
            )
    if not items:
        raise UserError(f"{source}: holds no train_images, val_images or test_images; give a MedMNIST-3D file")
    return items


def _cells(values: np.ndarray) -> dict[str, int]:
    if len(values) == 1:
        return {"label.class": int(values[0])}
    return {f"label.{place}": int(value) for place, value in enumerate(values)}


def _read_arrays(source: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(source, allow_pickle=False) as stored:
            wanted = [f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels")]
            return {name: stored[name] for name in wanted if name in stored.files}
    except (OSError, ValueError, EOFError, MemoryError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{source}: no .npz file that can be read ({error}); download it again") from None


def unreadable(error: Exception) -> str:
    """The clause that the quarantine gives for a volume."""
    return str(error) if isinstance(error, UndecodableImage) else "needs more memory than there is"
