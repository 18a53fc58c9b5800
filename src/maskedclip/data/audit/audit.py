"""The audit of a store: what leaks, what is there twice, what may identify a patient, what differs between sources.

n rows, of which the first `audited` are of the audited store and the others of those it is held against.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskedclip.data.audit.burnt_in import LEAST_LETTERS
from maskedclip.data.audit.crossings import (
    CrossingPatient,
    crossing_pairs,
    crossing_patients,
    owners,
    patient_codes,
    two_patients,
)
from maskedclip.data.audit.descriptors import STATISTICS, describe
from maskedclip.data.audit.drift import NOTABLE, Drift, drift, is_source
from maskedclip.data.audit.duplicates import LIKENESS, Pairs, find_duplicates
from maskedclip.data.audit.identifiers import Hit, counts_by_kind, identifiers
from maskedclip.data.audit.labels import Balance, Contradiction, balance, contradictions
from maskedclip.data.audit.texts import Repetition, repetition
from maskedclip.data.shards import COMPUTED
from maskedclip.data.store import Store, open_store, refuse_volumes, shard_files
from maskedclip.errors import UserError

pc: Any = pyarrow.compute  # its functions are made at import, where pyright cannot see them
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found.  Rows count over all stores, the audited one first.

    Attributes:
        store: the audited store and those it was held against, as one.
        audited: rows of the audited store.
        images: the manifest's name of each picture, (n,).
        splits: of each row, as training sees them, (n,).
        patients: of each row as a number, -1 where not known, (n,).
        pairs: duplicates, surest first.
        crossing: whether each pair is in two splits.
        two_patients: whether each pair is under two patients.
        crossing_patients: patients in several splits.
        contradictions: labels that differ within a pair.
        balance: label rates of the audited store by split.
        repetition: of its texts.
        identifiers: likely identifiers in its texts.
        letters: its rows with marks like letters beside the field.
        drift: differences between sources, largest first.
        source: what was taken for the source: `store`, a column's name, or empty for none.
    """

    store: Store
    audited: int
    images: NDArray[np.object_]
    splits: NDArray[np.str_]
    patients: NDArray[np.int64]
    pairs: Pairs
    crossing: NDArray[np.bool_]
    two_patients: NDArray[np.bool_]
    crossing_patients: list[CrossingPatient]
    contradictions: list[Contradiction]
    balance: list[Balance]
    repetition: Repetition
    identifiers: list[Hit]
    letters: NDArray[np.int64]
    drift: list[Drift]
    source: str

    @property
    def failures(self) -> list[str]:
        """Why the audit fails, one sentence each; empty where nothing crosses splits."""
        found = []
        if self.crossing_patients:
            first = self.crossing_patients[0]
            several = len(self.crossing_patients)
            found.append(
                f"{several:,} {'patient is' if several == 1 else 'patients are'} in several splits, such as "
                f"'{first.name}' ({' and '.join(first.splits)})"
            )
        if self.crossing.any():
            place = int(np.flatnonzero(self.crossing)[0])
            one, two = self.pairs.first[place], self.pairs.second[place]
            many = int(self.crossing.sum())
            found.append(
                f"{many:,} {'pair of duplicates crosses' if many == 1 else 'pairs of duplicates cross'} splits, "
                f"such as {self.images[one]} ({self.splits[one]}) and {self.images[two]} ({self.splits[two]})"
            )
        return found

    def summary(self) -> list[str]:
        """What was found, a line each."""
        pairs = len(self.pairs)
        exact = int((self.pairs.likeness == 1).sum())
        lines = [
            f"{self.audited:,} images audited"
            + (
                f", against {len(self.store) - self.audited:,} of other stores"
                if len(self.store) > self.audited
                else ""
            ),
            f"{pairs:,} pairs of duplicates: {exact:,} of the same file, {pairs - exact:,} alike in their pixels; "
            f"{int(self.crossing.sum()):,} cross splits, {int(self.two_patients.sum()):,} are under two patients",
            f"{len(self.crossing_patients):,} patients in several splits; "
            f"{len(self.contradictions):,} labels contradict each other on duplicates",
        ]
        if self.identifiers:
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts_by_kind(self.identifiers).items())
            lines.append(f"likely identifiers in {len({hit.row for hit in self.identifiers}):,} texts: {kinds}")
        if len(self.letters):
            lines.append(f"{len(self.letters):,} pictures may have writing beside the field")
        notable = [entry for entry in self.drift if abs(entry.difference) >= NOTABLE]
        if notable:
            lines.append(f"{len(notable):,} figures differ between sources by half a standard deviation or more")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All findings, for a program; of an identifier no more than its kind, place and masked shape."""
        pairs = self.pairs
        listed = [
            {
                "first": self._row(int(pairs.first[place])),
                "second": self._row(int(pairs.second[place])),
                "likeness": round(float(pairs.likeness[place]), 4),
                "same_file": bool(pairs.likeness[place] == 1),
                "same_picture": bool(pairs.same[place]),
                "how": pairs.how[place],
                "crosses_splits": bool(self.crossing[place]),
                "two_patients": bool(self.two_patients[place]),
            }
            for place in range(len(pairs))
        ]
        found = {
            "schema_version": SCHEMA_VERSION,
            "stores": [str(folder) for folder in self.store.folders],
            "rows": self.audited,
            "rows_against": len(self.store) - self.audited,
            "passed": not self.failures,
            "failures": self.failures,
            "duplicates": listed,
            "patients_across_splits": [
                {"patient": entry.name, "splits": entry.splits, "images": [str(self.images[row]) for row in entry.rows]}
                for entry in self.crossing_patients
            ],
            "contradictions": [
                {
                    "label": entry.label,
                    "first": {**self._row(int(pairs.first[entry.pair])), "value": entry.values[0]},
                    "second": {**self._row(int(pairs.second[entry.pair])), "value": entry.values[1]},
                }
                for entry in self.contradictions
            ],
            "balance": [asdict(entry) for entry in self.balance],
            "texts": asdict(self.repetition),
            "identifiers": [
                {"image": str(self.images[hit.row]), "kind": hit.kind, "start": hit.start, "end": hit.end}
                for hit in self.identifiers
            ],
            "writing": [str(self.images[row]) for row in self.letters.tolist()],
            "drift": {"source": self.source, "figures": [asdict(entry) for entry in self.drift]},
        }
        # A text that holds an identifier must not come in again by the list of frequent texts.
        unsafe = {self.store.text(hit.row) for hit in self.identifiers}
        found["texts"]["frequent"] = [
            [text if text not in unsafe else "(holds a likely identifier)", count]
            for text, count in self.repetition.frequent
        ]
        return json.loads(json.dumps(found).replace("Infinity", "null").replace("NaN", "null"))

    def _row(self, row: int) -> dict[str, Any]:
        owner = int(owners(self.store)[row]) if len(self.store.sizes) > 1 else 0
        return {
            "store": str(self.store.folders[owner]),
            "image": str(self.images[row]),
            "patient": str(self.store.patients[row]) or None,
            "split": str(self.splits[row]),
        }


def audit(
    store: Path,
    against: Sequence[Path] = (),
    *,
    likeness: float = LIKENESS,
    source: str | None = None,
    patients_differ: bool = False,
    shown: bool = True,
) -> Audit:
    """Audit a store, alone or with others that it must not share pictures or patients with across splits.

    Args:
        store: the audited one.
        against: others, such as those that a model was trained on.
        likeness: 0 to 1; pairs of pictures are told from here on.
        source: the column that tells where a picture comes from; by default the stores, if there are several, or else
            each carried column of few words.
        patients_differ: patients of different stores are different people even where their names are equal.
        shown: draw progress bars.

    Raises:
        UserError: a store cannot be read, a picture cannot be decoded, there is no such column.
    """
    if not 0 < likeness <= 1:
        raise UserError(f"--likeness {likeness}: give a number above 0, at most 1 (equal pictures)")
    opened = open_store([store, *against])
    refuse_volumes(opened, "audit")
    audited = opened.sizes[0]
    if source is not None and source not in opened.table.column_names:
        carried = ", ".join(_carried(opened)) or "none"
        raise UserError(f"--source {source}: the store has no such column; its columns of few words: {carried}")
    known = describe(opened, shown=shown)
    splits = opened.splits
    codes, names = patient_codes(opened, patients_differ=patients_differ)
    pairs = find_duplicates(known, audited, least=likeness, shown=shown)
    own = splits[:audited]
    labels = {name: values[:audited] for name, values in opened.labels.items()}
    told, differences = _drift(opened, known.statistics, source)
    return Audit(
        store=opened,
        audited=audited,
        images=image_names(opened),
        splits=splits,
        patients=codes,
        pairs=pairs,
        crossing=crossing_pairs(splits, pairs),
        two_patients=two_patients(codes, pairs),
        crossing_patients=crossing_patients(splits, codes, names, audited),
        contradictions=contradictions(opened, pairs),
        balance=balance(labels, own),
        repetition=repetition(opened.texts[:audited]),
        identifiers=identifiers(opened.texts[:audited]),
        letters=np.flatnonzero(known.letters[:audited] >= LEAST_LETTERS),
        drift=differences,
        source=told,
    )


def image_names(store: Store) -> NDArray[np.object_]:
    """The manifest's value of `image` of each row, object (n,)."""
    return np.asarray(picture_paths(store, "image"), object)


