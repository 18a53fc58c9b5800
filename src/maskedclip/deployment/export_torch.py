"""`torch.export` packages of both towers: torch alone runs them, without maskedclip, timm or transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskedclip.deployment.export_towers import Halved, traced_parts
from maskedclip.deployment.exported import Exported
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing


def write_torch(folder: Path, model: MaskedCLIP, preprocessing: Preprocessing, dtype: torch.dtype) -> None:
    """Write image.pt2 and, of a model with texts, text.pt2; the batch is dynamic, the size and text length are fixed.

    Args:
        folder: exists.
        model: in evaluation mode.
        preprocessing: its normalisation goes inside.
        dtype: of the stored matrices; they are computed with in float32.
    """
    for name, (module, example, inputs, _) in traced_parts(model, preprocessing).items():
        whole = module if dtype == torch.float32 else Halved(module)
        batch = torch.export.Dim.DYNAMIC
        shapes: Any = tuple({0: batch} for _ in inputs)
        if isinstance(whole, Halved):
            shapes = (shapes,)  # of *args
        with torch.no_grad():
            program = torch.export.export(whole.eval(), example, dynamic_shapes=shapes)
        torch.export.save(program, folder / f"{name}.pt2")


class TorchExport(Exported):
    """What `torch.export.load` makes of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._image: Any = torch.export.load(folder / "image.pt2").module()
        if self.has_text:
            self._text: Any = torch.export.load(folder / "text.pt2").module()
            self._tokenizer = self.tokenizer()

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> dict[str, np.ndarray]:
        """See `Exported`."""
        return {name: value.numpy() for name, value in self._image(images).items()}

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `Exported`."""
        if not self.has_text:
            return super().encode_text(texts)
        return self._text(*self._tokenizer(texts))["text"].numpy()
