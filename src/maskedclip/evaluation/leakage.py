"""What of a test split a model has seen in its pre-training: the same files, images that look the same, patients (P24).

m test rows, s rows that were trained on.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskedclip.data.audit.bands import HashIndex
from maskedclip.data.store import Store
from maskedclip.evaluation.case import AnyStore
from maskedclip.training.seen import SEEN, read_seen

# Bits of 64 in which the perceptual hashes of images that look the same differ at most -> the chance that those of two
# patients' images do (hashes differ in an even number of bits).  Measured on photographs of different patients: of 26
# million pairs within ODIR 12 agree in all bits and 270 in all but 2; of 1.2 million within EyePACS none and 18; of 5.6
# million of one of each none and 11.  Of 150 of ODIR's, saved again at 90 % of their size as JPEG of quality 85, 78 %
# are found within 2 bits and 43 % at 0; in a store of twice or half the size 80 %, but with another crop 1 %.
_BITS = {2: 1e-5, 0: 5e-7}
# By chance ever more test images look like one of ever more training images: above this share fewer bits may differ.
_CHANCE = 0.05
# Near-duplicates are told as leakage above this number and share, and twice what there are by chance.
_FEW, _SHARE = 3, 0.05
_MEASURABLE = 100  # images of a store that was trained on, from which on what there are by chance is measured on them
_UNMEASURED = 0.5  # else this share has to look alike: other kinds of picture look more alike than those measured above
_ASKED = 2_000  # of which at most this many are compared with all others
_LISTED = 5


def run_folder(spec: str) -> Path | None:
    """The run directory that a model is of: `RUN`, `RUN@SIZE`, or a run's model folder; None for other models."""
    path = Path(spec).expanduser()
    if not path.exists():
        path = Path(re.sub(r"@\d+$", "", spec)).expanduser()
    return next((place for place in (path, path.parent) if path.is_dir() and (place / "recipe.yaml").is_file()), None)


