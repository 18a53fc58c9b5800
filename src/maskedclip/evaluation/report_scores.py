"""The scores of one protocol, label by label, out of predictions.parquet."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maskedclip.evaluation.report_subject import Evaluation


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelScores:
    """What a protocol said of the n test rows of a label.

    classes: of a label of several; empty for a finding.  truth: 0/1, or the class index, (n,).  score: (n,), or (n, K).
    """

    label: str
    classes: tuple[str, ...]
    ids: list[str]
    patients: list[str]
    truth: NDArray[np.int64]
    score: NDArray[np.float64]


def label_scores(main: Evaluation, part: tuple[str, str]) -> list[LabelScores]:
    """Of a protocol and feature, in the order of the labels; classes that could not be scored are left out.

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
        known = np.ones(len(listed), bool) if binary else truth.sum(axis=1) > 0  # of a class without a column
        found.append(
            LabelScores(
                label=label,
                classes=() if binary else tuple(str(value) for value in classes),
                ids=[entry[0] for entry, kept in zip(listed, known, strict=True) if kept],
                patients=[entry[1] for entry, kept in zip(listed, known, strict=True) if kept],
                truth=(truth[:, 0] if binary else truth.argmax(axis=1))[known].astype(np.int64),
                score=(score[:, 0] if binary else score)[known].astype(np.float64),
            )
        )
    return found
