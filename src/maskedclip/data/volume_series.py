"""DICOM series as volumes: slices in files of one folder tree, or frames of one file (enhanced CT and MR).

Slices belong together by their series, size and direction (so that a scout does not spoil a stack), and are ordered
along their normal (PS3.3 C.7.6.2.1.1); DICOM's directions and positions point left and back, ours right and front.
"""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.data.dicom import file_window, frame_values, is_dicom, pydicom_module
from maskedclip.data.pixels import UndecodableImage, first_line
from maskedclip.data.volumes import Volume, check_shape, good_spacing

_SAME = 1e-3  # mm within which two slices are at one position
_UNEVEN = 0.05  # share of the spacing by which gaps may differ unremarked
_TAGS = [
    *("SeriesInstanceUID", "SeriesNumber", "PatientID", "InstanceNumber", "NumberOfFrames", "SamplesPerPixel"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("Rows", "Columns", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One slice: where its pixels are, and where it lies.

    Attributes:
        path, frame: the file, and the frame in it from 1.
        number: the order the scanner gives.
        size: rows and columns.
        place: position of the first pixel, LPS mm, (3,); None if not told.
        rows, columns: unit directions along a row (columns grow) and down a column, LPS, (3,); None if not told.
        spacing: mm between rows and between columns; None if not told.
        thickness: mm; None if not told.
    """

    path: Path
    frame: int
    number: int
    size: tuple[int, int]
    place: np.ndarray | None
    rows: np.ndarray | None
    columns: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float | None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Slices that make a volume, in no order yet."""

    name: str
    patient: str | None
    planes: tuple[Plane, ...]


def find_series(source: Path) -> list[Series]:
    """The DICOM series of a file, or of all files below a folder, by name; files that are no DICOM are passed over."""
    pydicom = pydicom_module()
    groups: dict[tuple[Any, ...], list[Plane]] = defaultdict(list)
    about: dict[tuple[Any, ...], tuple[str, str | None]] = {}
    for path in _files(source):
        try:
            with open(path, "rb") as file:
                if not is_dicom(file.read(132), path.name):
                    continue
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS)
            planes = _planes(dataset, path)
        except Exception:  # what has no readable header is in no series; curation of the folder tells why
            continue
        for plane in planes:
            key = _series_key(dataset, plane)
            groups[key].append(plane)
            about.setdefault(key, (_series_name(dataset, path), str(dataset.get("PatientID") or "") or None))
    found, taken = [], set()
    for key, planes in sorted(groups.items(), key=lambda item: (about[item[0]][0], str(item[0]))):
        name, patient = about[key]
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique)
        found.append(Series(name=unique, patient=patient, planes=tuple(planes)))
    return found


def open_series(series: Series) -> Volume:
    """A series as a volume; UndecodableImage says why it is none."""
    try:
        planes, gap, notes = _ordered(series.planes)
        rows, columns = planes[0].size
        check_shape((columns, rows, len(planes)), 4)
        affine, spacing = _placed(planes, gap)
        if affine is None:
            notes = [*notes, "gives no orientation: its axes are taken as RAS"]
        dataset = pydicom_module().dcmread(planes[0].path, stop_before_pixels=True, force=True)
        window = file_window(dataset, planes[0].frame)
        inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    except UndecodableImage:
        raise
    except Exception as error:
        raise UndecodableImage(f"is a damaged DICOM series ({first_line(error)})") from error
    order, flips = _to_ras(affine)

    def load() -> np.ndarray:
        voxels = _read(planes).transpose(2, 1, 0)  # (columns, rows, slices)
        turned = voxels.transpose(order)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]

    shape = tuple((columns, rows, len(planes))[place] for place in order)
    return Volume(
        name=series.name,
        shape=(shape[0], shape[1], shape[2]),
        spacing=None if spacing is None else good_spacing(np.array([spacing[place] for place in order])),
        affine=None if affine is None else _turned(affine, order, flips, (columns, rows, len(planes))),
        load=load,
        window=window,
        inverted=inverted,
        patient=series.patient,
        modality=str(dataset.get("Modality") or "") or None,
        notes=notes,
    )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    found = []
    for parent, folders, files in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent) / name for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _planes(dataset: Any, path: Path) -> list[Plane]:
    """The slices of a file; none where it has no picture, or one in colour."""
    if not dataset.get("Rows") or not dataset.get("Columns") or int(dataset.get("SamplesPerPixel") or 1) > 1:
        return []
    count = int(dataset.get("NumberOfFrames") or 1)
    shared = _first_of(dataset.get("SharedFunctionalGroupsSequence"))
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    return [
        _plane(dataset, path, frame, [group for group in (_at(each, frame - 1), shared, dataset) if group is not None])
        for frame in range(1, count + 1)
    ]


