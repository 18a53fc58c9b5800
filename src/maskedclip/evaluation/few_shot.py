"""k-shot: a logistic regression on k training images of each class, many times over.  n rows, D width, K classes.

Each label is its own problem: a draw takes k training images of each of its classes, from different patients as far
as there are enough, and is a pure function of (seed, label, k, draw).  Features are standardised as in the linear
probe, on all the training images, whose labels stay unused.

With so few images there are none to choose C by, so it is fixed: C = 0.1 / D.  Divided by the width, since standardised
features have a squared length of D, so that the rule means the same for every encoder.  The constant was fixed in
advance on validation rows alone: ODIR, nine labels, the encoder and the bridge of a ViT-S/14, 15 draws each.  Macro
AUROC with C D = 0.001, 0.1, 1, 10, 100: 0.737, 0.736, 0.734, 0.726, 0.721 at k = 5 (encoder) and 0.780, 0.782, 0.784,
0.779, 0.768 at k = 20 (bridge): flat below 1, where the classifier points along the difference of the class means, and
worse above.  Standardising on the k images only, or using features of unit length, changed it by less than 0.003.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from threadpoolctl import threadpool_limits

from maskedclip.evaluation.draws import Drawn, Repeated, means_of, over_draws, score_draws
from maskedclip.evaluation.logistic import logistic_path
from maskedclip.evaluation.probe import standardise
from maskedclip.evaluation.scoring import auroc_distribution
from maskedclip.evaluation.selection import obstacle
from maskedclip.evaluation.statistics import cluster_codes
from maskedclip.evaluation.tasks import Prediction, Task
from maskedclip.randomness import generator, text_key

SHOTS = (1, 5, 10, 20)
DRAWS = 10
REGULARISATION = 0.1  # C times D


def few_shot(
    features: NDArray,
    tasks: Mapping[str, Task],
    splits: NDArray,
    patients: NDArray[np.object_],
    weights: NDArray,
    *,
    ks: Sequence[int] = SHOTS,
    draws: int = DRAWS,
    seed: int = 0,
) -> Repeated:
    """By k, as text: {"macro": {"auroc": estimate}, "per_label": {name: {"auroc": estimate}}} on the test rows.

    An estimate is the mean over the draws, with an interval for the draw and the patients, their "spread" and number;
    undefined where a class has fewer than k training images.

    Args:
        features: (n, D).
        tasks: on the same n rows.
        splits: (n,) of "train", "val", "test"; validation rows are not used.
        patients: (n,), '' where unknown.
        weights: of the patient-clustered bootstrap of the m test rows, (R, m).
        ks: images of each class.
        draws: of each label and k.
        seed: of the draws.
    """
    train, test = splits == "train", splits == "test"
    tested = {name: task.on(test) for name, task in tasks.items()}
    x = standardise(features, train) if train.any() else features
    codes = cluster_codes(patients)
    results, means = {}, {}
    for k in ks:
        drawn: dict[str, Drawn | str] = {}
        for name, task in tasks.items():
            reason = obstacle(task, train) or _too_few(task, train, k)
            if reason:
                drawn[name] = reason
                continue
            shots = np.stack([draw_shots(task, train, codes, k, seed=seed, draw=draw) for draw in range(draws)])
            answers = shot_predictions(x, task, shots, x[test])
            parts = [auroc_distribution(tested[name], answer, weights) for answer in answers]
            drawn[name] = over_draws(parts, key=f"few-shot {name} {k}", seed=seed)
        results[str(k)] = score_draws(tested, drawn)
        means |= means_of(str(k), drawn)
    return Repeated(section=results, means=means)


def draw_shots(
    task: Task, train: NDArray[np.bool_], patients: NDArray[np.int64], k: int, *, seed: int, draw: int
) -> NDArray[np.int64]:
    """k training rows of each class, class after class: (K k,) row numbers.

    No patient is drawn twice where that can be had: the draw is a maximum matching of the K k places with patients in
    random order, and only places that it leaves open are filled from patients drawn already.  A pure function of its
    arguments.

    Args:
        task: on n rows; each of its classes has at least k training rows.
        train: rows to draw from, (n,).
        patients: an integer for each row's patient, (n,).
        k: rows of each class.
        seed: of the protocol.
        draw: its number.
    """
    random = generator(text_key(f"few-shot {task.name} {k} {draw}"), stream=seed)
    known = np.flatnonzero(train & task.known)
    by_class = [random.permutation(known[task.truth[known] == c]) for c in range(len(task.classes))]
    people = np.unique(patients[known])
    place = np.full(int(people.max()) + 1, -1)
    place[people] = random.permutation(len(people))
    edges = [np.unique(place[patients[rows]]) for rows in by_class]
    indices = np.concatenate([np.tile(own, k) for own in edges])
    starts = np.concatenate([[0], np.cumsum(np.repeat([len(own) for own in edges], k))])
    graph = csr_array((np.ones(len(indices), np.int8), indices, starts), shape=(k * len(by_class), len(people)))
    matched = maximum_bipartite_matching(graph, perm_type="column").reshape(len(by_class), k)
    chosen: list[int] = []
    for rows, own in zip(by_class, matched, strict=True):
        own_rows = [int(rows[np.argmax(place[patients[rows]] == person)]) for person in own if person >= 0]
        rest = [int(row) for row in rows if row not in own_rows]
        chosen += own_rows + rest[: k - len(own_rows)]
    return np.array(chosen, dtype=np.int64)


def shot_predictions(x: NDArray, task: Task, shots: NDArray[np.int64], query: NDArray) -> list[Prediction]:
    """Predictions of the query rows (m, D) after each of d draws (d, K k).

    x (n, D): standardised features.  The classes of a draw are equally frequent, so the likeliest is decided for.
    """
    two = len(task.classes) == 2
    target = task.truth[shots][..., None] == np.arange(two, len(task.classes))  # (d, K k, C); two classes: one column
    with threadpool_limits(1, user_api="blas"):
        (fit,) = logistic_path(x[shots], target, [REGULARISATION / x.shape[1]], coupled=not two)
        scores = fit.probabilities(np.asarray(query, np.float64)[None])  # (d, m, C)
    scores = np.concatenate([1 - scores, scores], axis=2) if two else scores
    binary = task.kind == "binary"
    return [Prediction(scores=part[:, 1] if binary else part, predicted=part.argmax(axis=1)) for part in scores]


def _too_few(task: Task, train: NDArray[np.bool_], k: int) -> str:
    """Why k images of each class can't be drawn, as a clause; '' where they can."""
    counts = np.bincount(task.truth[train & task.known], minlength=len(task.classes))
    short = [f"class {task.classes[c]} has {counts[c]}" for c in np.flatnonzero(counts < k)]
    return f"{k} training images of each class are needed, {', '.join(short)}" if short else ""
