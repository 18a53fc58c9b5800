"""What curation does to one row: its files' bytes in, the stored image and masks out, or the reason why not."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import Any, Literal

from maskedclip.data.address import is_archive, real_name, split_address
from maskedclip.data.archives import read_member
from maskedclip.data.field import Transform
from maskedclip.data.imaging import (
    UndecodableImage,
    Window,
    decode_mask,
    encode_jpeg,
    encode_png,
    perceptual_hash,
    read_image,
    standardise,
)
from maskedclip.data.pixels import MAX_BYTES, too_many_bytes
from maskedclip.data.quality import quality

MIN_SIDE = 8  # px; below it nothing is a photograph: 1 x 1 px are web pages' spacers and failed exports


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What the stored pictures depend on.

    Attributes:
        size: side of the stored square, px.
        crop: `fundus` or `none`.
        encoding: `jpeg` (quality 95, 4:4:4) or `png`.
    """

    size: int
    crop: Literal["fundus", "none"]
    encoding: Literal["jpeg", "png"]

    def __post_init__(self) -> None:
        if self.size < 16:
            raise ValueError(f"size is {self.size}: give at least 16 px")
        if self.crop not in ("fundus", "none"):
            raise ValueError(f"crop is '{self.crop}': give fundus or none")
        if self.encoding not in ("jpeg", "png"):
            raise ValueError(f"encoding is '{self.encoding}': give jpeg or png")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a file's bytes come from: a local path, or what was fetched of a URL (None if nothing came).

    Attributes:
        name: what the manifest calls it, with member and frame (see `maskedclip.data.address`).
        path: the local path, with member and frame; None for a URL.
        fetched: what came from the URL.
    """

    name: str
    path: str | None
    fetched: bytes | None

    @property
    def frame(self) -> int | None:
        """The frame or page that is asked for, from 1."""
        return split_address(self.name).frame

    @property
    def file_name(self) -> str:
        """The name of the file whose bytes `read` gives."""
        return split_address(self.name).name

    def read(self) -> bytes:
        """The bytes; UndecodableImage says why there are none."""
        if self.path is None:
            if self.fetched is None:
                if split_address(self.name).member is not None:
                    raise UndecodableImage("is in an archive behind a URL: fetch the archive first")
                raise UndecodableImage("could not be fetched (not there, no access, or no answer)")
            return self.fetched
        address = split_address(self.path)
        try:
            path = _regular_file(address.file)
            if address.member is not None:
                return read_member(path, address.member)
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            reason = _READ_ERRORS.get(error.errno or 0, f"cannot be read ({error.strerror or error})")
            where = "is in an archive that " if address.member is not None else ""
            raise UndecodableImage(where + reason) from error
        except ValueError as error:
            if isinstance(error, UndecodableImage):
                raise
            raise UndecodableImage("is missing") from error  # a name with a zero byte


_READ_ERRORS = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is missing",
    errno.EISDIR: "is a folder, not an image",
    errno.EACCES: "may not be read (permission denied)",
    errno.EPERM: "may not be read (permission denied)",
    errno.ENAMETOOLONG: "is missing",
    errno.ELOOP: "is a symbolic link that leads in a circle",
}


def _regular_file(path: str) -> str:
    """The path if it is a file of an acceptable size; one whose name is written with `%E9` is found too.

    A pipe would be waited for without end, and a device such as /dev/zero read so.
    """
    try:
        state = os.stat(path)
    except FileNotFoundError:
        path, written = real_name(path), path
        if path == written:
            raise
        state = os.stat(path)
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(state.st_mode):
        raise UndecodableImage("is a pipe or a device, not a file")
    if state.st_size > MAX_BYTES and not is_archive(path):
        raise too_many_bytes(state.st_size)
    return path


def curate_row(
    image: Source, masks: dict[str, Source | None], settings: RowSettings, window: Window | None = None
) -> dict[str, Any]:
    """One row of the store: the columns that come from the files, or `reason` if it must be quarantined.

    Args:
        image: the picture.
        masks: of each mask's name, its picture, or None if the row has none.
        settings: what the stored pictures depend on.
        window: the range of greys that is shown (the manifest's `window_center`, `window_width`); None leaves it to
            the file.

    Returns:
        reason (None if all is well), image (encoded bytes), sha256 (of the source, and of which frame of it where one
        is asked for), perceptual_hash, width, height, source_width, source_height, field_found, and each mask's name
        with its PNG bytes or None.
    """
    try:
        data = image.read()
        source = read_image(data, name=image.file_name, frame=image.frame, window=window)
        _check_side(source.pixels.shape)
    except UndecodableImage as error:
        return {"reason": str(error)}
    standard = standardise(source.pixels, size=settings.size, crop=settings.crop)
    row: dict[str, Any] = {"reason": None}
    for name, mask in masks.items():
        try:
            row[name] = None if mask is None else _moved_mask(mask, standard.transform)
        except UndecodableImage as error:
            return {"reason": f"{name} {error}"}
    if source.plain and standard.transform.is_identity:
        row["image"] = data
    else:
        row["image"] = encode_jpeg(standard.image) if settings.encoding == "jpeg" else encode_png(standard.image)
    height, width = source.pixels.shape[:2]
    return row | {
        "sha256": _fingerprint(data, image.frame),
        "perceptual_hash": perceptual_hash(standard.image),
        "width": settings.size,
        "height": settings.size,
        "source_width": width,
        "source_height": height,
        "field_found": standard.field.found,
        **{f"quality.{name}": value for name, value in quality(standard.image).items()},
    }


def _check_side(shape: tuple[int, ...]) -> None:
    if min(shape[:2]) < MIN_SIDE:
        raise UndecodableImage(f"is {shape[1]} x {shape[0]} px: too small for a photograph")


def _fingerprint(data: bytes, frame: int | None) -> str:
    """Frames of one file are different pictures, and no copies of each other."""
    digest = hashlib.sha256(data)
    if frame is not None:
        digest.update(f"#frame={frame}".encode())
    return digest.hexdigest()


def _moved_mask(mask: Source, transform: Transform) -> bytes:
    data = mask.read()
    pixels = decode_mask(data, frame=mask.frame)
    if pixels.shape != transform.source:
        (height, width), (rows, columns) = pixels.shape, transform.source
        raise UndecodableImage(f"is {width} x {height} px where its image is {columns} x {rows} px")
    if transform.is_identity and data.startswith(b"\x89PNG") and data[24:26] == b"\x08\0":
        return data  # 8 bits, one channel (IHDR's depth and colour type): what a store holds
    return encode_png(transform.apply_to_mask(pixels))
