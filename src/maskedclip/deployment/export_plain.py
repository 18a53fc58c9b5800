"""Encoder f, its final norm and bridge g as one plain vision transformer, so that other libraries hold them exactly.

Between f and g stands f's final LayerNorm: g's residual stream is the normalised tokens, not f's own stream, and no
plain transformer has a norm there.  One more block takes its place.  Its attention adds nothing.  Its perceptron adds
SCALE times the normalised tokens: GELU(z) - GELU(-z) = z, so the hidden units [z, -z] pass z on unchanged.  Beside
that, f's own stream is below float32's rounding, and the blocks of g, whose outputs are multiplied by SCALE as well,
read their input through norms, which do not see a factor.  SCALE is a power of two, so no weight is rounded.  The
price is one block's time, and that float16, which ends at 65,504, cannot hold the stream; bfloat16 can.
"""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP
from maskedclip.models.standardise import BatchStandardise

SCALE = 2.0**30
_STANDARDISE_EPSILON = 1e-5


@dataclass(frozen=True)
class PlainTower:
    """A vision transformer whose mean of patch tokens, behind its final norm, is an output of the model.

    vit: timm's, without a head.  architecture, options: what `timm.create_model` makes it from, besides the weights.
    """

    vit: VisionTransformer
    architecture: str
    options: dict[str, Any]


def plain_encoder(model: MaskedCLIP) -> PlainTower:
    """Encoder f alone: the mean of the patch tokens is the output `encoder`."""
    return _tower(model, {}, dict(model.encoder.vit.state_dict()))


def plain_bridge(model: MaskedCLIP, target: str) -> PlainTower:
    """g(f) in one transformer: the mean of the patch tokens is the output `bridge`.

    Raises:
        UserError: the architecture has a part that does not pass through this construction; `target` is named.
    """
    vit = model.encoder.vit
    if model.attention is not None:
        raise UserError(
            f"--format {target}: its vision transformer takes the mean of patches, and this model pools them by "
            "attention (model.image_pooling); export to onnx or torch"
        )
    if not model.config.bridge_depth:
        return plain_encoder(model)
    _check(model, target)
    width, depth = model.encoder.width, len(vit.blocks)
    first: Any = vit.blocks[0]
    hidden = max(first.mlp.fc1.out_features, 4 * width)
    options = {"depth": depth + 1 + model.config.bridge_depth, "mlp_ratio": hidden / width, "qkv_bias": True}
    state = {name: value for name, value in vit.state_dict().items() if not name.startswith(("blocks.", "norm."))}
    scaled = isinstance(first.ls1, LayerScale)
    for place, block in enumerate(vit.blocks):
        state |= _prefixed(place, _block(block, hidden, 1.0, scaled))
    state |= _prefixed(depth, _norm_block(vit.norm, width, hidden, scaled))
    for place, block in enumerate(model.bridge.blocks):
        state |= _prefixed(depth + 1 + place, _block(block, hidden, SCALE, scaled))
    state |= {f"norm.{name}": value for name, value in model.bridge.norm.state_dict().items()}
    return _tower(model, options, state)


def folded_projection(model: MaskedCLIP) -> tuple[Tensor, Tensor]:
    """Standardisation and projection as one linear layer: weight (E, D) and bias (E,), float32."""
    assert model.image_projection is not None
    mean, spread = standardisation(model.standardise, model.encoder.width)
    weight = model.image_projection.weight.detach().double() / spread
    return weight.float(), (-weight @ mean).float()


def standardisation(module: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """What is subtracted and what is divided by, both float64 (width,); 0 and 1 where nothing is standardised."""
    if isinstance(module, BatchStandardise):
        return module.mean.double(), (module.variance.double() + _STANDARDISE_EPSILON).sqrt()
    return torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)


def fold_into_norm(norm: nn.Module, mean: Tensor, spread: Tensor) -> None:
    """Let the LayerNorm before a mean over tokens do the standardisation of that mean, in place."""
    with torch.no_grad():
        norm.bias.copy_((norm.bias.double() - mean) / spread)  # type: ignore[union-attr, operator]
        norm.weight.copy_(norm.weight.double() / spread)  # type: ignore[union-attr, operator]


