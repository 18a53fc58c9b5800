"""A folder that open_clip itself loads, with its own vision transformer and a transformers text tower.

What our model has and open_clip's towers lack is folded into weights they have: the bias of the patch embedding into
the positions, f's final norm and the bridge into further blocks (`export_plain`), the standardisation of the pooled
features into the norms before the pooling.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskedclip.deployment.export_plain import PlainTower, fold_into_norm, plain_bridge, standardisation
from maskedclip.deployment.exported import Exported, pictures
from maskedclip.deployment.external_open_clip import CONFIG
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing
from maskedclip.models.text import TextEncoder, TextTokenizer

WEIGHTS = "open_clip_model.safetensors"
_POOLED = ("bert", "roberta", "xlm-roberta")
"""Text encoders that open_clip builds and pools as we do."""


def write_open_clip(
    folder: Path, model: MaskedCLIP, tokenizer: TextTokenizer | None, preprocessing: Preprocessing, dtype: torch.dtype
) -> None:
    """Write open_clip_config.json, open_clip_model.safetensors and the text encoder's config.json.

    Args:
        folder: exists; the tokenizer's files are put beside by the caller.
        model: in evaluation mode.
        tokenizer: of the texts.
        preprocessing: for the size, mean and standard deviation.
        dtype: of the stored weights.

    Raises:
        UserError: trained without texts, or of an architecture that open_clip's towers cannot hold.
    """
    if model.text_encoder is None or tokenizer is None or model.image_projection is None:
        raise UserError("--format open_clip: this model was trained without texts; export it to timm or huggingface")
    tower = plain_bridge(model, "open_clip")
    visual, vision = _visual(tower, model)
    text = _text(model.text_encoder, tokenizer)
    state = {f"visual.{name}": value for name, value in visual.items()}
    state |= {f"text.{name}": value for name, value in text.items()}
    assert model.logit_scale is not None
    state["logit_scale"] = model.logit_scale.detach().float().reshape(())
    save_file({name: value.to(dtype).contiguous() for name, value in state.items()}, folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_bert_config(model.text_encoder), indent=2) + "\n")
    config = {
        "model_cfg": {
            "embed_dim": model.config.embed_dim,
            "vision_cfg": vision | {"image_size": preprocessing.size},
            "text_cfg": {
                "hf_model_name": str(folder.resolve()),
                "hf_tokenizer_name": str(folder.resolve()),
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
                "context_length": tokenizer.length,
            },
        },
        "preprocess_cfg": {
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def relocate(folder: Path, to: Path) -> None:
    """Write another place of the text tower's files into open_clip_config.json: open_clip knows no relative ones."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    for name in ("hf_model_name", "hf_tokenizer_name"):
        config["model_cfg"]["text_cfg"][name] = str(to.resolve())
    path.write_text(json.dumps(config, indent=2) + "\n")


def _visual(tower: PlainTower, model: MaskedCLIP) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in the names of open_clip's VisionTransformer, and its configuration."""
    vit: Any = tower.vit
    _check(vit)
    width, first = vit.embed_dim, vit.blocks[0]
    fold_into_norm(vit.norm, *standardisation(model.standardise, width))
    patches = len(vit.pos_embed[0]) if vit.pos_embed is not None else 0
    positions = torch.zeros(1 + vit.patch_embed.num_patches, width)
    if patches:
        positions[-patches:] += vit.pos_embed[0].detach()
    if vit.patch_embed.proj.bias is not None:
        positions[1:] += vit.patch_embed.proj.bias.detach()
    state = {
        "conv1.weight": vit.patch_embed.proj.weight,
        "class_embedding": vit.cls_token[0, 0],
        "positional_embedding": positions,
        "ln_post.weight": vit.norm.weight,
        "ln_post.bias": vit.norm.bias,
        "proj": model.image_projection.weight.cpu().T,  # type: ignore[union-attr]
    }
    if isinstance(vit.norm_pre, nn.LayerNorm):
        state |= {"ln_pre.weight": vit.norm_pre.weight, "ln_pre.bias": vit.norm_pre.bias}
    names = {
        "norm1": "ln_1",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "ls1": "ls_1",
        "norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "ls2": "ls_2",
    }
    for place, block in enumerate(vit.blocks):
        own = dict(block.state_dict())
        own.setdefault("attn.qkv.bias", torch.zeros(3 * width))
        own.setdefault("attn.proj.bias", torch.zeros(width))
        for name, value in own.items():
            old = next(old for old in names if name.startswith(old))
            state[f"transformer.resblocks.{place}.{name.replace(old, names[old], 1)}"] = value
    has_scale = hasattr(first.ls1, "gamma")
    config = {
        "layers": len(vit.blocks),
        "width": width,
        "head_width": width // first.attn.num_heads,
        "mlp_ratio": first.mlp.fc1.out_features / width,
        "patch_size": vit.patch_embed.patch_size[0],
        "ls_init_value": 1.0 if has_scale else None,
        "no_ln_pre": not isinstance(vit.norm_pre, nn.LayerNorm),
        "pool_type": "avg",
        "norm_kwargs": {"eps": vit.norm.eps},
        "act_kwargs": {"approximate": first.mlp.act.approximate},
    }
    return {name: value.detach().float() for name, value in state.items()}, config


