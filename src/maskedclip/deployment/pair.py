"""Texts for the images of a store that have none, by retrieval with a trained model; see `objectives.pairing`.

n images, T distinct texts, K texts kept for an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

import maskedclip
from maskedclip.console import say
from maskedclip.data.manifest_faults import FaultList
from maskedclip.data.manifest_files import read_raw
from maskedclip.data.pairs import pairs_table
from maskedclip.data.store import Store
from maskedclip.data.text import normalise_text
from maskedclip.deployment.external_open_clip import OpenClipModel
from maskedclip.deployment.model import Model
from maskedclip.deployment.publishing import partial_of, publish
from maskedclip.errors import UserError
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.tasks import read_tasks
from maskedclip.objectives.pairing import Hubness, Neighbours, Pairing, hubness
from maskedclip.training.seen import SEEN


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Which images get texts.  rows: of the store, (n,).  with_text: rows whose own text may be read, (m,).

    told: how they were chosen, for a person.
    """

    rows: NDArray[np.int64]
    with_text: NDArray[np.int64]
    told: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieved:
    """What was found.

    store, rows (n,): the images.  texts: T distinct ones.  found: of `Pairing`, (n, K).  report: of its best texts.
    contradictions: binary labels that an image and all owners of its text have otherwise, by place in `rows`;
    compared: images of which labels could be compared.  about: how it was made, plain values.
    """

    store: Store
    rows: NDArray[np.int64]
    texts: list[str]
    found: Neighbours
    report: Hubness
    contradictions: Mapping[int, tuple[str, ...]]
    compared: int
    about: dict[str, Any]

    @property
    def paired(self) -> NDArray[np.int64]:
        """Places in `rows` of the images that have a text."""
        return np.flatnonzero(self.found.index[:, 0] >= 0)

    def by_score(self) -> NDArray[np.int64]:
        """Places of the images that have a text, the surest first."""
        paired = self.paired
        return paired[np.argsort(-self.found.score[paired, 0], kind="stable")]

    def mistakes(self) -> NDArray[np.int64]:
        """Places of the images that have a text, the likeliest mistakes first.

        Labels that contradict the text come first, then low scores.
        """
        lowest = self.by_score()[::-1]
        wrong = np.asarray([len(self.contradictions.get(int(place), ())) for place in lowest], np.int64)
        return lowest[np.argsort(-wrong, kind="stable")]

    def text_of(self, place: int) -> str:
        """The best text of an image."""
        return self.texts[int(self.found.index[place, 0])]


def choose_images(store: Store, split: str, which: Literal["unpaired", "all"], run: Path | None) -> Images:
    """The images that get texts, and those whose texts can be retrieved.

    Args:
        store: of the images.
        split: a name, or `all`.
        which: `unpaired`: without a text that the run read, or, where that is not known, without any; or `all`.
        run: whose seen.parquet tells which texts its training kept (data.text_fraction); None: of no run.

    Raises:
        UserError: the split has no image, or each of them has a text.
    """
    rows = np.arange(len(store)) if split == "all" else store.rows(split)
    if not len(rows):
        known = ", ".join(sorted({*store.splits.tolist()} - {""})) or "train"
        raise UserError(f"--split {split}: the store has no such rows; it has {known}, or give all")
    has_text, told = store.has_text.copy(), "by the store"
    kept = _texts_read(store, run)
    if kept is not None:
        read, seen = kept
        has_text[seen] &= read[seen]
        told = "by the run: texts that its training did not keep are not read"
    training = store.rows("train")
    with_text = training[has_text[training]]
    chosen = rows if which == "all" else rows[~has_text[rows]]
    if not len(chosen):
        raise UserError(
            f"--split {split}: all of its {len(rows):,} images have a text; --images all retrieves texts for them too"
        )
    return Images(rows=chosen, with_text=with_text, told=told)


