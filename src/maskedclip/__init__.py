"""MaskedCLIP: semi-supervised vision-language pre-training for medical images (arXiv 2507.17239)."""

__version__ = "0.1.0.dev0"
