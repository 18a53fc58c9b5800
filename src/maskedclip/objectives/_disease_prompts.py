"""Prompts of disease kinds, which play the text of images without one, as MMCLIP does (arXiv 2407.19546).

An image with labels takes the prompts of the diseases that it has; one without takes all, weighted by how near its own
features are to each.  What the weights are, and all constants, are ours [inferred].

B_u images without texts, K kinds, T tokens of a prompt, L patches, D and W widths of images and texts, E shared.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maskedclip.data.prompts import is_normal, prompts_for, prompts_for_class
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.standardise import running_statistics
from maskedclip.objectives.base import Batch

_PROMPT = "a {modality} image of {disease}"
_HEALTHY = "no disease"
_LEAST = -1e4  # added to an attention score that shall be nothing; finite in float16


def sentences(prompts: Mapping[str, str], labels: Sequence[str], modality: str, field: str) -> dict[str, str]:
    """A sentence for each kind of disease.

    Args:
        prompts: the user's own, by kind; where there are any, they are all.
        labels: the recipe's, `NAME` or `NAME=CLASS`; else each becomes "a {modality} image of {disease}".
        modality: for these.
        field: of the term, for the error.

    Raises:
        UserError: there are neither.
    """
    if prompts:
        return dict(prompts)
    if not labels:
        raise UserError(
            f"{field}.prompts: empty, and data.labels names no labels; give a sentence for each kind of disease in "
            "your images, or set unpaired none to leave out images without texts"
        )
    return {label: _PROMPT.format(modality=modality, disease=_disease(label)) for label in labels}


def _disease(label: str) -> str:
    """A label as words, by the first name that the project's prompts have for it."""
    name, mark, value = label.partition("=")
    if is_normal(value or name):
        return _HEALTHY
    return (prompts_for_class(name, int(value) if value.isdigit() else value) if mark else prompts_for(name))[0]


class DiseasePrompts(nn.Module):
    """Prompts of K kinds, tokenised, and how they are weighted for each image without text.

    It has no weights of its own: prompts go through the model's text encoder.
    """

    def __init__(
        self, prompts: Mapping[str, str], labels: Sequence[str], model: MaskedCLIP, temperature: float
    ) -> None:
        """Tokenise.

        Args:
            prompts: as `sentences` gives them.
            labels: of the batch's columns.
            model: with texts.
            temperature: of the softmax over kinds, for images whose labels say nothing.
        """
        super().__init__()
        assert model.tokenizer is not None
        self.prompts, self.temperature = dict(prompts), temperature
        ids, mask = model.tokenizer(list(prompts.values()))
        longest = int(mask.sum(dim=1).max())
        self.ids = nn.Buffer(ids[:, :longest], persistent=False)
        self.mask = nn.Buffer(mask[:, :longest], persistent=False)
        self.columns = nn.Buffer(torch.tensor([_column(kind, labels) for kind in prompts]), persistent=False)

    def hidden(self, model: MaskedCLIP) -> Tensor:
        """Last hidden states of the prompts, with gradient, (K, T, W)."""
        assert model.text_encoder is not None
        return model.text_encoder.hidden(self.ids, self.mask)

    def embed(self, model: MaskedCLIP, hidden: Tensor) -> Tensor:
        """Prompts in the shared space, by the statistics of the run so far, (K, T, W) -> unit length (K, E)."""
        assert model.text_encoder is not None
        with running_statistics(model):
            return model.text_encoder.project(model.text_encoder.pool_hidden(hidden, self.mask))

    def truth(self, batch: Batch) -> Tensor:
        """What the labels say of each kind, 1, 0, or NaN where nothing is known, (B_u, K)."""
        rows = len(batch.image) - batch.num_paired
        unknown = torch.full((rows, len(self.columns)), torch.nan, device=batch.image.device)
        if batch.labels is None:
            return unknown
        labels = batch.labels[batch.num_paired :]
        known = labels[:, self.columns.clamp(min=0)]
        known = torch.where(known.isnan(), known, (known > 0).float())
        return torch.where(self.columns >= 0, known, unknown)

    @torch.no_grad()
    def weights(self, model: MaskedCLIP, patches: Tensor, hidden: Tensor, batch: Batch) -> Tensor:
        """How much each kind's prompt counts for each image, detached; rows sum to 1.

        Kinds that an image is known to have share evenly.  Where none is known, the kinds that it isn't known to be
        without are weighted by softmax(cos / temperature); where it is without all of them, all are.

        Args:
            model: whose projections lead to the shared space.
            patches: of the images without texts in the CLIP space, (B_u, L, D).
            hidden: of the prompts, (K, T, W).
            batch: its labels.

        Returns: float32 (B_u, K).
        """
        truth = self.truth(batch)
        with torch.autocast(patches.device.type, enabled=False), running_statistics(model):
            attend = model.attention
            image = model.project_pooled(patches.float().mean(dim=1) if attend is None else attend(patches.float()))
            likeness = image @ self.embed(model, hidden.detach().float()).T / self.temperature
        has, may = truth == 1, truth != 0
        may = may | ~may.any(dim=1, keepdim=True)
        guessed = likeness.masked_fill(~may, -torch.inf).softmax(dim=1)
        even = has.float() / has.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.where(has.any(dim=1, keepdim=True), even, guessed)

    def as_text(self, hidden: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """All prompts as one text, in which each prompt's tokens share its weight of the attention.

        Args:
            hidden: (K, T, W).
            weights: (B_u, K).

        Returns: tokens (B_u, K T, W), and what is added to the attention scores of each, float32 (B_u, K T).
        """
        share = weights / self.mask.sum(dim=1)  # a long prompt counts no more than a short one
        bias = share.clamp(min=1e-9).log().masked_fill(weights == 0, _LEAST)
        each = bias[:, :, None] + (1.0 - self.mask.float()) * _LEAST
        return hidden.flatten(0, 1).expand(len(weights), -1, -1), each.flatten(1)


def _column(kind: str, labels: Sequence[str]) -> int:
    """The label that means this kind, -1 where there is none."""
    kind = kind.removeprefix("label.")
    if kind in labels:
        return list(labels).index(kind)
    return next((place for place, label in enumerate(labels) if prompts_for(label) == prompts_for(kind)), -1)
