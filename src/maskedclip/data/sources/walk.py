"""The files below a folder, in a fixed order, with a remark on everything that is not walked into."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from maskedclip.data.manifest_files import IMAGE_SUFFIXES
from maskedclip.data.sources.gathered import Remark
from maskedclip.data.sources.target import unsayable


@dataclass(frozen=True, kw_only=True)
class Walk:
    """files: paths relative to the folder, sorted.  remarks: links, and what could not be read.  notes: a line each."""

    files: list[str]
    remarks: list[Remark]
    notes: list[str]


def is_image(path: str) -> bool:
    """Whether a file's name is an image's."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def walk(folder: Path, wanted: Callable[[str], bool] = is_image) -> Walk:
    """Files below a folder that are wanted by their relative path.

    Hidden files and folders are passed over and counted; links to folders are not followed, so that no loop is
    walked; links to files are.
    """
    files: list[str] = []
    remarks: list[Remark] = []
    others: Counter[str] = Counter()
    hidden = 0
    waiting = [""]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(folder / place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            remarks.append(_out(place or ".", f"cannot be read ({error.strerror}): check its permissions"))
            continue
        for entry in entries:
            path = place + entry.name
            if entry.name.startswith((".", "__MACOSX")):
                hidden += 1
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path + "/")
            elif entry.is_symlink() and not _is_file(entry):
                what = "a link to a folder, which is not followed" if os.path.isdir(folder / path) else "a broken link"
                remarks.append(_out(path, f"is {what}: put the files themselves there"))
            elif not wanted(path):
                others[PurePosixPath(path).suffix.lower() or "no suffix"] += 1
            elif not _is_file(entry):
                remarks.append(_out(path, "is no ordinary file: remove it"))
            else:
                files.append(path)
    notes = []
    if others:
        listed = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(others.items()))
        notes.append(f"passed over {others.total():,} other files ({listed.encode('utf-8', 'replace').decode()})")
    if hidden:
        notes.append(f"passed over {hidden:,} hidden files and folders")
    return Walk(files=sorted(files), remarks=remarks, notes=notes)


def sayable(files: list[str], prefix: str, remarks: list[Remark]) -> list[str]:
    """Files that a manifest can name, with the others remarked on."""
    kept = []
    for file in files:
        if reason := unsayable(prefix + file):
            remarks.append(_out(file, reason))
        else:
            kept.append(file)
    return kept


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def _out(name: str, reason: str) -> Remark:
    return Remark(name=name, kept=False, reason=reason)
