"""What crosses splits, and which pictures are under two patients.

n rows, k pairs of duplicates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskedclip.data.audit.duplicates import Pairs
from maskedclip.data.manifest_checks import Encoded
from maskedclip.data.store import Store


@dataclass(frozen=True, kw_only=True)
class CrossingPatient:
    """A patient with rows in several splits.

    Attributes:
        name: of the patient.
        rows: of the patient, in the order of the store.
        splits: split -> rows in it.
    """

    name: str
    rows: list[int]
    splits: dict[str, int]


def owners(store: Store) -> NDArray[np.int64]:
    """Which of the stores each row is of, (n,)."""
    return np.repeat(np.arange(len(store.sizes)), store.sizes)


def patient_codes(store: Store, *, patients_differ: bool = False) -> tuple[NDArray[np.int64], list[str]]:
    """Patients as numbers, -1 where not known, (n,), and their names.

    patients_differ: patients of different stores are different people, even where their names are equal.
    """
    column = store.table.column("patient")
    if patients_differ and len(store.sizes) > 1:
        given = zip(owners(store).tolist(), column.to_pylist(), strict=True)
        column = pa.chunked_array([pa.array([f"{owner}\0{name}" if name else None for owner, name in given])])
    coded = Encoded(column)
    blank = np.array([name == "" for name in coded.values], bool)
    codes = coded.codes if not blank.any() else np.where(blank[coded.codes] & (coded.codes >= 0), -1, coded.codes)
    return codes, [name.rpartition("\0")[2] for name in coded.values]


def crossing_patients(
    splits: NDArray[np.str_], codes: NDArray[np.int64], names: list[str], audited: int
) -> list[CrossingPatient]:
    """Patients in several splits of whom at least one row is below `audited`, in the order of their first rows."""
    _, split = np.unique(splits, return_inverse=True)
    known = np.flatnonzero(codes >= 0)
    pairs = np.unique(np.stack([codes[known], split[known]]), axis=1)
    crossing = np.flatnonzero(np.bincount(pairs[0], minlength=1) > 1) if len(known) else np.empty(0, np.int64)
    concerned = np.isin(codes, crossing).nonzero()[0]
    rows_of: dict[int, list[int]] = {}
    for row in concerned.tolist():
        rows_of.setdefault(int(codes[row]), []).append(row)
    found = []
    for code, rows in rows_of.items():
        if rows[0] < audited:
            given = splits[rows].tolist()
            counts = {name: given.count(name) for name in ("train", "val", "test") if name in given}
            found.append(CrossingPatient(name=names[code], rows=rows, splits=counts))
    return found


def crossing_pairs(splits: NDArray[np.str_], pairs: Pairs) -> NDArray[np.bool_]:
    """Whether the two of a pair are in different splits, (k,)."""
    return splits[pairs.first] != splits[pairs.second]


def two_patients(codes: NDArray[np.int64], pairs: Pairs) -> NDArray[np.bool_]:
    """Whether both of a pair have a patient, and not the same one, (k,)."""
    first, second = codes[pairs.first], codes[pairs.second]
    return (first >= 0) & (second >= 0) & (first != second)
