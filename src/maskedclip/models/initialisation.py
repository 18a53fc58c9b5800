"""Initial weights of modules that start from nothing."""

from torch import nn


def initialise(module: nn.Module) -> None:
    """Matrices from Xavier's uniform distribution and zero biases, as MAE (arXiv 2111.06377) has them."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
