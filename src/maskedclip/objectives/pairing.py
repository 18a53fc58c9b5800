"""Texts for images that have none: the nearest ones in the shared space (CLIP-IT, arXiv 2504.16181).

Ni images, Nt texts, d the width of the space, K texts kept for an image.  The products are exact, in blocks that bound
the memory, in float64 and rounded to float32; of texts that score the same the first one counts.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import skew

NONE = -1
"""Index where an image has no text."""
HUB_SHARE = 0.5
"""[ours]  Share of the images from which on one text is called a hub."""
COLLAPSED_SHARE = 0.9
"""[ours]  Share of the images from which on one text means that the encoder tells no images apart."""
_BLOCK = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """The texts of each image, best first.

    index: int64 (Ni, K), -1 where there is none.  score: cosines, float32 (Ni, K), those of dropped texts too.
    """

    index: NDArray[np.int64]
    score: NDArray[np.float32]

    @property
    def found(self) -> int:
        """Images that have at least one text."""
        return int((self.index != NONE).any(axis=1).sum())


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """How texts are found.

    top: texts an image.  threshold: least cosine of a pair; None keeps all.  mutual: keep a pair only where the image
    is among the `top` nearest of its text, too.

    [paper]  Top 1, no threshold, no one-to-one constraint.  [ours]  The three options.
    """

    top: int = 1
    threshold: float | None = None
    mutual: bool = False

    def __post_init__(self) -> None:
        """Reject what finds nothing."""
        if self.top < 1:
            raise ValueError(f"top: {self.top}; give 1 or more")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold: {self.threshold:g} is no cosine; give a value in [-1, 1]")

    def fit(
        self, image_embeddings: ArrayLike, text_embeddings: ArrayLike
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best text of each image.

        Args:
            image_embeddings: of any length but 0, (Ni, d).
            text_embeddings: of any length but 0, (Nt, d).

        Returns: index (Ni,), -1 where the options leave none; score (Ni,), its cosine, in [-1, 1]: the largest of all
            texts unless the options dropped that text and left another, and where they left none.

        Raises:
            ValueError: shapes that do not fit, no text, a vector that is zero or not finite.
        """
        found = self.neighbours(image_embeddings, text_embeddings)
        return found.index[:, 0], found.score[:, 0]

    def neighbours(self, image_embeddings: ArrayLike, text_embeddings: ArrayLike, block: int = _BLOCK) -> Neighbours:
        """The `top` best texts of each image, K = min(top, Nt); arguments and errors as of `fit`.

        Args:
            image_embeddings: (Ni, d).
            text_embeddings: (Nt, d).
            block: rows and columns of a product; changes the memory, not the result.
        """
        images, texts = _unit(image_embeddings, "image_embeddings"), _unit(text_embeddings, "text_embeddings")
        if images.shape[1] != texts.shape[1]:
            raise ValueError(f"image_embeddings {images.shape}, text_embeddings {texts.shape}: widths differ")
        if not len(texts):
            raise ValueError("text_embeddings: there is no text")
        index, score = _nearest(images, texts, self.top, block)
        kept = np.ones(index.shape, bool)
        if self.threshold is not None:
            kept &= score >= np.float32(self.threshold)
        if self.mutual and len(images):
            of_texts, _ = _nearest(texts, images, self.top, block)  # (Nt, K')
            kept &= (of_texts[index] == np.arange(len(images))[:, None, None]).any(axis=2)
        # Kept texts stand first, in their order.
        order = np.argsort(~kept, axis=1, kind="stable")
        index = np.take_along_axis(np.where(kept, index, NONE), order, axis=1)
        return Neighbours(index=index, score=np.take_along_axis(score, order, axis=1))


def _unit(vectors: ArrayLike, name: str) -> NDArray[np.float64]:
    found = np.asarray(vectors, np.float64)
    if found.ndim != 2:
        raise ValueError(f"{name}: give (N, d), not {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{name}: holds values that are not finite")
    length = np.linalg.norm(found, axis=1, keepdims=True)
    if (length == 0).any():
        raise ValueError(f"{name}: row {int(np.flatnonzero(length[:, 0] == 0)[0])} is zero and has no direction")
    return found / length


def _nearest(
    queries: NDArray[np.float64], items: NDArray[np.float64], top: int, block: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `top` items of largest product for each query, best first, the first of equals: (Nq, K) and (Nq, K)."""
    count = min(top, len(items))
    index = np.empty((len(queries), count), np.int64)
    score = np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        best = np.empty((len(queries[rows]), 0), np.float32)
        place = np.empty(best.shape, np.int64)
        for first in range(0, len(items), block):
            product = np.clip((queries[rows] @ items[first : first + block].T).astype(np.float32), -1, 1)
            best = np.concatenate([best, product], axis=1)
            numbers = np.arange(first, first + product.shape[1])
            place = np.concatenate([place, np.broadcast_to(numbers, product.shape)], axis=1)
            order = _largest(best, count)  # earlier items stand first, so of equals they stay
            best, place = np.take_along_axis(best, order, axis=1), np.take_along_axis(place, order, axis=1)
        index[rows], score[rows] = place, best
    return index, score


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the largest `count` values of each row, in falling order, the first of equals."""
    if count == 1:
        return values.argmax(axis=1)[:, None]
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


@dataclass(frozen=True, kw_only=True)
class Hubness:
    """Whether a few texts attract the images.

    images, texts: numbers of those that were paired.  used: distinct texts that images got.  used_share: used /
    min(images, texts), in (0, 1].  top_share: share of the images that got the most frequent text, which is `top`.
    skewness: of the number of images a text got (Radovanovic et al., JMLR 2010); above about 1 there are hubs, NaN
    where all texts got the same number.
    """

    images: int
    texts: int
    used: int
    used_share: float
    top_share: float
    top: int
    skewness: float

    @property
    def has_hub(self) -> bool:
        """Whether one text was given to half of the images or more, of which there were texts to choose from."""
        return self.images > 1 and self.texts > 1 and self.top_share >= HUB_SHARE

    @property
    def is_collapsed(self) -> bool:
        """Whether next to all images got one text, as by an encoder that gives all images one vector."""
        return self.images > 1 and self.texts > 1 and self.top_share >= COLLAPSED_SHARE

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = asdict(self) | {"has_hub": self.has_hub, "is_collapsed": self.is_collapsed}
        return found | {"skewness": None if np.isnan(self.skewness) else self.skewness}


def hubness(index: ArrayLike, texts: int) -> Hubness:
    """How evenly texts were given to images.

    Args:
        index: text of each image, -1 for none, (Ni,).
        texts: how many there are to choose from.

    Raises:
        ValueError: no image has a text.
    """
    given = np.asarray(index, np.int64)
    given = given[given != NONE]
    if not len(given):
        raise ValueError("index: no image has a text")
    counts = np.bincount(given, minlength=texts)
    used = int((counts > 0).sum())
    return Hubness(
        images=len(given),
        texts=texts,
        used=used,
        used_share=used / min(len(given), texts),
        top_share=float(counts.max() / len(given)),
        top=int(counts.argmax()),
        skewness=float(skew(counts)) if counts.std() > 0 else float("nan"),
    )