def _check(model: MaskedCLIP, target: str) -> None:
    vit, first = model.encoder.vit, model.encoder.vit.blocks[0]
    heads = model.bridge.blocks[0].attn.num_heads  # type: ignore[union-attr]
    why = None
    if any(type(block) is not Block or type(block.mlp) is not Mlp for block in vit.blocks):
        why = "the encoder's blocks are not plain ones (a gated perceptron, or blocks in parallel)"
    elif vit.num_reg_tokens:
        why = "the encoder's register tokens do not go on to the bridge"
    elif not isinstance(vit.norm, nn.LayerNorm):
        why = "the encoder has no final LayerNorm"
    elif type(first.mlp.act) is not nn.GELU or first.mlp.act.approximate != "none":  # type: ignore[union-attr]
        why = "the encoder's activation is not the bridge's (GELU)"
    elif not isinstance(first.attn.q_norm, nn.Identity):  # type: ignore[union-attr]
        why = "the encoder normalises queries and keys and the bridge does not"
    elif heads != model.encoder.heads:
        why = f"the bridge has {heads} attention heads and the encoder {model.encoder.heads}"
    if why is not None:
        raise UserError(
            f"--format {target}: cannot hold encoder and bridge as one transformer: {why}; "
            "export to onnx, torch or huggingface, or the encoder alone to timm"
        )


def _tower(model: MaskedCLIP, changed: dict[str, Any], state: dict[str, Tensor]) -> PlainTower:
    """Make timm's transformer of these weights."""
    config = model.config
    architecture = config.image_encoder.partition(".")[0]
    options = {
        **config.image_encoder_options,
        **changed,
        "img_size": config.size,
        "global_pool": "avg",
        "fc_norm": False,  # the norm comes before the mean, as everywhere here
    }
    if "norm.weight" not in state:
        options["final_norm"] = False
    vit = timm.create_model(architecture, num_classes=0, **options)
    assert isinstance(vit, VisionTransformer)
    wanted = vit.state_dict().keys()
    kept = {name: value.detach().cpu().float().contiguous() for name, value in state.items() if name in wanted}
    vit.load_state_dict(kept)
    return PlainTower(vit.eval(), architecture, options)


def _prefixed(place: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"blocks.{place}.{name}": value for name, value in state.items()}


def _block(block: nn.Module, hidden: int, scale: float, scaled: bool) -> dict[str, Tensor]:
    """A block's weights with wider hidden layer (idle units) and outputs times `scale`."""
    state = {name: value.detach().cpu().float() for name, value in block.state_dict().items()}
    width = len(state["norm1.weight"])
    state.setdefault("attn.qkv.bias", torch.zeros(3 * width))
    state.setdefault("attn.proj.bias", torch.zeros(width))
    extra = hidden - len(state["mlp.fc1.weight"])
    if extra:
        state["mlp.fc1.weight"] = nn.functional.pad(state["mlp.fc1.weight"], (0, 0, 0, extra))
        state["mlp.fc1.bias"] = nn.functional.pad(state["mlp.fc1.bias"], (0, extra))
        state["mlp.fc2.weight"] = nn.functional.pad(state["mlp.fc2.weight"], (0, extra))
    for name in ("attn.proj", "mlp.fc2"):
        state |= {f"{name}.{part}": state[f"{name}.{part}"] * scale for part in ("weight", "bias")}
    if scaled:
        for name in ("ls1.gamma", "ls2.gamma"):
            state.setdefault(name, torch.ones(width))
    return state


def _norm_block(norm: nn.Module, width: int, hidden: int, scaled: bool) -> dict[str, Tensor]:
    """The block that replaces a stream x by SCALE times norm(x)."""
    identity, idle = torch.eye(width), hidden - 2 * width
    state = {
        "norm1.weight": torch.ones(width),
        "norm1.bias": torch.zeros(width),
        "attn.qkv.weight": torch.zeros(3 * width, width),
        "attn.qkv.bias": torch.zeros(3 * width),
        "attn.proj.weight": torch.zeros(width, width),
        "attn.proj.bias": torch.zeros(width),
        "norm2.weight": norm.weight.detach().cpu().float(),  # type: ignore[union-attr, operator]
        "norm2.bias": norm.bias.detach().cpu().float(),  # type: ignore[union-attr, operator]
        "mlp.fc1.weight": torch.cat([identity, -identity, torch.zeros(idle, width)]),
        "mlp.fc1.bias": torch.zeros(hidden),
        "mlp.fc2.weight": torch.cat([identity, -identity, torch.zeros(width, idle)], dim=1) * SCALE,
        "mlp.fc2.bias": torch.zeros(width),
    }
    if scaled:
        state |= {"ls1.gamma": torch.ones(width), "ls2.gamma": torch.ones(width)}
    return state
