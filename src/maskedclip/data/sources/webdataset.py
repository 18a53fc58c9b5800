"""WebDataset tars: files whose names agree up to the first point of the last part are one sample.

`0001.jpg` with `0001.txt` (the text), `0001.cls` (the class) and `0001.json` (further columns).  Nothing is unpacked
under a name of the archive's: images are numbered, and the sample's name is carried as `key`.
"""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from maskedclip.console import bar
from maskedclip.data.manifest_checks import SPLIT_NAMES, TEXT_COLUMNS
from maskedclip.data.manifest_files import IMAGE_SUFFIXES
from maskedclip.data.sources.gathered import Gathered, Remark, Rows, SourceOptions, column_name, shown
from maskedclip.data.sources.patients import found_in, patient_pattern
from maskedclip.data.sources.pictures import suffix_of
from maskedclip.data.sources.target import Target
from maskedclip.errors import UserError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TEXTS = ("txt", "text", "caption")
_LARGEST_IMAGE, _LARGEST_TEXT = 2**30, 2**24  # bytes


@dataclass(kw_only=True)
class _Sample:
    key: str
    image: bytes | None = None
    image_name: str = ""
    parts: dict[str, bytes] = field(default_factory=dict)  # the others' suffix -> content


def gather(source: Path, target: Target, options: SourceOptions) -> Gathered:
    """Rows of a tar, or of all tars of a folder, their images written into the target's folder.

    A `.cls` becomes `label.class`; of a `.json`, `text` (or what `options.text` names), `patient`, `split`,
    `label.NAME` and `label: {NAME: ...}` become what they are called and the rest is carried.  A shard whose name
    begins with a split's, such as `train-0000.tar`, gives its rows that split.  Links, devices and names that lead
    out of the archive are left out, as is every sample without an image or with a part that cannot be read.

    Raises:
        UserError: a tar is damaged, or there is none.
    """
    tars = sorted(path for path in source.iterdir() if is_tar(path)) if source.is_dir() else [source]
    if not tars:
        raise UserError(f"{source}: holds no tar ({', '.join(TAR_SUFFIXES)}): name the folder of the shards")
    pattern = patient_pattern(options.patient)
    rows, remarks = Rows(), list[Remark]()
    with bar("tars", len(tars)) as progress:
        for number, path in enumerate(tars):
            for place, sample in enumerate(_samples(path, remarks)):
                cells = _cells(sample, path, options, remarks)
                if cells is None or sample.image is None:
                    continue
                suffix = suffix_of(sample.image, sample.image_name)
                cells = {"image": target.write_image(f"{number:05d}/{place:06d}{suffix}", sample.image)} | cells
                progress.advance(0, f"{place + 1:,} samples")
                if pattern and (patient := found_in(pattern, PurePosixPath(sample.key).name)):
                    cells["patient"] = patient
                rows.add(cells | {"key": sample.key})
            progress.advance()
    return Gathered(table=rows.table(), remarks=remarks, notes=[f"{len(tars):,} tars"])


