"""Features are extracted once for weights, preprocessing and data, and kept; every protocol reads them.

A file of safetensors a model and store: the row numbers that are in it (n,), and each feature (n, .).  Patch tokens
(n, L, D) of a size have one of their own.  All may be removed at any time.
"""

import hashlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from maskedclip.console import bar, say
from maskedclip.data.store import Store, cache_folder
from maskedclip.evaluation.case import EvaluationModel

VERSION = 1
"""Raised when the same weights would give other features."""
MOST_BYTES = 4 << 30
"""Larger tables of patch tokens are not kept."""
_ROWS = "rows"
_BATCH = 512
Tables = Mapping[str, NDArray]


class CachedFeatures:
    """A model whose features of a store are computed once.

    Everything but what is kept is the model's own.
    """

    def __init__(self, model: EvaluationModel, store: Store, folder: Path | None = None) -> None:
        """Serve `model` on `store`; `folder` holds the files, by default beside the store's other caches."""
        self.model, self.store = model, store
        self.folder = folder or cache_folder(store.folders[0])
        self.file = self._file("features", "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def has_text(self) -> bool:
        """Whether the model reads texts."""
        return self.model.has_text

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        return self.model.fingerprint

    def encode_text(self, texts: list[str]) -> NDArray:
        """Unit text embeddings (n, E)."""
        return self.model.encode_text(texts)

    def features(self, store: Any, rows: NDArray[np.int64]) -> Tables:
        """Of rows of the store, by name, (n, .); those that are not in the file yet are computed and added to it."""
        return _kept(self.file, rows, self._extract)

    def patch_tokens(
        self, size: int, rows: NDArray[np.int64], compute: Callable[[NDArray[np.int64]], Tables]
    ) -> Tables:
        """Of rows of the store at a size in pixels, by name, (n, L, D); `compute` gives those that are not kept yet."""
        return _kept(self._file("tokens", f" {size}"), rows, compute, most=MOST_BYTES)

    def _file(self, kind: str, more: str) -> Path:
        words = f"{VERSION} {self.model.fingerprint} {self.store.prepared}{more}"
        return self.folder / f"{kind}-{hashlib.sha256(words.encode()).hexdigest()[:16]}.safetensors"

    def _extract(self, rows: NDArray[np.int64]) -> dict[str, NDArray]:
        parts: list[Tables] = []
        with bar("features", len(rows)) as shown:
            for start in range(0, max(len(rows), 1), _BATCH):
                parts.append(self.model.features(self.store, rows[start : start + _BATCH]))
                shown.advance(len(rows[start : start + _BATCH]))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _kept(
    file: Path, rows: NDArray[np.int64], compute: Callable[[NDArray[np.int64]], Tables], most: int | None = None
) -> Tables:
    """Tables of rows, in their order; what the file lacks is computed and added to it, up to `most` bytes."""
    known: Tables = _read(file)
    missing = np.setdiff1d(rows, known.get(_ROWS, np.empty(0, np.int64)))
    if len(missing) or not known:
        new = compute(missing)
        if not len(missing):
            return new
        if most is not None and sum(values.nbytes for part in (known, new) for values in part.values()) > most:
            say(
                f"patch tokens of {len(missing):,} images are not kept: with what {file.parent} has of this model "
                f"they are more than {most / 2**30:.2g} GiB"
            )
            if len(missing) == len(rows):
                return {name: values[np.searchsorted(missing, rows)] for name, values in new.items()}
            known = _merged(known, {_ROWS: missing, **new})
        else:
            known = _merged(known, {_ROWS: missing, **new})
            _write(file, known)
    order = np.searchsorted(known[_ROWS], rows)
    return {name: values[order] for name, values in known.items() if name != _ROWS}


def _read(file: Path) -> dict[str, NDArray]:
    """What the file holds, its rows ascending; nothing where there is none, or a damaged one, which is said."""
    if not file.is_file():
        return {}
    try:
        found = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        say(f"{file}: cannot be read ({str(error).splitlines()[0]}); its features are computed again")
        return {}
    lengths = {len(values) for values in found.values()}
    if _ROWS not in found or len(lengths) != 1 or (np.diff(found[_ROWS]) <= 0).any():
        say(f"{file}: holds something else; its features are computed again")
        return {}
    return found


def _write(file: Path, tables: Tables) -> None:
    """Replace the file at once; of two processes the last one stays, and loses nothing but the other's work."""
    partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(values) for name, values in tables.items()}, partial)
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        say(f"{file}: the features cannot be kept ({error}); they are computed again next time")


def _merged(known: Tables, new: Tables) -> dict[str, NDArray]:
    """Both tables as one, by ascending row."""
    joined = {name: np.concatenate([known[name], new[name]]) if name in known else new[name] for name in new}
    order = np.argsort(joined[_ROWS], kind="stable")
    return {name: values[order] for name, values in joined.items()}
