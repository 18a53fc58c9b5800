"""A classifier of images that learns from texts and needs none afterwards (CLIP-IT, arXiv 2504.16181).

B images, D encoder width, E width of the text embeddings, C label columns, G labels (a finding, or one of classes).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.ranks import gather_rows

SLOPE = 0.1
"""[paper]  Of the text branch's LeakyReLU."""


class PrivilegedHead(nn.Module):
    """Logits from an image's feature v and from the text embedding that is predicted from it.

    z_v = vision(v);  t_hat = to_text(v), the paper's h_d;  out = joint([z_v ; text_branch(t_hat)]), fc and fc0.
    """

    def __init__(self, width: int, embed_dim: int, columns: int) -> None:
        super().__init__()
        self.vision = nn.Linear(width, columns)
        self.to_text = nn.Linear(width, embed_dim)
        self.text_branch = nn.Sequential(
            nn.Linear(embed_dim, embed_dim), nn.LeakyReLU(SLOPE), nn.Linear(embed_dim, columns)
        )
        self.joint = nn.Linear(2 * columns, columns)

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "PrivilegedHead":
        """The head of its saved tensors.

        Raises:
            KeyError, RuntimeError: they are no such head's.
        """
        columns, width = tensors["vision.weight"].shape
        head = cls(width, len(tensors["to_text.weight"]), columns)
        head.load_state_dict(dict(tensors))
        return head

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and predicted text embeddings (B, E), of any length, of features (B, D); no text is read."""
        text = self.to_text(pooled)
        return self.joint(torch.cat([self.vision(pooled), self.text_branch(text)], dim=-1)), text

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The same logits as W v + b + V leaky(U v + u): W (C, D), b (C,), U (E, D), u (E,), V (C, E), in float64."""
        first, last = self.text_branch[0], self.text_branch[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        columns = self.vision.out_features
        joint, shift = self.joint.weight.double(), self.joint.bias.double()
        of_vision, of_text = joint[:, :columns], joint[:, columns:]
        weight = of_vision @ self.vision.weight.double()
        bias = of_vision @ self.vision.bias.double() + of_text @ last.bias.double() + shift
        inner = first.weight.double() @ self.to_text.weight.double()
        offset = first.weight.double() @ self.to_text.bias.double() + first.bias.double()
        return weight, bias, inner, offset, of_text @ last.weight.double()


def label_loss(logits: Tensor, labels: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
    """Mean loss over the labels that are known, float32 (); 0 where none is.

    Binary cross-entropy of a finding, cross-entropy over the classes of a label that has several, of logits: the
    cross-entropy of a softmax's output, as the official code takes it, never gets below 0.31 for two classes.

    Args:
        logits: (B, C).
        labels: 1, 0 or NaN, (B, C).
        groups: columns [start, stop) of each label.
    """
    values, known = [], []
    for start, stop in groups:
        own, truth = logits[:, start:stop].float(), labels[:, start:stop].float()
        told = ~truth.isnan().any(dim=1)
        truth = truth.nan_to_num(0.0)
        if stop - start == 1:
            loss = functional.binary_cross_entropy_with_logits(own[:, 0], truth[:, 0], reduction="none")
        else:
            told = told & (truth.sum(dim=1) == 1)
            loss = -(truth * functional.log_softmax(own, dim=1)).sum(dim=1)
        values.append(loss)
        known.append(told)
    return known_mean(torch.stack(values, dim=1), torch.stack(known, dim=1))


def known_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of the known values over all ranks, () where it is averaged over ranks, as gradients are; 0 without any."""
    count = gather_rows(known.sum().float()[None]).mean()
    return torch.where(known, values, 0.0).sum() / count.clamp(min=1e-6)
