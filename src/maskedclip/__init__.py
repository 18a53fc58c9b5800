"""MaskedCLIP: semi-supervised vision-language pre-training for medical images (arXiv 2507.17239)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskedclip.deployment.estimator import ImageEncoder
    from maskedclip.deployment.inputs_dataset import photographs
    from maskedclip.deployment.model import Model, load

__version__ = "0.1.0.dev0"
__all__ = ["ImageEncoder", "Model", "load", "photographs"]

_HOMES = {
    "ImageEncoder": "maskedclip.deployment.estimator",
    "Model": "maskedclip.deployment.model",
    "load": "maskedclip.deployment.model",
    "photographs": "maskedclip.deployment.inputs_dataset",
}


def __getattr__(name: str) -> object:
    """Import the heavy parts only when they are asked for, so that `maskedclip --help` is quick."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'maskedclip' has no attribute {name!r}")
