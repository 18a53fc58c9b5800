"""Photographs that lie in files: below a folder, in a manifest, a list or an archive, or one alone."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.data.address import split_address, written_name
from maskedclip.data.archives import list_members
from maskedclip.data.curate_row import MIN_SIDE, Source
from maskedclip.data.imaging import read_image
from maskedclip.data.manifest import is_url, local_path, read_manifest
from maskedclip.data.manifest_checks import WINDOW_COLUMNS
from maskedclip.data.manifest_files import IMAGE_SUFFIXES
from maskedclip.data.pixels import UndecodableImage, Window
from maskedclip.data.sources.walk import sayable, walk
from maskedclip.deployment.inputs import Inputs, Rejected
from maskedclip.errors import UserError
from maskedclip.models.features import prepare_pixels
from maskedclip.models.saving import Preprocessing

_OWN_COLUMNS = ("text", "patient", "split")  # a manifest has them even where its file does not


class FileInputs(Inputs):
    """Photographs as files, archive members or URLs, seen from one folder."""

    def __init__(
        self,
        path: Path,
        root: Path,
        table: pa.Table,
        notes: list[str] | None = None,
        unlisted: list[Rejected] | None = None,
    ) -> None:
        super().__init__(path, table, notes or [], unlisted or [])
        self.root = Path(os.path.abspath(root))
        centres, widths = (
            table.column(name).to_pylist() if name in table.column_names else None for name in WINDOW_COLUMNS
        )
        self._windows = None if centres is None or widths is None else list(zip(centres, widths, strict=True))

    def source(self, row: int) -> Source:
        """Where the bytes of a photograph are; what a URL names is fetched now."""
        name = self.ids[row]
        if is_url(name):
            return Source(name=name, path=None, fetched=_fetched(split_address(name).file))
        return Source(name=name, path=str(local_path(name, self.root)), fetched=None)

    @property
    def fingerprint(self) -> str:
        """Of ids and columns, and of each file's size and time of change."""
        digest = hashlib.sha256()
        with pa.ipc.new_stream(pa.PythonFile(_Hashing(digest), "w"), self.table.schema) as stream:
            stream.write_table(self.table.combine_chunks())
        seen: set[str] = set()
        for name in self.ids:
            file = name if is_url(name) else split_address(str(local_path(name, self.root))).file
            if file not in seen:
                seen.add(file)
                digest.update(_state(file))
        return digest.hexdigest()[:16]

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """The photograph as curation reads it: with its frame, and the window of greys that its manifest gives."""
        source = self.source(row)
        pixels = read_image(source.read(), name=source.file_name, frame=source.frame, window=self._window(row)).pixels
        if min(pixels.shape[:2]) < MIN_SIDE:
            raise UndecodableImage(f"is {pixels.shape[1]} x {pixels.shape[0]} px: too small for a photograph")
        return pixels

    def prepare(self, row: int, preprocessing: Preprocessing) -> Tensor:
        """Field found, cropped and resized as curation does it."""
        return prepare_pixels(self.pixels(row), preprocessing)

    def _window(self, row: int) -> Window | None:
        if self._windows is None or None in self._windows[row]:
            return None
        centre, width = self._windows[row]
        return Window(centre=centre, width=width)


def of_folder(folder: Path) -> Inputs:
    """Every image file below a folder, hidden ones passed over; ids are paths below the folder."""
    found = walk(folder)
    remarks = list(found.remarks)
    files = sayable(found.files, "", remarks)
    if not files:
        raise UserError(f"{folder}: no images below this folder (looked for {', '.join(IMAGE_SUFFIXES)})")
    unlisted = [Rejected(written_name(remark.name), remark.reason) for remark in remarks]
    return FileInputs(folder, folder, _table([written_name(file) for file in files]), list(found.notes), unlisted)


def of_archive(archive: Path) -> Inputs:
    """Every image in a zip or tar; ids are `archive.zip!member`."""
    return FileInputs(archive, archive.parent, _table(list_members(archive, IMAGE_SUFFIXES)))


def of_image(path: str) -> Inputs:
    """One image; its id is its name."""
    return FileInputs(Path(path), Path(path).parent, _table([written_name(Path(path).name)]))


def of_paths(paths: Iterable[Path | str]) -> Inputs:
    """Paths in their order, seen from the working directory; one that is given twice stays twice."""
    names = [written_name(str(path)) for path in paths]
    if not names:
        raise UserError("paths: is empty; give at least one image")
    return FileInputs(Path(), Path(), _table(names))


def of_list(path: Path, encoding: str) -> Inputs:
    """A path a line, seen from the list's folder, or from the working directory where only there the first one is."""
    try:
        lines = path.read_text(encoding=encoding).removeprefix("\ufeff").split("\n")
    except (UnicodeError, LookupError) as error:
        raise UserError(f"{path}: is no text in {encoding} ({error}); give its encoding, --encoding") from None
    given = [line.strip() for line in lines if line.strip()]
    if not given:
        raise UserError(f"{path}: is empty; write the path of an image on each line")
    names = list(dict.fromkeys(given))
    notes = [f"{len(given) - len(names):,} lines repeat an earlier one"] if len(names) < len(given) else []
    root = path.parent
    first = split_address(names[0]).file
    if not (root / first).exists() and Path(first).exists() and not is_url(first):
        root = Path()
        notes.append("paths of the list are seen from the working directory")
    if len(names) == 1 and not is_url(first) and not (root / first).exists():
        raise UserError(f"{path}: is read as a list of paths, one a line; its only line, {names[0][:60]!r}, is no file")
    return FileInputs(path, root, _table(names), notes)


def of_manifest(path: Path, encoding: str, *, allow_outside: bool) -> Inputs:
    """The rows of a manifest with all its columns; ids are what its column `image` says."""
    manifest = read_manifest(path, encoding=encoding, allow_outside=allow_outside)
    table = manifest.table
    for name in _OWN_COLUMNS:
        if table.column(name).null_count == len(table):
            table = table.drop_columns([name])
    table = table.rename_columns(["id" if name == "image" else name for name in table.column_names])
    notes = [note.replace("the store has", "the output has") for note in manifest.notes]
    return FileInputs(path, manifest.root, table, notes)


def _table(ids: list[str]) -> pa.Table:
    return pa.table({"id": pa.array(ids, pa.string())})


def _state(file: str) -> bytes:
    try:
        state = os.stat(file)
    except (OSError, ValueError):
        return b"missing"
    return f"{state.st_size} {state.st_mtime_ns}".encode()


def _fetched(url: str) -> bytes | None:
    """What a manifest's URL names, through the engine of curation; None where nothing came."""
    from maskedclip.data import curate_engine

    curate_engine.use_engine("local")
    frame = curate_engine.daft.from_pydict({"url": [url]})
    column = curate_engine.daft.col("url").download(on_error="null", io_config=curate_engine.FETCH)
    return frame.select(column.alias("data")).to_pydict()["data"][0]


class _Hashing:
    """A file that is only hashed."""

    closed = False

    def __init__(self, digest: "hashlib._Hash") -> None:
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""