def seen_in_pretraining(run: Path | None, store: Store, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Which of the test rows (m,) of `store` the run was trained on; None is a model of another project.

    What its first stage had seen counts, and what the runs that its first weights come from had, however far back.

    Returns: {"checked": False, "reason"}; or {"checked": True, "images", "near_duplicates", "patients": {"n", "of",
        "first", "compared"}, "sentence"}, all for JSON; with "not_known" where it began from weights of which nobody
        knows what they had seen.  `compared` is how many of the rows could be compared: files by their hash, or by id
        in a store that was trained on; patients by name in such a store alone, since two hospitals may both have a
        patient "17", and a store that was curated again is another one; but a patient any of whose files was trained
        on is known to be.  Near-duplicates are those whose own file was not trained on, within "bits" of a perceptual
        hash; "by_chance" is the share of images of other patients that there would be all the same.
    """
    if run is None:
        return {
            "checked": False,
            "reason": "what this model was trained on is not known, so leakage cannot be checked",
        }
    seen, not_known = read_seen(run)
    if seen is None:
        why = "is damaged" if (run / SEEN).is_file() else "is missing (the run was made by an earlier version)"
        return {"checked": False, "reason": f"the run's {SEEN} {why}, so leakage cannot be checked"}
    ids = [store.ids[row] for row in rows.tolist()]
    owners = np.repeat(np.asarray(store.fingerprints, object), store.sizes)
    same_store = np.isin(owners, list(set(seen.column("store").to_pylist())))
    trained, hashed = _trained(store, owners, seen)
    files, by_file = trained[rows], (hashed | same_store)[rows]
    near = _near(store.table.take(pa.array(rows)), seen)
    look = near.hits & ~files
    patients = _patients(store, owners, seen, trained)[rows]
    by_name = (same_store & (store.patients != ""))[rows]
    found: dict[str, Any] = {"checked": True}
    parts = (
        ("images", files, by_file),
        ("near_duplicates", look, near.compared),
        ("patients", patients, patients | by_name),
    )
    for name, hits, compared in parts:
        first = [ids[k] for k in np.flatnonzero(hits)[:_LISTED]]
        found[name] = {"n": int(hits.sum()), "of": len(rows), "first": first, "compared": int(compared.sum())}
    found["near_duplicates"] |= {"bits": near.bits, "by_chance": near.by_chance, "chance_measured": near.measured}
    found["sentence"] = " ".join(
        [
            _sentence(found, near.chance_said),
            *_doubts(found, same_store[rows]),
            *_crops(store, rows, near, seen),
            *([f"What {' and '.join(not_known)} had seen is not known."] if not_known else []),
        ]
    )
    if not_known:
        found["not_known"] = not_known
    return found


def is_warning(found: Mapping[str, Any]) -> bool:
    """Whether what `seen_in_pretraining` returned, now or for an earlier version, is more than a note."""
    near = found.get("near_duplicates", {"n": 0, "of": 0})
    return found.get("sentence", "").startswith("Leakage") or _many(near)


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


def _trained(store: Store, owners: NDArray[np.object_], seen: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of all rows of the store, (n,) each: whose file was trained on, and whose could be compared by its hash."""
    known = set(zip(seen.column("store").to_pylist(), seen.column("id").to_pylist(), strict=True))
    trained = np.array([key in known for key in zip(owners, store.ids, strict=True)], dtype=bool)
    hashes = set(seen.column("sha256").drop_null().to_pylist())
    if "sha256" not in store.table.column_names or not hashes:
        return trained, np.zeros(len(store), bool)
    given = store.table.column("sha256").to_pylist()
    hashed = np.array([value is not None for value in given], dtype=bool)
    return trained | np.array([value in hashes for value in given], dtype=bool), hashed


def _patients(
    store: Store, owners: NDArray[np.object_], seen: pa.Table, trained: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Of all rows of the store, whose patient was trained on, (n,): by name in the same store, or by any file."""
    known = set(zip(seen.column("store").to_pylist(), seen.column("patient").to_pylist(), strict=True))
    known |= set(zip(owners[trained], store.patients[trained], strict=True))
    named = zip(owners, store.patients, strict=True)
    return trained | np.array([bool(patient) and (owner, patient) in known for owner, patient in named], dtype=bool)


class _Near(NamedTuple):
    """hits: rows that look like one that was seen, (m,).  compared: rows that could be, (m,).

    bits: in which hashes may differ.  by_chance: the share of hits among images of other patients; None: none compared.
    measured: whether on the training images themselves.
    """

    hits: NDArray[np.bool_]
    compared: NDArray[np.bool_]
    bits: int | None = None
    by_chance: float | None = None
    measured: bool = False
    chance_said: str = ""


def _near(table: pa.Table, seen: pa.Table) -> _Near:
    column = "perceptual_hash"
    given = table.column(column).to_pylist() if column in table.column_names else [None] * len(table)
    hashed = np.array([value is not None for value in given], dtype=bool)
    hits = np.zeros(len(table), bool)
    if not hashed.any() or seen.column(column).null_count == len(seen):
        return _Near(hits, np.zeros(len(table), bool))
    queries = _numbers([value or "0" for value in given])
    known = np.unique(_numbers(seen.column(column).drop_null().to_pylist()))
    bits, by_chance, measured, said = 0, 0.0, None, ""
    for bits, rate in _BITS.items():
        measured = _measured_chance(seen, bits, len(known))
        by_chance = 1 - (1 - rate) ** len(known) if measured is None else measured
        share = f"about {100 * by_chance:.1f} %" if by_chance >= 0.001 else "fewer than 0.1 %"
        said = f"by a perceptual hash; by chance {share}{' of fundus photographs' * (measured is None)} would"
        if by_chance <= _CHANCE:
            break
    for found, _ in HashIndex(known, bits).search(queries):
        hits[found] = True
    return _Near(hits & hashed, hashed, bits, by_chance, measured is not None, said)


def _numbers(hashes: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([int(value, 16) for value in hashes], dtype=np.uint64)


def _measured_chance(seen: pa.Table, bits: int, count: int) -> float | None:
    """The share of training images that look like another patient's, as it would be among `count` images.

    Some kinds of picture look more alike than others do.  In each store by itself, since in two a patient may have two
    names; the highest, since the test images may be of that kind.  An image that names no patient counts as one by
    itself, so that the share is too high rather than too low.  None: no store has enough images.
    """
    stores, ids, hashes, patients = (
        np.asarray(seen.column(name).fill_null("").to_pylist(), str)
        for name in ("store", "id", "perceptual_hash", "patient")
    )
    found = []
    for name in np.unique(stores):
        rows = np.flatnonzero((hashes != "") & (stores == name))
        rows = rows[np.unique(ids[rows], return_index=True)[1]]  # once each, where several runs were trained on them
        if len(rows) >= _MEASURABLE:
            people = [
                ("patient", who) if who else ("image", own) for who, own in zip(patients[rows], ids[rows], strict=True)
            ]
            found.append(_chance_in(_numbers(hashes[rows].tolist()), people, bits, count))
    return max(found, default=None)


def _chance_in(values: NDArray[np.uint64], who: Sequence[tuple[str, str]], bits: int, count: int) -> float:
    """Of one store: hashes (s,), and whose each is."""
    numbers = {name: k for k, name in enumerate(dict.fromkeys(who))}
    people = np.array([numbers[name] for name in who])
    index = HashIndex(values, bits)
    place = np.searchsorted(index.values, values)
    lowest, highest = np.full(len(index.values), len(values)), np.full(len(index.values), -1)
    np.minimum.at(lowest, place, people)
    np.maximum.at(highest, place, people)
    asked = np.unique(np.linspace(0, len(values) - 1, _ASKED).astype(np.int64))
    alike = np.zeros(len(asked), bool)
    for query, found in index.search(values[asked]):
        own = people[asked[query]]
        alike[query[(lowest[found] != own) | (highest[found] != own)]] = True
    return float(1 - (1 - alike.mean()) ** (count / len(index.values)))


def _many(near: Mapping[str, Any]) -> bool:
    """Whether there are well more near-duplicates than by chance."""
    compared = near.get("compared", near["of"])
    chance = near.get("by_chance") or 0.0
    limit = max(_SHARE, min(2 * chance, (1 + chance) / 2), 0.0 if near.get("chance_measured") else _UNMEASURED)
    spread = 4 * (compared * chance * (1 - chance)) ** 0.5  # of how many there are by chance
    return near["n"] > max(_FEW, limit * compared, chance * compared + spread)


def _sentence(found: Mapping[str, Any], chance: str) -> str:
    """What was found, for a reader."""
    images, near, patients = (found[name]["n"] for name in ("images", "near_duplicates", "patients"))
    of, by_file, by_name = found["images"]["of"], found["images"]["compared"], found["patients"]["compared"]
    if images or patients:
        more = f"{near:,} more look{'s' * (near == 1)} like a training image ({chance})"
        parts = [f"{images:,} {'was' if images == 1 else 'were'} trained on", *([more] if near else [])]
        parts.append(f"{patients:,} {'is' if patients == 1 else 'are'} of patients that were trained on")
        return f"Leakage: of {of:,} test images, {', '.join(parts[:-1])} and {parts[-1]}; figures on them are too good."
    if _many(found["near_duplicates"]):
        though = ", though none is the same file" if by_file == of else ""
        return (
            f"Leakage: {near:,} of {of:,} test images look like training images{though} ({chance}); where they are "
            "copies, figures on them are too good."
        )
    look = f"; {near:,} look{'s' * (near == 1)} like a training image ({chance})" if near else ""
    if of and not by_file:
        return (
            "Leakage could not be checked: the store has no hashes of its images and is none of those that were "
            f"trained on; curate it with `maskedclip curate`{look}."
        )
    if by_file < of:
        return f"None of the {by_file:,} test images that could be compared, of {of:,}, was trained on{look}."
    people = ", and none of their patients," if by_name == of else ""
    return f"None of the {of:,} test images{people} was trained on{look}."


def _doubts(found: Mapping[str, Any], same_store: NDArray[np.bool_]) -> list[str]:
    """What could not be compared.  same_store: of which test rows the store was trained on, (m,)."""
    of = found["images"]["of"]
    if not of or not found["images"]["compared"]:
        return []
    said = []
    if found["patients"]["compared"] < of:
        who = "The other patients" if found["patients"]["compared"] else "Patients"
        if same_store.all():
            why = "some images name none"
        elif same_store.any():
            why = "some images are of stores that were not trained on"
        else:
            why = "the store is none of those that were trained on"
        said.append(f"{who} could not be compared, as {why}.")
    if found["near_duplicates"]["compared"] < of:
        part = " of all of them" if found["near_duplicates"]["compared"] else ""
        said.append(f"Look-alikes{part} could not be sought, for want of perceptual hashes.")
    return said


def _crops(store: Store, rows: NDArray[np.int64], near: _Near, seen: pa.Table) -> list[str]:
    """That copies are not found, where pictures were cropped otherwise than those that were trained on."""
    given = np.asarray([entry["settings"].get("crop") for entry in store.curation], object)
    here = set(np.repeat(given, store.sizes)[rows]) - {None}
    there = set(seen.column("crop").drop_null().to_pylist())
    if not near.compared.any() or not here or not there or (here == there and len(here) == 1):
        return []
    return [
        f"The test images are stored with crop {' and '.join(sorted(here))}, the training images with crop "
        f"{' and '.join(sorted(there))}: copies are easily missed across different crops."
    ]
