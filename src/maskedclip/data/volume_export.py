"""Volumes to a folder of pictures with a manifest, or to a folder of small cubes with a table.

The folder is made beside its final name and renamed when it is complete.  A volume that cannot be read does not stop
the others: it is told, with its reason, and listed in `not_read.csv`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from maskedclip.console import bar
from maskedclip.data.address import written_name
from maskedclip.data.imaging import encode_png
from maskedclip.data.manifest import is_url, local_path, read_manifest
from maskedclip.data.pixels import UndecodableImage, Window
from maskedclip.data.shards import write_atomically
from maskedclip.data.volume_series import find_series, open_series
from maskedclip.data.volume_slices import SliceSettings, cube, slice_mask, slices
from maskedclip.data.volumes import AXES, VOLUME_SUFFIXES, Volume, open_volume
from maskedclip.errors import UserError

_MANIFESTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True, kw_only=True)
class VolumeSource:
    """One volume of a source.

    Attributes:
        name: of its files in the output; letters, digits, `.`, `_`, `-`.
        open: reads its header.
        row: columns of the manifest that named it, carried to its slices.
        masks: by column, how a volume of classes of the same shape is opened.
        window: asked for by the manifest.
        files: that it is read from.
    """

    name: str
    open: Callable[[], Volume]
    row: dict[str, Any]
    masks: dict[str, Callable[[], Volume]]
    window: Window | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        out: the folder; manifest: the table in it.
        volumes: how many were read; pictures: slices, or cubes, written.
        not_read: name and reason of each volume that was not.
        notes: remarks, each with its volume's name.
    """

    out: Path
    manifest: Path
    volumes: int
    pictures: int
    not_read: list[tuple[str, str]]
    notes: list[str]


