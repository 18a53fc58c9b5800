"""Splits by patient, alike in their labels, fixed by a seed, and never moving a patient who has one.

A patient's place in the order is a hash of the seed and the patient's name, so no other row changes it.  Patients are
grouped by the rarest class they have, and of each group the first in the order go to `test`, the next to `val`.

n rows, p patients.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskedclip import randomness
from maskedclip.data.audit.labels import Balance, balance, classes_of, spell, unknown
from maskedclip.errors import UserError

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a table's rows.

    Attributes:
        names: split of each row, str (n,).
        kept: patients who had a split before.
        patients: split -> patients.
        rates: label rates by split.
    """

    names: NDArray[np.str_]
    kept: int
    patients: dict[str, int]
    rates: list[Balance]


def make_splits(table: pa.Table, *, val: float, test: float, seed: int, independent: bool = False) -> Splits:
    """Give a split to every patient who has none.

    Args:
        table: of a manifest, with `image`, `patient`, `split` and `label.NAME`.  A row without a patient is its own.
        val, test: shares of the patients, 0 or more, together below 1.
        seed: decides the order.
        independent: each patient's split depends on the seed and its name alone, so that it is the same without the
            earlier file too; label rates are then alike only on average.

    Raises:
        UserError: the shares are impossible, or a patient is in several splits.
    """
    if val < 0 or test < 0 or val + test >= 1:
        raise UserError(f"--val {val} --test {test}: give shares of 0 or more that leave some patients for training")
    names, codes, given = _patients(table)
    keys = [f"{seed}\0{name}" for name in names]
    place = np.array([randomness.text_key(key) for key in keys], np.float64) / 2.0**63  # in [0, 1)
    chosen = given.copy()
    if independent:
        drawn = np.where(place < test, "test", np.where(place < test + val, "val", "train"))
        chosen = np.where(given == "", drawn, given)
    else:
        order = np.argsort(place, kind="stable")
        _fill(chosen, order, _strata(table, codes, len(names)), {"test": test, "val": val})
    rows = chosen[codes]
    counts = Counter(chosen.tolist())
    return Splits(
        names=rows,
        kept=int((given != "").sum()),
        patients={name: counts[name] for name in _SPLITS},
        rates=balance(_labels(table), rows),
    )


def _patients(table: pa.Table) -> tuple[list[str], NDArray[np.int64], NDArray[np.str_]]:
    """Names, the number of each row's patient (n,), and the split each patient has already, or "" (p,)."""
    images, patients, splits = (table.column(name).to_pylist() for name in ("image", "patient", "split"))
    numbers: dict[str, int] = {}
    given: list[str] = []
    codes = np.empty(len(images), np.int64)
    for row, (image, patient, split) in enumerate(zip(images, patients, splits, strict=True)):
        name = patient or f"image\0{image}"
        code = codes[row] = numbers.setdefault(name, len(numbers))
        if code == len(given):
            given.append("")
        if split and given[code] not in ("", split):
            raise UserError(f"patient '{patient}' is in {given[code]} and {split}: put all its rows into one split")
        given[code] = split or given[code]
    return list(numbers), codes, np.array(given, dtype="<U5")


def _fill(
    chosen: NDArray[np.str_], order: NDArray[np.int64], strata: NDArray[np.int64], shares: dict[str, float]
) -> None:
    """Give the patients "" of each stratum their splits, in their order, so that the shares come out over all."""
    carried = dict.fromkeys(shares, 0.0)  # what rounding left of a stratum goes to the next
    for stratum in range(int(strata.max(initial=-1)) + 1):
        members = order[strata[order] == stratum]
        free = members[chosen[members] == ""]
        for split, share in shares.items():
            wanted = share * len(members) + carried[split]
            have = int((chosen[members] == split).sum())
            taken = min(len(free), max(0, round(wanted) - have))
            chosen[free[:taken]] = split
            carried[split] = wanted - have - taken
            free = free[taken:]
        chosen[free] = "train"


def _strata(table: pa.Table, codes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The rarest class of each patient as a number, rarest first, (p,); patients without labels are the last."""
    having: list[tuple[int, str, NDArray[np.int64]]] = []
    for label, values in _labels(table).items():
        known = ~unknown(values)
        for value in classes_of(values[known]):
            patients = np.unique(codes[known & (values == value)])
            having.append((len(patients), f"{label} {spell(value)}", patients))
    strata = np.full(count, len(having), np.int64)
    ordered = sorted(having, key=lambda entry: entry[:2])
    for number in range(len(ordered) - 1, -1, -1):
        strata[ordered[number][2]] = number
    return strata


def _labels(table: pa.Table) -> dict[str, NDArray]:
    found = {}
    for name in table.column_names:
        if name.startswith("label."):
            values = table.column(name).to_pylist()
            numeric = pa.types.is_floating(table.schema.field(name).type)
            found[name.removeprefix("label.")] = (
                np.array([np.nan if value is None else value for value in values], np.float32)
                if numeric
                else np.array(values, object)
            )
    return found
