"""Zip and tar archives as sources: one member at a time, never unpacked to the disk.

What a hostile or broken archive could do, and what is done about it:

- Bombs: a member above `MAX_BYTES`, or a large one that is packed more than `MAX_RATIO` fold, is refused before it is
  unpacked; a list of members above `MAX_LIST_BYTES` (zip) or `MAX_MEMBERS` (tar) too.
- Links, devices and folders in tars are refused; names such as `../../x` are keys of a table, never paths.
- Encrypted members and methods of packing that Python does not know are refused with what to do.

One handle an archive and process is kept, of at most `KEPT` archives, and threads share it.  A zip gives any member at
once.  A tar that is compressed as a whole has to be read from its start: what lies on the way is kept, up to
`AHEAD_BYTES`, so that threads which read a list roughly in its order cost one pass; for a random order a zip is better.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import lzma
import os
import posixpath
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from maskedclip.data.address import is_archive, real_name, written_name
from maskedclip.data.pixels import MAX_BYTES, UndecodableImage, first_line, too_many_bytes
from maskedclip.errors import UserError

MAX_RATIO, RATIO_MATTERS = 250, 64 << 20  # packed further than any photograph; bytes from which on it is looked at
MAX_LIST_BYTES = 512 << 20  # of a zip's directory: some five million members
MAX_MEMBERS = 2_000_000
AHEAD_BYTES = 256 << 20
KEPT = 8
_UNREADABLE = (  # what Python's own readers raise on damaged archives
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    UnicodeError,
    OverflowError,
    NotImplementedError,
    gzip.BadGzipFile,
)


def list_members(path: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Addresses of an archive's files with one of the suffixes, such as `scans.zip!eyes/a.png`.

    Zips are sorted by name; tars keep their own order, in which they are read fastest.  Hidden files are left out.

    Raises:
        UserError: the archive cannot be read, or holds none.
    """
    try:
        names = _opened(os.fspath(path)).names()
    except UndecodableImage as error:
        raise UserError(f"{path}: {error}: pack it again, or give the folder of its files") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    wanted = [name for name in names if name.lower().endswith(suffixes) and not _hidden(name)]
    if not wanted:
        raise UserError(f"{path}: holds no image files ({', '.join(suffixes)})")
    return [written_name(f"{path.name}!{name}") for name in wanted]


def read_member(path: str, member: str) -> bytes:
    """The bytes of an archive's member; UndecodableImage says why there are none.

    Raises:
        UndecodableImage: with a reason that follows the member's address in a sentence.
        OSError: the archive itself cannot be opened.
    """
    archive = _opened(path)
    key = _key(member)
    try:
        with _damage_told("is damaged in its archive"):
            return archive.read(key if key in archive else _key(real_name(member)))
    except KeyError as error:
        inner = next((part for part in member.split("!")[:-1] if is_archive(part)), None)
        if inner is not None:
            raise UndecodableImage("is in an archive inside an archive: unpack the outer one first") from error
        raise UndecodableImage("is not in the archive") from error


@contextlib.contextmanager
def _damage_told(what: str) -> Iterator[None]:
    """Whatever Python's readers raise on a damaged archive becomes one reason."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, NotImplementedError) and "version" not in str(error):
            raise UndecodableImage("is packed by a method that cannot be read: pack the archive again") from error
        raise UndecodableImage(f"{what} ({first_line(error)})") from error
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # these: a gzip or bz2 stream, and a place outside the file
            raise
        raise UndecodableImage(f"{what} ({first_line(error)})") from error


class _Archive(Protocol):
    def names(self) -> list[str]: ...
    def read(self, key: str) -> bytes: ...
    def __contains__(self, key: str) -> bool: ...


_kept: OrderedDict[tuple[object, ...], _Archive] = OrderedDict()
_kept_lock = threading.Lock()


def _opened(path: str) -> _Archive:
    """The archive's handle, from the few that are kept: a changed file, or a forked process, opens it anew."""
    state = os.stat(path)
    key = (os.getpid(), os.path.realpath(path), state.st_ino, state.st_size, state.st_mtime_ns)
    with _kept_lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
        with _damage_told("is in a damaged archive"):
            archive = _Zip(path) if path.lower().endswith(".zip") else _Tar(path)
        _kept[key] = archive
        while len(_kept) > KEPT:
            _kept.popitem(last=False)  # not closed: another thread may read it; the last one to let go closes it
        return archive


def _key(name: str) -> str:
    """One spelling of a member's name: `./a//b.png` and, from Windows, `a\\b.png` are `a/b.png`."""
    return posixpath.normpath(name.replace("\\", "/")).lstrip("/")


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _check_size(size: int, packed: int | None) -> None:
    if size > MAX_BYTES:
        raise too_many_bytes(size)
    if packed is not None and size > RATIO_MATTERS and size > MAX_RATIO * max(packed, 1):
        raise UndecodableImage(f"is packed more than {MAX_RATIO} fold: a decompression bomb")


