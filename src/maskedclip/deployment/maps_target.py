"""What a map explains: a score that is linear in one of the model's outputs, such as the likeness to a text.

D encoder width, E shared width, T texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from maskedclip.data.prompts import NORMAL, prompts_for
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError

Output = Literal["encoder", "bridge", "projected"]
Texts = Sequence[str | Sequence[str]]
"""Each entry a sentence, or an ensemble of sentences that stand for one thing."""
NORM_EPSILON = 1e-6
"""Of the LayerNorm before a head."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """The score `feature . direction` of a photograph; what is constant in a score does not matter to a map.

    Attributes:
        output: which feature, see `Model.encode_image`.
        direction: (E,) for `projected`, else (D,).  Of a linear head on standardised features, its coefficients
            divided by the standard deviations.
        unit: the feature is brought to unit length first; `projected` is so already.
        norm: weight and bias (D,) of a LayerNorm that comes first.
    """

    output: Output
    direction: NDArray[np.float32]
    unit: bool = False
    norm: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def score(self, feature: Tensor) -> Tensor:
        """Of features (B, D) or (B, E): float32 (B,), differentiable."""
        feature = feature.float()
        if self.unit:
            feature = functional.normalize(feature, dim=-1)
        if self.norm is not None:
            weight, bias = (torch.from_numpy(part).to(feature) for part in self.norm)
            feature = functional.layer_norm(feature, feature.shape[-1:], weight, bias, NORM_EPSILON)
        return feature @ self._direction(feature)

    def linear(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """At given features: the direction (D,) and the divisor (B,) with score = feature . direction / divisor.

        Exact but for a constant, the bias of `norm`.  pooled: (B, D), the output before it is brought to unit length.
        """
        direction = self._direction(pooled)
        if self.norm is not None:
            if self.unit:  # a LayerNorm does not see the length of what it reads, but for its epsilon
                pooled = functional.normalize(pooled, dim=-1)
            direction = direction * torch.from_numpy(self.norm[0]).to(pooled)
            deviation = (pooled.var(dim=-1, correction=0) + NORM_EPSILON).sqrt()
            return direction - direction.mean(), deviation
        if self.unit or self.output == "projected":
            return direction, pooled.norm(dim=-1).clamp_min(1e-12)
        return direction, torch.ones_like(pooled[:, 0])

    def _direction(self, like: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(self.direction, dtype=np.float32)).to(like.device)


def text_directions(model: Model, texts: Texts, against: str | Sequence[str] = ()) -> NDArray[np.float32]:
    """Where texts point in the shared space, (T, E).

    Args:
        model: trained with texts.
        texts: sentences or ensembles; an ensemble points to the mean of its unit embeddings, brought to unit length.
        against: sentences that stand for the opposite, such as a normal fundus; their direction is subtracted, so that
            the dot product with an embedding is a difference of two cosines, and what all texts share cancels.

    Raises:
        UserError: the model was trained without texts, or a text is empty.
    """
    if not len(texts):
        raise UserError("texts: give at least one")
    ensembles = [[entry] if isinstance(entry, str) else list(entry) for entry in texts]
    opposite = [against] if isinstance(against, str) else list(against)
    sentences = list(dict.fromkeys(sentence for group in (*ensembles, opposite) for sentence in group))
    if any(not sentence.strip() for sentence in sentences) or not all(ensembles):
        raise UserError("texts: one of them is empty; give words, e.g. haemorrhage")
    embedded = dict(zip(sentences, model.encode_text(sentences), strict=True))
    directions = np.stack([_mean_direction([embedded[sentence] for sentence in group]) for group in ensembles])
    if opposite:
        directions = directions - _mean_direction([embedded[sentence] for sentence in opposite])
    return directions.astype(np.float32)


def label_prompts(
    labels: Sequence[str], prompts: Mapping[str, Sequence[str]] | None = None
) -> tuple[list[list[str]], list[str]]:
    """The sentences of each label, and those of a normal fundus: the shipped ensembles, or the user's `prompts`."""
    return [prompts_for(label, prompts) for label in labels], prompts_for(NORMAL, prompts)


def text_target(model: Model, text: str | Sequence[str], against: str | Sequence[str] = ()) -> Target:
    """The likeness of a photograph to a sentence or an ensemble, less that to `against`; see `text_directions`."""
    return Target(output="projected", direction=text_directions(model, [text], against)[0])


def _mean_direction(rows: Sequence[NDArray]) -> NDArray[np.float64]:
    mean = np.mean(np.asarray(rows, dtype=np.float64), axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)
