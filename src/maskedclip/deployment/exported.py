"""An export in its own runtime: one interface over timm, transformers, open_clip, onnxruntime and torch.export."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from maskedclip.errors import UserError
from maskedclip.models.text import TextTokenizer, load_tokenizer

ABOUT = "export.json"
RUNTIMES = {
    "timm": ("export_timm", "TimmExport"),
    "huggingface": ("export_huggingface", "HuggingFaceExport"),
    "open_clip": ("export_open_clip", "OpenClipExport"),
    "onnx": ("export_onnx", "OnnxExport"),
    "torch": ("export_torch", "TorchExport"),
}


class Exported:
    """A folder that `maskedclip export` wrote, run by the library it was written for.

    Attributes: `about`, the contents of export.json; `size`, side of the input, pixels; `has_text`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = read_about(folder)
        self.size: int = self.about["size"]
        self.has_text: bool = self.about["text_length"] > 0

    def encode_images(self, images: Tensor) -> dict[str, np.ndarray]:
        """Features of uint8 images (B, 3, S, S) at the model's size, by output name, float32 (B, .)."""
        raise NotImplementedError

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts, unit length, float32 (N, E)."""
        raise UserError(f"{self.folder}: a {self.about['format']} export has no text tower")

    def tokenizer(self) -> TextTokenizer:
        """The tokenizer beside the towers."""
        return load_tokenizer(self.folder, self.about["text_length"])


def read_about(folder: Path) -> dict[str, Any]:
    """What an export says of itself.

    Raises:
        UserError: the folder is no export.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise UserError(f"{folder}: has no {ABOUT}; give a folder that `maskedclip export` wrote")
    try:
        about = json.loads(path.read_text())
        known = about["format"] in RUNTIMES
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged ({error}); export again") from None
    if not known:
        raise UserError(f"{path}: format {about['format']!r} is none of {', '.join(RUNTIMES)}; update maskedclip")
    return about


def open_exported(folder: Path) -> Exported:
    """Open an export in its own runtime, on the processor, offline.

    Raises:
        UserError: it is no export, or the library that runs it is not installed.
    """
    module, name = RUNTIMES[read_about(folder)["format"]]
    return getattr(importlib.import_module(f"maskedclip.deployment.{module}"), name)(folder)


def pictures(images: Tensor) -> list[Image.Image]:
    """uint8 (B, 3, S, S) -> what the transforms of other libraries take."""
    return [Image.fromarray(array) for array in images.permute(0, 2, 3, 1).contiguous().numpy()]
