"""The image encoder f: any timm vision transformer, reading all patches or only the visible ones.

B images, L patches in all, K visible ones, D width, P pixels on a patch's side, S pixels on an image's side.
"""

import math
from pathlib import Path
from typing import Any

import timm
import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.models.bridge import run_blocks
from maskedclip.models.initialisation import initialise
from maskedclip.models.volume_positions import sincos_positions_3d


def sincos_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """Fixed sine-cosine positions of a patch grid, row by row, (1, L, D); Vaswani et al. 2017, in two dimensions."""
    if len(grid) == 3:
        return sincos_positions_3d(grid, width)
    return build_sincos2d_pos_embed(list(grid), dim=width)[None]


class ImageEncoder(nn.Module):
    """A timm vision transformer that masks before it encodes: hidden patches are neither embedded nor attended to.

    Tokens come out as (class token if the model has one, patches); register tokens take part inside and are dropped.
    What timm puts behind its pooling is no part of it: a norm there moves before it, and a pooling of its own goes.
    """

    def __init__(self, vit: VisionTransformer, *, fixed_positions: bool = False) -> None:
        super().__init__()
        if isinstance(vit.norm, nn.Identity):
            vit.norm, vit.fc_norm = vit.fc_norm, nn.Identity()
        vit.attn_pool = None
        self.vit, self.recompute = vit, False
        self.width: int = vit.embed_dim
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)  # type: ignore[assignment]
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.num_patches: int = vit.patch_embed.num_patches
        self.num_class_tokens = int(vit.has_class_token)
        self.heads: int = vit.blocks[0].attn.num_heads  # type: ignore[union-attr]
        if fixed_positions and vit.pos_embed is not None:
            prefix = vit.pos_embed.shape[1] - self.num_patches
            positions = sincos_positions(self.grid, self.width)
            vit.pos_embed = nn.Parameter(functional.pad(positions, (0, 0, prefix, 0)), requires_grad=False)

    @property
    def patch_values(self) -> int:
        """Numbers in a patch of the image, V."""
        return 3 * self.patch_size**2

    def patchify(self, image: Tensor) -> Tensor:
        """Cut normalised images into patches, (B, 3, S, S) -> (B, L, V)."""
        return patchify(image, self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Inverse of `patchify`, (B, L, V) -> (B, 3, S, S)."""
        return unpatchify(patches, self.patch_size)

    @property
    def patch_channels(self) -> int:
        """Channels of the patch embedding, of which `forward` zeroes some."""
        return self.width

    def forward(self, image: Tensor, keep: Tensor | None = None, channels: Tensor | None = None) -> Tensor:
        """Encode all patches, or only those in `keep`.

        Args:
            image: normalised, (B, 3, S, S).
            keep: places of the K visible patches of each image, int64 (B, K); None encodes all.
            channels: True where a channel of the patch embedding is zeroed at all places, before positions are added,
                bool (B, D), as disruptive autoencoders do (arXiv 2307.16896); None zeroes none.

        Returns: (B, C + L, D), or (B, C + K, D) in the order of `keep`; C = `num_class_tokens` (1 or 0).
        """
        vit = self.vit
        embedded = self._embed(image, keep)
        if channels is not None:
            embedded = embedded.masked_fill(channels[:, None, :], 0)
        tokens = vit.norm_pre(self._with_prefix(embedded, keep))
        tokens = vit.norm(run_blocks(vit.blocks, tokens, recompute=self.recompute))
        registers = slice(self.num_class_tokens, vit.num_prefix_tokens)
        if registers.stop > registers.start:
            tokens = torch.cat([tokens[:, : registers.start], tokens[:, registers.stop :]], dim=1)
        return tokens

    def patches(self, tokens: Tensor) -> Tensor:
        """Drop the class token: (B, C + L, D) -> (B, L, D)."""
        return tokens[:, self.num_class_tokens :]

    def _embed(self, image: Tensor, keep: Tensor | None) -> Tensor:
        """Patch embedding of the visible patches alone, (B, K, D): the convolution written as one matrix product."""
        embed = self.vit.patch_embed
        if keep is None:
            return embed(image)
        pixels = gather_patches(patchify(image, self.patch_size), keep)  # (B, K, 3 P P)
        weight = rearrange(embed.proj.weight, "d c p q -> d (p q c)")
        return embed.norm(functional.linear(pixels, weight, embed.proj.bias))

    def _with_prefix(self, patches: Tensor, keep: Tensor | None) -> Tensor:
        """Add positions and put class and register tokens before the patches, as timm does for all patches."""
        vit = self.vit
        prefix = [token.expand(len(patches), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
        if vit.pos_embed is None:
            return torch.cat([*prefix, patches], dim=1)
        positions = vit.pos_embed[:, -self.num_patches :]  # (1, L, D)
        if keep is not None:
            positions = gather_patches(positions.expand(len(patches), -1, -1), keep)
        patches = patches + positions
        if not prefix:
            return patches
        front = torch.cat(prefix, dim=1)
        extra = vit.pos_embed.shape[1] - self.num_patches
        if extra:
            front = front + vit.pos_embed[:, :extra]
        return torch.cat([front.to(patches.dtype), patches], dim=1)


def patchify(image: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, row by row: (B, 3, S, S) -> (B, L, P P 3), channels last."""
    return rearrange(image, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, patch_size: int) -> Tensor:
    """Inverse of `patchify` on a square grid: (B, L, P P 3) -> (B, 3, S, S)."""
    side = round(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch_size, q=patch_size)


def gather_patches(patches: Tensor, places: Tensor) -> Tensor:
    """Take some patches of each image: (B, L, D) and int64 (B, K) -> (B, K, D)."""
    return patches.gather(1, places[:, :, None].expand(-1, -1, patches.shape[-1]))


def build_image_encoder(name: str, *, size: int, weights: str | None, options: dict[str, Any]) -> ImageEncoder:
    """Make a timm encoder for `size` pixels.

    Args:
        name: timm's name of a vision transformer; or an encoder of volumes (`models.volume`).
        size: side of the input, a multiple of the patch size.
        weights: a local .safetensors file in the names of timm, DINOv2, OpenAI CLIP or open_clip, whose positions and
            patch embedding are resampled to this size and patch grid; `pretrained` fetches timm's; None is fresh, with
            fixed sine-cosine positions.
        options: arguments of timm's constructor for a fresh encoder, e.g. `patch_size`, `depth`.

    Raises:
        UserError: unknown name, another family, a size that is no multiple of the patch, a file that does not fit.
    """
    if name.startswith("volume_"):
        from maskedclip.models.volume import build_volume_encoder

        return build_volume_encoder(name, size=size, weights=weights, options=options)
    if weights not in (None, "pretrained"):
        _check_weights(weights)
    try:
        vit = timm.create_model(name, pretrained=weights == "pretrained", img_size=size, num_classes=0, **options)
    except RuntimeError as error:
        raise UserError(
            f"model.image_encoder: {name}: {_first_line(error)}; `timm.list_models('vit*')` lists names"
        ) from None
    except (TypeError, AssertionError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"model.image_encoder: {name} with {options} at {size} px: {_first_line(error)}") from None
    except OSError as error:
        raise UserError(
            f"model.image_weights: the weights of {name} cannot be fetched ({_first_line(error)}); "
            "give a local .safetensors file instead"
        ) from None
    if not isinstance(vit, VisionTransformer):
        raise UserError(
            f"model.image_encoder: {name} is a {type(vit).__name__}, not a plain vision transformer that can encode "
            "visible patches alone; choose a timm model whose name begins with vit_ or deit_"
        )
    if not len(vit.blocks):
        raise UserError(f"model.image_encoder_options: depth {options.get('depth')}: give 1 or more")
    patch = vit.patch_embed.patch_size[0]
    if size % patch:
        raise UserError(
            f"data.size: {size} is no multiple of the {patch} px patches of {name}; give {size // patch * patch}"
        )
    if weights is not None and weights != "pretrained":
        _load_weights(vit, Path(weights))
    if weights is None:
        _check_width(vit)
        initialise_as_mae(vit)
    return ImageEncoder(vit, fixed_positions=weights is None)


def _check_width(vit: VisionTransformer) -> None:
    heads: int = vit.blocks[0].attn.num_heads  # type: ignore[union-attr]
    step = math.lcm(4, heads)
    if vit.embed_dim % 4:
        raise UserError(
            f"model.image_encoder_options: embed_dim {vit.embed_dim}: sine-cosine positions need a multiple of 4, and "
            f"{heads} heads one of {heads}; give {-(-vit.embed_dim // step) * step}"
        )


def initialise_as_mae(vit: VisionTransformer) -> None:
    """MAE's initialisation (arXiv 2111.06377): a narrow encoder learns nothing for long from timm's std of 0.02."""
    initialise(vit)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.data.flatten(1))
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)


