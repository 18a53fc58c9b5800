"""What `embed` writes of each photograph: pooled features by the one function behind all entrances, or patch tokens.

B images, L patches, D encoder width, E shared width.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.deployment.external_open_clip import OpenClipModel
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.attention import evaluation_kernels, plain_is_faster, set_attention
from maskedclip.models.features import to_input
from maskedclip.models.volume_features import one_volume_features

PATCHES = {"patches": "encoder", "bridge_patches": "bridge"}
"""Outputs that are tokens (L, D), and the space each belongs to."""
PRECISIONS = ("float32", "bf16-mixed")


def known_outputs(model: Model | OpenClipModel) -> tuple[str, ...]:
    """What a model can give, pooled outputs first."""
    if isinstance(model, OpenClipModel):
        return ("encoder", "projected")
    if model.module.reads_volumes:
        return ("encoder", "bridge", "projected") if model.has_text else ("encoder",)
    return ("encoder", "bridge", "projected", "patches", "bridge_patches") if model.has_text else ("encoder", "patches")


def chosen_outputs(model: Model | OpenClipModel, outputs: Sequence[str] | None) -> tuple[str, ...]:
    """The outputs that are asked for, each once; None asks for all pooled ones.

    Raises:
        UserError: one that this model lacks.
    """
    known = known_outputs(model)
    if outputs is None:
        return tuple(name for name in known if name not in PATCHES)
    chosen = tuple(dict.fromkeys(name.strip() for name in outputs if name.strip()))
    for name in chosen:
        if name not in known:
            raise UserError(f"--outputs: {name!r} is none of this model's outputs ({', '.join(known)})")
    if not chosen:
        raise UserError(f"--outputs: name at least one of {', '.join(known)}")
    return chosen


class Encode:
    """Uint8 images (B, 3, S, S) -> the chosen outputs, float32, (B, D), (B, E) or (B, L, D).

    For an encoder of volumes: one stored volume (1, C, X, Y, Z), of any sides.

    In `float32` they are equal to the bit to `Model.features` and `Model.encode_image`; `bf16-mixed` computes matrix
    products in bfloat16, which is 1.6 times as fast where the processor has it.
    """

    def __init__(self, model: Model | OpenClipModel, outputs: Sequence[str], precision: str = "float32") -> None:
        if precision not in PRECISIONS:
            raise UserError(f"--precision: {precision!r} is not known; give {' or '.join(PRECISIONS)}")
        self.model, self.outputs, self.precision = model, tuple(outputs), precision
        self._bridged = not {"bridge", "projected", "bridge_patches"}.isdisjoint(outputs)

    def __call__(self, images: Tensor) -> dict[str, NDArray[np.float32]]:
        """Encode one batch."""
        mixed = self.precision != "float32"
        with torch.autocast(self.model.device.type, torch.bfloat16) if mixed else nullcontext():
            found = (
                self._forward(self.model, images) if isinstance(self.model, Model) else self.model.encode_images(images)
            )
        return {name: found[name] for name in self.outputs}

    @torch.inference_mode()
    def _forward(self, model: Model, images: Tensor) -> dict[str, NDArray[np.float32]]:
        """As `image_features`, without a bridge that nobody asked for, and with the tokens that somebody did."""
        module = model.module
        if module.reads_volumes:
            of_volume = one_volume_features(module, images[0], model.preprocessing)
            return {name: value[None].float().cpu().numpy() for name, value in of_volume.items()}
        with evaluation_kernels(module):
            if plain_is_faster(model.device, self.precision):
                set_attention(module, fused=False)
            tokens = module.encoder(to_input(images.to(model.device), model.preprocessing))
            found = {"encoder": module.pool(tokens)}
            spaces = {"encoder": tokens}
            if self._bridged:
                spaces["bridge"] = module.bridge(tokens)
                found |= {"bridge": module.pool_clip(spaces["bridge"]), "projected": module.project(spaces["bridge"])}
            for name, space in PATCHES.items():
                if name in self.outputs:
                    found[name] = module.encoder.patches(spaces[space])
            return {name: value.float().cpu().numpy() for name, value in found.items() if name in self.outputs}
