"""What scored the labels, and the scores of one protocol, label by label, out of predictions.parquet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskedclip.evaluation.report_names import SCORED
from maskedclip.evaluation.report_subject import Evaluation
from maskedclip.html import LeftOut


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelScores:
    """What a protocol said of the n test rows of a label.

    classes: of a label of several, those that could be learnt; empty for a finding.  unlearnt: those that test rows
    have and no training row has.  truth: 0/1, or the class index, (n,); the number of classes for a row of an unlearnt
    one.  score: (n,), or (n, K).
    """

    label: str
    classes: tuple[str, ...]
    unlearnt: tuple[str, ...] = ()
    ids: list[str]
    patients: list[str]
    truth: NDArray[np.int64]
    score: NDArray[np.float64]

    @property
    def truths(self) -> tuple[str, ...]:
        """Names of the values of `truth`, for a label of several classes."""
        if not (self.truth == len(self.classes)).any():
            return self.classes
        return (*self.classes, self.unlearnt[0] if len(self.unlearnt) == 1 else "another class")


def scored_parts(main: Evaluation) -> list[tuple[str, str]]:
    """(protocol, feature) of what scored the labels, in the order of SCORED."""
    return [part for part in SCORED if main.section(*part) is not None]


def main_part(main: Evaluation) -> tuple[str, str]:
    """The protocol and feature that a section shows which shows one: the first by which any label has an AUROC.

    Raises:
        LeftOut: nothing scored the labels.
    """
    parts = scored_parts(main)
    if not parts:
        raise LeftOut("no protocol that scores labels was evaluated (see the tables for the reasons)")
    return next((part for part in parts if areas(main, part)), parts[0])


def areas(main: Evaluation, part: tuple[str, str]) -> dict[str, float]:
    """AUROC of the labels that have one."""
    entries = {name: entry.get("auroc") or {} for name, entry in _per_label(main, part).items()}
    return {name: entry["value"] for name, entry in entries.items() if entry.get("value") is not None}


def gives_probabilities(main: Evaluation, part: tuple[str, str]) -> bool:
    """Whether the scores are probabilities: those of a network trained with smoothed labels are not, for instance."""
    return any("calibration_error" in entry for entry in _per_label(main, part).values())


def label_scores(main: Evaluation, part: tuple[str, str]) -> list[LabelScores]:
    """Of a protocol and feature, in the order of the labels.

    Raises:
        LeftOut: there are no predictions.
    """
    names = ("protocol", "feature", "label", "class", "id", "patient", "score", "truth")
    columns = main.predictions.select(names).to_pydict()
    rows: dict[str, dict[str | None, list[tuple[str, str, float, float]]]] = {}
    for protocol, feature, label, value, *row in zip(*columns.values(), strict=True):
        if (protocol, feature) == part:
            rows.setdefault(label, {}).setdefault(value, []).append((row[0], row[1] or "", row[2], row[3]))
    found = []
    for label, classes in rows.items():
        listed = next(iter(classes.values()))
        score = np.stack([[entry[2] for entry in given] for given in classes.values()], axis=1)
        truth = np.stack([[entry[3] for entry in given] for given in classes.values()], axis=1)
        binary = list(classes) == [None]
        learnt = () if binary else tuple(str(value) for value in classes)
        indices = np.where(truth.sum(axis=1) > 0, truth.argmax(axis=1), len(learnt))
        found.append(
            LabelScores(
                label=label,
                classes=learnt,
                unlearnt=() if binary else _unlearnt(main, label, learnt),
                ids=[entry[0] for entry in listed],
                patients=[entry[1] for entry in listed],
                truth=(truth[:, 0] if binary else indices).astype(np.int64),
                score=(score[:, 0] if binary else score).astype(np.float64),
            )
        )
    return found


def _unlearnt(main: Evaluation, label: str, learnt: tuple[str, ...]) -> tuple[str, ...]:
    about = main.about.get("labels", {}).get(label, {})
    counts = about.get("test", {})
    missing = [str(value) for value in about.get("classes", ()) if str(value) not in learnt]
    return tuple(name for name in missing if counts.get(name, 1))


def _per_label(main: Evaluation, part: tuple[str, str]) -> Mapping[str, Any]:
    return (main.section(*part) or {}).get("per_label", {})
