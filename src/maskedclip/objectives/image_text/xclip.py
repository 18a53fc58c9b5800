"""nCLIP and xCLIP, in their style: image and text agree on clusters, without negatives (arXiv 2210.09304).

Two heads turn the embeddings of a pair into probabilities p and q over K clusters.  The loss is their cross-entropy
both ways; two regularisers on the entropy, low for each sample and high for the mean of the batch, keep the clusters
from becoming few.  Alone this is nCLIP, beside `clip_weight` xCLIP.  The form of heads, losses and all constants are
[inferred].  b pairs on this rank, B on all ranks, E shared width, K clusters.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.standardise import BatchStandardise, running_statistics
from maskedclip.objectives.base import Losses, Report, Views
from maskedclip.objectives.image_text._temperature import freeze_idle_temperature
from maskedclip.objectives.privileged import known_mean
from maskedclip.parts import TermOptions
from maskedclip.ranks import gather_rows
from maskedclip.recipe_sections import require

if TYPE_CHECKING:
    from maskedclip.objectives.pretraining import BuildContext


@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Fields of `objective.terms.xclip`; all defaults are [inferred]."""

    clusters: int = 64
    """K; a batch of 4 K pairs or more gives a steady mean, else use `running_mean`."""
    hidden: int = 512
    """Width of the heads' hidden layer."""
    sharpness: float = 0.2
    """Weight l_s of the entropy of each sample, which is made small; 0.2 to 0.5."""
    smoothness: float = 1.0
    """Weight l_m of the entropy of the batch's mean, which is made large; 2 breaks the agreement of the two sides."""
    temperature: float = 1.0
    """Of the heads' softmax."""
    heads: Literal["separate", "shared"] = "separate"
    """One head for each side, or one for both, which draws the embeddings themselves together [ours]."""
    running_mean: float = 0.0
    """Share of the past in the mean whose entropy is made large, for small batches; 0 is the batch alone [ours]."""
    retrieved: float = 0.0
    """Weight of agreement and sharpness on images without a text and the texts that were retrieved for them
    (data.pairs): no negatives, and clusters are kept even by the pairs alone, since few images or one frequent text say
    little of how all are used [ours]."""
    reads_text: ClassVar[bool] = True
    shares_space: ClassVar[bool] = True

    @property
    def reads_pairs(self) -> bool:
        """With `retrieved`."""
        return self.retrieved > 0

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        where = "objective.terms.xclip"
        require(self.clusters >= 2, f"{where}.clusters: {self.clusters}; give 2 or more, e.g. 64")
        require(self.hidden >= 1, f"{where}.hidden: {self.hidden}; give 1 or more, e.g. 512")
        for name in ("sharpness", "smoothness", "retrieved"):
            require(getattr(self, name) >= 0, f"{where}.{name}: {getattr(self, name)} is negative; 0 leaves it out")
        require(self.temperature > 0, f"{where}.temperature: {self.temperature}; give a value above 0, e.g. 1")
        require(0 <= self.running_mean < 1, f"{where}.running_mean: {self.running_mean} is outside [0, 1); e.g. 0.9")


def cluster_loss(
    image: Tensor,
    text: Tensor,
    mean_image: Tensor,
    mean_text: Tensor,
    *,
    sharpness: float,
    smoothness: float,
) -> Tensor:
    """-1/2 mean[q log p + p log q] + l_s/2 mean[H(p) + H(q)] - l_m/2 [H(mean p) + H(mean q)].

    Args:
        image: log p, (b, K).
        text: log q, (b, K).
        mean_image: mean of p over all ranks, with gradient, (K,).
        mean_text: mean of q, (K,).
        sharpness: l_s.
        smoothness: l_m.

    Returns: float32 (); at least -l_m log K.
    """
    across, within = _of_pairs(image, text)
    even = (entropy(mean_image) + entropy(mean_text)) / 2
    return across.mean() + sharpness * within.mean() - smoothness * even