def _check_weights(weights: str) -> None:
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"model.image_weights: {path}: no such file; give a .safetensors file, `pretrained` or null")
    if path.suffix != ".safetensors":
        raise UserError(
            f"model.image_weights: {path.name} may hold code (a pickle), which is never loaded; "
            "convert it once with safetensors.torch.save_file where you trust it"
        )


def _load_weights(vit: VisionTransformer, path: Path) -> None:
    try:
        stored = {name: value.float() for name, value in load_file(path).items()}
    except SafetensorError as error:
        raise UserError(
            f"model.image_weights: {path.name} is no whole safetensors file ({_first_line(error)})"
        ) from None
    spoilt = [name for name, value in stored.items() if not torch.isfinite(value).all()]
    if spoilt:
        raise UserError(
            f"model.image_weights: {path.name}: {len(spoilt)} tensors hold NaN or infinity ({spoilt[0]}...); "
            "save the file again from a healthy model"
        )
    try:
        fitted = checkpoint_filter_fn(stored, vit)
        missing, unexpected = vit.load_state_dict(fitted, strict=False)
        missing = [name for name in missing if not name.startswith("attn_pool.")]  # nobody reads it
    except (RuntimeError, KeyError, AttributeError, AssertionError) as error:
        raise UserError(
            f"model.image_weights: {path.name} does not fit this encoder ({_first_line(error)}); "
            "model.image_encoder must name the architecture the file was saved from"
        ) from None
    unexpected = [name for name in unexpected if not name.startswith(("head", "fc_norm", "mask_token", "norm."))]
    if missing or unexpected:
        raise UserError(
            f"model.image_weights: {path.name} lacks {len(missing)} tensors ({', '.join(missing[:3])}...) and has "
            f"{len(unexpected)} that the encoder lacks ({', '.join(unexpected[:3])}...); "
            "model.image_encoder must name the architecture the file was saved from"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
