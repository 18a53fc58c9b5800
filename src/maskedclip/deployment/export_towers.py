"""The towers as modules with plain tensors in and out, which `torch.export` and ONNX can trace."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from maskedclip.models.attention import set_attention
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing


class ImageTower(nn.Module):
    """uint8 images (B, 3, S, S) -> features by output name; the normalisation is inside, so nobody gets it wrong."""

    def __init__(self, model: MaskedCLIP, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.bridge = model.encoder, model.bridge
        self.standardise, self.projection = model.standardise, model.image_projection
        self.attention = model.attention
        self.mean = nn.Buffer(torch.tensor(preprocessing.mean)[:, None, None])
        self.std = nn.Buffer(torch.tensor(preprocessing.std)[:, None, None])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`encoder` (B, D); where texts were trained on, also `bridge` (B, D) and `projected` (B, E), unit length."""
        vit, classes = self.encoder.vit, self.encoder.num_class_tokens
        tokens = vit.forward_features((images.float() / 255 - self.mean) / self.std)
        tokens = torch.cat([tokens[:, :classes], tokens[:, vit.num_prefix_tokens :]], dim=1)  # without registers
        features = {"encoder": self.encoder.patches(tokens).mean(dim=1)}
        if self.projection is not None:
            patches = self.encoder.patches(self.bridge(tokens))
            features["bridge"] = patches.mean(dim=1) if self.attention is None else self.attention(patches)
            projected = self.projection(self.standardise(features["bridge"]))
            features["projected"] = nn.functional.normalize(projected, dim=-1)
        return features


class TextTower(nn.Module):
    """Token ids and mask, int64 (B, T) -> `text` (B, E), unit length."""

    def __init__(self, model: MaskedCLIP) -> None:
        super().__init__()
        assert model.text_encoder is not None
        self.text_encoder = model.text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Embed tokenised texts."""
        return {"text": self.text_encoder(input_ids, attention_mask)}


class Halved(nn.Module):
    """A module whose matrices are kept in bfloat16 and computed with in float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        for parameter in self.module.parameters():
            if parameter.ndim > 1:
                parameter.data = parameter.data.bfloat16()

    def forward(self, *args: Tensor) -> Any:
        """The module's own result."""
        widened = {name: parameter.float() for name, parameter in self.module.named_parameters()}
        return torch.func.functional_call(self.module, widened, args)


def traced_parts(
    model: MaskedCLIP, preprocessing: Preprocessing
) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], list[str], list[str]]]:
    """What there is to trace, by file name: the module, example inputs, names of inputs and of outputs."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    set_attention(model, fused=True)
    size = preprocessing.size
    outputs = ["encoder"] if model.image_projection is None else ["encoder", "bridge", "projected"]
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    parts: dict[str, Any] = {"image": (ImageTower(model, preprocessing).eval(), (images,), ["images"], outputs)}
    if model.text_encoder is not None:
        length = model.config.text_length
        ids = torch.randint(0, model.text_encoder.config["vocab_size"], (2, length))
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        parts["text"] = (TextTower(model).eval(), (ids, mask), ["input_ids", "attention_mask"], ["text"])
    return parts