def _texts_read(store: Store, run: Path | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Whose text a run read, and which rows it knows, bool (N,) each; None where it knows none.

    Of a store that it read, it knows all training rows: a run on paired images alone lists no others, and those whose
    text `data.text_fraction` left out are among these.
    """
    path = None if run is None else next((p for p in (run / SEEN, run.parent / SEEN) if p.is_file()), None)
    if path is None:
        return None
    seen = pq.read_table(path, columns=["store", "id", "with_text"])
    owners = np.repeat(np.asarray(store.fingerprints, object), store.sizes)
    keys = zip(seen.column("store").to_pylist(), seen.column("id").to_pylist(), strict=True)
    kept = dict(zip(keys, seen.column("with_text").to_pylist(), strict=True))
    found = [kept.get(key) for key in zip(owners.tolist(), store.ids, strict=True)]
    known = np.asarray([value is not None for value in found])
    training = np.isin(np.arange(len(store)), store.rows("train"))
    known |= training & np.isin(owners, list({owner for owner, _ in kept}))
    return (np.asarray([bool(value) for value in found]), known) if known.any() else None


def read_texts(path: Path, column: str, encoding: str = "utf-8") -> list[str]:
    """The distinct texts of a column of a table: .csv, .tsv, .jsonl, .parquet.

    Raises:
        UserError: it cannot be read, has no such column, or holds no text.
    """
    if not path.is_file():
        raise UserError(f"--texts {path}: no such file; give a table with a column {column}")
    faults = FaultList()
    table = read_raw(path, encoding, faults).table
    if faults:
        raise UserError(f"--texts {path}: {faults.sorted()[0]}")
    if column not in table.column_names:
        raise UserError(
            f"--texts {path}: has no column {column}; name one of {', '.join(table.column_names)} by --column"
        )
    found = distinct_texts([None if value is None else str(value) for value in table.column(column).to_pylist()])
    if not found:
        raise UserError(f"--texts {path}: column {column} holds no text; name another one by --column")
    return found


def distinct_texts(texts: Sequence[str | None]) -> list[str]:
    """One spelling of each text that differs after normalisation, in their order, without empty ones."""
    found: dict[str, str] = {}
    for text in texts:
        key = normalise_text(text or "")
        if text is not None and key:
            found.setdefault(key, text)
    return list(found.values())


def retrieve(
    model: Model | OpenClipModel, store: Store, images: Images, texts: list[str], pairing: Pairing
) -> Retrieved:
    """Retrieve texts for images.

    Args:
        model: with a text tower.
        store: of the images.
        images: of `choose_images`.
        texts: distinct, T of them.
        pairing: how.

    Raises:
        UserError: no image can be decoded, or the options leave no pair.
    """
    rows, features = _embedded(CachedFeatures(model, store), store, images.rows)
    try:
        found = pairing.neighbours(features, model.encode_text(texts))
    except ValueError as error:
        raise UserError(f"RUN: its embeddings cannot be compared ({error}); train it again") from None
    if not found.found:
        best = float(found.score.max())
        raise UserError(f"--threshold, --mutual: no pair is left of {len(rows):,} images; the best score is {best:.3f}")
    contradictions, compared = _contradictions(store, rows, texts, found.index[:, 0])
    report = hubness(found.index[:, 0], len(texts))
    about = {
        "maskedclip": maskedclip.__version__,
        "model": model.fingerprint,
        "stores": store.fingerprints,
        "top": pairing.top,
        "threshold": pairing.threshold,
        "mutual": pairing.mutual,
        "images": len(rows),
        "texts": len(texts),
        "hubness": report.to_json(),
    }
    return Retrieved(
        store=store,
        rows=rows,
        texts=texts,
        found=found,
        report=report,
        contradictions=contradictions,
        compared=compared,
        about=about,
    )


def _embedded(model: Any, store: Store, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray]:
    """Shared-space features of the rows that can be decoded, and these rows."""
    try:
        return rows, model.features(store, rows)["projected"]
    except UserError:
        readable = np.asarray([_is_readable(store, row) for row in rows.tolist()])
        if readable.all():
            raise
    left_out = [store.ids[row] for row in rows[~readable].tolist()]
    say(f"left out: {len(left_out):,} images cannot be decoded (e.g. {left_out[0]}); curate the store again")
    if not readable.any():
        raise UserError("--data: none of the images can be decoded; curate the store again")
    return rows[readable], model.features(store, rows[readable])["projected"]


def _is_readable(store: Store, row: int) -> bool:
    try:
        store.image(row)
    except RuntimeError:
        return False
    return True


def _contradictions(
    store: Store, rows: NDArray[np.int64], texts: list[str], index: NDArray[np.int64]
) -> tuple[dict[int, tuple[str, ...]], int]:
    """Findings that an image has and no owner of its text, or the reverse; and how many images could be compared."""
    tasks = {name: task for name, task in read_tasks(store.labels)[0].items() if task.kind == "binary"}
    if not tasks:
        return {}, 0
    truth = np.stack([task.truth for task in tasks.values()], axis=1)  # (N, C) of 1, 0, -1
    numbers = {normalise_text(text): place for place, text in enumerate(texts)}
    owned = np.asarray([numbers.get(normalise_text(text or ""), -1) for text in store.texts], np.int64)
    lowest = np.full((len(texts), truth.shape[1]), 2, np.int64)
    highest = np.full(lowest.shape, -1, np.int64)
    owners = owned >= 0
    known = np.where(truth[owners] < 0, 2, truth[owners])
    np.minimum.at(lowest, owned[owners], known)
    np.maximum.at(highest, owned[owners], truth[owners])
    agreed = np.where(lowest == highest, highest, -1)  # (T, C): what all owners of a text have
    names = list(tasks)
    wrong: dict[int, tuple[str, ...]] = {}
    compared = 0
    for place, (row, text) in enumerate(zip(rows.tolist(), index.tolist(), strict=True)):
        if text < 0:
            continue
        both = (agreed[text] >= 0) & (truth[row] >= 0)
        compared += bool(both.any())
        differs = both & (agreed[text] != truth[row])
        if differs.any():
            wrong[place] = tuple(names[column] for column in np.flatnonzero(differs))
    return wrong, compared


def write_pairs(found: Retrieved, out: Path) -> None:
    """Write the pairs as a new Parquet file.

    Raises:
        UserError: it appeared meanwhile, or cannot be written.
    """
    table = pairs_table(found.store, found.rows, found.texts, found.found.index, found.found.score, found.about)
    partial = partial_of(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, partial, compression="zstd")
        publish(partial, out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error}); choose another place") from None
