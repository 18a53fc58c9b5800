"""MedMNIST files: `.npz` with `train_images`, `train_labels` and the same for val and test.

Arrays are read picture by picture out of the archive, so that a file of many gigabytes takes little memory, and never
unpickled.  2-D: (n, H, W) or (n, H, W, 3), written as they are.  3-D: (n, D, H, W), of which the middle slices along
the first axis are written; a volume of values 0 and 1 is written as 0 and 255.
"""

from __future__ import annotations

import errno
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from maskedclip.console import bar
from maskedclip.data.imaging import encode_png
from maskedclip.data.sources.gathered import Gathered, Rows, SourceOptions, column_name, listed
from maskedclip.data.sources.labels import check_classes, class_cells
from maskedclip.data.sources.target import Target
from maskedclip.errors import UserError

SPLITS = ("train", "val", "test")
# What zip, zlib and numpy's header reader raise of damaged bytes.
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)
_LARGEST_ITEM = 2**30  # bytes of one picture or volume


def gather(source: Path, target: Target, options: SourceOptions) -> Gathered:
    """Rows of a MedMNIST file, its pictures written as PNG into the target's folder.

    Labels (n, 1) become `label.class`, the number or its name of `options.class_names`; labels (n, L) a 0/1 column
    each.  Slices of a volume share a patient, so that no audit or split parts them.

    Raises:
        UserError: not such a file, a volume without `options.slices`, names that do not fit the labels.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            return _read(archive, source, target, options)
    except UserError:
        raise
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk, not of the file
            raise
        raise UserError(f"{source}: is a damaged .npz file ({column_name(str(error))}): download it again") from error


def _read(archive: zipfile.ZipFile, source: Path, target: Target, options: SourceOptions) -> Gathered:
    present = [split for split in SPLITS if f"{split}_images.npy" in archive.namelist()]
    if not present:
        raise UserError(
            f"{source}: holds no train_images, val_images or test_images but {listed(archive.namelist())}: "
            "give a MedMNIST file"
        )
    shapes = {split: _shape(archive, f"{split}_images.npy", source) for split in present}
    for split, (shape, kind) in shapes.items():
        _check(source, split, shape, kind, options)
    labels = {split: _labels(archive, split, shapes[split][0][0], source) for split in present}
    names = _names(labels, options, source)
    several = any(values is not None and values.shape[1] > 1 for values in labels.values())
    if several and options.labels == "nominal":
        raise UserError(f"--labels nominal: the pictures of {source} have several labels each; say --labels one-hot")
    how = "one-hot" if several else options.labels or "nominal"
    check_classes(names, how)
    volumes = any(_is_volume(shape) for shape, _ in shapes.values())
    rows = Rows()
    with bar("pictures", sum(shape[0] for shape, _ in shapes.values())) as progress:
        for split in present:
            for place, item in enumerate(_items(archive, f"{split}_images.npy", source)):
                cells = {"split": split} | _label_cells(labels[split], place, names, how, several=several)
                if volumes:
                    cells["patient"] = f"{split}-{place}"
                for name, picture, more in _pictures(item, split, place, options):
                    rows.add({"image": target.write_image(name, encode_png(picture))} | cells | more)
                progress.advance()
    counts = ", ".join(f"{split} {shapes[split][0][0]:,}" for split in present)
    shape = " x ".join(map(str, shapes[present[0]][0][1:]))
    note = f"{'volumes' if volumes else 'pictures'} of {shape}: {counts}"
    return Gathered(table=rows.table(), notes=[note])


def _is_volume(shape: tuple[int, ...]) -> bool:
    return len(shape) == 5 or (len(shape) == 4 and shape[3] not in (1, 3))


def _check(source: Path, split: str, shape: tuple[int, ...], kind: np.dtype, options: SourceOptions) -> None:
    if (kind != np.uint8 and kind != np.bool_) or not 3 <= len(shape) <= 4 or 0 in shape[1:]:
        raise UserError(
            f"{source}: {split}_images is {kind} {shape}: give 8-bit pictures (n, H, W), (n, H, W, 3) or (n, D, H, W)"
        )
    if _is_volume(shape) and not options.slices:
        raise UserError(
            f"{source}: holds volumes of {' x '.join(map(str, shape[1:]))}, a manifest of pictures cannot: "
            "say --slices 1 for the middle slice of each, or more"
        )
    if _is_volume(shape) and options.slices > shape[1]:
        raise UserError(f"--slices {options.slices}: the volumes of {source} have {shape[1]}; ask for fewer")
    if not _is_volume(shape) and options.slices:
        raise UserError(f"--slices: {source} holds pictures, not volumes; leave --slices away")


def _pictures(
    item: np.ndarray, split: str, place: int, options: SourceOptions
) -> Iterator[tuple[str, np.ndarray, dict[str, int]]]:
    """Names, pixels and further cells of what is written of one picture or volume."""
    if item.dtype == np.bool_:
        item = item.astype(np.uint8)
    if not options.slices:
        yield f"{split}/{place:06d}.png", item[:, :, 0] if item.ndim == 3 and item.shape[2] == 1 else item, {}
        return
    if item.max() <= 1:
        item = item * np.uint8(255)
    first = (len(item) - options.slices + 1) // 2
    for depth in range(first, first + options.slices):
        yield f"{split}/{place:06d}_{depth:03d}.png", item[depth], {"slice": depth}


def _labels(archive: zipfile.ZipFile, split: str, count: int, source: Path) -> np.ndarray | None:
    """Whole numbers (n, L), None where the file has none."""
    name = f"{split}_labels.npy"
    if name not in archive.namelist():
        return None
    values = np.array(list(_items(archive, name, source)))
    if len(values) != count or values.ndim > 2 or not np.issubdtype(values.dtype, np.integer):
        raise UserError(
            f"{source}: {name} is {values.dtype} {values.shape}: give a whole number, or 0 and 1, a picture"
        )
    return values.reshape(count, -1)


def _names(labels: dict[str, np.ndarray | None], options: SourceOptions, source: Path) -> list[str]:
    """The names of the classes: the user's, else their numbers."""
    known = [values for values in labels.values() if values is not None and values.size]
    if not known:
        return []
    if len({values.shape[1] for values in known}) > 1:
        raise UserError(f"{source}: the splits have different numbers of labels: download it again")
    width = known[0].shape[1]
    if min(int(values.min()) for values in known) < 0:
        raise UserError(f"{source}: has labels below 0: number the classes from 0")
    if width > 1 and max(int(values.max()) for values in known) > 1:
        raise UserError(f"{source}: has {width} labels a picture that are not 0 and 1: give one, or 0 and 1")
    count = width if width > 1 else max(int(values.max()) for values in known) + 1
    if options.class_names and len(options.class_names) != count:
        raise UserError(f"--class-names: {len(options.class_names)} names for {count} classes; name each, in order")
    return list(options.class_names) or [str(number) for number in range(count)]


