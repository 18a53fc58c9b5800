"""Many models on the same test rows and bootstrap replicates, so that any two of them can be compared in pairs.

n test rows, R replicates.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maskedclip.console import bar
from maskedclip.errors import UserError
from maskedclip.evaluation import metrics
from maskedclip.evaluation.compare_read import (
    MACRO,
    Key,
    Predictions,
    Ranks,
    Scores,
    check_paired,
    comparable_rows,
    on_rows_of,
)
from maskedclip.evaluation.dense_table import image_mean
from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.retrieval import (
    IMAGE_TO_TEXT,
    PER_TEXT,
    RECALL_AT,
    distinct,
    recall,
    recall_per_text,
)
from maskedclip.evaluation.scoring import macro_distribution
from maskedclip.evaluation.statistics import (
    Distribution,
    check_seed,
    class_supports,
    cluster_weights,
    with_point,
)

DENSE = "dense"
METRICS = {"auroc": metrics.auroc, "auprc": metrics.average_precision}


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """A metric of several evaluations on the same replicates.

    distributions: one mapping an evaluation, in their order, by key; a key that an evaluation lacks is not in it.
    notes: by key, what all of them share, such as the number of labels of a mean.
    """

    distributions: Sequence[Mapping[Key, Distribution]]
    notes: Mapping[Key, str]


def paired_distributions(
    evaluations: Sequence[Predictions],
    *,
    metric: str = "auroc",
    protocols: Collection[str] | None = None,
    replicates: int = 1000,
    seed: int = 0,
    shown: bool = False,
) -> Paired:
    """`metric` ("auroc" or "auprc") of every label, and its mean over the labels, for every evaluation.

    A label of several classes counts by its mean over the classes, one against the rest.  The mean over the labels
    is over those that all evaluations with the protocol and feature have, so that it means the same for all.  Where
    ranks were kept, recall at 1, 5 and 10 under ("retrieval", direction, "recall_at_5"); where means over draws were,
    and with the same replicates and seed, ("fewshot", "encoder, 5", label).  With the replicates and
    the seed of `evaluate`, the values and intervals are those of its results.

    Args:
        evaluations: one or more; the rows of the first are the order of the bootstrap.
        metric: a key of METRICS.
        protocols: only these; None for all.
        replicates: of patients; at least 2.
        seed: of the bootstrap.
        shown: whether to show a progress bar.

    Raises:
        UserError: test rows, patients, truths or queries differ; fewer than two replicates; a negative seed.
    """
    if replicates < 2:
        raise UserError(f"replicates: {replicates} give no interval; use 1000")
    check_seed(seed)
    evaluations = comparable_rows(evaluations)
    first = evaluations[0]
    for other in evaluations[1:]:
        check_paired(first, other)
    aligned = [on_rows_of(first, other) for other in evaluations]
    weights = with_point(cluster_weights(first.patients, replicates=replicates, seed=seed))
    found: list[dict[Key, Distribution]] = [{} for _ in aligned]
    keys = dict.fromkeys(key for part in aligned for key in part.scores if protocols is None or key[0] in protocols)
    with bar("compare", len(keys), shown=shown) as progress:
        for key in keys:
            holders = [place for place, part in enumerate(aligned) if key in part.scores]
            parts = _of_label([aligned[place] for place in holders], key, weights, metric)
            for place, distribution in zip(holders, parts, strict=True):
                found[place][key] = distribution
            progress.advance()
    if protocols is None or DENSE in protocols:
        _add_dense(found, evaluations, metric, replicates, seed)
    if metric == "auroc":
        _add_drawn(found, evaluations, protocols, (replicates, seed))
    notes = _add_macros(found)
    if protocols is None or "retrieval" in protocols:
        _add_recall(found, evaluations, replicates, seed)
    return Paired(distributions=found, notes=notes)


def _of_label(holders: Sequence[Predictions], key: Key, weights: NDArray, metric: str) -> list[Distribution]:
    """One label for all evaluations that have it: the mean over the classes that they share."""
    classes = [value for value in holders[0].scores[key] if all(value in part.scores[key] for part in holders)]
    parts: list[dict[str, Distribution]] = [{} for _ in holders]
    n = 0
    for value in classes:
        first = holders[0].scores[key][value]
        n = len(first.rows)
        columns = weights if n == weights.shape[1] else weights.T[first.rows].T
        support = class_supports(first.truth.astype(np.int64), 2, columns[1:])[1]
        for place, part in enumerate(holders):
            scores = part.scores[key][value]
            if not _same_truth(first, scores):
                raise UserError(
                    f"{holders[0].folder} and {part.folder}: {'/'.join(key)}: the known test rows or their truths "
                    "differ; evaluate both on the same store"
                )
            values = METRICS[metric](first.truth, scores.score, columns)
            parts[place][str(value)] = Distribution.from_rows(values, n, bounds=SHARE, support=support)
    return [_mean(part, n, weights.shape[0] - 1) for part in parts]


def _mean(parts: Mapping[str, Distribution], n: int, replicates: int) -> Distribution:
    """The mean of those that are defined, as in results.json; undefined where none is."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    mean, missing = macro_distribution(parts, n)
    if mean is None:
        return Distribution(value=np.nan, replicates=np.full(replicates, np.nan), n=n)
    lacking = f"mean of {len(parts) - len(missing)} of {len(parts)} classes; undefined: {', '.join(missing)}"
    return replace(mean, note=lacking) if missing else mean


def _same_truth(first: Scores, other: Scores) -> bool:
    return np.array_equal(first.rows, other.rows) and np.array_equal(first.truth, other.truth)


