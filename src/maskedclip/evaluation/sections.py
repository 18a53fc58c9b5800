"""The protocols, each a section of results.json: one function from a case to (section, answers)."""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from maskedclip.data.text import normalise_text
from maskedclip.evaluation.case import Answered, Case
from maskedclip.evaluation.compare_read import rank_table
from maskedclip.evaluation.draws_table import DrawnKey
from maskedclip.evaluation.few_shot import few_shot
from maskedclip.evaluation.knn import nearest_neighbours, unit_rows
from maskedclip.evaluation.label_efficiency import label_efficiency
from maskedclip.evaluation.probe import linear_probe
from maskedclip.evaluation.retrieval import distinct, image_to_text_ranks, retrieval_figures, text_to_image_ranks
from maskedclip.evaluation.scoring import score_labels
from maskedclip.evaluation.statistics import Distribution
from maskedclip.evaluation.tasks import Prediction
from maskedclip.evaluation.zero_shot import calibrated_zero_shot

FEATURES = ("encoder", "bridge")
LEARNING = ("linear", "knn", "fewshot", "label_efficiency")
"""Protocols that learn from frozen features of training rows."""
Section = tuple[dict, list[Answered]]


def no_labels(case: Case) -> str:
    """Why there is no task."""
    reasons = [f"label.{name} {reason}" for name, reason in case.refused.items()]
    return "; ".join(reasons) or "the store has no label.* column"


def _obstacle(case: Case) -> str:
    """Why nothing can be learnt; '' where it can."""
    if not case.tasks:
        return no_labels(case)
    return "" if (case.splits == "train").any() else "no row of the split 'train' has a label"


def _learnt(case: Case, protocol: str) -> Section:
    """The section of "linear" or "knn": a part for each feature that the model has."""
    if obstacle := _obstacle(case):
        return {"skipped": obstacle}, []
    section, answered = {}, []
    for feature in FEATURES:
        if feature in case.features:
            x = case.features[feature]
            if protocol == "linear":
                answers = linear_probe(x, case.tasks, case.splits, case.patients, seed=case.seed)
            else:
                answers = nearest_neighbours(x, case.tasks, case.splits)
            section[feature] = scored(case, answers)
            answered.append(Answered(protocol=protocol, feature=feature, answers=answers))
    return section, answered


def scored(case: Case, answers: Mapping[str, Prediction | str]) -> dict:
    """Metrics of answers on the test rows, with the settings that validation chose."""
    chosen = {name: answer.chosen for name, answer in answers.items() if isinstance(answer, Prediction)}
    return score_labels(case.test_tasks, answers, case.weights) | {"chosen": chosen}


def repeated_section(case: Case, protocol: str) -> tuple[dict, dict[DrawnKey, Distribution]]:
    """The section of "fewshot" or "label_efficiency", for each feature a part by k, or by share of the patients.

    And its means over the draws, for paired differences (draws.parquet).
    """
    if obstacle := _obstacle(case):
        return {"skipped": obstacle}, {}
    function = few_shot if protocol == "fewshot" else label_efficiency
    parts = {
        feature: function(case.features[feature], case.tasks, case.splits, case.patients, case.weights, seed=case.seed)
        for feature in FEATURES
        if feature in case.features
    }
    means = {
        (protocol, f"{feature}, {setting}", label): mean
        for feature, part in parts.items()
        for (setting, label), mean in part.means.items()
    }
    return {feature: part.section for feature, part in parts.items()}, means


def _zero_shot(case: Case) -> Section:
    if not case.tasks:
        return {"skipped": no_labels(case)}, []
    if not case.model.has_text:
        return {"skipped": "the model has no text encoder"}, []
    raw, calibrated = calibrated_zero_shot(
        case.features["projected"], case.tasks, case.splits, case.model.encode_text, prompts=case.prompts
    )
    section = score_labels(case.test_tasks, raw, case.weights)
    if any(isinstance(answer, Prediction) for answer in calibrated.values()):
        section["calibrated"] = score_labels(case.test_tasks, calibrated, case.weights)
    else:
        section["calibrated"] = {"skipped": next(iter(calibrated.values()), "there is no label")}
    return section, [Answered(protocol="zero_shot", feature="projected", answers=raw)]


def retrieval_section(case: Case) -> tuple[dict, pa.Table | None]:
    """Recall in both directions, and the ranks of all queries for paired differences (retrieval.parquet)."""
    if not case.model.has_text:
        return {"skipped": "the model has no text encoder"}, None
    texts = [case.store.texts[row] for row in case.rows[case.test]]
    written = [(place, text) for place, text in enumerate(texts) if text and normalise_text(text)]
    keys, own = distinct([normalise_text(text) for _, text in written])
    if len(keys) < 2:
        return {"skipped": f"the test split has {len(keys)} distinct texts; retrieval needs two"}, None
    # The tower reads a text as it was written (its case may matter); the key only says which texts are one.
    first = {int(key): text for key, (_, text) in reversed(list(zip(own, written, strict=True)))}
    embedded = unit_rows(case.model.encode_text([first[key] for key in range(len(keys))]))
    places = [place for place, _ in written]
    images = unit_rows(case.features["projected"][case.test][places])
    used: NDArray[np.int64] = case.rows[case.test][places]
    ranks = image_to_text_ranks(images, embedded, own), text_to_image_ranks(images, embedded, own)
    table = rank_table(
        *ranks,
        [str(case.store.ids[row]) for row in used.tolist()],
        [str(case.store.patients[row]) for row in used.tolist()],
        keys,
        own,
    )
    return retrieval_figures(*ranks, own, case.weights[:, places], seed=case.seed), table


SECTIONS: dict[str, Callable[[Case], Section]] = {
    "linear": lambda case: _learnt(case, "linear"),
    "knn": lambda case: _learnt(case, "knn"),
    "zero_shot": _zero_shot,
}
"""Protocols on frozen features; retrieval and those of draws have tables of their own."""
