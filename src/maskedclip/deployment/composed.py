"""Composed retrieval: one query of a photograph and words that say what shall be different.

CLIP4Cir (arXiv 2308.11485).  Both heads read un-normalised features of the space that images and texts share, d wide;
what they give has unit length and is compared with unit targets by cosine.  B queries.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kind = Literal["sum", "combiner"]

SCALE = 100.0
"""Of the cosines in the loss [paper]."""
PROJECTION, HIDDEN, DROPOUT = 4, 8, 0.5
"""The Combiner's widths as multiples of d, and the share of its activations that training drops [paper]."""


class RetrievalHead(nn.Module, ABC):
    """From a photograph and words to where the photograph that is meant lies."""

    kind: ClassVar[Kind]

    @abstractmethod
    def compose(self, image: Tensor, text: Tensor) -> Tensor:
        """Un-normalised features of photographs (B, d) and of texts (B, d): float32 (B, d) of unit length."""

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """As `compose`."""
        return self.compose(image, text)


class SumHead(RetrievalHead):
    """The sum of both features, brought to unit length; nothing is trained."""

    kind = "sum"

    def compose(self, image: Tensor, text: Tensor) -> Tensor:
        """See `RetrievalHead.compose`."""
        return functional.normalize(image.float() + text.float(), dim=-1)


class Combiner(RetrievalHead):
    """A mixture of both features with a share of its own for each query, and what a small network adds to it.

    Args:
        width: d.
        projection: width of each modality's projection; None: 4 d.
        hidden: width of the layers behind both; None: 8 d.
        dropout: share of the activations that is dropped in training.
    """

    kind = "combiner"

    def __init__(
        self, width: int, *, projection: int | None = None, hidden: int | None = None, dropout: float = DROPOUT
    ) -> None:
        super().__init__()
        self.width = width
        self.projection, self.hidden = projection or PROJECTION * width, hidden or HIDDEN * width
        self.dropout = dropout
        self.text_projection = nn.Linear(width, self.projection)
        self.image_projection = nn.Linear(width, self.projection)
        self.joint = nn.Linear(2 * self.projection, self.hidden)
        self.output = nn.Linear(self.hidden, width)
        self.share_hidden = nn.Linear(2 * self.projection, self.hidden)
        self.share_output = nn.Linear(self.hidden, 1)

    def parts(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """What the network adds, v (B, d), and the share of the text in the mixture, s (B, 1) between 0 and 1."""
        words, picture = self._dropped(self.text_projection(text)), self._dropped(self.image_projection(image))
        both = torch.cat([words, picture], dim=-1)
        share = self.share_output(self._dropped(self.share_hidden(both))).sigmoid()
        return self.output(self._dropped(self.joint(both))), share

    def compose(self, image: Tensor, text: Tensor) -> Tensor:
        """See `RetrievalHead.compose`."""
        image, text = image.float(), text.float()
        added, share = self.parts(image, text)
        return functional.normalize(added + share * text + (1 - share) * image, dim=-1)

    def _dropped(self, values: Tensor) -> Tensor:
        return functional.dropout(values.relu(), self.dropout, self.training)


def contrastive_loss(queries: Tensor, targets: Tensor, right: Tensor | None = None, scale: float = SCALE) -> Tensor:
    """Cross-entropy of each query's own target among all targets of the batch, from queries to targets only.

    Args:
        queries: unit length (B, d).
        targets: of any length above zero (B, d); the one of row i belongs to query i.
        right: bool (B, B), which targets answer which query as well as its own; they count neither as its answer nor
            as wrong [ours: the original takes all others for wrong].
        scale: of the cosines.

    Returns: float32, ().
    """
    logits = scale * queries.float() @ functional.normalize(targets.float(), dim=-1).T
    own = torch.arange(len(queries), device=queries.device)
    if right is not None:
        also = right & (own[:, None] != own)
        logits = logits.masked_fill(also, -torch.inf)
    return functional.cross_entropy(logits, own)
