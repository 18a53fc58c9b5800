"""Proposals: parts of a photograph that may be something, found without any class, from the model's own patch tokens.

zsseg (arXiv 2112.14757) takes them from a MaskFormer that was trained on masks of the seen classes; without masks,
patch tokens are clustered.  A proposal is a mask of logits, so that overlapping and uncertain ones can be used in the
same way.  h x w patches, D width of the tokens, Q proposals.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from maskedclip.errors import UserError

Proposer = Literal["kmeans", "slic"]
PROPOSERS: tuple[str, ...] = get_args(Proposer)
COUNT = 12
"""Of proposals: 8 to 16 do for one photograph [inferred]."""
CERTAIN = 6.0
"""Logit inside a hard mask, and its negative outside: a sigmoid of 0.998 [ours]."""
_COMPACTNESS = 1.0
_STARTS = 4


def propose(
    tokens: NDArray[np.float32],
    count: int = COUNT,
    *,
    proposer: Proposer = "kmeans",
    inside: NDArray[np.bool_] | None = None,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Mask logits of the proposals, float32 (Q, h, w); Q is less than asked for where there are fewer places.

    Args:
        tokens: of the encoder (h, w, D).
        count: how many are wanted.
        proposer: `kmeans`: tokens that are alike, wherever they lie; `slic`: tokens that are alike and near each
            other, k-means on tokens joined with places, as SLIC (Achanta et al. 2012).
        inside: bool (h, w), where proposals may lie; None: everywhere.
        seed: of the k-means' starts.

    Raises:
        UserError: an unknown proposer, or a count below 1.
    """
    if proposer not in PROPOSERS:
        raise UserError(f"--proposer: {proposer!r} is none of {', '.join(PROPOSERS)}")
    check_count(count)
    rows, columns = tokens.shape[:2]
    where = np.ones((rows, columns), bool) if inside is None else inside
    chosen = tokens[where].astype(np.float64)
    if not len(chosen):
        return np.zeros((0, rows, columns), np.float32)
    chosen = chosen - chosen.mean(axis=0)
    chosen /= np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-12)
    places = np.argwhere(where)
    numbers = np.full((rows, columns), -1)
    numbers[where] = _clusters(chosen, places, min(count, len(chosen)), proposer, seed)
    found = [numbers == number for number in range(numbers.max() + 1)]
    return mask_logits(np.stack([mask for mask in found if mask.any()]))


def check_count(count: int) -> None:
    """Raises UserError where so many proposals cannot be had."""
    if count < 1:
        raise UserError(f"--proposals: {count} is below 1; e.g. {COUNT}")


def mask_logits(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Logits of hard masks, (Q, h, w)."""
    return np.where(masks, np.float32(CERTAIN), np.float32(-CERTAIN))


def _clusters(
    values: NDArray[np.float64], places: NDArray[np.int64], count: int, proposer: Proposer, seed: int
) -> NDArray[np.int64]:
    """The cluster of each place, (n,)."""
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(values, axis=0))) if proposer == "kmeans" else count
    if count == 1:
        return np.zeros(len(values), np.int64)
    if proposer == "slic":
        step = (len(values) / count) ** 0.5  # of an even grid, in patches
        values = np.concatenate([values, _COMPACTNESS * places / step], axis=1)
    found = KMeans(count, n_init=_STARTS, random_state=seed)  # type: ignore[arg-type]  # its hint is the default's type
    return found.fit_predict(values).astype(np.int64)
