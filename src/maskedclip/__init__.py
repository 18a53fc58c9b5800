"""MaskedCLIP: semi-supervised vision-language pre-training for medical images (arXiv 2507.17239)."""

__version__ = "0.1.0.dev0"


def __getattr__(name: str) -> object:
    """Import the heavy parts only when they are asked for, so that `maskedclip --help` is quick."""
    if name in {"load", "Model"}:
        from maskedclip.deployment import model

        return getattr(model, name)
    raise AttributeError(f"module 'maskedclip' has no attribute {name!r}")
