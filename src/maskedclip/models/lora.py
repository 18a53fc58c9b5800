"""Low-rank additions to linear layers (LoRA, arXiv 2106.09685), by the library `peft`, in place; and their removal.

A layer's output is W x + b + (alpha / rank) B A x; B begins as zero, so the additions change nothing at first.
"""

from typing import Any

import torch
from torch import Tensor, nn

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.vit import ImageEncoder
from maskedclip.recipe import Recipe

_NAME = "default"
_SEED = 7


def add_lora(model: MaskedCLIP, recipe: Recipe) -> None:
    """Give a model the additions that a recipe asks for, and freeze all other weights of the towers that get them.

    The linear layers of the image encoder's blocks get them, and those of a pretrained text encoder; bridge and
    projections stay trainable.  [paper] CLIP-IT (arXiv 2504.16181) adds to embeddings and convolutions too; [ours] not.

    Args:
        model: with the weights that it starts from.
        recipe: for `model.lora_rank`, `model.lora_alpha`; the additions depend on its seed alone.

    Raises:
        UserError: `peft` is not installed, or the image encoder has no transformer blocks.
    """
    chosen = recipe.model
    if not chosen.lora_rank:
        return
    if not hasattr(model.encoder, "vit") or not linear_layers(model.encoder, mlp=True):
        raise UserError(f"model.lora_rank: {chosen.image_encoder} has no transformer blocks to add to; set 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + _SEED)
        names = linear_layers(model.encoder, mlp=True)
        inject(model.encoder.vit, names, rank=chosen.lora_rank, alpha=chosen.lora_alpha, where="model.lora_rank")
        if model.text_encoder is not None and chosen.text_encoder != "small":
            bert = model.text_encoder.bert
            names = [name for name, part in bert.named_modules() if isinstance(part, nn.Linear)]
            inject(bert, names, rank=chosen.lora_rank, alpha=chosen.lora_alpha, where="model.lora_rank")


def linear_layers(encoder: ImageEncoder, *, mlp: bool) -> list[str]:
    """Names, inside the timm model, of the linear layers of every block's attention, and of its MLP if wanted."""
    parts = (".attn.", ".mlp.") if mlp else (".attn.",)
    return [
        name
        for name, part in encoder.vit.named_modules()
        if isinstance(part, nn.Linear) and name.startswith("blocks.") and any(mark in name for mark in parts)
    ]


def inject(module: nn.Module, names: list[str], *, rank: int, alpha: float, where: str, dropout: float = 0.0) -> None:
    """Add to linear layers of a module by name, and freeze the rest of the module.

    Raises:
        UserError: `peft` is not installed; `where` is the field that asks for it.
    """
    try:
        import peft
    except ImportError:
        raise UserError(f"{where}: peft is not installed; pip install 'maskedclip[finetune]', or set 0") from None
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)  # type: ignore[arg-type]
    peft.inject_adapter_in_model(config, module, _NAME)


def lora_scaling(model: nn.Module) -> float | None:
    """What the products B A are multiplied by; None where a model has no additions."""
    for part in model.modules():
        scaling: Any = getattr(part, "scaling", None)
        if hasattr(part, "lora_A") and isinstance(scaling, dict):
            return float(scaling[_NAME])
    return None


def merged(tensors: dict[str, Tensor], scaling: float | None) -> dict[str, Tensor]:
    """Plain weights under plain names, with the products added to the weights that they belong to.

    Args:
        tensors: of a model with additions, whole; others pass as they are.
        scaling: of `lora_scaling`.
    """
    if scaling is None:
        return tensors
    plain = {}
    for name, value in tensors.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            first, second = (tensors.get(f"{layer}.lora_{part}.{_NAME}.weight") for part in "AB")
            if first is not None and second is not None:
                value = (value.float() + scaling * (second.float() @ first.float())).to(value.dtype)
        plain[name.replace(".base_layer.", ".")] = value
    return plain
