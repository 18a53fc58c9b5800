"""Is one model better than another?  Paired differences on the same test rows, with patient-clustered intervals."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from maskedclip.errors import UserError
from maskedclip.evaluation import metrics
from maskedclip.evaluation.scoring import macro_distribution
from maskedclip.evaluation.statistics import (
    Distribution,
    Estimate,
    cluster_weights,
    paired_difference,
    undefined,
    with_point,
)

MACRO = "macro"
Key = tuple[str, str, str]  # protocol, feature, label or "macro"
_Scores = dict[str, tuple[float, float]]  # by id: score, truth
_Predictions = dict[Key, dict[str | None, _Scores]]  # by class, None for a binary label


def compare_results(first: Path, second: Path, *, replicates: int = 1000, seed: int = 0) -> dict[Key, Estimate]:
    """AUROC of `first` minus AUROC of `second`, by (protocol, feature, label) and for label "macro".

    Both are folders that `evaluate` wrote.  What only one of them has is left out.  A label of several classes
    counts by its mean over the classes, one against the rest.  The interval is that of the paired bootstrap over
    patients: both models on the same replicates.  UserError where the test rows or their labels differ.
    """
    a, patients = _read(first)
    b, others = _read(second)
    if patients != others:
        differing = len(patients.keys() ^ others.keys())
        what = f"{differing} test rows are in one only" if differing else "the test rows' patients differ"
        raise UserError(f"{first} and {second}: {what}; evaluate both models on the same store")
    ids = sorted(patients)
    place = {key: row for row, key in enumerate(ids)}
    weights = with_point(cluster_weights([patients[key] for key in ids], replicates=replicates, seed=seed))
    pairs = {
        key: (_auroc(a[key], b[key], place, weights, f"{first} and {second}: {'/'.join(key)}")) for key in a if key in b
    }
    if not pairs:
        raise UserError(f"{first} and {second}: no protocol, feature and label in common; evaluate both alike")
    differences = {}
    for protocol, feature in dict.fromkeys(key[:2] for key in pairs):
        labels = {key[2]: pair for key, pair in pairs.items() if key[:2] == (protocol, feature)}
        differences[protocol, feature, MACRO] = _macro_difference(labels)
        differences |= {(protocol, feature, name): paired_difference(*pair) for name, pair in labels.items()}
    return differences


def comparison_to_json(differences: Mapping[Key, Estimate]) -> dict:
    """{protocol: {feature: {"macro": {"auroc": {...}}, "per_label": {label: {"auroc": {...}}}}}}."""
    result: dict = {}
    for (protocol, feature, label), difference in differences.items():
        part = result.setdefault(protocol, {}).setdefault(feature, {MACRO: {}, "per_label": {}})
        place = part[MACRO] if label == MACRO else part["per_label"].setdefault(label, {})
        place["auroc"] = difference.to_json()
    return result


def _macro_difference(labels: Mapping[str, tuple[Distribution, Distribution]]) -> Estimate:
    n = max(pair[0].n for pair in labels.values())
    # A label is defined for both models or for neither: they have the same rows and truths.
    first, missing = macro_distribution({name: pair[0] for name, pair in labels.items()}, n)
    second, _ = macro_distribution({name: pair[1] for name, pair in labels.items()}, n)
    if first is None or second is None:
        return undefined(n, "no label is defined")
    return paired_difference(first, second, note=f"mean of {len(labels) - len(missing)} labels")


def _auroc(
    first: Mapping[str | None, _Scores],
    second: Mapping[str | None, _Scores],
    place: Mapping[str, int],
    weights: NDArray,
    where: str,
) -> tuple[Distribution, Distribution]:
    """AUROC of one label for both models under the same weights; the mean over its common classes."""
    parts: tuple[list, list] = ([], [])
    n = 0
    for value in (value for value in first if value in second):
        ids = sorted(first[value])
        same = ids == sorted(second[value]) and all(first[value][key][1] == second[value][key][1] for key in ids)
        if not same:
            raise UserError(f"{where}: the known test rows or their truths differ; evaluate both on the same store")
        columns = weights[:, [place[key] for key in ids]]
        truth = np.array([first[value][key][1] for key in ids]) > 0
        for side, scores in enumerate((first[value], second[value])):
            parts[side].append(metrics.auroc(truth, np.array([scores[key][0] for key in ids]), columns))
        n = len(ids)
    means = [metrics.macro(side, weights.shape[0]) for side in parts]
    return Distribution.from_rows(means[0], n), Distribution.from_rows(means[1], n)


def _read(folder: Path) -> tuple[_Predictions, dict[str, str]]:
    """The predictions in a folder of results, and the patient of each test row."""
    path = folder / "predictions.parquet"
    if not path.is_file():
        raise UserError(f"{folder}: has no predictions.parquet; give a folder that 'maskedclip evaluate' wrote")
    try:
        table = pq.read_table(path).to_pydict()
        columns = [table[name] for name in ("protocol", "feature", "label", "class", "id", "score", "truth", "patient")]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path}: is not a table of predictions ({error}); evaluate again") from error
    predictions: _Predictions = {}
    patients: dict[str, str] = {}
    for protocol, feature, label, value, key, score, truth, patient in zip(*columns, strict=True):
        by_class = predictions.setdefault((protocol, feature, label), {})
        by_class.setdefault(value, {})[key] = (score, truth)
        patients[key] = patient or ""
    return predictions, patients
