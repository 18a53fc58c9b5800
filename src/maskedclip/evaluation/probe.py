"""Linear probe: L2 logistic regression on frozen, standardised features.  n rows, D width, K classes, G values of C.

Protocol (P32): features are standardised with the mean and deviation of the training rows; C comes from a
logarithmic grid and is chosen by AUROC on the validation rows (without any: by five folds of the training patients),
one C for all binary labels and one for each label of several classes; the model is fitted on the training rows alone,
and the test rows are only ever predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from maskedclip.evaluation.logistic import Fit, logistic_path
from maskedclip.evaluation.selection import choose, class_shares, decide, obstacle, patient_folds
from maskedclip.evaluation.tasks import Prediction, Task

# C weighs the summed loss, as in scikit-learn: small values are strong regularisation.
GRID = tuple(float(10.0**power) for power in range(-5, 2))
# Entries of x from which BLAS may use threads.  Below, they wait for each other wherever cores are shared, as beside a
# training, and bring little.
_THREADS_FROM = 20_000_000


def linear_probe(
    features: NDArray,
    tasks: Mapping[str, Task],
    splits: NDArray,
    patients: NDArray[np.object_],
    *,
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> dict[str, Prediction | str]:
    """Predictions on the test rows, in their order, for each task; a sentence where a task cannot be learnt.

    features (n, D); splits (n,) of "train", "val", "test"; patients (n,); tasks describe the same n rows.  Scores
    are probabilities.  `chosen` is the task's C.
    """
    train = splits == "train"
    answers: dict[str, Prediction | str] = {name: obstacle(task, train) for name, task in tasks.items()}
    able = [task for name, task in tasks.items() if not answers[name]]
    if not able:
        return answers
    x, grid = standardise(features, train), tuple(sorted(grid))
    validation, test = np.flatnonzero(splits == "val"), np.flatnonzero(splits == "test")
    paths = score_paths(x, able, train, np.concatenate([validation, test]), grid)
    chosen = choose(grid, [t.on(validation) for t in able], [path[:, : len(validation)] for path in paths])
    unchosen = [task for task in able if task.name not in chosen]
    if unchosen:
        held_out = _held_out(x, unchosen, train, patients, grid, seed)
        chosen |= choose(grid, [task.on(train) for task in unchosen], [scores[:, train] for scores in held_out])
    for task, path in zip(able, paths, strict=True):
        if task.name not in chosen:
            answers[task.name] = "no validation row of each class, and too few training patients to cross-validate"
            continue
        c = chosen[task.name]
        scores = path[grid.index(c), len(validation) :]
        answers[task.name] = replace(decide(task, scores, class_shares(task.on(train))), chosen=c, probabilities=True)
    return answers


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearHead:
    """The fit of one task, on features as they come: logits are x @ weight.T + bias.

    weight (O, D), bias (O,).  One output (O = 1) for a finding, whose probability is the logistic of its logit; else
    one for each class in `present`, those that training rows have, whose probabilities are the softmax.  prior (K,):
    shares of the classes among the training rows.  c: as validation chose it.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    present: tuple[int, ...]
    prior: NDArray[np.float64]
    c: float


