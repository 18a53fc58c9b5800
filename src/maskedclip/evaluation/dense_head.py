"""The linear map of the dense probe: a patch token (D) -> the probabilities of the P x P pixels under the patch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from maskedclip.evaluation.logistic import Fit, logistic_path

MOST_PATCHES = 12_000
"""Patches that are learnt from, drawn evenly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pixels:
    """One image's truth, and the pixels that count, both bool (S, S)."""

    truth: NDArray[np.bool_]
    counted: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseHead:
    """A fitted map.  mean, deviation (D,) of the tokens that were learnt from; c; threshold of Dice."""

    fit: Fit
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    c: float
    patch: int
    threshold: float = 0.5

    def at(self, threshold: float) -> "DenseHead":
        """The same map with another threshold."""
        return replace(self, threshold=threshold)

    def probabilities(self, tokens: NDArray) -> NDArray[np.float64]:
        """Of one image's patch tokens (L, D), row by row of a square grid: (S, S)."""
        side = round(len(tokens) ** 0.5)
        x = (tokens - self.mean) / self.deviation
        shares = self.fit.probabilities(x[None])[0]
        return rearrange(shares, "(h w) (p q) -> (h p) (w q)", h=side, p=self.patch)


def fit_heads(
    tokens: NDArray, pixels: Sequence[Pixels], patch: int, grid: Sequence[float], *, seed: int = 0
) -> list[DenseHead]:
    """A map for each C of the ascending grid.

    tokens (B, L, D); pixels of each image.  Patches of which no pixel counts are left out; of the others
    `MOST_PATCHES` are drawn, a pure function of the seed.
    """
    truth, counted = (
        np.concatenate([_patches(getattr(part, name), patch) for part in pixels]) for name in ("truth", "counted")
    )
    usable = np.flatnonzero(counted.any(axis=1))
    if len(usable) > MOST_PATCHES:
        usable = np.sort(np.random.Generator(np.random.Philox(seed)).permutation(usable)[:MOST_PATCHES])
    x = tokens.reshape(-1, tokens.shape[-1])[usable].astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation = np.where(deviation <= 1e-7 * np.abs(mean), np.inf, deviation)  # constant columns become 0
    fits = logistic_path(((x - mean) / deviation)[None], truth[usable][None], list(grid), counted=counted[usable][None])
    return [
        DenseHead(fit=fit, mean=mean, deviation=deviation, c=c, patch=patch) for fit, c in zip(fits, grid, strict=True)
    ]


def _patches(mask: NDArray[np.bool_], patch: int) -> NDArray[np.bool_]:
    """(S, S) -> (L, P P), row by row."""
    return rearrange(mask, "(h p) (w q) -> (h w) (p q)", p=patch, q=patch)
