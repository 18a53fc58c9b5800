"""What kind of image some bytes are, by their beginning: the suffix of the file they are written to."""

from __future__ import annotations

from pathlib import PurePosixPath

from maskedclip.data.manifest_files import IMAGE_SUFFIXES

_MAGIC = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"II*\0": ".tif", b"MM\0*": ".tif"}


def suffix_of(data: bytes, name: str = "") -> str | None:
    """`.jpg`, `.png` ... by the content, else by the name; None where neither is an image's."""
    for magic, suffix in _MAGIC.items():
        if data.startswith(magic):
            return suffix
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[128:132] == b"DICM":
        return ".dcm"
    if data[:2] == b"BM":
        return ".bmp"
    named = PurePosixPath(name).suffix.lower()
    return named if named in IMAGE_SUFFIXES else None