def linear_heads(
    features: NDArray,
    tasks: Mapping[str, Task],
    splits: NDArray,
    patients: NDArray[np.object_],
    *,
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> dict[str, LinearHead | str]:
    """The fits behind `linear_probe`'s predictions, with its arguments; a sentence where a task cannot be learnt."""
    answers = linear_probe(features, tasks, splits, patients, grid=grid, seed=seed)
    heads: dict[str, LinearHead | str] = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
    able = [task for name, task in tasks.items() if name not in heads]
    if not able:
        return {name: heads[name] for name in tasks}
    train, ascending = splits == "train", sorted(grid)
    mean, deviation = standardisation(features, train)
    x = (np.asarray(features, dtype=np.float64) - mean) / deviation

    def placed(coefficients: NDArray, intercepts: NDArray, task: Task, present: Sequence[int], c: float) -> LinearHead:
        weight = coefficients.T / deviation
        prior = class_shares(task.on(train))
        return LinearHead(weight=weight, bias=intercepts - weight @ mean, present=tuple(present), prior=prior, c=c)

    with threadpool_limits(1 if x.size < _THREADS_FROM else None, user_api="blas"):
        binary = [task for task in able if task.kind == "binary"]
        if binary:
            c = _chosen(answers[binary[0].name])
            fit = _fit_columns(x, binary, train, ascending[: ascending.index(c) + 1])[-1]
            for place, task in enumerate(binary):
                own = slice(place, place + 1)
                heads[task.name] = placed(fit.coefficients[0, :, own], fit.intercepts[0, 0, own], task, (0, 1), c)
        for task in able:
            if task.kind == "binary":
                continue
            c = _chosen(answers[task.name])
            present, fits = _fit_classes(x, task, train, ascending[: ascending.index(c) + 1])
            coefficients, intercepts = fits[-1].coefficients[0], fits[-1].intercepts[0, 0]
            if not fits[-1].coupled:  # one column, the second class against the first
                coefficients, intercepts = np.pad(coefficients, ((0, 0), (1, 0))), np.pad(intercepts, (1, 0))
            heads[task.name] = placed(coefficients, intercepts, task, present.tolist(), c)
    return {name: heads[name] for name in tasks}


def _chosen(answer: Prediction | str) -> float:
    assert isinstance(answer, Prediction)
    assert answer.chosen is not None
    return answer.chosen


def standardise(features: NDArray, train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Features minus the mean of the `train` rows, over their deviation (constant columns become 0): (n, D)."""
    mean, deviation = standardisation(features, train)
    return (np.asarray(features, dtype=np.float64) - mean) / deviation


def standardisation(features: NDArray, train: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of the `train` rows, (D,) each; infinite for a constant column."""
    x = np.asarray(features, dtype=np.float64)[train]
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    # Rounding gives a constant column a deviation of about 1e-17, and dividing by that would blow up noise.
    return mean, np.where(deviation <= 1e-7 * np.abs(mean), np.inf, deviation)


def score_paths(
    x: NDArray, tasks: Sequence[Task], train: NDArray[np.bool_], query: NDArray, grid: Sequence[float]
) -> list[NDArray[np.float64]]:
    """Probabilities of the `query` rows for each C of the ascending `grid`: for each task (G, m), or (G, m, K).

    x (n, D) float64; train (n,) rows to fit on, less those where a task is unknown; query (m,) row indices.  A class
    without training rows, and a task with one class only, get NaN.
    """
    threads = 1 if x.size < _THREADS_FROM else None
    with threadpool_limits(threads, user_api="blas"):
        columns = iter(_columns(x, [task for task in tasks if task.kind == "binary"], train, query, grid))
        return [next(columns) if task.kind == "binary" else _classes(x, task, train, query, grid) for task in tasks]


def _columns(
    x: NDArray, tasks: Sequence[Task], train: NDArray[np.bool_], query: NDArray, grid: Sequence[float]
) -> list[NDArray[np.float64]]:
    """The binary tasks at once, on the rows that any of them knows: for each (G, m)."""
    paths = [np.full((len(grid), len(query)), np.nan) for _ in tasks]
    able = [place for place, task in enumerate(tasks) if len(np.unique(task.truth[train & task.known])) == 2]
    if able:
        fits = _fit_columns(x, [tasks[place] for place in able], train, grid)
        scores = np.stack([fit.probabilities(x[query][None])[0] for fit in fits])  # (G, m, able)
        for column, place in enumerate(able):
            paths[place] = scores[:, :, column]
    return paths


def _fit_columns(x: NDArray, tasks: Sequence[Task], train: NDArray[np.bool_], grid: Sequence[float]) -> list[Fit]:
    """Binary tasks, a column each, on the training rows that any of them knows: for each C."""
    known = np.stack([task.known for task in tasks], axis=1) & train[:, None]
    rows = known.any(axis=1)
    target = np.stack([task.truth[rows] == 1 for task in tasks], axis=1)
    return logistic_path(x[rows][None], target[None], grid, counted=known[rows][None])


def _classes(
    x: NDArray, task: Task, train: NDArray[np.bool_], query: NDArray, grid: Sequence[float]
) -> NDArray[np.float64]:
    """One task of several classes: (G, m, K)."""
    path = np.full((len(grid), len(query), len(task.classes)), np.nan)
    present, fits = _fit_classes(x, task, train, grid)
    if fits:
        scores = np.stack([fit.probabilities(x[query][None])[0] for fit in fits])
        path[:, :, present] = scores if fits[0].coupled else np.concatenate([1 - scores, scores], axis=2)
    return path


def _fit_classes(
    x: NDArray, task: Task, train: NDArray[np.bool_], grid: Sequence[float]
) -> tuple[NDArray[np.int64], list[Fit]]:
    """The classes that training rows have, and for each C their fit; no fit where there is one class only.

    Two classes are one column, as in scikit-learn; coupled, each of them would be shrunk on its own.
    """
    rows = train & task.known
    present = np.unique(task.truth[rows])
    if len(present) < 2:
        return present, []
    columns = present[1:] if len(present) == 2 else present
    target = (task.truth[rows, None] == columns)[None]
    return present, logistic_path(x[rows][None], target, grid, coupled=len(columns) > 1)


def _held_out(
    x: NDArray,
    tasks: Sequence[Task],
    train: NDArray[np.bool_],
    patients: NDArray[np.object_],
    grid: tuple[float, ...],
    seed: int,
) -> list[NDArray[np.float64]]:
    """The score that each training row gets from a fit on the other folds' patients: per task (G, n) or (G, n, K)."""
    folds = np.full(len(x), -1)
    folds[train] = patient_folds(patients[train], seed=seed)
    shapes = [(len(grid), len(x), *([] if task.kind == "binary" else [len(task.classes)])) for task in tasks]
    scores = [np.full(shape, np.nan) for shape in shapes]
    for fold in np.unique(folds[train]):
        query = np.flatnonzero(folds == fold)
        rest = train & (folds != fold)
        if rest.any():
            for whole, part in zip(scores, score_paths(x, tasks, rest, query, grid), strict=True):
                whole[:, query] = part
    return scores
