"""Image-text retrieval where texts repeat.  m images, T distinct texts, E embedding width, R replicates.

"normal fundus" may be the report of half of a set.  So the candidates are the distinct normalised texts: a repeated
text is one candidate, and all the images that have it are its hits.  Ties count against the model: what scores as
high as the true answer ranks before it, so that a constant embedding retrieves nothing.

Over images, recall mostly tells how high the commonest texts rank: the order by frequency, which looks at no image, may
beat every model.  So its recall stands beside, and a second figure counts each text alike.

Several texts of one image: a row of a store is one image with one text, so they are joined to one text beforehand, and
that is one candidate.  A manifest that gives an image in two rows is refused, with the joined text
(`manifest_checks.check_repeated_images`), so that no image is asked for twice.

The same picture in two files is two rows: each is a query of its own with its own text.  Where the texts differ the two
cannot both be answered: at best one finds its text first and the other second, and from text to image the twin ties
with the right answer and ranks before it.  `maskedclip audit` lists such pairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from maskedclip.evaluation.intervals import SHARE
from maskedclip.evaluation.statistics import Distribution, cluster_weights, drawn_together, weighted_median, with_point

RECALL_AT = (1, 5, 10)
IMAGE_TO_TEXT, PER_TEXT, TEXT_TO_IMAGE = "image_to_text", "image_to_text_per_text", "text_to_image"
# Cosines of equal vectors differ by rounding, about 1e-7 in float32.
TIE = 1e-6
_CHUNK = 4_000_000  # similarities held at once: 32 MB


def image_to_text_ranks(images: NDArray, texts: NDArray, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank, from 1, of each image's own text among the distinct texts: (m,).

    images (m, E) and texts (T, E) of unit length; own (m,): index of each image's text.
    """
    ranks = np.empty(len(images), np.int64)
    for rows in _slices(len(images), len(texts)):
        similarity = _cosines(images[rows], texts)
        true = np.take_along_axis(similarity, own[rows, None], axis=1)
        ranks[rows] = (similarity >= true - TIE).sum(axis=1)  # the own text counts itself: rank 1
    return ranks


