"""A new manifest that passes the audit: copies dropped, and people who share pictures put into one split.

n rows of the audited store.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

from maskedclip.data.audit.audit import Audit, picture_paths
from maskedclip.data.audit.labels import unknown
from maskedclip.data.audit.union import linked_groups
from maskedclip.data.masks import PREFIX
from maskedclip.data.shards import COMPUTED
from maskedclip.data.store import shard_files
from maskedclip.errors import UserError

DONE, WHY = "audit_done", "audit_why"
"""Columns of the new manifest: `kept` or `moved from X to Y`, and the reason."""
_ORDER = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of each audited row.

    Attributes:
        kept: whether it stays, bool (n,).
        splits: its new split, "" where it has none, str (n,).
        done, why: for the new columns, (n,) each.
    """

    kept: NDArray[np.bool_]
    splits: NDArray[np.str_]
    done: list[str]
    why: list[str]


def plan_fix(found: Audit) -> Plan:
    """Decide: of a picture's copies the row that tells most stays; whoever shares a picture shares a split.

    A person, or people linked by pictures, go where most of their rows are, or where the rows of the other stores are
    that they are linked to.  A row that other stores pull into two splits is dropped.
    """
    count = found.audited
    kept, why = np.ones(count, bool), [""] * count
    merit = _merit(found)
    copies = np.stack([found.pairs.first, found.pairs.second], axis=1)[found.pairs.same]
    for group in linked_groups(len(found.store), copies.tolist()):
        foreign = [row for row in group if row >= count]
        own = [row for row in group if row < count]
        for row in own:
            elsewhere = [other for other in foreign if found.splits[other] != found.splits[row]]
            if elsewhere:
                kept[row], why[row] = (
                    False,
                    f"is in {found.splits[elsewhere[0]]} of another store: {found.images[elsewhere[0]]}",
                )
        own = [row for row in own if kept[row]]
        best = max(own, key=lambda row: (merit[row], -row), default=-1)
        for row in own:
            if row != best:
                kept[row], why[row] = False, f"shows the same as {found.images[best]}, which tells more or comes first"
    # As the manifest has them: a row that stays without a split is not given one.
    given = found.store.table.column("split").slice(0, count).fill_null("").to_pylist()
    splits = np.asarray(given, "<U5")  # as wide as `train`, whatever the store holds
    _join_people(found, kept, splits, why)
    done = []
    for row in range(count):
        before = found.splits[row]
        moved = kept[row] and (splits[row] or "train") != before
        done.append("dropped" if not kept[row] else f"moved from {before} to {splits[row]}" if moved else "kept")
    return Plan(kept=kept, splits=splits, done=done, why=why)


def _join_people(found: Audit, kept: NDArray[np.bool_], splits: NDArray[np.str_], why: list[str]) -> None:
    """Give one split to whoever is linked by a picture or by a name; changes its arguments."""
    count = found.audited
    links: list[tuple[int, int]] = []
    reasons: dict[int, str] = {}
    first_of: dict[int, int] = {}
    for row, code in enumerate(found.patients.tolist()):
        if code >= 0:
            links.append((first_of.setdefault(code, row), row))
    for entry in found.crossing_patients:
        reasons |= dict.fromkeys(entry.rows, f"patient '{entry.name}' was in several splits")
    for one, two in zip(found.pairs.first.tolist(), found.pairs.second.tolist(), strict=True):
        links.append((one, two))  # dropped copies too: they tell that two names are one person
        reasons[one], reasons[two] = (f"shows the same eye as {found.images[other]}" for other in (two, one))
    for group in linked_groups(len(found.store), links):
        own = [row for row in group if row < count and kept[row]]
        if len({found.splits[row] for row in group}) < 2 or not own:
            continue
        foreign = {str(found.splits[row]) for row in group if row >= count}
        if len(foreign) > 1:
            for row in own:
                kept[row], why[row] = False, "is linked to rows of other stores in several splits"
            continue
        target = foreign.pop() if foreign else _most([str(found.splits[row]) for row in own])
        for row in own:
            if found.splits[row] != target:
                splits[row] = target
                why[row] = reasons.get(row, "goes with its patient")


def _most(splits: Iterable[str]) -> str:
    counts = Counter(splits)
    return max(_ORDER, key=lambda name: (counts[name], -_ORDER.index(name)))


def _merit(found: Audit) -> NDArray[np.int64]:
    """How much a row tells: a text counts more than any number of labels, (rows of all stores,)."""
    merit = found.store.has_text.astype(np.int64) * 10_000
    for values in found.store.labels.values():
        merit += ~unknown(values)
    return merit


def check_new(path: Path) -> None:
    """Refuse early, before the audit takes its time.

    Raises:
        UserError: the file is there already, or is no CSV.
    """
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path}: the new manifest is a CSV: give a name that ends in .csv")
    for taken in (path, dropped_file(path)):
        if taken.exists():
            raise UserError(f"{taken}: is there already, and nothing is overwritten: give another name")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder {path.parent}: make it first")


def dropped_file(path: Path) -> Path:
    """Where the rows are told that the new manifest leaves out."""
    return path.with_name(f"{path.stem}.dropped.csv")


def write_fix(found: Audit, path: Path) -> Plan:
    """Write the new manifest, and beside it the rows that were dropped, `NAME.dropped.csv`.

    Raises:
        UserError: one of the files is there already.
    """
    check_new(path)
    plan = plan_fix(found)
    table = _manifest(found, plan)
    write_csv(table.filter(pa.array(plan.kept)), path)
    if not plan.kept.all():
        write_csv(table.filter(pa.array(~plan.kept)), dropped_file(path))
    return plan


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a table as CSV into a new file.

    Raises:
        UserError: the file is there already.
    """
    buffer = io.BytesIO()
    csv.write_csv(table, buffer)
    try:
        with path.open("xb") as file:
            file.write(buffer.getbuffer())
    except FileExistsError:
        raise UserError(f"{path}: is there already, and nothing is overwritten: give another name") from None


def _manifest(found: Audit, plan: Plan) -> pa.Table:
    """The audited store's rows as a manifest's."""
    count = found.audited
    table = found.store.table.slice(0, count)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"image": pa.array(found.images[:count].tolist(), pa.string())}
    for name in ("text", "patient"):
        columns[name] = table.column(name)
    columns["split"] = pa.array([name or None for name in plan.splits.tolist()], pa.string())
    own = {"id", "image", *columns, *COMPUTED, DONE, WHY}
    first = found.store.folders[0]
    for name in table.column_names:
        if name not in own and table.column(name).null_count < count:
            columns[name] = table.column(name)
    names = dict.fromkeys(name for shard in shard_files(first) for name in _mask_columns(shard))
    for name in names:
        columns[name] = pa.array(picture_paths(found.store, name)[:count], pa.string())
    columns[DONE], columns[WHY] = pa.array(plan.done, pa.string()), pa.array(plan.why, pa.string())
    return pa.table(columns)


def _mask_columns(shard: Path) -> list[str]:
    return [name for name in pq.read_schema(shard).names if name.startswith(PREFIX)]