def _plane(dataset: Any, path: Path, frame: int, groups: list[Any]) -> Plane:
    place = _vector(_found(groups, "PlanePositionSequence", "ImagePositionPatient"), 3)
    directions = _vector(_found(groups, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing = _vector(_found(groups, "PixelMeasuresSequence", "PixelSpacing"), 2)
    between = _found(groups, "PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = _vector([between or _found(groups, "PixelMeasuresSequence", "SliceThickness")], 1)
    number = dataset.get("InstanceNumber")
    rows, columns = (None, None) if directions is None else (directions[:3], directions[3:])
    if rows is not None and columns is not None:
        lengths = np.linalg.norm(rows), np.linalg.norm(columns)
        if min(lengths) < 0.5 or abs(rows @ columns) > 0.01:
            rows = columns = None
        else:
            rows, columns = rows / lengths[0], columns / lengths[1]
    return Plane(
        path=path,
        frame=frame,
        number=int(number) if number not in (None, "") else 0,
        size=(int(dataset.Rows), int(dataset.Columns)),
        place=place,
        rows=rows,
        columns=columns,
        spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
        thickness=None if thickness is None or thickness[0] <= 0 else float(thickness[0]),
    )


def _found(groups: list[Any], sequence: str, element: str) -> Any:
    """An element of a frame's functional groups, or of the file itself."""
    for group in groups:
        for place in (_first_of(group.get(sequence)), group):
            if place is not None and place.get(element) not in (None, ""):
                return place.get(element)
    return None


def _first_of(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _at(sequence: Any, place: int) -> Any:
    return sequence[place] if place < len(sequence) else None


def _vector(values: Any, length: int) -> np.ndarray | None:
    if values is None or len(values) != length or any(value in (None, "") for value in values):
        return None
    vector = np.array([float(value) for value in values])
    return vector if np.isfinite(vector).all() else None


def _series_key(dataset: Any, plane: Plane) -> tuple[Any, ...]:
    direction = () if plane.rows is None or plane.columns is None else (*plane.rows.round(2), *plane.columns.round(2))
    series = str(dataset.get("SeriesInstanceUID") or plane.path.parent)
    return series, plane.size, tuple(float(value) for value in direction)


def _series_name(dataset: Any, path: Path) -> str:
    """The folder and the series' number; not its description, in which people write names."""
    number = dataset.get("SeriesNumber")
    return f"{path.parent.name}-{int(number)}" if number not in (None, "") else path.parent.name


def _ordered(planes: tuple[Plane, ...]) -> tuple[list[Plane], float | None, list[str]]:
    """Slices along their normal, the distance between them, and remarks."""
    first = planes[0]
    if first.rows is None or first.columns is None or any(plane.place is None for plane in planes):
        return sorted(planes, key=lambda plane: (plane.number, str(plane.path), plane.frame)), first.thickness, []
    normal = np.cross(first.rows, first.columns)
    placed = [(float(normal @ plane.place), plane) for plane in planes if plane.place is not None]
    placed.sort(key=lambda item: (item[0], item[1].number, str(item[1].path), item[1].frame))
    kept = placed[:1]
    kept += [item for before, item in pairwise(placed) if item[0] - before[0] > _SAME]
    notes = []
    if len(kept) < len(placed):
        notes.append(f"{len(placed) - len(kept):,} further slices at the same positions are left out")
    gaps = np.diff([position for position, _ in kept])
    gap = float(np.median(gaps)) if len(gaps) else first.thickness
    if len(gaps) and gap and (abs(gaps - gap) > _UNEVEN * gap).any():
        notes.append(f"its slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart: {gap:.2f} mm is taken")
    return [plane for _, plane in kept], gap, notes


def _placed(planes: list[Plane], gap: float | None) -> tuple[np.ndarray | None, tuple[float, float, float] | None]:
    """(column, row, slice) to RAS mm, and the spacing along them; None for what the files do not tell."""
    first = planes[0]
    if first.spacing is None or not gap:
        return None, None
    spacing = first.spacing[1], first.spacing[0], gap
    if first.rows is None or first.columns is None or first.place is None or good_spacing(np.array(spacing)) is None:
        return None, spacing
    affine = np.eye(4)
    directions = np.stack([first.rows, first.columns, np.cross(first.rows, first.columns)], axis=1)
    affine[:3, :3] = directions * np.array(spacing)
    affine[:3, 3] = first.place
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, spacing


def _to_ras(affine: np.ndarray | None) -> tuple[list[int], list[bool]]:
    """For R, A and S: which stored axis is nearest, and whether it runs the other way."""
    if affine is None:
        return [0, 1, 2], [False, False, False]
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order = max(
        ([x, y, z] for x in range(3) for y in range(3) for z in range(3) if len({x, y, z}) == 3),
        key=lambda order: sum(abs(directions[axis, place]) for axis, place in enumerate(order)),
    )
    return order, [bool(directions[axis, place] < 0) for axis, place in enumerate(order)]


def _turned(affine: np.ndarray, order: list[int], flips: list[bool], stored: tuple[int, int, int]) -> np.ndarray:
    """The affine of the turned array."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for axis, (place, flip) in enumerate(zip(order, flips, strict=True)):
        turn[place, axis] = -1 if flip else 1
        turn[place, 3] = stored[place] - 1 if flip else 0
    return affine @ turn


def _read(planes: list[Plane]) -> np.ndarray:
    """Values after rescale, float32, (slices, rows, columns); a file is opened once for all its frames."""
    pydicom = pydicom_module()
    rows, columns = planes[0].size
    voxels = np.empty((len(planes), rows, columns), dtype=np.float32)
    opened: tuple[Path, Any] | None = None
    for place, plane in enumerate(planes):
        try:
            if opened is None or opened[0] != plane.path:
                opened = plane.path, pydicom.dcmread(plane.path, force=True)
            voxels[place] = frame_values(opened[1], plane.frame)
        except UndecodableImage as error:
            raise UndecodableImage(f"has a slice {plane.path.name} that {error}") from error
        except Exception as error:
            raise UndecodableImage(f"has a damaged slice {plane.path.name} ({first_line(error)})") from error
    return voxels
