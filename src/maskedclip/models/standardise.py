"""Standardisation of pooled features over the global batch, the same on one rank and on many."""

from collections.abc import Iterator
from contextlib import contextmanager

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
        self.follows = True
        """Whether the running statistics follow the batch; a step that looks twice at a batch follows it once."""
        self.mean = nn.Buffer(torch.zeros(width))
        self.variance = nn.Buffer(torch.ones(width))

    def forward(self, pooled: Tensor) -> Tensor:
        """Standardise pooled features (b, D) -> float32 (b, D)."""
        pooled = pooled.float()
        if not self.training:
            return (pooled - self.mean) / (self.variance + _EPSILON).sqrt()
        everywhere = gather_rows(pooled)  # (B, D)
        mean, variance = everywhere.mean(dim=0), everywhere.var(dim=0, unbiased=False)
        if self.follows:
            self._follow(mean.detach(), variance.detach())
        return (pooled - mean) / (variance + _EPSILON).sqrt()

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        self.mean.lerp_(mean, _MOMENTUM)
        self.variance.lerp_(variance, _MOMENTUM)


@contextmanager
def statistics_paused(module: nn.Module) -> Iterator[None]:
    """No running statistics inside a module follow the batch for a while."""
    layers = [layer for layer in module.modules() if isinstance(layer, BatchStandardise)]
    for layer in layers:
        layer.follows = False
    try:
        yield
    finally:
        for layer in layers:
            layer.follows = True


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """What standardises inside a module uses the statistics of the past for a while, and leaves them as they are."""
    layers = [layer for layer in module.modules() if isinstance(layer, BatchStandardise)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.train(training)
