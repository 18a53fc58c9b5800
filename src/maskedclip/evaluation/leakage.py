"""What of a test split a model has seen in its pre-training: the same files, images that look the same, patients (P24).

m test rows, s rows that were trained on.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskedclip.data.audit.bands import HashIndex
from maskedclip.data.store import Store
from maskedclip.evaluation.case import AnyStore
from maskedclip.training.rundir import RunDirectory
from maskedclip.training.seen import SEEN

# Bits of 64 in which the perceptual hashes of near-duplicates differ at most.  Measured: of 5.6 million pairs of an
# ODIR and an EyePACS photograph, surely of different eyes, none agree in all and 20 differ in at most 2 bits (213 more
# in 4), so by chance about one test image of a hundred has such a partner among 4,000.
NEAR = 2
_LISTED = 5


def run_folder(spec: str) -> Path | None:
    """The run directory that a model is of: `RUN`, `RUN@SIZE`, or a run's model folder; None for other models."""
    path = Path(spec).expanduser()
    if not path.exists():
        path = Path(re.sub(r"@\d+$", "", spec)).expanduser()
    return next((place for place in (path, path.parent) if path.is_dir() and (place / "recipe.yaml").is_file()), None)


def seen_in_pretraining(run: Path | None, store: Store, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Which of the test rows (m,) of `store` the run was trained on; None is a model of another project.

    Returns: {"checked": False, "reason"}; or {"checked": True, "images", "near_duplicates", "patients": {"n", "of",
        "first", "compared"}, "sentence"}, all for JSON.  `compared` is how many of the rows could be compared: files by
        their hash, or by id in a store that was trained on; patients only in such a store, since two hospitals may both
        have a patient "17", and a store that was curated again is another one.
    """
    if run is None:
        return {
            "checked": False,
            "reason": "what this model was trained on is not known, so leakage cannot be checked",
        }
    path = run / SEEN
    first_stage = run / "first_stage" / SEEN
    if not path.is_file():
        return {
            "checked": False,
            "reason": f"the run has no {SEEN} (made by an earlier version), so it cannot be checked",
        }
    initial = RunDirectory(run).read_recipe().model.image_weights
    # An encoder may come from another run's model folder, whose images it has seen too.
    started = Path(initial).parent.parent / SEEN if initial and Path(initial).is_file() else None
    known = [entry for entry in (path, first_stage, started) if entry is not None and entry.is_file()]
    seen = pa.concat_tables([pq.read_table(entry) for entry in known])
    table = store.table.take(pa.array(rows))
    ids = [store.ids[row] for row in rows.tolist()]
    owners = np.repeat(np.asarray(store.fingerprints, object), store.sizes)[rows]
    same_store = np.isin(owners, list(set(seen.column("store").to_pylist())))
    files = _same(table, seen, "sha256")
    by_hash = np.ones(len(rows), bool) if files is None else table.column("sha256").is_valid().to_numpy()
    if files is None:  # a store without hashes: ids tell, in the same store
        files, by_hash = _same_ids(store, rows, seen), same_store
    near, hashed = _near(table, seen)
    patients = _patients(store, rows, seen)
    found: dict[str, Any] = {"checked": True}
    parts = (("images", files, by_hash), ("near_duplicates", near, hashed), ("patients", patients, same_store))
    for name, hits, compared in parts:
        first = [ids[k] for k in np.flatnonzero(hits)[:_LISTED]]
        found[name] = {"n": int(hits.sum()), "of": len(rows), "first": first, "compared": int(compared.sum())}
    found["sentence"] = _sentence(found)
    if initial and started not in known:
        found["initial_weights"] = Path(initial).name
        found["sentence"] += f" What the weights it began from ({Path(initial).name}) had seen is not known."
    return found


def same_files(store: AnyStore) -> dict[str, Any] | None:
    """Test images whose very file is also a training or validation image; None where the store keeps no hashes.

    Returns: {"n", "first"}, ids of the first.
    """
    if not isinstance(store, Store) or "sha256" not in store.table.column_names:
        return None
    hashes = np.asarray(store.table.column("sha256").to_pylist(), object)
    learnt = set(hashes[np.isin(store.splits, ("train", "val"))]) - {None}
    twice = [row for row in np.flatnonzero(store.splits == "test") if hashes[row] in learnt]
    return {"n": len(twice), "first": [store.ids[row] for row in twice[:_LISTED]]}


def _same(table: pa.Table, seen: pa.Table, column: str) -> NDArray[np.bool_] | None:
    """Rows whose value was seen, (m,); None where the store or the run does not have the column."""
    if column not in table.column_names or seen.column(column).null_count == len(seen):
        return None
    known = set(seen.column(column).drop_null().to_pylist())
    return np.array([value is not None and value in known for value in table.column(column).to_pylist()], dtype=bool)


def _same_ids(store: Store, rows: NDArray[np.int64], seen: pa.Table) -> NDArray[np.bool_]:
    known = set(zip(seen.column("store").to_pylist(), seen.column("id").to_pylist(), strict=True))
    owners = np.repeat(np.arange(len(store.sizes)), store.sizes)
    return np.array([(store.fingerprints[owners[row]], store.ids[row]) in known for row in rows.tolist()], dtype=bool)


def _near(table: pa.Table, seen: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows that look like one that was seen, and rows that could be compared, (m,) each."""
    column = "perceptual_hash"
    if column not in table.column_names or len(table) == 0 or seen.column(column).null_count == len(seen):
        return np.zeros(len(table), bool), np.zeros(len(table), bool)
    given = table.column(column).to_pylist()
    queries = np.array([0 if value is None else int(value, 16) for value in given], dtype=np.uint64)
    known = np.array([int(value, 16) for value in seen.column(column).drop_null().to_pylist()], dtype=np.uint64)
    near = np.zeros(len(queries), bool)
    for found, _ in HashIndex(known, NEAR).search(queries):
        near[found] = True
    hashed = np.array([value is not None for value in given])
    return near & hashed, hashed


def _patients(store: Store, rows: NDArray[np.int64], seen: pa.Table) -> NDArray[np.bool_]:
    known = set(zip(seen.column("store").to_pylist(), seen.column("patient").to_pylist(), strict=True))
    owners = np.repeat(np.arange(len(store.sizes)), store.sizes)
    named = [(store.fingerprints[owners[row]], store.patients[row]) for row in rows.tolist()]
    return np.array([bool(patient) and (owner, patient) in known for owner, patient in named], dtype=bool)


def _sentence(found: dict[str, Any]) -> str:
    """For a reader."""
    images, near, patients = (found[name]["n"] for name in ("images", "near_duplicates", "patients"))
    of = found["images"]["of"]
    if images or patients:
        return (
            f"Leakage: of {of:,} test images, {images:,} were trained on and {patients:,} are of patients that were "
            "trained on; figures on them are too good."
        )
    look = f"; {near:,} look like one that was (a perceptual hash; about 1 in 100 does by chance)" if near else ""
    compared = {name: found[name]["compared"] == of for name in ("images", "near_duplicates", "patients")}
    if not compared["images"]:
        return (
            "Leakage could not be checked: the store has no hashes of its images and is none of those that were "
            "trained on; curate it with `maskedclip curate`."
        )
    people = ", and none of their patients," if compared["patients"] else ""
    doubts = []
    if not compared["patients"]:
        doubts.append("patients could not be compared, as the store is none of those that were trained on")
    if not compared["near_duplicates"]:
        doubts.append("look-alikes could not, for want of perceptual hashes")
    unsure = f" ({'; '.join(doubts)})" if doubts else ""
    return f"None of the {of:,} test images{people} was trained on{look}{unsure}."
