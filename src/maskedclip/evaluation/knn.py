"""k nearest neighbours by cosine on frozen features.  n training rows, m query rows, D width, K classes.

Nothing is fitted: what the feature space itself knows.  A neighbour of similarity s votes with weight exp(s / 0.07),
as in the evaluation of DINO; k is chosen by AUROC on the validation rows (without any: 20), one for all binary labels
and one for each label of several classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from maskedclip.evaluation.selection import choose, class_shares, decide, obstacle
from maskedclip.evaluation.tasks import Prediction, Task

NEIGHBOURS = (5, 10, 20, 50)
DEFAULT_K = 20
TEMPERATURE = 0.07
_CHUNK = 16_000_000  # similarities held at once: 64 MB


def nearest_neighbours(
    features: NDArray,
    tasks: Mapping[str, Task],
    splits: NDArray,
    *,
    ks: Sequence[int] = NEIGHBOURS,
    default: int = DEFAULT_K,
) -> dict[str, Prediction | str]:
    """Predictions on the test rows, in their order, for each task; a sentence where there is nothing to vote.

    features (n, D); splits (n,) of "train", "val", "test"; tasks describe the same n rows.  Only training rows whose
    value is known are neighbours.  Scores are shares of the votes.  `chosen` is the task's k.
    """
    unit = unit_rows(features)
    ks = tuple(sorted({*ks}))
    rest = splits[splits != "train"]
    found: dict[bytes, tuple[NDArray, NDArray]] = {}  # one search for all the labels known on the same rows
    answers: dict[str, Prediction | str] = {name: obstacle(task, splits == "train") for name, task in tasks.items()}
    able = [task for name, task in tasks.items() if not answers[name]]
    votes: dict[str, dict[int, NDArray]] = {}
    for task in able:
        train = task.known & (splits == "train")
        key = train.tobytes()
        if key not in found:
            found[key] = neighbours(unit[train], unit[splits != "train"], max(*ks, default))
        votes[task.name] = {k: _scores(task, train, *found[key], k) for k in {*ks, default}}
    validation = [task.on(splits == "val") for task in able]
    chosen = choose(ks, validation, [[votes[task.name][k][rest == "val"] for k in ks] for task in able])
    for task in able:
        k = int(chosen.get(task.name, default))
        prior = class_shares(task.on(splits == "train"))
        answer = decide(task, votes[task.name][k][rest == "test"], prior)
        answers[task.name] = replace(answer, chosen=k, probabilities=True)
    return answers


def neighbours(train: NDArray, query: NDArray, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k most similar training rows of each query row, the most similar first: (m, k) indices and cosines.

    train (n, D), query (m, D) of unit length; k is cut to n.  Exact, in slices that bound the memory.
    """
    k = min(k, len(train))
    indices, cosines = np.empty((len(query), k), np.int64), np.empty((len(query), k), np.float32)
    step = max(1, _CHUNK // len(train))
    for start in range(0, len(query), step):
        similarity = query[start : start + step] @ train.T
        chosen = np.argpartition(similarity, -k, axis=1)[:, -k:]
        ordered = np.argsort(-np.take_along_axis(similarity, chosen, axis=1), axis=1, kind="stable")
        indices[start : start + step] = np.take_along_axis(chosen, ordered, axis=1)
        cosines[start : start + step] = np.take_along_axis(similarity, indices[start : start + step], axis=1)
    return indices, cosines


def vote(
    classes: NDArray[np.int64], cosines: NDArray, k: int, width: int, *, weighted: bool = True
) -> NDArray[np.float64]:
    """Shares of the votes of the first k neighbours for each class: (m, K).

    classes (m, >= k): class index of each neighbour, the nearest first; cosines likewise; width: K.  Unweighted, these
    are the probabilities of scikit-learn's KNeighborsClassifier(metric="cosine").
    """
    k = min(k, classes.shape[1])
    votes = np.ones((len(classes), k))
    if weighted:  # relative to the nearest, which keeps exp in range
        votes = np.exp((cosines[:, :k].astype(np.float64) - cosines[:, :1]) / TEMPERATURE)
    shares = np.stack([(votes * (classes[:, :k] == c)).sum(axis=1) for c in range(width)], axis=1)
    return shares / shares.sum(axis=1, keepdims=True)


def unit_rows(features: NDArray) -> NDArray:
    """Rows divided by their length (rows of zeros stay), in float32: (n, D)."""
    x = np.asarray(features, dtype=np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, np.float32(1))


def _scores(task: Task, train: NDArray[np.bool_], indices: NDArray, cosines: NDArray, k: int) -> NDArray[np.float64]:
    """Votes of k neighbours in the shape of a Prediction's scores; NaN for a class without training rows."""
    shares = vote(task.truth[train][indices], cosines, k, len(task.classes))
    shares[:, class_shares(task.on(train)) == 0] = np.nan
    return shares[:, 1] if task.kind == "binary" else shares
