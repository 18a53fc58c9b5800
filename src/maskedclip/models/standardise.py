"""Standardisation of pooled features over the global batch, the same on one rank and on many."""

import torch
from torch import Tensor, nn

from maskedclip.ranks import gather_rows

_EPSILON, _MOMENTUM = 1e-5, 0.05


class BatchStandardise(nn.Module):
    """(x - mean) / sqrt(var + 1e-5) by channel: of the batch in training, of the running statistics afterwards.

    Batch normalisation (Ioffe and Szegedy 2015) without scale and shift; the statistics are those of all ranks, which
    torch's own layer gives on GPUs only.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.zeros(width))
        self.variance = nn.Buffer(torch.ones(width))

    def forward(self, pooled: Tensor) -> Tensor:
        """Standardise pooled features (b, D) -> float32 (b, D)."""
        pooled = pooled.float()
        if not self.training:
            return (pooled - self.mean) / (self.variance + _EPSILON).sqrt()
        everywhere = gather_rows(pooled)  # (B, D)
        mean, variance = everywhere.mean(dim=0), everywhere.var(dim=0, unbiased=False)
        with torch.no_grad():
            healthy = torch.isfinite(mean).all() & torch.isfinite(variance).all()  # a skipped step leaves no trace
            self.mean.copy_(torch.where(healthy, self.mean.lerp(mean, _MOMENTUM), self.mean))
            self.variance.copy_(torch.where(healthy, self.variance.lerp(variance, _MOMENTUM), self.variance))
        return (pooled - mean) / (variance + _EPSILON).sqrt()
