"""Which vision transformer a weights file holds, told from the names and shapes of its tensors alone.

What no tensor tells is never guessed: the number of attention heads is taken from the widths that are in use, and a
file of CLIP's layout, whose activation may be GELU or QuickGELU, is refused with the way to name its architecture.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from maskedclip.errors import UserError

# Attention heads of the published vision transformers by width: ViT-Ti to ViT-bigG (timm, DINOv2, SigLIP, OpenCLIP).
_HEADS = {192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1536: 24}
_TRUNK = "visual.trunk."

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An architecture in timm's words.

    name: of the constructor.  options: what differs from its defaults.  size: side of the input that the positions
    were learnt for, pixels.  patch: pixels.
    """

    name: str
    options: dict[str, Any]
    size: int
    patch: int


def read_layout(path: Path) -> Layout:
    """The architecture of a .safetensors file in the names of timm or DINOv2; no weights are read.

    Raises:
        UserError: it is no whole safetensors file, or the tensors do not tell the architecture.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is no whole safetensors file ({str(error).splitlines()[0]}); copy it again") from None
    return layout_of(shapes, path)


def layout_of(shapes: Shapes, path: Path) -> Layout:
    """The architecture that tensors of these names and shapes make up; `path` is named in errors.

    Raises:
        UserError: a part is missing, or what the tensors do not tell is open.
    """
    _check_family(shapes, path)
    shapes = {name.removeprefix(_TRUNK): shape for name, shape in shapes.items()}
    width, channels, patch, other = shapes["patch_embed.proj.weight"]
    if (channels, patch) != (3, other):
        raise _open_question(path, f"its patches are {patch} x {other} px of {channels} channels, not square RGB")
    if width not in _HEADS:
        raise _open_question(path, f"how many attention heads go with a width of {width} is not known")
    class_token = "cls_token" in shapes
    registers = next((shapes[name][1] for name in ("reg_token", "register_tokens") if name in shapes), 0)
    side, prefix = _grid(shapes["pos_embed"][1], class_token, registers, path)
    if "register_tokens" in shapes:
        prefix = 0  # DINOv2's own file: timm adds the class token's position to the token when it reads the file
    options: dict[str, Any] = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": len({match[1] for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))}),
        "num_heads": _HEADS[width],
        "mlp_ratio": _hidden(shapes, path) / width,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in shapes else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "qk_norm": "blocks.0.attn.q_norm.weight" in shapes,
        "class_token": class_token,
        "reg_tokens": registers,
        "no_embed_class": prefix == 0 and (class_token or registers > 0),
    }
    if not class_token:
        options |= {"global_pool": "avg", "fc_norm": False}  # only so that timm makes no pooling by a class token
    name = "vit_giant_patch14_dinov2" if _is_gated(shapes) else "vit_base_patch16_224"
    return Layout(name=name, options=options, size=side * patch, patch=patch)


def _check_family(shapes: Shapes, path: Path) -> None:
    """Refuse, by what gives them away, files of other families and those that leave something open."""
    if any(name.startswith("encoder.vit.") for name in shapes):
        raise UserError(f"{path}: these are the weights of a run; give the run directory instead of the file")
    if any("visual.class_embedding" in name for name in shapes):
        raise _open_question(path, "CLIP's layout has GELU or QuickGELU", "e.g. timm:vit_base_patch32_clip_224=FILE")
    names = {name.removeprefix(_TRUNK) for name in shapes}
    if "patch_embed.proj.weight" not in names or len(shapes.get("patch_embed.proj.weight", (0,) * 4)) != 4:
        raise _open_question(path, "it has no patch_embed.proj.weight, so it is not in the names of timm or DINOv2")
    if "norm_pre.weight" in names:
        raise _open_question(path, "CLIP's layout has GELU or QuickGELU", "e.g. timm:vit_base_patch32_clip_224=FILE")
    if "pos_embed" not in names:
        raise _open_question(path, "it has no pos_embed (rotary or no positions)")
    if "norm.weight" not in names:
        what = "fc_norm in its place, as after fine-tuning" if "fc_norm.weight" in names else "no final norm"
        raise UserError(f"{path}: has {what}, so its patch tokens are not its features; give the pre-trained encoder")
    if "blocks.0.attn.qkv.weight" not in names:
        raise _open_question(path, "its blocks have no attn.qkv.weight (blocks in chunks, or another family)")


def _grid(positions: int, class_token: bool, registers: int, path: Path) -> tuple[int, int]:
    """Patches on a side, and how many positions stand before the patches'."""
    candidates = dict.fromkeys((int(class_token) + registers, int(class_token), 0))
    for prefix in candidates:
        side = round(max(positions - prefix, 0) ** 0.5)
        if side > 0 and side * side == positions - prefix:
            return side, prefix
    raise _open_question(path, f"its {positions} positions are no square grid of patches")


def _is_gated(shapes: Shapes) -> bool:
    """SwiGLU: DINOv2's w12, or an fc1 twice as wide as fc2 reads."""
    if "blocks.0.mlp.w12.weight" in shapes:
        return True
    first, second = shapes.get("blocks.0.mlp.fc1.weight"), shapes.get("blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and first[0] == 2 * second[1]


def _hidden(shapes: Shapes, path: Path) -> int:
    """Outputs of the first layer of a block's perceptron; both halves of a gated one."""
    for name in ("fc1", "w12"):
        if (shape := shapes.get(f"blocks.0.mlp.{name}.weight")) is not None:
            return shape[0]
    raise _open_question(path, "its blocks have no mlp.fc1 or mlp.w12")


def _open_question(path: Path, why: str, example: str = "e.g. timm:vit_small_patch14_dinov2=FILE") -> UserError:
    return UserError(
        f"{path}: the architecture cannot be told from its tensors ({why}); name it as timm:NAME={path.name}, {example}"
    )
