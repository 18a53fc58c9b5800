"""MaskedCLIP in one file on torch and transformers alone: `AutoModel.from_pretrained(DIR, trust_remote_code=True)`.

`maskedclip export --format huggingface` copies this file into the folder that it writes.  B images or texts, L patches,
C class tokens (1 or 0), D encoder width, T tokens, E width of the space that images and texts share.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput  # type: ignore[attr-defined]


class MaskedCLIPConfig(PreTrainedConfig):
    """Architecture of image encoder, bridge and text encoder.

    image: size, patch_size, width, depth, heads, hidden, class_token, registers, positions, pre_norm, final_norm,
    layer_scale, qkv_bias, patch_bias, epsilon, activation (gelu, gelu_tanh or quick_gelu).  bridge: depth, heads.
    text: transformers' configuration of the text encoder, or None.  embed_dim: E, or None without a shared space.
    """

    model_type = "maskedclip"

    def __init__(
        self,
        image: dict[str, Any] | None = None,
        bridge: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        embed_dim: int | None = None,
        text_length: int = 0,
        standardise: bool = False,
        initializer_range: float = 0.02,
        **others: Any,
    ) -> None:
        self.image = image or {}
        self.bridge = bridge or {"depth": 0, "heads": 1}
        self.text = text
        self.embed_dim = embed_dim
        self.text_length = text_length
        self.standardise = standardise
        self.initializer_range = initializer_range
        super().__init__(**others)


@dataclass
class MaskedCLIPOutput(ModelOutput):
    """What a forward pass gives; float, None where it was not asked for.

    encoder: mean of the patch tokens of f, the default feature, (B, D).  bridge: of g(f), (B, D).
    image_embeds, text_embeds: unit length, (B, E).  logits_per_image: scaled cosines, (images, texts).
    last_hidden_state: tokens of f (B, C + L, D).
    """

    encoder: Tensor | None = None
    bridge: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logits_per_image: Tensor | None = None
    last_hidden_state: Tensor | None = None


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _activation(name: str) -> nn.Module:
    if name == "quick_gelu":
        return _QuickGELU()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)  # (B, heads, tokens, D / heads)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class _Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), _activation(activation), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self, width: int, heads: int, hidden: int, epsilon: float, activation: str, qkv_bias: bool, layer_scale: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=epsilon)
        self.attn = _Attention(width, heads, qkv_bias)
        self.ls1 = _Scale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = _Perceptron(width, hidden, activation)
        self.ls2 = _Scale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int, patch_size: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=bias)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class _VisionTransformer(nn.Module):
    def __init__(self, image: dict[str, Any]) -> None:
        super().__init__()
        width, epsilon = image["width"], image["epsilon"]
        self.classes, self.registers = int(image["class_token"]), image["registers"]
        self.patch_embed = _PatchEmbedding(width, image["patch_size"], image["patch_bias"])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if self.classes else None
        self.reg_token = nn.Parameter(torch.zeros(1, self.registers, width)) if self.registers else None
        count = image["positions"]
        self.pos_embed = nn.Parameter(torch.zeros(1, count, width)) if count else None
        self.norm_pre = nn.LayerNorm(width, eps=epsilon) if image["pre_norm"] else nn.Identity()
        self.blocks = nn.ModuleList(
            _Block(
                width,
                image["heads"],
                image["hidden"],
                epsilon,
                image["activation"],
                image["qkv_bias"],
                image["layer_scale"],
            )
            for _ in range(image["depth"])
        )
        self.norm = nn.LayerNorm(width, eps=epsilon) if image["final_norm"] else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) -> class token and patches, (B, C + L, D)."""
        patches = self.patch_embed(pixels)
        front = [
            token.expand(patches.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        if self.pos_embed is not None:
            extra = self.pos_embed.shape[1] - patches.shape[1]
            patches = patches + self.pos_embed[:, extra:]
            if extra:
                front = [torch.cat(front, dim=1) + self.pos_embed[:, :extra]]
        tokens = self.norm_pre(torch.cat([*front, patches], dim=1))
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        return torch.cat([tokens[:, : self.classes], tokens[:, self.classes + self.registers :]], dim=1)


class _Encoder(nn.Module):
    def __init__(self, image: dict[str, Any]) -> None:
        super().__init__()
        self.vit = _VisionTransformer(image)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.vit(pixels)


class _Bridge(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(width, heads, 4 * width, 1e-6, "gelu", qkv_bias=True, layer_scale=False) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6) if depth else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class _Standardise(nn.Module):
    """(x - mean) / sqrt(variance + 1e-5), with the statistics of training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, pooled: Tensor) -> Tensor:
        return (pooled - self.mean) / (self.variance + 1e-5).sqrt()  # type: ignore[operator]


class _TextEncoder(nn.Module):
    def __init__(self, text: dict[str, Any], embed_dim: int, standardise: bool) -> None:
        super().__init__()
        kind = dict(text)
        self.bert = AutoModel.from_config(AutoConfig.for_model(kind.pop("model_type"), **kind))
        if getattr(self.bert, "pooler", None) is not None:
            self.bert.pooler = None
        width = text["hidden_size"]
        self.standardise = _Standardise(width) if standardise else nn.Identity()
        self.projection = nn.Linear(width, embed_dim, bias=False)
        self.soi = text.get("soi_token_id", -1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) -> unit length (B, E): mean over the real tokens, projected; of a causal one the state at the last."""
        if self.soi >= 0:
            last = attention_mask.sum(dim=1, keepdim=True) - 1
            ids = input_ids.scatter(1, last, self.soi)
            hidden = self.bert(input_ids=ids, attention_mask=attention_mask).last_hidden_state
            pooled = hidden.gather(1, last[:, :, None].expand(-1, -1, hidden.shape[2]))[:, 0]
            return functional.normalize(self.projection(self.standardise(pooled)), dim=-1)
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask[:, :, None].to(hidden.dtype)
        pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return functional.normalize(self.projection(self.standardise(pooled)), dim=-1)


class MaskedCLIPModel(PreTrainedModel):
    """Image encoder f, bridge g and, of a model with texts, text encoder and shared space."""

    config_class = MaskedCLIPConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: MaskedCLIPConfig) -> None:
        super().__init__(config)
        width = config.image["width"]
        self.encoder = _Encoder(config.image)
        self.bridge = _Bridge(width, **config.bridge)
        self.standardise = _Standardise(width) if config.standardise else nn.Identity()
        self.image_projection = self.text_encoder = self.logit_scale = None
        if config.embed_dim is not None and config.text is not None:
            self.image_projection = nn.Linear(width, config.embed_dim, bias=False)
            self.text_encoder = _TextEncoder(config.text, config.embed_dim, config.standardise)
            self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))
        self.post_init()

    def encode_image(self, pixel_values: Tensor) -> MaskedCLIPOutput:
        """Normalised images (B, 3, S, S) of the model's size -> `encoder`, and `bridge` and `image_embeds` if there."""
        tokens = self.encoder(pixel_values)
        classes = self.encoder.vit.classes
        output = MaskedCLIPOutput(encoder=tokens[:, classes:].mean(dim=1), last_hidden_state=tokens)
        if self.image_projection is not None:
            pooled = self.bridge(tokens)[:, classes:].mean(dim=1)
            projected = self.image_projection(self.standardise(pooled))
            output["bridge"], output["image_embeds"] = pooled, functional.normalize(projected, dim=-1)
        return output

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit length, comparable with texts, (B, E)."""
        return self.encode_image(pixel_values)["image_embeds"]

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids and mask (B, T) -> unit length (B, E)."""
        if self.text_encoder is None:
            raise ValueError("this model was trained without texts and cannot read any")
        return self.text_encoder(input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> MaskedCLIPOutput:
        """Images, texts or both; with both also `logits_per_image`, cosines over the trained temperature."""
        output = self.encode_image(pixel_values) if pixel_values is not None else MaskedCLIPOutput()
        if input_ids is not None:
            output["text_embeds"] = self.get_text_features(input_ids, attention_mask)
            if pixel_values is not None:
                assert self.logit_scale is not None
                output["logits_per_image"] = self.logit_scale.exp() * output["image_embeds"] @ output["text_embeds"].T
        return output
