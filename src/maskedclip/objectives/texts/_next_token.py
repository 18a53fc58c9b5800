"""Next-token prediction: a head over the vocabulary, and cross-entropy summed in blocks.

N texts, P places that predict, W width of the text tower, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.text import TextEncoder

_BLOCK_ELEMENTS = 2**24
"""Logits held at a time: 64 MB in float32."""


class LanguageHead(nn.Module):
    """LayerNorm and a matrix without bias (arXiv 2406.07543): states (..., W) -> logits (..., V)."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.words = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.words.weight, std=width**-0.5)

    def forward(self, states: Tensor) -> Tensor:
        """Logits over the vocabulary."""
        return self.words(self.norm(states))

    def surprise(self, states: Tensor, following: Tensor, weight: Tensor) -> Tensor:
        """The weighted sum of -log P(following token).

        Args:
            states: (N, P, W).
            following: the token after each place, int64 (N, P).
            weight: of each place, 0 where the token is no label, (N, P).

        Returns: nats, float32 ().
        """
        rows = max(1, _BLOCK_ELEMENTS // (self.words.out_features * max(1, states.shape[1])))
        total = states.new_zeros((), dtype=torch.float32)
        for start in range(0, len(states), rows):
            part = slice(start, start + rows)
            given = (states[part], following[part], weight[part])
            whole = len(states) <= rows  # one block: its logits are kept, nothing is computed twice
            total = total + (self._block(*given) if whole else checkpoint(self._block, *given, use_reentrant=False))
        return total

    def _block(self, states: Tensor, following: Tensor, weight: Tensor) -> Tensor:
        logits = self(states)
        with torch.autocast(states.device.type, enabled=False):
            each = functional.cross_entropy(logits.float().flatten(0, 1), following.flatten(), reduction="none")
            return (each * weight.flatten()).sum()


def causal_tower(model: MaskedCLIP, name: str) -> TextEncoder:
    """The model's text tower, which must read from left to right.

    Raises:
        UserError: it reads both ways, so the next token is no secret.
    """
    tower = model.text_encoder
    assert tower is not None
    if not tower.causal:
        raise UserError(
            f"objective.terms.{name}: the text tower reads both ways, so it sees the token that it shall predict; "
            "set model.text_causal true"
        )
    return tower
