"""What makes the figures of a comparison too good, or unlike, by what the evaluations say of their data."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskedclip.errors import UserError
from maskedclip.evaluation.leakage import is_warning


def leakage_warnings(results: Mapping[str, Sequence[dict]]) -> list[str]:
    """A line for each finding of test images that models have seen, with the models' names."""
    told: dict[str, list[str]] = {}
    for name, parts in results.items():
        for part in parts:
            about = part["about"]
            seen, files = about.get("seen_in_pretraining") or {}, about.get("same_files") or {"n": 0}
            said = [seen["sentence"]] if is_warning(seen) and "sentence" in seen else []
            if files["n"]:
                said.append(
                    f"{files['n']:,} test images are training or validation images of the labels too (the same file)."
                )
            for line in said:
                told.setdefault(line, []).extend([name] * (name not in told.get(line, [])))
    return [line if len(names) == len(results) else f"{', '.join(names)}: {line}" for line, names in told.items()]


def unlike_labels(results: Mapping[str, Sequence[dict]]) -> list[str]:
    """A line where evaluations of one store were made with other labels, splits or patients.

    Raises:
        UserError: names a label that has other classes, or other test images of them, in one than in another.
    """
    told: dict[str, list[str]] = {}
    first: dict[str, tuple[str, Any]] = {}
    for name, parts in results.items():
        for about in (part["about"] for part in parts):
            if (labels := about.get("labels_fingerprint")) is not None:
                told.setdefault(labels, []).extend([name] * (name not in told.get(labels, [])))
            for label, counts in (about.get("labels") or {}).items():
                other, before = first.setdefault(label, (name, counts))
                if before != counts:
                    raise UserError(
                        f"{other} and {name}: evaluated with other values of the label {label} on the test images; "
                        "evaluate both on the store as it is"
                    )
    if len(told) < 2:
        return []
    groups = "; ".join(", ".join(names) for names in told.values())
    return [f"labels, splits or patients of the store ({groups}), on which few-shot and label efficiency draw"]
