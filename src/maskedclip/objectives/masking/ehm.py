"""EHM-style masking: whole nodes of a tree that grows from the model's own attention (2504.09155, "in the style of").

[paper]: the tree comes from the attention of the model in training; masked sets go from low-level cues, small nodes,
to high-level ones, of the size of objects, as training goes on; no extra model, no labels.  [inferred]: how the tree
grows (average linkage), how its depth follows the run, and how nodes are drawn.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskedclip.errors import UserError
from maskedclip.objectives.masking import MaskContext, _noise, _tree
from maskedclip.parts import MaskingOptions
from maskedclip.recipe_sections import require


@dataclass(frozen=True, kw_only=True)
class Options(MaskingOptions):
    """The depth of the tree."""

    min_nodes: int = 8
    """Nodes that an image is cut into at the end of the run; it begins with as many as there are patches.
    [inferred]: 6 to 10."""
    blend: bool = False
    """Whether noise of single patches is mixed in, less and less: alpha = sqrt(progress) of nodes, 1 - alpha of noise.
    [inferred] from the same group's predecessor (EPM, CVPR 2023)."""
    moving_average: bool = False
    """Whether attention is that of the moving average of the encoder (objective.ema_decay), as in EPM; 0.99 suits
    runs below a thousand steps."""

    def __post_init__(self) -> None:
        """Reject contradictions, naming the mend."""
        super().__post_init__()
        require(self.min_nodes >= 2, f"objective.masking_options.min_nodes: {self.min_nodes}; give 2 or more, e.g. 8")

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        """Whether it needs the moving average of encoder and bridge."""
        return self.moving_average


def node_count(num_patches: int, min_nodes: int, progress: float) -> int:
    """k(p) = round(N^(1 - p) k_min^p): from every patch alone to `min_nodes`, evenly on a logarithmic scale."""
    least = min(min_nodes, num_patches)
    return round(num_patches ** (1 - progress) * least**progress)


def node_scores(nodes: Tensor, keys: Tensor) -> Tensor:
    """One random number for each node, and a lesser one for each patch, so that a cut splits one node at most.

    Args:
        nodes: equal where patches lie in the same node, int64 (B, L).
        keys: of the samples at their step, int64 (B,).

    Returns: float64 (B, L); the whole part belongs to the node, in the random order of the nodes.
    """
    patches = nodes.shape[1]
    draw, tie = _noise.uniform(keys, patches, stream=1), _noise.uniform(keys, patches, stream=2)
    rank = draw.argsort(dim=1, stable=True).argsort(dim=1)  # no two patches share one, so no two nodes do
    return rank.gather(1, _tree.spokesmen(nodes, tie)).double() + tie


class HierarchicalMasker:
    """Hides nodes of the tree in random order."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def score(self, context: MaskContext) -> Tensor:
        """Scores that the patches of a node share, (B, L).

        Raises:
            UserError: there is no step whose attention could be read.
        """
        if self._count(context) == context.num_patches:
            return self.score_of(None, context)
        if context.views is None:
            raise UserError("objective.masking: ehm reads the encoder's attention; it needs the views of a step")
        views = context.views
        return self.score_of(views.teacher_attention if self.options.moving_average else views.self_attention, context)

    def score_of(self, attention: Tensor | None, context: MaskContext) -> Tensor:
        """Scores from attention between patches, (B, L, L) -> float64 (B, L); None leaves every patch alone."""
        keys, patches = context.keys, context.num_patches
        if attention is None:
            nodes = torch.arange(patches, device=keys.device).expand(len(keys), -1)
        else:
            with torch.no_grad():
                distance = _tree.distances(attention, _noise.uniform(keys, patches, stream=3))
                nodes = _tree.cut(_tree.grow(distance), self._count(context))
        scores = node_scores(nodes, keys)
        if not self.options.blend:
            return scores
        share = context.progress**0.5
        return share * scores / patches + (1 - share) * _noise.uniform(keys, patches).double()

    def _count(self, context: MaskContext) -> int:
        return node_count(context.num_patches, self.options.min_nodes, context.progress)


def build(options: Options, context: Any) -> HierarchicalMasker:
    """The masker."""
    patches = context.model.encoder.num_patches
    require(
        options.min_nodes <= patches,
        f"objective.masking_options.min_nodes: {options.min_nodes}, but an image has {patches} patches; give at most "
        "that, e.g. 8",
    )
    return HierarchicalMasker(options)
