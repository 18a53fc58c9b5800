"""Where a manifest goes: how files are named in it, the folder of written images, and that nothing is overwritten."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.data.manifest_files import BLOCK
from maskedclip.data.shards import write_atomically
from maskedclip.data.sources.gathered import Remark, shown
from maskedclip.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


class Target:
    """A manifest that is to be written.

    Beside `NAME.csv` lie, where they are needed, `NAME_images/` (images that the source held in another form) and
    `NAME_remarks.csv` (what was left out, and why).  UserError where one of them exists.
    """

    def __init__(self, out: Path, *, allow_outside: bool = False) -> None:
        self.out = out
        self.remarks_file = out.with_name(f"{out.stem}_remarks.csv")
        self.images = out.with_name(f"{out.stem}_images")
        self._partial = out.with_name(f"{self.images.name}.partial")
        self._allow_outside, self._wrote_images = allow_outside, False
        if out.suffix.lower() not in SUFFIXES:
            raise UserError(f"--out {out}: a manifest is written as {', '.join(SUFFIXES)}; give such a name")
        for path in (out, self.remarks_file, self.images, self._partial):
            if path.exists() or path.is_symlink():
                raise UserError(f"{path}: exists already; name another file with --out, or delete it")

    def prefix(self, folder: Path) -> str:
        """What the names of a folder's files begin with in the manifest: `` or `sub/`, or an absolute path.

        Raises:
            UserError: the folder lies outside the manifest's and that was not allowed.
        """
        real, root = os.path.realpath(folder), os.path.realpath(self.out.parent)
        if real == root:
            return ""
        if real.startswith(root.rstrip("/") + "/"):
            return os.path.relpath(real, root) + "/"
        if self._allow_outside:
            return real.rstrip("/") + "/"
        raise UserError(
            f"{folder}: lies outside the folder of {self.out}: write the manifest into it or above it, "
            f"such as --out {Path(real) / self.out.name}, or say --allow-outside (curate needs it then, too)"
        )

    def write_image(self, name: str, data: bytes | memoryview) -> str:
        """Write an image into the new folder and return its cell.  name: of our own making, relative, safe."""
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._wrote_images = True
        with open(path, "xb") as file:
            file.write(data)
        return f"{self.images.name}/{name}"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What fails within leaves no half-written folder of images behind."""
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            if self._wrote_images:
                shutil.rmtree(self._partial, ignore_errors=True)
            raise

    def finish(self, table: pa.Table, remarks: list[Remark]) -> None:
        """Give the images their folder's name, then write the remarks and, last, the manifest."""
        content = _content(table, self.out.suffix.lower())
        if self._wrote_images:
            os.rename(self._partial, self.images)
        if remarks:
            _write_new(self.remarks_file, _remarks_csv(remarks))
        _write_new(self.out, content)


def unsayable(cell: str) -> str | None:
    """Why a manifest cannot name this path, or None: a manifest is UTF-8, trims its cells and reads `\\` as `/`."""
    try:
        cell.encode()
    except UnicodeEncodeError:
        return "its path is not UTF-8: rename it"
    if "\\" in cell:
        return "its path has a backslash, which a manifest reads as a folder: rename it"
    if cell.strip() != cell:
        return "its path begins or ends with white space: rename it"
    return None


def write_new_file(path: Path, content: bytes) -> None:
    """Write a file that must not exist, completely or not at all; UserError where it does."""
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: exists already; name another file, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_new(path, content)


def _write_new(path: Path, content: bytes) -> None:
    try:
        path.touch(exist_ok=False)  # the name is ours from here on; nobody's file is replaced
    except FileExistsError as error:
        raise UserError(f"{path}: appeared meanwhile; name another file, or delete it") from error
    try:
        write_atomically(path, content)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _content(table: pa.Table, suffix: str) -> bytes:
    if suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()
    text = io.StringIO()
    if suffix == ".jsonl":
        for batch in table.to_batches(max_chunksize=BLOCK):
            for row in batch.to_pylist():
                known = {name: value for name, value in row.items() if value is not None}
                text.write(json.dumps(known, ensure_ascii=False) + "\n")
        return text.getvalue().encode()
    write = _csv_writer(text, "\t" if suffix == ".tsv" else ",")
    write(table.column_names)
    for batch in table.to_batches(max_chunksize=BLOCK):
        for record in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            write(["" if cell is None else cell for cell in record])
    return text.getvalue().encode()


def _csv_writer(text: io.StringIO, separator: str):
    """Writes a record; all of it in quotes where a cell has a carriage return, which `csv` alone leaves bare."""
    plain = csv.writer(text, delimiter=separator, lineterminator="\n")
    quoted = csv.writer(text, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(record: list[str]) -> None:
        (quoted if any("\r" in cell for cell in record) else plain).writerow(record)

    return write


def _remarks_csv(remarks: list[Remark]) -> bytes:
    text = io.StringIO()
    write = _csv_writer(text, ",")
    write(["name", "outcome", "reason"])
    for remark in remarks:
        write([shown(remark.name), "kept" if remark.kept else "left out", remark.reason])
    return text.getvalue().encode("utf-8", "replace")
