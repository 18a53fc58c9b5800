"""Label efficiency: the linear probe on 1 to 100 % of the training patients.  n rows, D width, R replicates.

A draw puts the training patients in a random order and takes the first 1, 5, 10, 25, 50 and 100 % of them, so that
its subsets are nested and eyes of one person stay together.  Below 100 % there are several draws.  C is chosen on all
the validation rows, as in the probe, which makes the curve one of training labels alone.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from maskedclip.console import bar
from maskedclip.evaluation.draws import Drawn, Repeated, means_of, over_draws, score_draws
from maskedclip.evaluation.probe import linear_probe
from maskedclip.evaluation.scoring import auroc_distribution
from maskedclip.evaluation.statistics import Distribution, cluster_codes
from maskedclip.evaluation.tasks import Task
from maskedclip.randomness import generator, text_key

FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
DRAWS = 5


def label_efficiency(
    features: NDArray,
    tasks: Mapping[str, Task],
    splits: NDArray,
    patients: NDArray[np.object_],
    weights: NDArray,
    *,
    fractions: Sequence[float] = FRACTIONS,
    draws: int = DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> Repeated:
    """By fraction, as text such as "0.25": {"macro": {"auroc": estimate}, "per_label": {...}, "patients", "rows"}.

    An estimate is the mean over the draws, with an interval for the draw and the patients, their "spread" and number.
    A draw that lacks a class of a label has no value for it, which the label's note says.  "patients" is how many were
    drawn, "rows" their rows on average.

    Args:
        features: (n, D).
        tasks: on the same n rows.
        splits: (n,) of "train", "val", "test".
        patients: (n,), '' where unknown: such a row is a patient of its own.
        weights: of the patient-clustered bootstrap of the m test rows, (R, m).
        fractions: of the training patients, above 0 and up to 1.
        draws: at each fraction below 1.
        seed: of the draws.
        progress: show a bar.
    """
    tested = {name: task.on(splits == "test") for name, task in tasks.items()}
    cases = [(share, draw) for share in fractions for draw in range(draws if share < 1 else 1)]
    subsets = [training_subset(splits, patients, share, seed=seed, draw=draw) for share, draw in cases]

    def learn(subset: NDArray[np.bool_]) -> dict[str, Distribution | str]:
        kept = np.where((splits == "train") & ~subset, "", splits)
        answers = linear_probe(features, tasks, kept, patients, seed=seed)
        return {
            name: answer if isinstance(answer, str) else auroc_distribution(tested[name], answer, weights)
            for name, answer in answers.items()
        }

    learnt = []
    with (
        threadpool_limits(1, user_api="blas"),  # in each of our own threads: the same bits on any number of cores
        ThreadPoolExecutor(min(len(cases), os.cpu_count() or 1)) as pool,
        bar("label efficiency", len(cases), shown=progress) as shown,
    ):
        for result in pool.map(learn, subsets):
            learnt.append(result)
            shown.advance()
    results, means = {}, {}
    for share in fractions:
        own = [place for place, case in enumerate(cases) if case[0] == share]
        drawn = {
            name: _over(task, [learnt[place][name] for place in own], len(weights), share, seed)
            for name, task in tested.items()
        }
        counts = [int(cluster_codes(patients[subsets[place]]).max(initial=-1)) + 1 for place in own]
        about = {"patients": counts[0], "rows": float(np.mean([subsets[place].sum() for place in own]))}
        results[f"{share:g}"] = score_draws(tested, drawn) | about
        means |= means_of(f"{share:g}", drawn)
    return Repeated(section=results, means=means)


def training_subset(
    splits: NDArray, patients: NDArray[np.object_], share: float, *, seed: int, draw: int
) -> NDArray[np.bool_]:
    """The rows of the first `share` of the training patients in the order of a draw, one patient at least: (n,).

    A pure function of its arguments; a larger share contains a smaller one.
    """
    train = splits == "train"
    codes = cluster_codes(patients[train])
    count = int(codes.max(initial=-1)) + 1
    order = generator(text_key(f"label efficiency {draw}"), stream=seed).permutation(count)
    subset = np.zeros(len(splits), dtype=bool)
    subset[np.flatnonzero(train)[order[codes] < max(1, round(share * count))]] = True
    return subset


def _over(task: Task, parts: Sequence[Distribution | str], replicates: int, share: float, seed: int) -> Drawn | str:
    """The mean over the draws that could be learnt; where none could, why the first could not."""
    if all(isinstance(part, str) for part in parts):
        return str(parts[0])
    nothing = Distribution(value=np.nan, replicates=np.full(replicates, np.nan), n=int(task.known.sum()))
    table = [nothing if isinstance(part, str) else part for part in parts]
    # All labels learn from the same patients: one key resamples their draws alike.
    return over_draws(table, key=f"label efficiency {share}", seed=seed)
