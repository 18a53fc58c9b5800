"""Is one model better than another?  Paired differences on the same test rows, with patient-clustered intervals."""

from collections.abc import Mapping
from pathlib import Path

from maskedclip.errors import UserError
from maskedclip.evaluation.compare_many import paired_distributions
from maskedclip.evaluation.compare_read import MACRO, Key, read_predictions
from maskedclip.evaluation.statistics import Estimate, paired_difference

__all__ = ["MACRO", "Key", "compare_results", "comparison_to_json"]

_RETRIEVAL = "retrieval"


def compare_results(first: Path, second: Path, *, replicates: int = 1000, seed: int = 0) -> dict[Key, Estimate]:
    """AUROC of `first` minus AUROC of `second`, by (protocol, feature, label) and for label "macro".

    Both are folders that `evaluate` wrote.  What only one of them has is left out.  A label of several classes
    counts by its mean over the classes, one against the rest.  The interval is that of the paired bootstrap over
    patients: both models on the same replicates.  UserError where the test rows or their labels differ.
    """
    paired = paired_distributions([read_predictions(first), read_predictions(second)], replicates=replicates, seed=seed)
    a, b = paired.distributions
    common = [key for key in a if key in b and key[0] != _RETRIEVAL]
    if not common:
        raise UserError(f"{first} and {second}: no protocol, feature and label in common; evaluate both alike")
    parts = dict.fromkeys(key[:2] for key in common)
    ordered = sorted(common, key=lambda key: (list(parts).index(key[:2]), key[2] != MACRO))
    return {key: paired_difference(a[key], b[key], note=paired.notes.get(key, "")) for key in ordered}


def comparison_to_json(differences: Mapping[Key, Estimate], metric: str = "auroc") -> dict:
    """{protocol: {feature: {"macro": {metric: {...}}, "per_label": {label: {metric: {...}}}}}}.

    Recall has neither labels nor their mean: {"retrieval": {direction: {"recall_at_5": {...}}}}.
    """
    result: dict = {}
    for (protocol, feature, label), difference in differences.items():
        features = result.setdefault(protocol, {})
        if protocol == _RETRIEVAL:
            features.setdefault(feature, {})[label] = difference.to_json()
            continue
        part = features.setdefault(feature, {MACRO: {}, "per_label": {}})
        place = part[MACRO] if label == MACRO else part["per_label"].setdefault(label, {})
        place[metric] = difference.to_json()
    return result
