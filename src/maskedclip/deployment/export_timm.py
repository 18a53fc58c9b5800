"""A folder that `timm.create_model("local-dir:DIR", pretrained=True)` loads, without code of ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from maskedclip.deployment.export_plain import PlainTower, folded_projection, plain_bridge, plain_encoder
from maskedclip.deployment.exported import Exported, pictures
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing

WEIGHTS = "model.safetensors"


def write_timm(folder: Path, model: MaskedCLIP, preprocessing: Preprocessing, output: str, dtype: torch.dtype) -> None:
    """Write config.json and model.safetensors in timm's names.

    Args:
        folder: exists.
        model: in evaluation mode.
        preprocessing: for the size, mean and standard deviation.
        output: what timm's model returns: `encoder`, `bridge` or `projected` (before it is brought to unit length).
        dtype: of the stored weights.

    Raises:
        UserError: the model lacks the output, or timm's transformer cannot hold the bridge.
    """
    if output != "encoder" and model.image_projection is None:
        raise UserError(f"--output {output}: this model was trained without texts and has the output encoder alone")
    tower = plain_encoder(model) if output == "encoder" else plain_bridge(model, "timm")
    state, classes = dict(tower.vit.state_dict()), 0
    if output == "projected":
        state["head.weight"], state["head.bias"] = folded_projection(model)
        classes = len(state["head.weight"])
    save_file({name: value.to(dtype).contiguous() for name, value in state.items()}, folder / WEIGHTS, {"format": "pt"})
    config = _config(tower, preprocessing, classes)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _config(tower: PlainTower, preprocessing: Preprocessing, classes: int) -> dict[str, Any]:
    size, vit = preprocessing.size, tower.vit
    return {
        "architecture": tower.architecture,
        "num_classes": classes,
        "num_features": vit.num_features,
        "global_pool": "avg",
        "model_args": {**tower.options, "num_classes": classes},
        "pretrained_cfg": {
            "tag": "maskedclip",
            "custom_load": False,
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


class TimmExport(Exported):
    """What timm makes of a folder, with timm's own transform."""

    def __init__(self, folder: Path) -> None:
        import timm
        from timm.data.config import resolve_model_data_config
        from timm.data.transforms_factory import create_transform

        super().__init__(folder)
        self._model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        self._transform: Any = create_transform(**resolve_model_data_config(self._model), is_training=False)
        self._output = self.about["output"]

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> dict[str, np.ndarray]:
        """See `Exported`."""
        pixels = torch.stack([self._transform(picture) for picture in pictures(images)])
        features = self._model(pixels).float()
        if self._output == "projected":
            features = torch.nn.functional.normalize(features, dim=-1)
        return {self._output: features.numpy()}