def text_to_image_ranks(images: NDArray, texts: NDArray, own: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank, from 1, of the best of a text's own images among all images, its other own images not counted: (T,).

    Arguments as of `image_to_text_ranks`; every text has an image.
    """
    ranks = np.empty(len(texts), np.int64)
    for rows in _slices(len(texts), len(images)):
        similarity = _cosines(texts[rows], images)
        mine = own[None, :] == np.arange(len(texts))[rows, None]
        best = np.where(mine, similarity, -np.inf).max(axis=1, keepdims=True)
        ranks[rows] = 1 + ((similarity >= best - TIE) & ~mine).sum(axis=1)
    return ranks


def retrieval_figures(
    of_images: NDArray[np.int64],
    of_texts: NDArray[np.int64],
    own: NDArray[np.int64],
    weights: NDArray,
    *,
    seed: int = 0,
) -> dict[str, dict[str, dict]]:
    """Recall at 1, 5 and 10 and the median rank in both directions, as JSON estimates with the level of chance.

    of_images (m,) and of_texts (T,): ranks as `image_to_text_ranks` and `text_to_image_ranks` give them; own (m,):
    index of each image's text; weights (R, m) of the patient-clustered bootstrap.

    "image_to_text": its recalls have the "fixed_order" that looks at no image, the commonest texts first.
    "image_to_text_per_text": recall alone, as the mean over the texts of the share of their images that find them,
    where a fixed order is worth chance.  Intervals: image to text resamples patients, with the candidate texts as they
    are; the other two resample the distinct texts, since a text belongs to many patients.
    """
    images, texts = len(of_images), len(of_texts)
    by_text = cluster_weights([None] * texts, replicates=weights.shape[0], seed=seed)
    counts = np.bincount(own, minlength=texts)
    found = _figures(of_images, weights, np.ones(images), texts, IMAGE_TO_TEXT)
    fixed = np.sort(counts)[::-1].cumsum() / images
    for k in RECALL_AT:
        found[f"recall_at_{k}"]["fixed_order"] = float(fixed[min(k, texts) - 1])
    return {
        IMAGE_TO_TEXT: found,
        PER_TEXT: {
            f"recall_at_{k}": recall_per_text(of_images, own, k, by_text).estimate().to_json()
            | {"chance": chance_recall(np.ones(texts), texts, k)}
            for k in RECALL_AT
        },
        TEXT_TO_IMAGE: _figures(of_texts, by_text, counts, images, TEXT_TO_IMAGE),
    }


def recall(ranks: NDArray[np.int64], k: int, weights: NDArray, direction: str) -> Distribution:
    """Share of the queries (m,) whose rank is at most k; weights (R, m): how often a replicate draws each.

    direction: IMAGE_TO_TEXT, of images whose patients are drawn; TEXT_TO_IMAGE, of texts that are drawn one by one.
    """
    rows = with_point(weights)
    values = rows @ (ranks <= k).astype(np.float64) / rows.sum(axis=1)
    if direction == IMAGE_TO_TEXT:
        return Distribution.from_rows(values, len(ranks), bounds=SHARE, support=drawn_together(weights))
    # The share of single draws tells its own error, so that no Student's t is due, but at a bound, which shows none.
    support = np.inf if 0 < values[0] < 1 else len(ranks)
    return Distribution.from_rows(values, len(ranks), bounds=SHARE, support=support, skewed=False)


def recall_per_text(ranks: NDArray[np.int64], own: NDArray[np.int64], k: int, weights: NDArray) -> Distribution:
    """Mean over the texts of the share of a text's images whose rank is at most k; each text has an image.

    ranks, own (m,): of `image_to_text_ranks`, and the index of each image's text; weights (R, T): how often a replicate
    draws each text.

    The replicates lie sqrt(T / (T - 1)) as far from the value as the mean of the drawn texts does: a bootstrap of T
    values has (T - 1) / T of the variance (Rao and Wu, as in `draws`), and texts are often few.
    """
    share = np.bincount(own, ranks <= k) / np.bincount(own)  # (T,)
    rows, texts = with_point(weights), len(share)
    means = rows @ share / rows.sum(axis=1)
    means = means[0] + (means - means[0]) * np.sqrt(texts / max(texts - 1, 1))
    return Distribution.from_rows(means, texts, bounds=SHARE, support=texts, skewed=False)


def chance_recall(correct: NDArray, candidates: int, k: int) -> float:
    """Expected recall at k of a random order: mean over queries with `correct` right answers among the candidates."""
    return float(1 - _missed(correct, candidates, k).mean())


def chance_median_rank(correct: NDArray, candidates: int) -> float:
    """The first rank within which a random order has answered half of the queries."""
    low, high = 1, candidates
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance_recall(correct, candidates, middle) >= 0.5 else (middle + 1, high)
    return float(low)


def _figures(ranks: NDArray, weights: NDArray, correct: NDArray, candidates: int, direction: str) -> dict[str, dict]:
    figures = {}
    for k in RECALL_AT:
        estimate = recall(ranks, k, weights, direction).estimate()
        figures[f"recall_at_{k}"] = estimate.to_json() | {"chance": chance_recall(correct, candidates, k)}
    rows = with_point(weights)
    median = Distribution.from_rows(weighted_median(ranks, rows), len(ranks)).estimate()
    chance = chance_median_rank(correct, candidates)
    return figures | {"median_rank": median.to_json() | {"chance": chance, "candidates": candidates}}


def _missed(correct: NDArray, candidates: int, k: int) -> NDArray[np.float64]:
    """Chance that none of the first k of a random order is right: C(N - c, k) / C(N, k), by logarithms."""
    wrong = np.asarray(candidates - correct, dtype=np.float64)
    possible = wrong >= k
    wrong = np.where(possible, wrong, k)  # any value that keeps the logarithms finite
    log = gammaln(wrong + 1) - gammaln(wrong - k + 1) - gammaln(candidates + 1) + gammaln(max(candidates - k, 0) + 1)
    return np.where(possible, np.exp(log), 0.0)


def _cosines(rows: NDArray, columns: NDArray) -> NDArray[np.float64]:
    return rows.astype(np.float64) @ columns.astype(np.float64).T


def _slices(rows: int, columns: int) -> list[NDArray[np.int64]]:
    """Row indices in runs whose similarities fit the memory bound."""
    step = max(1, _CHUNK // max(columns, 1))
    return [np.arange(start, min(start + step, rows)) for start in range(0, rows, step)]


def distinct(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts in order of appearance, and the index of each row's text among them."""
    index: dict[str, int] = {}
    own = np.array([index.setdefault(text, len(index)) for text in texts], dtype=np.int64)
    return list(index), own