def _of_pairs(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each pair, the mean of both ways, and the mean of its entropies; log p, log q (b, K) -> (b,)."""
    p, q = image.exp(), text.exp()
    return -(q * image + p * text).sum(dim=1) / 2, -(p * image + q * text).sum(dim=1) / 2


def entropy(probabilities: Tensor) -> Tensor:
    """In nats, of probabilities (..., K) -> (...); 0 log 0 is 0, and so is its gradient."""
    return torch.special.entr(probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny)).sum(dim=-1)


class ClusterHead(nn.Module):
    """Linear, batch normalisation over all ranks, GELU, Linear: (b, E) -> logits float32 (b, K)."""

    def __init__(self, width: int, hidden: int, clusters: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden, bias=False)
        self.standardise = BatchStandardise(hidden)
        self.scale, self.shift = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden))
        self.last = nn.Linear(hidden, clusters)

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits over the clusters."""
        return self.last(nn.functional.gelu(self.standardise(self.first(embedding)) * self.scale + self.shift))


class Xclip(nn.Module):
    """The image-text objective of a step."""

    spans_batch = True
    """The mean over the batch is no mean of losses; it reads pooled features only."""
    image_mean: Tensor
    text_mean: Tensor

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()
        self.options = options
        self.whole_batch = options.retrieved > 0  # parts of a batch have different numbers of retrieved texts
        sizes = (width, options.hidden, options.clusters)
        self.image_head = ClusterHead(*sizes)
        self.text_head = ClusterHead(*sizes) if options.heads == "separate" else None  # a shared one has one name
        for name in ("image_mean", "text_mean"):
            self.register_buffer(name, torch.full((options.clusters,), 1 / options.clusters))
        self._latest: tuple[Tensor, Tensor] | None = None

    def forward(self, views: Views) -> tuple[Losses, Report]:
        """The loss over the paired images; how even the clusters are used (1: all alike) and how often sides agree."""
        options, image, text = self.options, views.paired_embedding, views.text_embedding
        with torch.autocast(image.device.type, enabled=False):
            log_p, log_q = self._clusters(image, text)
            p, q = gather_rows(log_p.exp()).mean(dim=0), gather_rows(log_q.exp()).mean(dim=0)  # (K,)
            self._latest = p.detach(), q.detach()
            weights = {"sharpness": options.sharpness, "smoothness": options.smoothness}
            means = self._with_past(p, self.image_mean), self._with_past(q, self.text_mean)
            loss = cluster_loss(log_p, log_q, *means, **weights)
        with torch.no_grad():
            agreement = (log_p.argmax(dim=1) == log_q.argmax(dim=1)).float().mean()
            evenness = (entropy(p) + entropy(q)) / (2 * math.log(options.clusters))
        losses, report = {"xclip": loss}, {"xclip_agreement": agreement, "xclip_evenness": evenness}
        if options.retrieved > 0:
            losses["xclip_retrieved"], report["xclip_retrieved_agreement"] = self._of_retrieved(views)
        return losses, report

    def _clusters(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """log p and log q of embeddings (b, E), float32 (b, K)."""
        text_head = self.image_head if self.text_head is None else self.text_head
        image_logits, text_logits = self.image_head(image.float()), text_head(text.float())
        temperature = self.options.temperature
        return (image_logits / temperature).log_softmax(dim=1), (text_logits / temperature).log_softmax(dim=1)

    def _of_retrieved(self, views: Views) -> tuple[Tensor, Tensor]:
        """The weighted loss over the unpaired images that have a retrieved text, and how often their sides agree.

        0 where a step has none.
        """
        options = self.options
        assert views.batch.retrieved_index is not None
        index = views.batch.retrieved_index[views.batch.num_paired :]
        image, text, known = views.unpaired_embedding, views.retrieved_embedding[index.clamp(min=0)], index >= 0
        with torch.autocast(image.device.type, enabled=False):
            with running_statistics(self):
                log_p, log_q = self._clusters(image, text)
            across, within = _of_pairs(log_p, log_q)
            loss = known_mean(across + options.sharpness * within, known)
            agreement = known_mean((log_p.argmax(dim=1) == log_q.argmax(dim=1)).float(), known)
        return options.retrieved * loss, agreement

    def _with_past(self, mean: Tensor, past: Tensor) -> Tensor:
        """The running mean's value with the gradient of the batch's, so that `smoothness` keeps its meaning."""
        share = self.options.running_mean
        if share == 0:
            return mean
        return mean + (share * past + (1 - share) * mean - mean).detach()

    @torch.no_grad()
    def after_step(self, model: MaskedCLIP, skipped: Tensor | None) -> None:
        """Let the running means follow, once a step and not in a skipped one."""
        if self._latest is None or self.options.running_mean == 0:
            return
        share = self.options.running_mean
        for past, latest in zip((self.image_mean, self.text_mean), self._latest, strict=True):
            moved = share * past + (1.0 - share) * latest
            past.copy_(moved if skipped is None else torch.where(skipped > 0, past, moved))  # 0 x NaN is NaN
        self._latest = None


def build(options: Options, context: "BuildContext") -> Xclip:
    """The term of a recipe.  It reads no temperature of the model's: without a loss that does, that one stays.

    Raises:
        UserError: `retrieved` without texts that were retrieved.
    """
    require(
        options.retrieved == 0 or context.recipe.data.pairs is not None,
        "objective.terms.xclip.retrieved: reads texts that were retrieved; give data.pairs, or 0",
    )
    assert context.model.config.embed_dim is not None
    freeze_idle_temperature(context)
    return Xclip(options, context.model.config.embed_dim)