def picture_paths(store: Store, column: str) -> list[str | None]:
    """The manifest's values of a column of pictures, without reading the pictures; None where a row has none."""
    found: list[str | None] = []
    for shard in (shard for folder in store.folders for shard in shard_files(folder)):
        with pq.ParquetFile(shard) as file:
            if column not in file.schema_arrow.names:
                found += [None] * file.metadata.num_rows
                continue
            for group in range(file.num_row_groups):
                part = file.read_row_group(group, columns=[f"{column}.path"]).column(0)
                found += [None if value is None else value["path"] for value in part.to_pylist()]
    return found


def _carried(store: Store) -> list[str]:
    """Columns that can tell sources apart."""
    own = {"id", "text", "patient", "split", *COMPUTED}
    names = [name for name in store.table.column_names if name not in own and not name.startswith("label.")]
    words = [name for name in names if pa.types.is_string(store.table.schema.field(name).type)]
    return [name for name in words if is_source(np.asarray(pc.unique(store.table.column(name)).to_pylist(), object))]


def _drift(store: Store, statistics: NDArray[np.float32], source: str | None) -> tuple[str, list[Drift]]:
    figures: dict[str, NDArray] = {name: statistics[:, place] for place, name in enumerate(STATISTICS)}
    if "source_width" in store.table.column_names:
        figures["width of the file"] = store.table.column("source_width").cast(pa.float64()).to_numpy()
    figures |= {f"label {name}": values for name, values in store.labels.items()}
    if source is None and len(store.sizes) > 1:
        names = _distinct(store.folders)
        return "store", drift(np.asarray(names, object)[owners(store)], figures)
    chosen = [source] if source is not None else _carried(store)
    found = []
    for name in chosen:
        values = store.table.column(name).to_pylist()
        prefixed = [None if value is None else f"{name} {value}" for value in values]
        found += drift(np.asarray(prefixed, object), figures)
    return ", ".join(chosen), sorted(found, key=lambda entry: -abs(entry.difference))


def _distinct(folders: list[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    return [name if names.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(names)]