def _check(vit: Any) -> None:
    first, why = vit.blocks[0], None
    if not vit.has_class_token or vit.num_prefix_tokens != 1:
        why = f"open_clip's tower has one class token and nothing else before the patches, ours {vit.num_prefix_tokens}"
        why += " of them" if vit.has_class_token else ", none of them a class token"
    elif not isinstance(getattr(first.mlp, "act", None), nn.GELU):
        why = "its perceptron is not the plain one with GELU"
    elif not isinstance(first.attn.q_norm, nn.Identity):
        why = "it normalises queries and keys"
    elif not isinstance(vit.norm, nn.LayerNorm):
        why = "it has no final LayerNorm"
    if why is not None:
        raise UserError(
            f"--format open_clip: its vision transformer cannot hold this encoder: {why}; "
            "export to huggingface, onnx or torch"
        )


def _text(encoder: TextEncoder, tokenizer: TextTokenizer) -> dict[str, Tensor]:
    """Weights in the names of open_clip's HFTextEncoder, the standardisation inside the last norm."""
    config = encoder.config
    if encoder.causal:
        raise UserError(
            "--format open_clip: its text tower takes the mean of tokens, and this one reads from left to right "
            "(model.text_causal); export to huggingface, onnx or torch"
        )
    if config["model_type"] not in _POOLED:
        raise UserError(
            f"--format open_clip: a {config['model_type']} as text encoder is not pooled there as here "
            f"({', '.join(_POOLED)} are); export to huggingface, onnx or torch"
        )
    padding = tokenizer.tokenizer.padding or {}
    if config.get("pad_token_id") != padding.get("pad_id"):
        raise UserError(
            f"--format open_clip: takes token {config.get('pad_token_id')} as padding and the tokenizer pads with "
            f"{padding.get('pad_id')}; export to huggingface, onnx or torch"
        )
    state = {f"transformer.{name}": value.detach().cpu().float() for name, value in encoder.bert.state_dict().items()}
    mean, spread = (value.cpu() for value in standardisation(encoder.standardise, config["hidden_size"]))
    last = f"transformer.encoder.layer.{config['num_hidden_layers'] - 1}.output.LayerNorm"
    state[f"{last}.bias"] = ((state[f"{last}.bias"].double() - mean) / spread).float()
    state[f"{last}.weight"] = (state[f"{last}.weight"].double() / spread).float()
    state["proj.weight"] = encoder.projection.weight.detach().cpu().float()
    return state


def _bert_config(encoder: TextEncoder) -> dict[str, Any]:
    return {**encoder.config, "architectures": ["BertModel"], "_name_or_path": ""}


class OpenClipExport(Exported):
    """What open_clip makes of a folder, with its own transform and tokenizer."""

    def __init__(self, folder: Path) -> None:
        from maskedclip.deployment.export_onnx import package

        super().__init__(folder)
        open_clip = package("open_clip", folder)
        self._towers, _, self._transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self._towers.eval()
        self._tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> dict[str, np.ndarray]:
        """See `Exported`."""
        pixels = torch.stack([self._transform(picture) for picture in pictures(images)])
        return {"projected": self._towers.encode_image(pixels, normalize=True).float().numpy()}

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `Exported`."""
        return self._towers.encode_text(self._tokenizer(list(texts)), normalize=True).float().numpy()
