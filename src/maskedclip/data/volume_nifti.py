"""NIfTI-1 and NIfTI-2 files by nibabel (the extra `medical`).

The header's display range (`cal_min`, `cal_max`) is not used: programs leave it behind when they rescale, and it is
then far from the values.  Of a series in time one volume is read.
"""

from __future__ import annotations

import importlib
import logging
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from maskedclip.data.pixels import UndecodableImage, first_line
from maskedclip.data.volumes import Volume, check_shape, good_spacing

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it tells of every header field it doubts
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


def open_nifti(path: Path, *, time: int = 0) -> Volume:
    """A NIfTI file as a volume; arguments and errors as of `open_volume`."""
    try:
        nibabel: Any = importlib.import_module("nibabel")
    except ImportError as error:
        raise UndecodableImage("is a NIfTI volume: install maskedclip[medical] to read it") from error
    try:
        if not os.path.getsize(path):
            raise UndecodableImage("is empty (0 bytes)")
        image = nibabel.load(path)
        return _described(nibabel, image, path, time)
    except UndecodableImage:
        raise
    except OSError as error:
        if error.errno:
            raise UndecodableImage(f"cannot be read ({error.strerror})") from error
        raise UndecodableImage(_damage(error)) from error
    except Exception as error:  # as for images: whatever the reader raises is the file's fault, and is told
        raise UndecodableImage(_damage(error)) from error


def _described(nibabel: Any, image: Any, path: Path, time: int) -> Volume:
    header = image.header
    dtype = header.get_data_dtype()
    if dtype.kind not in "iufb" or dtype.itemsize > 8:
        raise UndecodableImage("holds colours or complex numbers, not one number a voxel")
    stored, rest = _three(tuple(int(side) for side in header.get_data_shape()))
    check_shape(stored, dtype.itemsize)
    times = int(np.prod(rest)) if rest else 1
    if not 0 <= time < times:
        raise UndecodableImage(f"has no time {time}, only {times:,} (counted from 0)")
    notes = [f"time {time} of {times:,} is taken"] if times > 1 else []
    affine, spacing, notes = _placed(header, np.asarray(image.affine, dtype=np.float64), notes)
    turn = np.array([[0, 1], [1, 1], [2, 1]]) if affine is None else nibabel.io_orientation(affine)
    if affine is not None:
        affine = affine @ nibabel.orientations.inv_ornt_aff(turn, stored)
    shape = tuple(stored[int(place)] for place in np.argsort(turn[:, 0]))
    spaced = [spacing[int(place)] for place in np.argsort(turn[:, 0])]
    slope, intercept = image.dataobj.slope, image.dataobj.inter  # the header forgets them, as it does the offset

    def load() -> np.ndarray:
        try:
            # nibabel's own proxy would make float64 of all voxels; this one gives the stored type
            spec = stored + rest, dtype, image.dataobj.offset
            proxy = nibabel.arrayproxy.ArrayProxy(os.fspath(path), spec)
            place = np.unravel_index(time, rest, order="F") if rest else ()
            voxels = np.asanyarray(proxy[(slice(None),) * 3 + tuple(int(index) for index in place)])
        except Exception as error:
            raise UndecodableImage(_damage(error)) from error
        return nibabel.apply_orientation(voxels, turn)

    return Volume(
        name=path.name,
        shape=(shape[0], shape[1], shape[2]),
        spacing=good_spacing(np.array(spaced)),
        affine=affine,
        load=load,
        slope=float(slope) if np.isfinite(slope) and slope != 0 else 1.0,
        intercept=float(intercept) if np.isfinite(intercept) else 0.0,
        notes=notes,
    )


def _three(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """A shape's three sides in space, a flat picture having one of 1, and what follows them."""
    if not shape or min(shape) < 1:
        raise UndecodableImage(f"has no voxels (its shape is {' x '.join(map(str, shape)) or 'empty'})")
    sides = shape[:3] + (1,) * (3 - len(shape[:3]))
    rest = shape[3:]
    if sum(side > 1 for side in rest) > 1:
        raise UndecodableImage(f"has {len(shape)} dimensions: give volumes, or volumes over time")
    return (sides[0], sides[1], sides[2]), rest


def _placed(header: Any, affine: np.ndarray, notes: list[str]) -> tuple[np.ndarray | None, np.ndarray, list[str]]:
    """The affine in mm, None if there is none; the spacing along the stored axes; remarks."""
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        unit = "unknown"
    scale = _MILLIMETRES.get(unit, 1.0)
    zooms = np.array([*header.get_zooms(), 1.0, 1.0, 1.0][:3], dtype=np.float64)
    if int(header["qform_code"]) <= 0 and int(header["sform_code"]) <= 0:
        return None, zooms * scale, [*notes, "gives no orientation (qform and sform are 0): its axes are taken as RAS"]
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (sides <= 0).any() or abs(np.linalg.det(affine[:3, :3] / sides)) < 1e-3:
        return None, zooms * scale, [*notes, "gives an affine that is no frame of space: its axes are taken as RAS"]
    return np.diag([scale, scale, scale, 1.0]) @ affine, sides * scale, notes


def _damage(error: Exception) -> str:
    told = str(error).lower()
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, EOFError) or any(word in told for word in ("expected", "truncated", "ended before", "mmap")):
        return "is a truncated NIfTI volume"
    if isinstance(error, zlib.error) or "crc" in told or "gzip" in told or "decompress" in told:
        return f"is a damaged NIfTI volume ({first_line(error)})"
    return f"is no NIfTI volume that can be read ({first_line(error)})"
