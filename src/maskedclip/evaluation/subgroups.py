"""Is the model as good for everybody?  AUROC by sex, age band, eye, camera or any other column.  m test rows.

A group's interval resamples its patients, as part of the whole test set: the replicates are those of the evaluation, so
that a group and the rest are compared on the same draws although a patient may have rows in both (two eyes, two
cameras).  Many groups times many labels give some differences by chance alone; a single interval that spares 0 among
dozens is no finding.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskedclip.data.label_columns import UNKNOWN_WORDS
from maskedclip.errors import UserError
from maskedclip.evaluation.scoring import auroc_distribution, macro_distribution, macro_estimate
from maskedclip.evaluation.statistics import Distribution, Estimate, cluster_codes, difference, undefined
from maskedclip.evaluation.tasks import Prediction, Task

UNKNOWN_GROUP = "unknown"
MOST_GROUPS = 50
# Up to as many different whole numbers are groups, not a quantity.
_MOST_CODES = 10
_BANDS = 4
_AGES = (40, 50, 60, 70, 80)
_NO_VALUES = (*UNKNOWN_WORDS, "none")
# Columns that tell rows apart, and no groups of them.
_NO_GROUPS = ("id", "image", "text", "sha256", "perceptual_hash")


def subgroup_columns(table: pa.Table, names: Sequence[str], rows: NDArray[np.int64]) -> dict[str, list]:
    """The values of the named columns of a store's table on the given rows.

    Raises:
        UserError: a column does not exist, or has more than 50 groups.
    """
    there = [name for name in table.column_names if name not in _NO_GROUPS and not name.startswith("mask.")]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise UserError(f"subgroups: the store has no column {missing[0]!r}; it has {', '.join(there)}")
    useless = [name for name in names if name not in there]
    if useless:
        raise UserError(f"subgroups: {useless[0]!r} differs from row to row; choose from {', '.join(there)}")
    columns = {name: table.column(name).take(pa.array(rows)).to_pylist() for name in names}
    for name, values in columns.items():
        group_rows(name, values)  # too many groups are told now, and not after hours of fine-tuning
    return columns


def group_rows(name: str, values: Sequence | NDArray) -> dict[str, NDArray[np.bool_]]:
    """Which rows are of which group of a column, by ascending value, the unknown last: masks (m,).

    Words, and whole numbers of which there are at most ten, are groups themselves.  Other numbers, written as numbers
    or as words, become bands of about equally many rows.  A column named `age` becomes decades: <40, 40-49, ...,
    >=80.  None, NaN, blanks and "NA" are "unknown".

    Raises:
        UserError: more than 50 groups.
    """
    entries = [_clean(value) for value in np.asarray(values, dtype=object)]
    known = np.array([entry is not None for entry in entries], dtype=bool)
    numbers = [_number(entry) for entry in entries if entry is not None]
    if numbers and None not in numbers:
        quantity = np.full(len(entries), np.nan)
        quantity[known] = numbers
        groups = _number_groups(name, quantity)
    else:
        words = np.array([str(entry) for entry in entries], dtype=object)
        groups = {str(word): known & (words == word) for word in sorted(set(words[known]))}
    if len(groups) > MOST_GROUPS:
        raise UserError(f"subgroups: {name!r} has {len(groups)} groups; give a column of at most {MOST_GROUPS} values")
    groups = {group: rows for group, rows in groups.items() if rows.any()}
    if not known.all():
        groups[UNKNOWN_GROUP] = ~known
    return groups


def subgroup_scores(
    columns: Mapping[str, NDArray | list],
    tasks: Mapping[str, Task],
    predictions: Mapping[str, Prediction | str],
    weights: NDArray,
    patients: Sequence[str | None] | NDArray[np.object_],
) -> dict[str, dict[str, dict]]:
    """By column and group, as JSON: {"n", "patients", "macro", "per_label", "difference"}.

    - "macro": {"auroc": estimate}, over the labels that are defined in the group.
    - "per_label": {label: {"auroc": estimate, "positives": int}}, for labels of several classes "counts" by class.
    - "difference": {"macro", "per_label"}, the group minus all other rows, the unknown among them; its macro is over
      the labels that are defined on both sides.

    Where a class is missing, the note says "undefined (n=...)".

    Args:
        columns: values of the m test rows, None or NaN where unknown.
        tasks, predictions: by label, on the m test rows; a sentence where a label could not be learnt.
        weights: of the patient-clustered bootstrap, (R, m).
        patients: of the m test rows.

    Raises:
        UserError: a column with more than 50 groups.
    """
    codes = cluster_codes(patients)
    answers = {name: answer for name, answer in predictions.items() if isinstance(answer, Prediction)}
    found: dict[str, dict[str, dict]] = {}
    for column, values in columns.items():
        found[column] = {}
        for group, rows in group_rows(column, values).items():
            assert len(rows) == weights.shape[1], f"{column}: {len(rows)} values for {weights.shape[1]} rows"
            inside, outside = (_areas(side, tasks, answers, weights) for side in (rows, ~rows))
            n = int(rows.sum())
            found[column][group] = {
                "n": n,
                "patients": len(np.unique(codes[rows])),
                "macro": {"auroc": macro_estimate(inside, n).to_json()},
                "per_label": {
                    name: {"auroc": area.estimate().to_json()} | _counts(tasks[name].on(rows))
                    for name, area in inside.items()
                },
                "difference": _difference(inside, outside),
            }
    return found


def _areas(
    rows: NDArray[np.bool_], tasks: Mapping[str, Task], answers: Mapping[str, Prediction], weights: NDArray
) -> dict[str, Distribution]:
    """AUROC of each label on some of the rows."""
    within = weights.T[rows].T
    found = {}
    for name, answer in answers.items():
        part = Prediction(scores=answer.scores[rows], predicted=answer.predicted[rows])
        found[name] = auroc_distribution(tasks[name].on(rows), part, within)
    return found


def _difference(inside: Mapping[str, Distribution], outside: Mapping[str, Distribution]) -> dict:
    both = [name for name in inside if not np.isnan([inside[name].value, outside[name].value]).any()]
    n = max((part.n for part in inside.values()), default=0)
    sides = [macro_distribution({name: side[name] for name in both}, n)[0] for side in (inside, outside)]
    if sides[0] is None or sides[1] is None:
        macro = undefined(n, "no label is defined in the group and outside it")
    else:
        macro = difference(sides[0], sides[1], n=n).estimate(f"mean of {len(both)} of {len(inside)} labels")
    return {
        "macro": {"auroc": macro.to_json()},
        "per_label": {name: {"auroc": _label_difference(inside[name], outside[name]).to_json()} for name in inside},
    }


def _label_difference(inside: Distribution, outside: Distribution) -> Estimate:
    for side, where in ((inside, "in the group"), (outside, "outside the group")):
        if np.isnan(side.value):
            reason = side.reason or ("one class only" if side.n else "no row with a known value")
            return undefined(side.n, f"{reason} {where}")
    return difference(inside, outside, n=inside.n).estimate()


def _counts(task: Task) -> dict:
    counts = np.bincount(task.truth[task.known], minlength=len(task.classes))
    if task.kind == "binary":
        return {"positives": int(counts[1])}
    return {"counts": {str(value): int(count) for value, count in zip(task.classes, counts, strict=True)}}


def _number_groups(name: str, quantity: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    if name.lower() == "age":
        return _age_groups(quantity)
    known = quantity[~np.isnan(quantity)]
    distinct = np.unique(known)
    if len(distinct) <= _MOST_CODES and (distinct == np.round(distinct)).all():
        return {f"{value:.0f}": quantity == value for value in distinct}
    edges = np.unique(np.quantile(known, np.arange(1, _BANDS) / _BANDS))
    bands = [~np.isnan(quantity) & (np.searchsorted(edges, quantity) == band) for band in range(len(edges) + 1)]
    bands = [rows for rows in bands if rows.any()]
    forms = [".0f"] if (known == np.round(known)).all() else [".6g", ".17g"]  # 17 digits tell all numbers apart
    named = [
        {f"{quantity[rows].min():{form}} to {quantity[rows].max():{form}}": rows for rows in bands} for form in forms
    ]
    return next((groups for groups in named if len(groups) == len(bands)), named[-1])


def _age_groups(years: NDArray[np.float64]) -> dict[str, NDArray[np.bool_]]:
    groups = {f"<{_AGES[0]}": years < _AGES[0]}
    for low, high in pairwise(_AGES):
        groups[f"{low}-{high - 1}"] = (years >= low) & (years < high)
    return groups | {f">={_AGES[-1]}": years >= _AGES[-1]}


def _clean(value: object) -> object | None:
    """None for what stands for no value."""
    if isinstance(value, str):
        return None if value.strip().lower() in _NO_VALUES else value.strip()
    return None if value is None or value != value else value  # NaN differs from itself


def _number(value: object) -> float | None:
    """The finite number that a value is, or is written as."""
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None