class _Zip:
    """Threads may read at once: `zipfile` locks each access to the file, and unpacks outside the lock."""

    def __init__(self, path: str) -> None:
        if _directory_bytes(path) > MAX_LIST_BYTES:
            raise UndecodableImage("is in an archive of too many members")
        self._file = zipfile.ZipFile(path)
        self._lock = threading.Lock()
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._names: list[str] = []
        for info in self._file.infolist():
            if info.filename and not info.is_dir():
                name = _key(_utf8_name(info))
                self._names.append(name)
                self._members[name] = info

    def names(self) -> list[str]:
        return sorted(set(self._names))

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def read(self, key: str) -> bytes:
        info = self._members[key]
        if info.flag_bits & 0x1:
            raise UndecodableImage("is encrypted: unpack the archive with its password first")
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise UndecodableImage("is a link in the archive: links are not followed")
        _check_size(info.file_size, info.compress_size)
        with self._lock:
            member = self._file.open(info)
        with member:
            data = member.read(info.file_size + 1)
        if len(data) != info.file_size:
            raise zipfile.BadZipFile("its size is not what the archive says")
        return data


def _directory_bytes(path: str) -> int:
    """What a zip's end record says of the size of its directory: looked at before all of it is read."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 65_557))  # 22 bytes and the longest comment
        tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 22:
        raise zipfile.BadZipFile("no end of a zip: it was cut, or is no zip")
    (size,) = struct.unpack_from("<I", tail, place + 12)
    wide = tail.rfind(b"PK\x06\x06", 0, place)
    if size == 0xFFFFFFFF and wide >= 0 and len(tail) >= wide + 48:
        (size,) = struct.unpack_from("<Q", tail, wide + 40)
    return size


def _utf8_name(info: zipfile.ZipInfo) -> str:
    """Many programs write UTF-8 and do not say so; Python then reads code page 437."""
    if not info.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            return info.filename.encode("cp437").decode("utf-8")
    return info.filename


class _Entry(NamedTuple):
    """A member of a tar, in far less memory than tarfile's own record of it."""

    start: int
    size: int
    refused: str  # why it is not read; empty if it can be


class _Tar:
    """One thread at a time; of a compressed tar the members on the way are kept, the oldest forgotten first."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        with open(path, "rb") as file:
            self._packed = file.read(262)[257:] != b"ustar"
        self._tar = tarfile.open(path, "r:*")  # noqa: SIM115 - kept
        self._members: dict[str, _Entry] = {}
        total, most = 0, max(RATIO_MATTERS, MAX_RATIO * os.path.getsize(path))
        for count, info in enumerate(self._tar):
            total += info.size
            if count >= MAX_MEMBERS:
                raise UndecodableImage("is in an archive of too many members")
            if self._packed and (info.size > MAX_BYTES or total > most):  # to pass over it means to unpack it
                raise UndecodableImage("is in an archive that is a decompression bomb, or has a member beyond 1 GB")
            if not info.isdir():
                self._members[_key(info.name)] = _Entry(info.offset_data, info.size, _refused(info))
            self._tar.members = []  # type: ignore[assignment]  # tarfile keeps every record otherwise
        order = sorted((entry.start, key) for key, entry in self._members.items())
        self._order = [key for _, key in order]
        self._place = {key: place for place, key in enumerate(self._order)}
        self._next = 0  # place of the member that the stream reaches next, once it has gone back to its start
        self._ahead: OrderedDict[str, bytes] = OrderedDict()
        self._ahead_bytes = 0

    def names(self) -> list[str]:
        return list(self._order)

    def __contains__(self, key: str) -> bool:
        return key in self._members

    def read(self, key: str) -> bytes:
        entry = self._members[key]
        if entry.refused:
            raise UndecodableImage(entry.refused)
        _check_size(entry.size, None)
        with self._lock:
            if not self._packed:
                return self._extract(entry)
            if key in self._ahead:
                data = self._ahead.pop(key)
                self._ahead_bytes -= len(data)
                return data
            self._pass_over(self._place[key])
            self._next = self._place[key] + 1
            return self._extract(entry)

    def _pass_over(self, wanted: int) -> None:
        """Read on to a place, keeping what lies between; nothing on a way that is gone again."""
        for place in range(self._next, wanted):
            key = self._order[place]
            entry = self._members[key]
            if entry.refused or entry.size > AHEAD_BYTES // 16 or key in self._ahead:
                continue
            self._ahead[key] = self._extract(entry)
            self._ahead_bytes += entry.size
            while self._ahead_bytes > AHEAD_BYTES:
                _, dropped = self._ahead.popitem(last=False)
                self._ahead_bytes -= len(dropped)

    def _extract(self, entry: _Entry) -> bytes:
        stream = self._tar.fileobj
        assert stream is not None, "an open tar has a file"
        stream.seek(entry.start)
        data = stream.read(entry.size)
        if len(data) != entry.size:
            raise tarfile.ReadError("the archive ends within it")
        return data


def _refused(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "is a link in the archive: links are not followed"
    if not info.isfile():
        return "is a device in the archive, not a file"
    return "is a sparse file in the archive: unpack it first" if info.issparse() else ""
