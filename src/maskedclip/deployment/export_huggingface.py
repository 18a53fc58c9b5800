"""A folder for transformers: the whole model with one file of code, and the encoder alone as a native class.

No class of transformers has both a bridge behind the image encoder and means over tokens on both sides, so the whole
model comes with `modeling_maskedclip.py`, which needs torch and transformers alone and `trust_remote_code=True`.  The
subfolder `encoder` is read without any code: its weights are those of a `Dinov2Model`.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskedclip.console import say
from maskedclip.deployment import exported_modeling
from maskedclip.deployment.exported import Exported, pictures
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.saving import Preprocessing
from maskedclip.models.standardise import BatchStandardise

WEIGHTS, CODE, ENCODER = "model.safetensors", "modeling_maskedclip", "encoder"


def write_huggingface(
    folder: Path, model: MaskedCLIP, preprocessing: Preprocessing, dtype: torch.dtype
) -> dict[str, Any] | None:
    """Write config, weights, code, image processor and, where a native class holds it, `encoder/`.

    Returns: of `encoder/`, its class and how many tokens stand before the patches; None where there is none.

    Raises:
        UserError: the image encoder has a part that the file of code lacks.
    """
    config = {
        "model_type": "maskedclip",
        "architectures": ["MaskedCLIPModel"],
        "auto_map": {"AutoConfig": f"{CODE}.MaskedCLIPConfig", "AutoModel": f"{CODE}.MaskedCLIPModel"},
        "dtype": str(dtype).removeprefix("torch."),
        "image": _image_config(model, preprocessing),
        "bridge": {"depth": model.config.bridge_depth, "heads": model.config.bridge_heads},
        "text": model.text_encoder.config if model.text_encoder is not None else None,
        "embed_dim": model.config.embed_dim if model.text_encoder is not None else None,
        "text_length": model.config.text_length,
        "standardise": isinstance(model.standardise, BatchStandardise),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    dropped = ("encoder.vit.head.", "encoder.vit.fc_norm.", "encoder.vit.attn_pool.")
    state = {
        name: value.detach().cpu().to(dtype).contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(dropped)
    }
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    shutil.copyfile(str(exported_modeling.__file__), folder / f"{CODE}.py")
    _write_processor(folder, preprocessing)
    return _write_native_encoder(folder / ENCODER, model, preprocessing, dtype)


def _image_config(model: MaskedCLIP, preprocessing: Preprocessing) -> dict[str, Any]:
    vit: Any = model.encoder.vit
    if model.attention is not None:
        raise UserError(
            "--format huggingface: its code takes the mean of patches, and this model pools them by attention "
            "(model.image_pooling); export to onnx or torch"
        )
    first = vit.blocks[0]
    activation = _activation(getattr(first.mlp, "act", None))
    why = None
    if (
        activation is None
        or not hasattr(first.mlp, "fc2")
        or not isinstance(getattr(first.mlp, "norm", nn.Identity()), nn.Identity)
    ):
        why = f"a perceptron of another kind ({type(first.mlp).__name__})"
    elif not isinstance(first.attn.q_norm, nn.Identity):
        why = "normalised queries and keys"
    elif not isinstance(vit.patch_embed.norm, nn.Identity):
        why = "a norm behind the patch embedding"
    if why is not None:
        raise UserError(f"--format huggingface: the image encoder has {why}; export to timm, onnx or torch")
    return {
        "size": preprocessing.size,
        "patch_size": model.encoder.patch_size,
        "width": model.encoder.width,
        "depth": len(vit.blocks),
        "heads": model.encoder.heads,
        "hidden": first.mlp.fc1.out_features,
        "class_token": bool(vit.has_class_token),
        "registers": vit.num_reg_tokens,
        "positions": vit.pos_embed.shape[1] if vit.pos_embed is not None else 0,
        "pre_norm": isinstance(vit.norm_pre, nn.LayerNorm),
        "final_norm": isinstance(vit.norm, nn.LayerNorm),
        "layer_scale": hasattr(first.ls1, "gamma"),
        "qkv_bias": first.attn.qkv.bias is not None,
        "patch_bias": vit.patch_embed.proj.bias is not None,
        "epsilon": first.norm1.eps,
        "activation": activation,
    }


def _activation(layer: Any) -> str | None:
    if isinstance(layer, nn.GELU):
        return "gelu" if layer.approximate == "none" else "gelu_tanh"
    return "quick_gelu" if type(layer).__name__ == "QuickGELU" else None


def _write_processor(folder: Path, preprocessing: Preprocessing) -> None:
    from transformers import ViTImageProcessor

    side = {"height": preprocessing.size, "width": preprocessing.size}
    ViTImageProcessor(
        size=side, resample=3, image_mean=list(preprocessing.mean), image_std=list(preprocessing.std)
    ).save_pretrained(folder)


def _write_native_encoder(
    folder: Path, model: MaskedCLIP, preprocessing: Preprocessing, dtype: torch.dtype
) -> dict[str, Any] | None:
    """The encoder as a Dinov2Model; left out, and said so, where that class cannot hold it."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    vit: Any = model.encoder.vit
    image = _image_config(model, preprocessing)
    if not (image["class_token"] and image["final_norm"] and image["patch_bias"]) or image["pre_norm"]:
        say(f"left out: {ENCODER}/, which needs a class token, a final norm and none before the blocks")
        return None
    options: dict[str, Any] = {
        "hidden_size": image["width"],
        "num_hidden_layers": image["depth"],
        "num_attention_heads": image["heads"],
        "mlp_ratio": -(-image["hidden"] // image["width"]),  # whole numbers only; further units stay idle
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(image["activation"], image["activation"]),
        "layer_norm_eps": image["epsilon"],
        "image_size": image["size"],
        "patch_size": image["patch_size"],
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "use_mask_token": False,
    }
    if image["registers"]:
        registers = Dinov2WithRegistersConfig(num_register_tokens=image["registers"], **options)
        native: Any = Dinov2WithRegistersModel(registers)
    else:
        native = Dinov2Model(Dinov2Config(**options))
    with torch.no_grad():
        _fill(native, vit, image)
    with quiet_transformers():
        native.to(dtype).save_pretrained(folder)
    _write_processor(folder, preprocessing)
    return {"class": type(native).__name__, "prefix": 1 + image["registers"]}


def _fill(native: Any, vit: Any, image: dict[str, Any]) -> None:
    """Copy timm's weights into a Dinov2Model, in place."""
    embeddings, width = native.embeddings, image["width"]
    patches = vit.patch_embed.num_patches
    positions = torch.zeros(1, 1 + patches, width)
    if vit.pos_embed is not None:
        positions[:, 1:] = vit.pos_embed[:, -patches:]
        extra = vit.pos_embed.shape[1] - patches
        if extra:
            positions[:, :1] = vit.pos_embed[:, :1]
        if image["registers"]:
            embeddings.register_tokens.copy_(vit.reg_token + (vit.pos_embed[:, 1:extra] if extra > 1 else 0))
    embeddings.position_embeddings.copy_(positions)
    embeddings.cls_token.copy_(vit.cls_token)
    embeddings.patch_embeddings.projection.load_state_dict(vit.patch_embed.proj.state_dict())
    native.layernorm.load_state_dict(vit.norm.state_dict())
    for layer, block in zip(native.encoder.layer, vit.blocks, strict=True):
        layer.norm1.load_state_dict(block.norm1.state_dict())
        layer.norm2.load_state_dict(block.norm2.state_dict())
        bias = block.attn.qkv.bias if block.attn.qkv.bias is not None else torch.zeros(3 * width)
        names = ("q_proj", "k_proj", "v_proj")
        for name, weight, shift in zip(names, block.attn.qkv.weight.chunk(3), bias.chunk(3), strict=True):
            getattr(layer.attention, name).load_state_dict({"weight": weight, "bias": shift})
        layer.attention.o_proj.load_state_dict(block.attn.proj.state_dict())
        for parameter in layer.mlp.parameters():
            parameter.zero_()
        hidden = image["hidden"]
        layer.mlp.fc1.weight[:hidden].copy_(block.mlp.fc1.weight)
        layer.mlp.fc1.bias[:hidden].copy_(block.mlp.fc1.bias)
        layer.mlp.fc2.weight[:, :hidden].copy_(block.mlp.fc2.weight)
        layer.mlp.fc2.bias.copy_(block.mlp.fc2.bias)
        if image["layer_scale"]:
            layer.layer_scale1.lambda1.copy_(block.ls1.gamma)
            layer.layer_scale2.lambda1.copy_(block.ls2.gamma)


class HuggingFaceExport(Exported):
    """What transformers makes of a folder, with the processor and tokenizer beside; computes in float32."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        super().__init__(folder)
        # the folder's code is this package's own, copied a moment ago
        with quiet_transformers():
            self._model: Any = AutoModel.from_pretrained(
                folder, trust_remote_code=True, local_files_only=True, dtype=torch.float32
            ).eval()
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self._native: Any = None
            if (folder / ENCODER).is_dir():
                self._native = AutoModel.from_pretrained(
                    folder / ENCODER, local_files_only=True, dtype=torch.float32
                ).eval()
            self._tokenizer: Any = None
            if self.has_text:
                self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, local_files_only=True)

    @torch.inference_mode()
    def encode_images(self, images: Tensor) -> dict[str, np.ndarray]:
        """See `Exported`; also `native encoder`, where the subfolder is there."""
        pixels = self._processor(images=pictures(images), return_tensors="pt")
        output = self._model(**pixels)
        names = {"encoder": "encoder", "bridge": "bridge", "projected": "image_embeds"}
        found = {name: output[key].numpy() for name, key in names.items() if key in output}
        if self._native is not None:
            tokens = self._native(**pixels).last_hidden_state
            found["native encoder"] = tokens[:, self.about["native"]["prefix"] :].mean(dim=1).numpy()
        return found

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """See `Exported`."""
        if self._tokenizer is None:
            return super().encode_text(texts)
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self._model.get_text_features(**tokens).numpy()


def quiet_transformers() -> Any:
    """No progress bars while a folder is read."""
    from contextlib import contextmanager

    import transformers

    @contextmanager
    def quiet() -> Any:
        before = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(before)

    return quiet()
