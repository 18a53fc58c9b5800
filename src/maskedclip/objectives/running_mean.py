"""The running mean of features over steps and ranks, to be taken away from targets that have much in common."""

import torch
from torch import Tensor, nn

from maskedclip.ranks import gather_rows


class RunningMean(nn.Module):
    """mean = sum_s d^(t - s) m_s / sum_s d^(t - s) over the steps s before t, m_s being the mean of the global batch.

    Its state is part of a checkpoint; a skipped step leaves it as it was.  A step meets the mean of the steps before
    it, so that all samples of a batch, and all its parts, meet the same one; the first step meets none.
    """

    def __init__(self, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.total = nn.Buffer(torch.zeros(width))
        self.weight = nn.Buffer(torch.zeros(1))
        self._seen: list[Tensor] = []

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Features (..., D) less the mean, float32; those of this call count from the next step on."""
        mean = gather_rows(features.float().flatten(0, -2).mean(dim=0, keepdim=True)).mean(dim=0)
        if self.training:
            self._seen.append(mean)
        return features.float() - self.total / self.weight.clamp(min=1e-12)

    @torch.no_grad()
    def after_step(self, skipped: Tensor | None = None) -> None:
        """Take in what the step saw, unless `skipped` is 1."""
        if not self._seen:
            return
        mean = torch.stack(self._seen).mean(dim=0)
        self._seen.clear()
        total, weight = self.decay * self.total + mean, self.decay * self.weight + 1
        if skipped is not None:  # chosen, not multiplied: 0 x NaN is NaN
            total = torch.where(skipped > 0, self.total, total)
            weight = torch.where(skipped > 0, self.weight, weight)
        self.total.copy_(total)
        self.weight.copy_(weight)
