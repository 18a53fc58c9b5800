"""Random masking, the default (MAE, arXiv 2111.06377)."""

from dataclasses import dataclass
from typing import Any

from maskedclip.objectives.masking import RandomMasker
from maskedclip.parts import MaskingOptions


@dataclass(frozen=True, kw_only=True)
class Options(MaskingOptions):
    """It has none."""


def build(options: Options, context: Any) -> RandomMasker:
    """The masker."""
    return RandomMasker()
