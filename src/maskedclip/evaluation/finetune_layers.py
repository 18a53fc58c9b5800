"""The network that is fine-tuned: a copy of the encoder, stochastic depth, a head, LoRA, layer-wise learning rates.

B images, S pixels on a side, D encoder width, O outputs, L blocks.
"""

import copy
from typing import Any

import torch
from timm.layers.drop import DropPath, calculate_drop_path_rates
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from maskedclip.models.lora import linear_layers as lora_targets
from maskedclip.models.vit import ImageEncoder
from maskedclip.training.optimizer import Group

_HEAD_STD = 2e-5  # as MAE fine-tunes: the first predictions are all alike, so nothing is unlearnt by chance
_NO_DECAY = ("*cls_token", "*reg_token", "*pos_embed")


class FineTuned(nn.Module):
    """Encoder -> mean of the patch tokens -> LayerNorm -> linear head."""

    def __init__(self, encoder: ImageEncoder, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.width, eps=1e-6)
        self.head = nn.Linear(encoder.width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=_HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of normalised images: (B, 3, S, S) -> float32 (B, O)."""
        return self.head(self.features(image)).float()

    def features(self, image: Tensor) -> Tensor:
        """What the head reads: (B, 3, S, S) -> (B, D)."""
        return self.norm(self.encoder.patches(self.encoder(image)).mean(dim=1))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Timm's description of the layers: embedding, each block; what matches neither is the head, final norm too."""
        return {
            "embedding": r"^encoder\.vit\.(?:cls_token|reg_token|pos_embed|patch_embed|norm_pre)",
            "blocks": r"^encoder\.vit\.blocks\.(\d+)",
        }


class LoraAdapters:
    """Low-rank additions to linear layers of an encoder, in place (arXiv 2106.09685), by the library `peft`."""

    def __init__(self, encoder: ImageEncoder, settings: FineTuneSettings) -> None:
        """Add them, and freeze all other weights of the encoder.

        Raises:
            UserError: `peft` is not installed.
        """
        peft = require_peft()
        config = peft.LoraConfig(
            r=settings.lora_rank,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=lora_targets(encoder, mlp=settings.lora_mlp),
        )
        self._tuner: Any = peft.LoraModel(encoder.vit, config, "default")

    def merge(self) -> None:
        """Add the products to the weights that they belong to; the encoder has its plain layers again."""
        self._tuner.merge_and_unload()


def require_peft() -> Any:
    """The library of low-rank additions; a UserError where it is not installed."""
    try:
        import peft
    except ImportError:
        raise UserError(
            "finetune.method lora: peft is not installed; pip install 'maskedclip[finetune]', or take full"
        ) from None
    return peft


def build_network(model: Model, outputs: int, settings: FineTuneSettings) -> tuple[FineTuned, LoraAdapters | None]:
    """Make the network from a copy of the model's encoder; its fresh weights come from torch's generator.

    Raises:
        UserError: `settings.size` does not fit the patches, or `peft` is missing.
    """
    encoder = _resized(copy.deepcopy(model.module.encoder), model.preprocessing.size, settings.size)
    encoder.requires_grad_(True)  # positions too, which pre-training may have kept fixed
    set_drop_path(encoder, settings.drop_path)
    adapters = LoraAdapters(encoder, settings) if settings.method == "lora" else None
    return FineTuned(encoder, outputs).to(model.device), adapters


def _resized(encoder: ImageEncoder, size: int, wanted: int | None) -> ImageEncoder:
    if wanted is None or wanted == size:
        return encoder
    patch = encoder.patch_size
    if wanted % patch:
        raise UserError(
            f"finetune.size: {wanted} is no multiple of the encoder's {patch} px patches; "
            f"give {max(1, wanted // patch) * patch}"
        )
    encoder.vit.set_input_size((wanted, wanted))
    return ImageEncoder(encoder.vit)


def set_drop_path(encoder: ImageEncoder, rate: float) -> None:
    """Give each block stochastic depth (arXiv 1603.09382): 0 in the first, rising linearly to `rate` in the last."""
    blocks = list(encoder.vit.blocks.children())
    shares: Any = calculate_drop_path_rates(rate, len(blocks))
    for block, share in zip(blocks, shares, strict=True):
        for part in list(block.modules()):
            for name, _ in list(part.named_children()):
                if name.startswith("drop_path"):  # drop_path1 and drop_path2, or drop_path where branches are parallel
                    setattr(part, name, DropPath(share) if share else nn.Identity())


def parameter_groups(network: FineTuned, settings: FineTuneSettings) -> list[Group]:
    """Trainable parameters by layer and decay, each with its peak learning rate; frozen ones are left out.

    BEiT's rule (arXiv 2106.08254), as MAE has it: layer i of 0 .. L + 1 has lr x decay^(L + 1 - i), where 0 is the
    embedding (patches, tokens, positions), i the i-th block, and L + 1 the final norm and the head.
    """
    layers: Any = group_parameters(network, network.group_matcher(), reverse=True)
    names: dict[Any, str] = {parameter: name for name, parameter in network.named_parameters()}
    last = max(layers.values())
    found = param_groups_layer_decay(
        network,
        weight_decay=settings.weight_decay,
        no_weight_decay_list=_NO_DECAY,
        layer_decay=settings.effective_layer_decay,
    )
    return [
        Group(
            name=_layer_name(layers[names[entry["params"][0]]], last),
            lr=settings.effective_lr * entry["lr_scale"],
            weight_decay=entry["weight_decay"],
            parameters={names[parameter]: parameter for parameter in entry["params"]},
        )
        for entry in found
    ]


def _layer_name(layer: int, last: int) -> str:
    return {0: "embedding", last: "head"}.get(layer, f"block {layer}")


def make_optimizer(groups: list[Group], settings: FineTuneSettings) -> torch.optim.AdamW:
    """AdamW over the groups, one fused kernel a group."""
    listed = [
        {"params": list(group.parameters.values()), "lr": group.lr, "weight_decay": group.weight_decay}
        for group in groups
    ]
    return torch.optim.AdamW(listed, lr=settings.effective_lr, betas=settings.betas, fused=True)
