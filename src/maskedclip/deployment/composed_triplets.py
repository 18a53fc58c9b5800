"""Triplets of composed retrieval: a photograph, what shall be different in words, and a photograph where it is so.

No medical triplets are public.  They come from a table of one's own, or are made here from labels: two photographs
that differ by just one finding, of the same patient where there are such, else of different ones.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from maskedclip import randomness
from maskedclip.data.prompts import humanise, is_normal
from maskedclip.data.store import Store
from maskedclip.errors import UserError

COLUMNS = ("reference", "caption", "target")
ADDED, REMOVED = "now with {}", "now without {}"
_STREAM = 61


@dataclass(frozen=True, kw_only=True, eq=False)
class Triplets:
    """n triplets of rows of one store.

    reference, target: rows, int64 (n,).  captions: n.  by_labels: bool (n,), whether any row with the target's labels
    is right: a finding was to change, not one eye.  state: of each row of the store the number of its combination of
    labels, int64 (N,); -1 where it is not known.
    """

    reference: NDArray[np.int64]
    target: NDArray[np.int64]
    captions: tuple[str, ...]
    by_labels: NDArray[np.bool_]
    state: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.reference)

    def on(self, chosen: NDArray) -> "Triplets":
        """Some of them, by number or as bool (n,)."""
        numbers = np.arange(len(self))[chosen]
        return Triplets(
            reference=self.reference[numbers],
            target=self.target[numbers],
            captions=tuple(self.captions[number] for number in numbers),
            by_labels=self.by_labels[numbers],
            state=self.state,
        )

    def right(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows (m,) answer which triplet: the target, and where labels decide all that share its labels, (n, m).

        The reference never does.
        """
        same = self.target[:, None] == rows
        alike = (self.state[self.target][:, None] == self.state[rows]) & self.by_labels[:, None]
        return (same | (alike & (self.state[rows] >= 0))) & (self.reference[:, None] != rows)


def read_triplets(path: Path, store: Store) -> Triplets:
    """Triplets of a CSV or TSV with the columns reference, caption, target; ids of the store's rows.

    Raises:
        UserError: the table cannot be read, a column is missing, or a row names what there is not; with its number.
    """
    if not path.is_file():
        raise UserError(f"--triplets {path}: no such file; give a CSV with the columns {', '.join(COLUMNS)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(
                    f"--triplets {path}: has no column {missing[0]}; its first line names {', '.join(COLUMNS)}"
                )
            lines = [[(row[name] or "").strip() for name in COLUMNS] for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--triplets {path}: is no CSV in UTF-8 ({error}); save it as such") from None
    if not lines:
        raise UserError(f"--triplets {path}: has no rows")
    places = {id: row for row, id in reversed(list(enumerate(store.ids)))}
    for number, (reference, caption, target) in enumerate(lines, 2):
        for name, id in (("reference", reference), ("target", target)):
            if id not in places:
                raise UserError(f"--triplets {path}: row {number}: the {name} {id!r} is no id of the store's rows")
        if not caption:
            raise UserError(f"--triplets {path}: row {number}: has no caption")
        if reference == target:
            raise UserError(f"--triplets {path}: row {number}: reference and target are the same row, {target!r}")
    return Triplets(
        reference=np.array([places[line[0]] for line in lines], np.int64),
        target=np.array([places[line[2]] for line in lines], np.int64),
        captions=tuple(line[1] for line in lines),
        by_labels=np.zeros(len(lines), bool),
        state=np.full(len(store), -1, np.int64),
    )


def make_triplets(
    store: Store,
    labels: Sequence[str] = (),
    *,
    removed: bool = False,
    targets: int = 4,
    seed: int = 0,
) -> Triplets:
    """Triplets of photographs of one split that differ by one label: "now with drusen".

    Args:
        store: with label columns of 0 and 1.
        labels: which of them count; none: all that are findings.  A photograph with an unknown one takes no part.
        removed: also the way back, "now without drusen".
        targets: at most so many for a photograph and a label: those of the same patient if there are any, of which
            nothing but the one row is right, else drawn from all, where every row with such labels is.
        seed: of the draw.

    Raises:
        UserError: no such label, or no two photographs differ by just one.
    """
    columns = _findings(store, labels)
    known = np.stack([np.isfinite(values) for values in columns.values()], axis=1).all(axis=1)
    present = np.stack([values > 0 for values in columns.values()], axis=1)
    patterns, state = np.unique(present[known], axis=0, return_inverse=True)
    number_of = {pattern.tobytes(): number for number, pattern in enumerate(patterns)}
    states = np.full(len(store), -1, np.int64)
    states[known] = state.reshape(-1)
    splits = store.splits
    rows_of: dict[tuple[str, int], NDArray[np.int64]] = {
        (split, number): np.flatnonzero((states == number) & (splits == split))
        for split in np.unique(splits)
        for number in range(len(patterns))
    }
    found: list[tuple[int, int, str, bool]] = []
    for row in np.flatnonzero(known):
        for place, name in enumerate(columns):
            if present[row, place] and not removed:
                continue
            wanted = present[row].copy()
            wanted[place] = not wanted[place]
            number = number_of.get(wanted.tobytes())
            candidates = rows_of[str(splits[row]), number] if number is not None else np.zeros(0, np.int64)
            caption = (REMOVED if present[row, place] else ADDED).format(humanise(name))
            own = candidates[(store.patients[candidates] == store.patients[row]) & (store.patients[row] != "")]
            if not len(own):
                key = randomness.stream_keys(randomness.sample_keys(seed, place, np.array([row])), _STREAM)
                candidates = randomness.generator(int(key[0])).permutation(candidates)
            some = own if len(own) else candidates
            found += [(int(row), int(target), caption, not len(own)) for target in some[:targets]]
    if not found:
        raise UserError(
            f"--labels: no two photographs of one split differ by just one of {', '.join(columns)}; name fewer labels"
        )
    reference, target, captions, by_labels = zip(*found, strict=True)
    return Triplets(
        reference=np.array(reference, np.int64),
        target=np.array(target, np.int64),
        captions=tuple(captions),
        by_labels=np.array(by_labels, bool),
        state=states,
    )


def write_triplets(file: IO[str], triplets: Triplets, ids: Sequence[str]) -> None:
    """Write them as `read_triplets` reads them; ids: of the store's rows."""
    table = csv.writer(file)
    table.writerow(COLUMNS)
    rows = zip(triplets.reference, triplets.captions, triplets.target, strict=True)
    table.writerows((ids[reference], caption, ids[target]) for reference, caption, target in rows)


def _findings(store: Store, labels: Sequence[str]) -> Mapping[str, NDArray]:
    """Label columns of 0, 1 and NaN: those that are named, or all but "normal"."""
    binary = {
        name: values
        for name, values in store.labels.items()
        if values.dtype != object and set(np.unique(values[np.isfinite(values)])) == {0.0, 1.0}
    }
    unknown = [name for name in labels if name not in binary]
    if unknown:
        known = ", ".join(binary) or "none"
        raise UserError(f"--labels: {unknown[0]!r} is no label of the store with 0 and 1; there are {known}")
    chosen = {name: binary[name] for name in labels or binary if labels or not is_normal(name)}
    if not chosen:
        raise UserError("--labels: the store has no label column with 0 and 1; give --triplets FILE.csv")
    return chosen
