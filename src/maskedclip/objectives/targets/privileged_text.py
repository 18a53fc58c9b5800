"""Privileged text: the text that only training sees is predicted from the image, and both decide on the labels.

CLIP-IT (arXiv 2504.16181).  [paper]  CE(out, y) + lambda (1 - cos(t, t_hat)) with lambda 1; see `objectives.privileged`
for the layers.  [inferred]  One stage: the text branch learns from the real embeddings beside the joint loss, where the
paper trains it before; texts and images share a space that goes on learning.

B images, B_p of them paired, R retrieved texts, D encoder width, E width of the shared space, C label columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.data.label_columns import ALL, label_groups
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.privileged import PrivilegedHead, known_mean, label_loss
from maskedclip.parts import TermOptions
from maskedclip.recipe_sections import require


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.privileged_text`."""

    cosine_weight: float = 1.0
    """Weight lambda of the predicted text embedding's distance [paper]."""
    text_branch_weight: float = 1.0
    """Weight of the text branch's own label loss, on real and retrieved texts [inferred]."""
    literal: bool = False
    """Let the loss move the text encoder too, as the official code does."""
    reads_text: ClassVar[bool] = True

    @property
    def reads_pairs(self) -> bool:
        """Always."""
        return True

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        for name in ("cosine_weight", "text_branch_weight"):
            value = getattr(self, name)
            require(value >= 0, f"objective.terms.privileged_text.{name}: {value} is negative; give 0 or more")


class PrivilegedText(nn.Module):
    """The term; its `head` is what classifies afterwards."""

    spans_batch = False
    whole_batch = True

    def __init__(self, head: PrivilegedHead, groups: Sequence[tuple[int, int]], options: Options) -> None:
        super().__init__()
        self.head, self.groups, self.options = head, list(groups), options

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The weighted sum of the label loss, the text's distance and the text branch's loss."""
        labels = views.batch.labels
        assert labels is not None
        logits, predicted = self.head(self.features(views))
        embedding, has_text = text_targets(views, moves=self.options.literal)
        on_text = self.head.text_branch(embedding)
        with torch.autocast(logits.device.type, enabled=False):
            cosine = functional.cosine_similarity(predicted.float(), embedding.float(), dim=-1)
            closeness = known_mean(cosine, has_text)
            distance = known_mean(1 - cosine, has_text)
            label = label_loss(logits, labels, self.groups)
            text_label = label_loss(on_text, labels.masked_fill(~has_text[:, None], float("nan")), self.groups)
            total = label + self.options.cosine_weight * distance + self.options.text_branch_weight * text_label
        report = {"privileged_label": label, "privileged_cosine": closeness, "privileged_text_label": text_label}
        return {"privileged_text": total}, report

    @staticmethod
    def features(views: Views) -> Tensor:
        """Mean of the patch tokens of f of all images, with gradient, (B, D)."""
        model, paired = views.model, views.batch.num_paired
        pooled = [model.pool(views.encoded_paired)] if paired else []
        if len(views.image) > paired:
            pooled.append(model.pool(model.encoder(views.image[paired:])))
        return torch.cat(pooled)


def text_targets(views: Views, *, moves: bool) -> tuple[Tensor, Tensor]:
    """Embedding of each image's own or retrieved text, zero where it has none, (B, E), and whether it has one, (B,).

    Args:
        views: of the step.
        moves: whether gradients reach the text encoder.
    """
    batch = views.batch
    own = views.text_embedding  # asked for with gradient, as other terms share it
    own = own if moves else own.detach()
    with torch.set_grad_enabled(moves and torch.is_grad_enabled()):
        others = own.new_zeros(len(batch.image) - batch.num_paired, own.shape[1])
        known = torch.zeros(len(others), dtype=torch.bool, device=own.device)
        if batch.retrieved_index is not None and len(others):
            index = batch.retrieved_index[batch.num_paired :]
            known = index >= 0
            found = views.retrieved_embedding  # (R, E)
            others = torch.where(known[:, None], found[index.clamp(min=0)], others)
    has_text = torch.cat([torch.ones(batch.num_paired, dtype=torch.bool, device=own.device), known])
    return torch.cat([own, others]), has_text


def build(options: Options, context: Any) -> PrivilegedText:
    """The term for the labels of `data.labels`.

    Raises:
        UserError: there are no labels, or nothing trains the space of the texts.
    """
    recipe = context.recipe
    columns = recipe.data.labels
    require(bool(columns), "data.labels: objective.terms.privileged_text learns labels; name some, or `all`")
    require(ALL not in columns, "data.labels: all: is read from the store by `pretrain`; name the labels here")
    require(
        recipe.objective.shares_space,
        "objective.terms.privileged_text: nothing trains the space of the texts that it predicts; raise "
        "objective.clip_weight",
    )
    head = PrivilegedHead(context.model.encoder.width, recipe.model.embed_dim, len(columns))
    return PrivilegedText(head, label_groups(columns), options)