def find_volumes(source: Path, *, time: int = 0, allow_outside: bool = False) -> list[VolumeSource]:
    """The volumes of a file, of a folder (NIfTI files and DICOM series below it), or of a manifest's `image` column.

    Args:
        source: the file or folder.
        time: which volume of a series in time, from 0.
        allow_outside: a manifest may name files outside its folder.

    Raises:
        UserError: there is no such file, or no volume in it; the manifest has faults.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder: give a volume, a folder of volumes, or a manifest of them")
    if source.is_file() and source.name.lower().removesuffix(".gz").endswith(_MANIFESTS):
        return _of_manifest(source, time, allow_outside)
    if source.is_file() and source.name.lower().endswith(VOLUME_SUFFIXES):
        return [_of_file(source, _stem(source.name), time)]
    found = [] if source.is_file() else [_of_file(*named, time) for named in _nifti_files(source)]
    try:
        found += [
            VolumeSource(
                name=_safe(series.name),
                open=lambda series=series: open_series(series),
                row={},
                masks={},
                files=tuple(dict.fromkeys(plane.path for plane in series.planes)),
            )
            for series in find_series(source)
        ]
    except UndecodableImage as error:
        if not found:
            raise UserError(f"{source}: holds no NIfTI volume; DICOM needs pip install maskedclip[medical]") from error
    if not found:
        raise UserError(f"{source}: holds no volume: neither NIfTI (.nii, .nii.gz) nor DICOM")
    return _unique(found)


def write_slices(
    source: Path,
    out: Path,
    settings: list[SliceSettings],
    *,
    time: int = 0,
    allow_outside: bool = False,
    progress: bool = True,
) -> Exported:
    """Write the wanted slices of all volumes of a source as PNGs, and `manifest.csv`.

    The manifest has `image`, `patient` (the manifest's, the file's, or the volume's name: slices of one volume must
    not cross splits), the carried columns, `mask.NAME`, `volume`, `axis`, `slice` (from 0) and `position` (mm along
    the axis in RAS; empty where the file gives no orientation).

    Raises:
        UserError: nothing is found, `out` exists, no volume could be read, or no slice was wanted.
    """

    def write(item: VolumeSource, volume: Volume, folder: Path) -> list[dict[str, Any]]:
        masks = {name: _same_shape(opened(), volume, name) for name, opened in item.masks.items()}
        rows = []
        for wanted in settings:
            if item.window is not None:
                wanted = SliceSettings(
                    axis=wanted.axis, every=wanted.every, min_area=wanted.min_area, window=item.window
                )
            for index, picture in slices(volume, wanted):
                place = f"{item.name}/{wanted.axis}_{index:04d}.png"
                row = {"image": f"images/{place}"}
                _write_picture(folder / "images" / place, picture)
                for name, mask in masks.items():
                    row[name] = f"masks/{name.removeprefix('mask.')}/{place}"
                    _write_picture(folder / row[name], slice_mask(mask, AXES[wanted.axis], index))
                rows.append(row | _told(item, volume, wanted.axis, index))
        return rows

    return _export(source, out, write, time=time, allow_outside=allow_outside, label="slices", progress=progress)


def write_cubes(
    source: Path,
    out: Path,
    size: int,
    *,
    spacing: float | None = None,
    window: Window | None = None,
    values: Literal["uint8", "float16"] = "uint8",
    time: int = 0,
    allow_outside: bool = False,
    progress: bool = True,
) -> Exported:
    """Write each volume of a source as a small cube: `NAME.npy`, `NAME.json` (see `cube`), and `volumes.csv`.

    Raises:
        UserError: as `write_slices`; size or spacing cannot be.
    """

    def write(item: VolumeSource, volume: Volume, folder: Path) -> list[dict[str, Any]]:
        array, about = cube(volume, size, spacing=spacing, window=item.window or window, values=values)
        (folder / "arrays").mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_atomically(folder / "arrays" / f"{item.name}.npy", buffer.getvalue())
        text = json.dumps(about | {"volume": volume.name, "notes": volume.notes}, indent=2) + "\n"
        write_atomically(folder / "arrays" / f"{item.name}.json", text.encode())
        row = {"array": f"arrays/{item.name}.npy", "about": f"arrays/{item.name}.json"}
        patient = item.row.get("patient") or volume.patient or item.name
        return [row | {"patient": patient} | {name: value for name, value in item.row.items() if name != "patient"}]

    return _export(source, out, write, time=time, allow_outside=allow_outside, label="cubes", progress=progress)


def _export(
    source: Path,
    out: Path,
    write: Callable[[VolumeSource, Volume, Path], list[dict[str, Any]]],
    *,
    time: int,
    allow_outside: bool,
    label: str,
    progress: bool,
) -> Exported:
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; name another folder with --out, or delete it")
    found = find_volumes(source, time=time, allow_outside=allow_outside)
    rows: list[dict[str, Any]] = []
    not_read: list[tuple[str, str]] = []
    notes: list[str] = []
    with _complete_folder(out) as folder, bar(label, len(found), shown=progress) as shown:
        for item in found:
            try:
                volume = item.open()
                made = write(item, volume, folder)
                rows += made
                notes += [f"{volume.name}: {note}" for note in volume.notes]
                if not made:
                    notes.append(f"{volume.name}: no slice is bright enough: lower --min-area, or give a --window")
            except UndecodableImage as error:
                not_read.append((item.name, str(error)))
                for kind in ("images", "masks/*", "arrays"):  # what was written before the fault was met
                    for left in folder.glob(f"{kind}/{item.name}"):
                        shutil.rmtree(left, ignore_errors=True)
            except ValueError as error:
                raise UserError(str(error)) from error
            shown.advance(note=f"{len(rows):,} written")
        if len(not_read) == len(found):
            raise UserError(f"{source}: no volume can be read ({not_read[0][0]} {not_read[0][1]})")
        if not rows:
            raise UserError(f"{source}: no slice is bright enough: lower --min-area, or give a --window")
        name = "volumes.csv" if label == "cubes" else "manifest.csv"
        write_atomically(folder / name, _table(rows))
        write_atomically(folder / "not_read.csv", _table([{"volume": a, "reason": b} for a, b in not_read]))
    return Exported(
        out=out,
        manifest=out / name,
        volumes=len(found) - len(not_read),
        pictures=len(rows),
        not_read=not_read,
        notes=notes,
    )


@contextmanager
def _complete_folder(out: Path) -> Iterator[Path]:
    """A folder that has its name only when all is in it; what is unfinished is removed."""
    folder = out.with_name(f"{out.name}.partial")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        told = "is left of an unfinished run: delete it" if folder.exists() else f"cannot be made ({error.strerror})"
        raise UserError(f"{folder}: {told}") from error
    try:
        yield folder
        os.rename(folder, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}): name another --out") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _of_manifest(path: Path, time: int, allow_outside: bool) -> list[VolumeSource]:
    manifest = read_manifest(path, allow_outside=allow_outside)
    found = []
    for row in manifest.table.to_pylist():
        value = row.pop("image")
        if is_url(value):
            raise UserError(f"{path}: '{value}' is a URL: fetch the volumes first")
        window = _window(row.pop("window_center", None), row.pop("window_width", None), path)
        masks = {}
        for name in manifest.names("mask"):
            mask = row.pop(name)
            if mask is not None:
                masks[name] = _opener(local_path(mask, manifest.root), time)
        found.append(
            VolumeSource(
                name=_stem(value),
                open=_opener(local_path(value, manifest.root), time),
                row={name: cell for name, cell in row.items() if cell is not None},
                masks=masks,
                window=window,
                files=(Path(local_path(value, manifest.root)),),
            )
        )
    return _unique(found)


def _window(centre: Any, width: Any, path: Path) -> Window | None:
    if centre in (None, "") and width in (None, ""):
        return None
    try:
        return Window(centre=float(str(centre)), width=float(str(width)))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: window_center {centre}, window_width {width}: give two numbers, or none") from error


def _opener(path: Path, time: int) -> Callable[[], Volume]:
    def opened() -> Volume:
        if not path.exists():
            raise UndecodableImage("is missing")
        return open_volume(path, time=time)

    return opened


def _of_file(path: Path, name: str, time: int) -> VolumeSource:
    return VolumeSource(name=_safe(name), open=_opener(path, time), row={}, masks={}, files=(path,))


def _nifti_files(folder: Path) -> list[tuple[Path, str]]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent) / name for name in files if name.lower().endswith(VOLUME_SUFFIXES) and name[0] != "."]
    return [(path, _stem(path.relative_to(folder).as_posix())) for path in sorted(found)]


def _stem(name: str) -> str:
    lowered = name.lower()
    suffix = next((suffix for suffix in (".nii.gz", ".nii", ".dcm") if lowered.endswith(suffix)), "")
    return _safe(name[: len(name) - len(suffix)])


def _safe(name: str) -> str:
    """A name that any system takes for a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", written_name(name)).strip("._") or "volume"


def _unique(found: list[VolumeSource]) -> list[VolumeSource]:
    taken: set[str] = set()
    unique = []
    for item in found:
        name, number = item.name, 2
        while name in taken:
            name, number = f"{item.name}-{number}", number + 1
        taken.add(name)
        unique.append(replace(item, name=name))
    return unique


def _same_shape(mask: Volume, volume: Volume, name: str) -> Volume:
    if mask.shape != volume.shape:
        raise UndecodableImage(f"has a {name} of {mask.shape} voxels where it has {volume.shape}")
    return mask


def _told(item: VolumeSource, volume: Volume, axis: str, index: int) -> dict[str, Any]:
    place = AXES[axis]
    position = ""
    if volume.affine is not None:
        centre = (np.array(volume.shape) - 1) / 2
        centre[place] = index
        position = f"{float((volume.affine @ [*centre, 1])[place]):.2f}"
    carried = {name: value for name, value in item.row.items() if name != "patient"}
    patient = item.row.get("patient") or volume.patient or item.name
    return {"patient": patient} | carried | {"volume": item.name, "axis": axis, "slice": index, "position": position}


def _write_picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(picture))


def _table(rows: list[dict[str, Any]]) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["volume", "reason"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