def _label_cells(
    values: np.ndarray | None, place: int, names: list[str], how: str, *, several: bool
) -> dict[str, str | None]:
    if values is None:
        return {}
    row = values[place].tolist()
    if several:
        return {f"label.{name}": str(value) for name, value in zip(names, row, strict=True)}
    return class_cells([names[row[0]]], names, "one-hot" if how == "one-hot" else "nominal")


def _header(file: IO[bytes], name: str, source: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array; Python objects, which only pickle can read, are refused."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, kind = read(file)
    except ValueError as error:
        raise UserError(f"{source}: {name} is no array ({error}): download it again") from error
    if kind.hasobject or by_column or not shape:
        raise UserError(f"{source}: {name} is {kind} {shape}, not a plain array in rows: save it with numpy.savez")
    return shape, kind


def _shape(archive: zipfile.ZipFile, name: str, source: Path) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(name) as file:
        return _header(file, name, source)


def _items(archive: zipfile.ZipFile, name: str, source: Path) -> Iterator[np.ndarray]:
    """The array's items along its first axis, one at a time."""
    with archive.open(name) as file:
        shape, kind = _header(file, name, source)
        size = int(np.prod(shape[1:], dtype=np.int64)) * kind.itemsize
        if size > _LARGEST_ITEM:
            raise UserError(f"{source}: {name} has items of {size:,} bytes: give pictures below {_LARGEST_ITEM:,}")
        for _ in range(shape[0]):
            data = file.read(size)
            if len(data) < size:
                raise EOFError(f"{name} ends early")
            yield np.frombuffer(data, kind).reshape(shape[1:])