def is_tar(path: Path) -> bool:
    """Whether a file's name is a tar's."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def _samples(path: Path, remarks: list[Remark]) -> Iterator[_Sample]:
    """Samples of a tar in its order; a sample is a run of members with one key."""
    sample = _Sample(key="")
    member: tarfile.TarInfo | None = None
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isdir():
                    continue
                name = f"{path.name}: {member.name}"
                if reason := _unsafe(member):
                    remarks.append(Remark(name=name, kept=False, reason=reason))
                    continue
                key, suffix = _key(member.name)
                if key != sample.key:
                    yield sample
                    sample = _Sample(key=key)
                file = archive.extractfile(member)
                data = file.read() if file else b""
                if len(data) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                last = "." + suffix.rpartition(".")[2]
                if last not in IMAGE_SUFFIXES:
                    sample.parts[suffix] = data
                elif sample.image is None:
                    sample.image, sample.image_name = data, member.name
                else:
                    remarks.append(Remark(name=name, kept=False, reason="is a second image of its sample"))
            yield sample
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        after = f" after {shown(member.name)}" if member else ""
        raise UserError(f"{path}: is a damaged or incomplete tar{after} ({error}): copy it again") from error


def _key(name: str) -> tuple[str, str]:
    """The sample's name and the lower-case suffix, both without the point between them."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is left out, or None."""
    parts = PurePosixPath(member.name.replace("\\", "/")).parts
    if member.issym() or member.islnk():
        return "is a link, which is never followed"
    if not member.isreg() or member.issparse():
        return "is no ordinary file"
    if not parts or parts[0] == "/" or ".." in parts or parts[0][1:2] == ":":
        return "its name leads out of the archive"
    if PurePosixPath(member.name).name.startswith("."):
        return "is a hidden file"
    suffix = PurePosixPath(member.name).suffix.lower()
    largest = _LARGEST_IMAGE if suffix in IMAGE_SUFFIXES else _LARGEST_TEXT
    return f"is larger than {largest:,} bytes" if member.size > largest else None


def _cells(sample: _Sample, path: Path, options: SourceOptions, remarks: list[Remark]) -> dict[str, Any] | None:
    """A sample as a row, None where it is left out."""
    if not sample.parts and sample.image is None:
        return None  # what precedes the first member
    name = f"{path.name}: {sample.key}"
    try:
        if sample.image is None:
            raise _LeftOut(f"has no image, only {', '.join(sorted(sample.parts))}")
        if suffix_of(sample.image, sample.image_name) is None:
            raise _LeftOut("its image is of no known kind")
        if not sample.image:
            raise _LeftOut("its image is empty (0 bytes)")
        return _read_parts(sample, path, options, remarks)
    except _LeftOut as error:
        remarks.append(Remark(name=name, kept=False, reason=str(error)))
        return None


class _LeftOut(ValueError):
    """Why a sample cannot be a row."""


def _read_parts(sample: _Sample, path: Path, options: SourceOptions, remarks: list[Remark]) -> dict[str, Any]:
    cells: dict[str, Any] = {"split": _split_of(path)}
    for suffix, data in sample.parts.items():
        kind = suffix.rpartition(".")[2]
        if kind not in (*_TEXTS, "cls", "json"):
            remarks.append(
                Remark(name=f"{path.name}: {sample.key}.{suffix}", kept=False, reason=f"a .{kind} is not read")
            )
            continue
        try:
            content = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _LeftOut(f"its .{suffix} is not UTF-8") from error
        if kind == "cls":
            cells["label.class"] = content.strip()
        elif kind == "json":
            cells = _json_cells(content, suffix, options) | {key: value for key, value in cells.items() if value}
        else:
            cells["text"] = content.strip()
    return cells


def _json_cells(content: str, suffix: str, options: SourceOptions) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _LeftOut(f"its .{suffix} is not valid JSON") from error
    if not isinstance(record, dict):
        raise _LeftOut(f"its .{suffix} is not a JSON object")
    cells: dict[str, Any] = {}
    for name, value in record.items():
        cells |= _json_cell(column_name(name), value, options)
    return cells


def _json_cell(name: str, value: Any, options: SourceOptions) -> Mapping[str, Any]:
    if name == (options.text or "text"):
        return {"text": value}
    if name == "label" or name in options.label:
        if isinstance(value, dict):
            return {f"label.{column_name(str(key))}": inner for key, inner in value.items() if column_name(str(key))}
        return {"label.class" if name == "label" else f"label.{name}": value}
    if name.lower() in ("patient", "split"):
        return {name.lower(): value}
    if not name or name.lower() in (*TEXT_COLUMNS, "key", "label.", "mask.") or name.lower().startswith("mask."):
        return {f"json.{name}": value}
    return {name: value}


def _split_of(path: Path) -> str | None:
    first = path.name.lower().replace("_", "-").partition("-")[0].partition(".")[0]
    return SPLIT_NAMES.get(first)
