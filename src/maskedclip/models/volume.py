"""Image encoders of volumes: the vision transformer of pictures with a patch embedding in three dimensions.

B volumes of one channel, S voxels on a side, P on a patch's, L = (S / P)^3 patches, V = P^3 voxels in one, D width.
Blocks, class token, masking before encoding and attention are those of `models.vit`, so maskings, targets and the loop
are too.
"""

from typing import Any

from einops import rearrange
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.models.vit import ImageEncoder, gather_patches, initialise_as_mae

VOLUME_VIT, VOLUME_SWIN = "volume_vit", "volume_swin_unetr"
_DEFAULTS = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
"""ViT-B with patches of 16^3, the size at which Disruptive Autoencoders compare MAE (arXiv 2307.16896)."""


class VolumePatchEmbed(nn.Module):
    """A convolution whose kernel and stride are the patch: (B, 1, S, S, S) -> (B, L, D), the Z axis fastest."""

    def __init__(
        self, img_size: int, patch_size: int, in_chans: int = 1, embed_dim: int = 768, bias: bool = True, **_: Any
    ) -> None:
        super().__init__()
        self.patch_size = (patch_size,) * 3
        self.grid_size = (img_size // patch_size,) * 3
        self.num_patches = self.grid_size[0] ** 3
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)
        self.norm = nn.Identity()

    def forward(self, volume: Tensor) -> Tensor:
        """Embed all patches."""
        return self.norm(self.proj(volume).flatten(2).transpose(1, 2))


class VolumeEncoder(ImageEncoder):
    """`ImageEncoder` for volumes (B, 1, S, S, S); its grid has three sides."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__(vit, fixed_positions=True)

    @property
    def patch_values(self) -> int:
        """Voxels in a patch, V."""
        return self.patch_size**3

    def patchify(self, image: Tensor) -> Tensor:
        """Cut volumes into patches, (B, 1, S, S, S) -> (B, L, V)."""
        return patchify_volume(image, self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Inverse of `patchify`, (B, L, V) -> (B, 1, S, S, S)."""
        return unpatchify_volume(patches, self.patch_size)

    def _embed(self, image: Tensor, keep: Tensor | None) -> Tensor:
        """Patch embedding of the visible patches alone, (B, K, D)."""
        embed: Any = self.vit.patch_embed
        if keep is None:
            return embed(image)
        voxels = gather_patches(self.patchify(image), keep)
        return embed.norm(functional.linear(voxels, embed.proj.weight.flatten(1), embed.proj.bias))


def patchify_volume(volume: Tensor, patch_size: int) -> Tensor:
    """Cut volumes into patches, Z fastest: (B, 1, S, S, S) -> (B, L, P P P)."""
    p = patch_size
    return rearrange(volume, "b 1 (x p) (y q) (z r) -> b (x y z) (p q r)", p=p, q=p, r=p)


def unpatchify_volume(patches: Tensor, patch_size: int) -> Tensor:
    """Inverse of `patchify_volume` on a cubic grid: (B, L, P P P) -> (B, 1, S, S, S)."""
    p, side = patch_size, round(patches.shape[1] ** (1 / 3))
    return rearrange(patches, "b (x y z) (p q r) -> b 1 (x p) (y q) (z r)", x=side, y=side, p=p, q=p, r=p)


def build_volume_encoder(name: str, *, size: int, weights: str | None, options: dict[str, Any]) -> ImageEncoder:
    """Make an encoder of volumes.

    Args:
        name: `volume_vit`, or `volume_swin_unetr` (needs the extra `volumes`).
        size: S, a multiple of the patch size.
        weights: must be None; there are no shipped weights of volumes.
        options: of `volume_vit`: patch_size, embed_dim, depth, num_heads; of `volume_swin_unetr`: see `volume_swin`.

    Raises:
        UserError: an unknown option, sizes that do not fit, weights, MONAI is missing.
    """
    if weights is not None:
        raise UserError(f"model.image_weights: {weights}: {name} starts from nothing; give null")
    if name == VOLUME_SWIN:
        from maskedclip.models.volume_swin import build_swin_encoder

        return build_swin_encoder(size=size, options=options)
    if name != VOLUME_VIT:
        raise UserError(f"model.image_encoder: {name}: no such encoder of volumes; give {VOLUME_VIT} or {VOLUME_SWIN}")
    unknown = sorted(set(options) - set(_DEFAULTS))
    if unknown:
        raise UserError(
            f"model.image_encoder_options: {', '.join(unknown)}: no option of {name}; known: {', '.join(_DEFAULTS)}"
        )
    chosen = _DEFAULTS | options
    for option, value in chosen.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"model.image_encoder_options: {option} {value!r}: give a whole number above 0")
    patch, width, heads = chosen["patch_size"], chosen["embed_dim"], chosen["num_heads"]
    if size % patch:
        raise UserError(
            f"data.size: {size} is no multiple of the {patch}-voxel patches of {name}; give "
            f"{max(size // patch, 1) * patch}"
        )
    if width % heads or width < 6:
        raise UserError(
            f"model.image_encoder_options: embed_dim {width}: give a multiple of {heads} heads, at least 6 (positions)"
        )
    vit = VisionTransformer(
        img_size=size,
        patch_size=patch,
        in_chans=1,
        num_classes=0,
        embed_dim=width,
        depth=chosen["depth"],
        num_heads=heads,
        embed_layer=VolumePatchEmbed,  # type: ignore[arg-type]
    )
    initialise_as_mae(vit)
    return VolumeEncoder(vit)
