"""What curation does to one row: its files' bytes in, the stored image and masks out, or the reason why not."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from maskedclip.data.field import Transform
from maskedclip.data.imaging import (
    UndecodableImage,
    decode_mask,
    encode_jpeg,
    encode_png,
    perceptual_hash,
    read_image,
    standardise,
)


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
    """Where a file's bytes come from: a local path, or what was fetched of a URL (None if nothing came)."""

    name: str
    path: str | None
    fetched: bytes | None

    def read(self) -> bytes:
        """The bytes; UndecodableImage says why there are none."""
        if self.path is None:
            if self.fetched is None:
                raise UndecodableImage("could not be fetched (not there, no access, or no answer)")
            return self.fetched
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise UndecodableImage(_READ_ERRORS.get(error.errno or 0, f"cannot be read ({error.strerror})")) from error


_READ_ERRORS = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is missing",
    errno.EISDIR: "is a folder, not an image",
    errno.EACCES: "may not be read (permission denied)",
    errno.ENAMETOOLONG: "is missing",
}


def curate_row(image: Source, masks: dict[str, Source | None], settings: RowSettings) -> dict[str, Any]:
    """One row of the store: the columns that come from the files, or `reason` if it must be quarantined.

    Returns:
        reason (None if all is well), image (encoded bytes), sha256 (of the source), perceptual_hash, width, height,
        source_width, source_height, field_found, and each mask's name with its PNG bytes or None.
    """
    try:
        data = image.read()
        source = read_image(data, name=image.name)
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
        "sha256": hashlib.sha256(data).hexdigest(),
        "perceptual_hash": perceptual_hash(standard.image),
        "width": settings.size,
        "height": settings.size,
        "source_width": width,
        "source_height": height,
        "field_found": standard.field.found,
    }


def _moved_mask(mask: Source, transform: Transform) -> bytes:
    data = mask.read()
    pixels = decode_mask(data)
    if pixels.shape != transform.source:
        (height, width), (rows, columns) = pixels.shape, transform.source
        raise UndecodableImage(f"is {width} x {height} px where its image is {columns} x {rows} px")
    if transform.is_identity and data.startswith(b"\x89PNG") and data[24:26] == b"\x08\0":
        return data  # 8 bits, one channel (IHDR's depth and colour type): what a store holds
    return encode_png(transform.apply_to_mask(pixels))