def _add_macros(found: Sequence[dict[Key, Distribution]]) -> dict[Key, str]:
    """The mean over the common labels under the label MACRO, and what it is the mean of."""
    notes: dict[Key, str] = {}
    for protocol, feature in dict.fromkeys(key[:2] for part in found for key in part):
        labels = [
            {key[2]: distribution for key, distribution in part.items() if key[:2] == (protocol, feature)}
            for part in found
        ]
        holders = [place for place, part in enumerate(labels) if part]
        common = [name for name in labels[holders[0]] if all(name in labels[place] for place in holders)]
        key = (protocol, feature, MACRO)
        for place in holders if common else ():
            used = {name: labels[place][name] for name in common}
            n = max(part.n for part in used.values())
            mean, missing = macro_distribution(used, n)
            # A label is defined for all or for none: they have the same rows and truths.
            found[place][key] = mean or replace(used[common[0]], n=n, reason="no label is defined")
            notes[key] = f"mean of {len(common)} labels"
            if missing:
                notes[key] = f"mean of {len(common) - len(missing)} of {len(common)} labels; undefined: "
                notes[key] += ", ".join(missing)
    return notes


def _add_drawn(
    found: Sequence[dict[Key, Distribution]],
    evaluations: Sequence[Predictions],
    protocols: Collection[str] | None,
    bootstrap: tuple[int, int],
) -> None:
    """k-shot and label efficiency, where all that have them kept the replicates that this comparison draws."""
    for key in dict.fromkeys(key for part in evaluations for key in part.drawn.means):
        holders = [place for place, part in enumerate(evaluations) if key in part.drawn.means]
        wanted = protocols is None or key[0] in protocols
        if wanted and all(evaluations[place].drawn.bootstrap == bootstrap for place in holders):
            for place in holders:
                found[place][key] = evaluations[place].drawn.means[key]


def _add_dense(
    found: Sequence[dict[Key, Distribution]],
    evaluations: Sequence[Predictions],
    metric: str,
    replicates: int,
    seed: int,
) -> None:
    """The mean over the images of the dense probe's `metric`, for every mask and feature: patients are resampled.

    Over the images that have a value in all evaluations: read at another size, a small lesion may have no pixel.
    """
    values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    patients: dict[str, str] = {}
    for place, part in enumerate(evaluations):
        if part.dense is None:
            continue
        columns = [part.dense.column(name).to_pylist() for name in ("feature", "label", "id", "patient", metric)]
        for feature, label, image, patient, value in zip(*columns, strict=True):
            own = values.setdefault((feature, label), {}).setdefault(place, {})
            own[image] = np.nan if value is None else value
            patients[image] = patient or ""
    for key, holders in values.items():
        images = list(next(iter(holders.values())))
        for place, own in holders.items():
            if own.keys() != set(images):
                raise UserError(
                    f"{evaluations[place].folder}: {DENSE}/{'/'.join(key)}: its test images are not those of the other "
                    "evaluation; evaluate both on the same store"
                )
        table = np.array([[own[image] for image in images] for own in holders.values()])
        table[:, np.isnan(table).any(axis=0)] = np.nan
        known = np.array([patients[image] for image in images], dtype=object)
        weights = _weights(evaluations[0], images, known, replicates, seed)
        for place, row in zip(holders, table, strict=True):
            found[place][DENSE, *key] = image_mean(row, known, weights)


def _weights(
    first: Predictions, ids: Sequence[str], patients: NDArray[np.object_], replicates: int, seed: int
) -> NDArray:
    """Of queries, (R, q): as `evaluate` drew them, where they are rows of the test split and all of it is known."""
    place = {key: row for row, key in enumerate(first.ids)} if first.complete else {}
    if place and all(query in place for query in ids):
        drawn = cluster_weights(first.patients, replicates=replicates, seed=seed)
        return drawn[:, [place[query] for query in ids]]
    return cluster_weights(patients, replicates=replicates, seed=seed)


def _texts(holders: Sequence[Ranks], ids: Iterable[str]) -> list[str]:
    """The text of each image of `ids`, from the first evaluation that kept them; none where no one did."""
    known = next((ranks for ranks in holders if ranks.texts is not None), None)
    if known is None or known.texts is None or set(known.ids) != set(ids):
        return []
    text = dict(zip(known.ids, known.texts, strict=True))
    return [text[query] for query in ids]


def _add_recall(
    found: Sequence[dict[Key, Distribution]], evaluations: Sequence[Predictions], replicates: int, seed: int
) -> None:
    """Recall at k of queries whose ranks were kept: patients are resampled, a query without one by itself.

    Where the images' texts were kept too, also as the mean over the texts, which are resampled then.
    """
    for direction in dict.fromkeys(name for part in evaluations for name in part.ranks):
        holders = [place for place, part in enumerate(evaluations) if direction in part.ranks]
        first = evaluations[holders[0]].ranks[direction]
        weights = _weights(evaluations[0], first.ids.tolist(), first.patients, replicates, seed)
        texts, own_text = distinct(_texts([evaluations[place].ranks[direction] for place in holders], first.ids))
        by_text = cluster_weights([None] * len(texts), replicates=replicates, seed=seed)
        for place in holders:
            ranks = evaluations[place].ranks[direction]
            rank = dict(zip(ranks.ids, ranks.ranks, strict=True))
            if rank.keys() != set(first.ids):
                raise UserError(
                    f"{evaluations[holders[0]].folder} and {evaluations[place].folder}: retrieval/{direction}: the "
                    "queries differ; evaluate both on the same store"
                )
            own = np.array([rank[query] for query in first.ids])
            for k in RECALL_AT:
                found[place]["retrieval", direction, f"recall_at_{k}"] = recall(own, k, weights, direction)
                if direction == IMAGE_TO_TEXT and texts:
                    found[place]["retrieval", PER_TEXT, f"recall_at_{k}"] = recall_per_text(own, own_text, k, by_text)
