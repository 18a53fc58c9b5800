"""How a manifest names one picture: a file, a member of an archive, a frame of either.

`scans.zip!eyes/a.png` is the member `eyes/a.png` of `scans.zip`; `loop.dcm#frame=12` and `report.tif#page=3` are the
12th frame and the third page, counted from 1 as DICOM's own references and PDF's links do; both may be combined.

`!` is what Java's archive addresses use and, unlike `::`, keeps the archive first, so that sorting a manifest keeps an
archive's members together.  It counts only after a suffix of an archive, `#` only before `frame=` or `page=` and a
number at the end: other names with these letters are names.  Archives in archives are not read.

Names that are not UTF-8 cannot be written into a table: their odd bytes are written `%E9`, and read back so.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_MEMBER = re.compile(
    r"(\.zip|\.tar|\.tar\.gz|\.tgz|\.tar\.bz2|\.tbz2|\.tar\.xz|\.txz)!(?=.)", re.IGNORECASE | re.DOTALL
)
_FRAME = re.compile(r"#(?:frame|page)=([0-9]{1,9})\Z")
_HIGH_BYTE = re.compile("%[89A-F][0-9A-F]")  # never a letter of ASCII: no '/' or '..' can hide in it


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a picture is.

    Attributes:
        file: the file, or the archive, as the manifest has it (or the URL).
        member: its name in the archive; None if it is a file of its own.
        frame: the frame or page, from 1; None if none is asked for.
    """

    file: str
    member: str | None = None
    frame: int | None = None

    @property
    def name(self) -> str:
        """What the bytes are called: the member's name, or the file's."""
        return self.file if self.member is None else self.member


def split_address(value: str) -> Address:
    """A manifest's value as file, member and frame."""
    frame = None
    if found := _FRAME.search(value):
        value, frame = value[: found.start()], int(found.group(1))
    if found := _MEMBER.search(value):
        return Address(file=value[: found.end() - 1], member=value[found.end() :], frame=frame)
    return Address(file=value, frame=frame)


def is_archive(name: str) -> bool:
    """Whether a file's name is that of an archive which is read without unpacking."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def written_name(name: str) -> str:
    """A file's name as a table can hold it: bytes that are not UTF-8 become `%E9`."""
    return "".join(f"%{ord(letter) - 0xDC00:02X}" if "\udc80" <= letter <= "\udcff" else letter for letter in name)


def real_name(name: str) -> str:
    """The file's name behind a written one; names without such bytes are returned as they are."""
    coded = _HIGH_BYTE.sub(lambda found: chr(0xDC00 + int(found.group()[1:], 16)), name)
    return os.fsdecode(os.fsencode(coded)) if coded != name else name
