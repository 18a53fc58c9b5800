"""A model that open_clip saved, read through the package open_clip_torch from a folder, offline, without pickle."""

import hashlib
import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional

from maskedclip.data.images import image_batches
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.models.features import BATCH, to_input
from maskedclip.models.resizing import check_size
from maskedclip.models.saving import Preprocessing

CONFIG = "open_clip_config.json"
_PREFERRED = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")


class OpenClipModel:
    """Image and text tower of an open_clip folder, on one device.

    Attributes: `fingerprint` of weights, configuration and preprocessing; `preprocessing`; `has_text`, always true.
    """

    has_text = True

    def __init__(
        self, towers: Any, tokenizer: Any, preprocessing: Preprocessing, fingerprint: str, device: torch.device
    ) -> None:
        self.towers = towers.eval().to(device)
        self.preprocessing, self.fingerprint, self.device = preprocessing, fingerprint, device
        self._tokenizer = tokenizer
        self._has_patches = _has_patches(towers.visual)

    def features(self, store: Store, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Features of rows of a store: "encoder" (n, D) and "projected" (n, E), float32; see `encode_images`."""
        batches = image_batches(store, rows, size=self.preprocessing.size, batch=BATCH)
        parts = [self._encode(batch) for batch in batches]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def encode_images(self, images: Tensor) -> dict[str, np.ndarray]:
        """Features of uint8 images (B, 3, S, S) at the model's size, float32.

        Returns: `encoder`, of a vision transformer the mean of its patch tokens after the final norm, of another tower
            its pooled output, (B, D); `projected`, unit length, comparable with texts, (B, E).
        """
        parts = [self._encode(batch) for batch in images.split(BATCH)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @torch.inference_mode()
    def _encode(self, images: Tensor) -> dict[str, np.ndarray]:
        pixels = to_input(images.to(self.device), self.preprocessing)
        visual = self.towers.visual
        if self._has_patches:
            # One pass gives both.  A tower that pools by attention has its final norm behind the pooling.
            normalise = getattr(visual, "attn_pool", None) is None
            found = visual.forward_intermediates(pixels, indices=1, normalize_intermediates=normalise, output_fmt="NLC")
            encoded, pooled = found["image_intermediates"][-1].mean(dim=1), found["image_features"]
        else:
            encoded = pooled = self.towers.encode_image(pixels)
        projected = functional.normalize(pooled.float(), dim=-1)
        return {"encoder": encoded.float().cpu().numpy(), "projected": projected.cpu().numpy()}

    @torch.inference_mode()
    def encode_text(self, texts: str | list[str]) -> np.ndarray:
        """Embeddings of texts, unit length, float32 (N, E)."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        parts = []
        for start in range(0, len(listed), BATCH):
            tokens = self._tokenizer(listed[start : start + BATCH]).to(self.device)
            parts.append(self.towers.encode_text(tokens, normalize=True).float().cpu().numpy())
        return np.concatenate(parts)


def load_open_clip(
    folder: Path,
    device: torch.device,
    *,
    size: int | None = None,
    stored_size: int = 256,
    crop: Literal["fundus", "none"] = "fundus",
) -> OpenClipModel:
    """Read a folder of open_clip_config.json, weights in safetensors and, where its text tower needs one, a tokenizer.

    Args:
        folder: what open_clip's `push_to_hf_hub` or `save_for_hf` wrote.
        device: where it computes.
        size: side of the input, pixels; None is the tower's own, at which its projection was trained.
        stored_size: side of the store's pictures, pixels.
        crop: how they were prepared.

    Raises:
        UserError: the package or a part of the folder is missing or damaged, or the size does not fit.
    """
    open_clip = _package(folder)
    weights = _weights(folder)
    config = _config(folder)
    inside_timm = "timm_model_name" in config.get("model_cfg", {}).get("vision_cfg", {})
    with _quiet():
        try:
            towers = open_clip.create_model(
                f"local-dir:{folder}",
                load_weights=False,
                pretrained_text=False,
                force_image_size=None if inside_timm else size,  # open_clip resamples the positions of its own towers
            )
            tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        except OSError as error:
            raise UserError(
                f"{folder}: its text tower needs files that are not there ({_first_line(error)}); put the tokenizer "
                f"beside {CONFIG}, and name a local folder in its text_cfg.hf_model_name"
            ) from None
        except Exception as error:  # whatever another package makes of a user's file
            raise UserError(f"{folder / CONFIG}: open_clip cannot build the model ({_first_line(error)})") from None
        if size is not None:
            check_size(size, _patch(towers.visual, f"{folder}@{size}"), f"{folder}@{size}")
        try:
            open_clip.load_checkpoint(towers, str(weights))
            if inside_timm and size is not None:
                towers.visual.set_input_size(size)
        except (SafetensorError, RuntimeError, KeyError, OSError) as error:
            raise UserError(f"{weights}: does not fit {CONFIG}, or is damaged ({_first_line(error)})") from None
    prepared = open_clip.get_model_preprocess_cfg(towers)
    own = towers.visual.image_size
    height, width = (own, own) if isinstance(own, int) else own
    if height != width:
        raise UserError(
            f"{folder / CONFIG}: reads {height} x {width} px, and stored pictures are square; give {folder}@{height}"
        )
    side = int(height)
    preprocessing = Preprocessing(
        crop=crop,
        stored_size=max(stored_size, side),
        size=side,
        mean=tuple(prepared["mean"]),
        std=tuple(prepared["std"]),
    )
    digest = hashlib.sha256(json.dumps([config, asdict(preprocessing)], sort_keys=True).encode())
    digest.update(weights.read_bytes())
    return OpenClipModel(towers, tokenizer, preprocessing, digest.hexdigest()[:16], device)


def _package(folder: Path) -> Any:
    try:
        return importlib.import_module("open_clip")
    except ImportError:
        raise UserError(
            f"{folder}: an open_clip folder is read by the package open_clip_torch; pip install 'maskedclip[open_clip]'"
        ) from None


def _weights(folder: Path) -> Path:
    found = [folder / name for name in _PREFERRED if (folder / name).is_file()] or sorted(folder.glob("*.safetensors"))
    if found:
        return found[0]
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"})
    if pickled:
        raise UserError(
            f"{folder / pickled[0]}: may hold code (a pickle), which is never loaded; convert it once with "
            f"safetensors.torch.save_file to {_PREFERRED[0]} where you trust it"
        )
    raise UserError(f"{folder}: has no {_PREFERRED[0]}; copy the whole folder again")


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} is no JSON ({error}); copy it again") from None


def _has_patches(visual: Any) -> bool:
    """Whether the tower is a vision transformer: open_clip's own, or timm's inside."""
    trunk = getattr(visual, "trunk", None)
    if trunk is not None:
        return isinstance(trunk, VisionTransformer | Eva)
    return hasattr(visual, "forward_intermediates") and hasattr(visual, "transformer")


def _patch(visual: Any, where: str) -> int:
    """Side of the patches of a vision transformer, pixels."""
    if not _has_patches(visual):
        raise UserError(f"{where}: its image tower is no vision transformer and reads its own size alone")
    trunk = getattr(visual, "trunk", None)
    return int((visual.patch_size if trunk is None else trunk.patch_embed.patch_size)[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns on the root logger that weights are random, before they are read."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
