"""The rows of a task's data: are they what the task says, and which split does each belong to?"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from maskedclip.console import say
from maskedclip.data.label_columns import UNKNOWN_WORDS
from maskedclip.evaluation.task_spec import SPLITS, LabelSpec, TaskFile
from maskedclip.randomness import order

_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image: its path below the data's folder, and what is known of it; '' where nothing is.

    columns: what is carried along for subgroups, by the name in the store.
    """

    image: str
    split: str = ""
    patient: str = ""
    text: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)


def check_labels(task: TaskFile, rows: Sequence[Row], faults: list[str], *, complete: bool = True) -> list[Row]:
    """The rows with every label as the task writes its classes; what is none of them is a fault.

    Labels of which no row speaks are passed over: a layout may have some of a task's labels only.  A label of several
    classes must have two of them, or all where the data must be `complete`.  Of findings, which are many and rare, one
    at least must be both present and absent; those that are not are left to the evaluation, which says so.  Words such
    as "NA" (`UNKNOWN_WORDS`) that are no class of the label are unknown, which is told.
    """
    fixed = [dict(row.labels) for row in rows]
    spoken = {name for labels in fixed for name in labels}
    counts: dict[str, Counter[str]] = {}
    for name, spec in task.labels.items():
        if name not in spoken:
            continue
        wrong: Counter[str] = Counter()
        unknown: Counter[str] = Counter()
        for labels in fixed:
            if labels.get(name):
                value = _as_class(labels[name], spec)
                if value is None:
                    (unknown if labels[name].strip().lower() in UNKNOWN_WORDS else wrong)[labels[name]] += 1
                labels[name] = value or ""
        if unknown:
            say(f"label {name}: {_some(unknown)} taken as unknown; list it among the classes if it is one")
        _tell_wrong(spec, wrong, faults)
        counts[name] = Counter(labels[name] for labels in fixed if labels.get(name))
        if not wrong and spec.kind != "binary":
            _tell_missing(spec, counts[name], faults, complete)
    findings = [name for name in counts if task.labels[name].kind == "binary"]
    if findings and not any(len(counts[name]) == 2 for name in findings) and not faults:
        what = "one class only" if any(counts.values()) else "no image has a value"
        faults.append(f"label {', '.join(findings)}: {what}; images with and without the finding are needed")
    return [replace(row, labels=labels) for row, labels in zip(rows, fixed, strict=True)]


def split_rows(task: TaskFile, rows: Sequence[Row], faults: list[str]) -> list[Row]:
    """The rows with their split: as given, else by patient from the task's seed; a pure function of its arguments.

    Patients are dealt out class by class, by the rarest class that any of their images has, so that each split has its
    share of every class.
    """
    given = {row.split for row in rows} - {""}
    if not given:
        if task.split.shares is None:
            faults.append("the data have no split, and the task names no shares; add split: {shares: {...}}")
            return list(rows)
        return _dealt(task, rows, task.split.shares)
    if "test" not in given or "train" not in given:
        faults.append(f"the data have a split {' and '.join(sorted(given))} only; train and test are needed")
    if "val" in given or not task.split.validation:
        return list(rows)
    share = task.split.validation
    train = [place for place, row in enumerate(rows) if row.split == "train"]
    dealt = _dealt(task, [rows[place] for place in train], {"train": 1 - share, "val": share, "test": 0.0})
    result = list(rows)
    for place, row in zip(train, dealt, strict=True):
        result[place] = row
    return result


def check_patients(rows: Sequence[Row], faults: list[str]) -> None:
    """A patient in two splits is a leak, which no evaluation mends."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.patient and row.split:
            splits[row.patient].add(row.split)
    torn = sorted(patient for patient, own in splits.items() if len(own) > 1)
    if torn:
        faults.append(
            f"{len(torn):,} patients are in two splits, such as {torn[0]} in {' and '.join(sorted(splits[torn[0]]))}: "
            "their images leak; take the set in a layout without a split, which the task then splits by patient"
        )


def _dealt(task: TaskFile, rows: Sequence[Row], shares: Mapping[str, float]) -> list[Row]:
    """Rows with splits by shares of the patients; a row without patient is one of its own."""
    people = [row.patient or f"image {row.image}" for row in rows]
    strata = _strata(task, rows, people)
    edges = np.cumsum([shares[name] for name in SPLITS])
    splits: dict[str, str] = {}
    for stratum in sorted(set(strata.values())):
        members = np.array(sorted(person for person, own in strata.items() if own == stratum))
        for place, index in enumerate(order(members, task.split.seed)):
            splits[str(members[index])] = SPLITS[int(np.searchsorted(edges * len(members), place + 0.5))]
    return [replace(row, split=splits[person]) for row, person in zip(rows, people, strict=True)]


def _strata(task: TaskFile, rows: Sequence[Row], people: Sequence[str]) -> dict[str, str]:
    """The rarest class of each patient, of the first label with several classes; one stratum where there is none."""
    name = next((name for name, spec in task.labels.items() if spec.kind != "binary"), "")
    if not name and len(task.labels) == 1:
        name = next(iter(task.labels))
    counts = Counter(row.labels.get(name, "") for row in rows)
    strata: dict[str, str] = {}
    for row, person in zip(rows, people, strict=True):
        value = row.labels.get(name, "")
        strata[person] = min(strata.get(person, value), value, key=lambda entry: (counts[entry], entry))
    return strata


def _as_class(text: str, spec: LabelSpec) -> str | None:
    """A cell as one of the label's classes, None where it is none of them."""
    text = text.strip()
    if spec.kind == "nominal":
        return next((str(value) for value in spec.classes if str(value).lower() == text.lower()), None)
    text = {"true": "1", "false": "0"}.get(text.lower(), text) if spec.kind == "binary" else text
    if not _NUMBER.fullmatch(text):
        return None
    number = int(float(text))
    return str(number) if number in spec.classes else None


def _tell_wrong(spec: LabelSpec, wrong: Counter[str], faults: list[str]) -> None:
    words = Counter({text: count for text, count in wrong.items() if not _NUMBER.fullmatch(text.strip())})
    classes = ", ".join(str(value) for value in spec.classes)
    if spec.kind != "nominal" and words:
        kind = "grades" if spec.kind == "ordinal" else "0 or 1"
        faults.append(f"label {spec.name}: {_some(words)} is free text where {kind} are expected ({classes})")
        wrong = wrong - words
    if wrong:
        faults.append(f"label {spec.name}: {_some(wrong)} is a class that is not listed; the task has {classes}")


def _tell_missing(spec: LabelSpec, counts: Counter[str], faults: list[str], complete: bool) -> None:
    missing = [str(value) for value in spec.classes if str(value) not in counts]
    if len(counts) == 0:
        faults.append(f"label {spec.name}: no image has a value")
    elif len(counts) == 1:
        faults.append(f"label {spec.name}: one class only, {next(iter(counts))}; the task has {len(spec.classes)}")
    elif missing and complete:
        faults.append(
            f"label {spec.name}: no image of {', '.join(missing)}; complete the data, or take the class out of a copy "
            "of the task file"
        )


def _some(counts: Counter[str]) -> str:
    """'x', 'y' and 3 more values, in 12 rows."""
    shown = ", ".join(repr(text) for text, _ in counts.most_common(_SHOWN))
    more = f" and {len(counts) - _SHOWN:,} more" if len(counts) > _SHOWN else ""
    total = sum(counts.values())
    return f"{shown}{more} ({total:,} row{'s' if total > 1 else ''})"
