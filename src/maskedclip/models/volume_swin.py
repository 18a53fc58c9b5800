"""The large encoder of volumes: the Swin transformer of MONAI's SwinUNETR (arXiv 2201.01266), and its decoder.

It is the network of Disruptive Autoencoders (arXiv 2307.16896); weights under `swinViT` are in MONAI's names.
B volumes of one channel, S voxels on a side, a multiple of 32, F features of the first level, D = 16 F of the last.
"""

import importlib
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from maskedclip.errors import UserError
from maskedclip.models.vit import ImageEncoder
from maskedclip.models.volume import patchify_volume, unpatchify_volume

_STRIDE = 32
_DEFAULTS: dict[str, Any] = {
    "feature_size": 48,
    "depths": (2, 2, 2, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
}


class SwinEncoder(ImageEncoder):
    """Tokens of the last level, (B, L, D), L = (S / 32)^3; no class token, and no encoding of visible patches alone."""

    def __init__(self, net: Any, size: int, options: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.swinViT, self.recompute, self.options = net.swinViT, False, options
        self.width: int = 16 * options["feature_size"]
        self.grid = (size // _STRIDE,) * 3  # type: ignore[assignment]
        self.patch_size, self.num_patches = _STRIDE, (size // _STRIDE) ** 3
        self.num_class_tokens, self.heads = 0, options["num_heads"][-1]

    @property
    def patch_values(self) -> int:
        """Voxels in a patch, V."""
        return self.patch_size**3

    @property
    def patch_channels(self) -> int:
        """Channels of the patch embedding, F."""
        return self.options["feature_size"]

    def patchify(self, image: Tensor) -> Tensor:
        """Cut volumes into patches, (B, 1, S, S, S) -> (B, L, V)."""
        return patchify_volume(image, self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Inverse of `patchify`, (B, L, V) -> (B, 1, S, S, S)."""
        return unpatchify_volume(patches, self.patch_size)

    def forward(self, image: Tensor, keep: Tensor | None = None, channels: Tensor | None = None) -> Tensor:
        """Encode volumes, (B, 1, S, S, S) -> (B, L, D).

        Args:
            image: volumes.
            keep: must be None.
            channels: True where a channel of the patch embedding is zeroed at all places, bool (B, F).

        Raises:
            UserError: only some patches are to be encoded.
        """
        if keep is not None:
            raise UserError(
                "model.image_encoder: volume_swin_unetr cannot encode visible patches alone, as masked losses and "
                "maskings ask; use volume_vit, or the recipe dae"
            )
        return self.tokens(self.pyramid(image, channels))

    def pyramid(self, image: Tensor, channels: Tensor | None = None) -> list[Tensor]:
        """Five levels, (B, F, S/2, ...) to (B, 16 F, S/32, ...), each normalised over its features as MONAI does."""
        net: Any = self.swinViT
        level = net.patch_embed(image)
        if channels is not None:
            level = level.masked_fill(channels[:, :, None, None, None], 0)
        levels = [level]
        for stage in (net.layers1, net.layers2, net.layers3, net.layers4):
            level = stage[0](level.contiguous())
            levels.append(level)
        return [_normalised(level) for level in levels]

    def tokens(self, levels: list[Tensor]) -> Tensor:
        """The last level as tokens, (B, L, D)."""
        return levels[-1].flatten(2).transpose(1, 2)

    def pyramid_decoder(self) -> nn.Module:
        """A fresh decoder for `pyramid`."""
        return UnetrDecoder(_swin_unetr(self.options))


class UnetrDecoder(nn.Module):
    """SwinUNETR's convolutions with skips from all levels and from the input itself: -> (B, 1, S, S, S)."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        del net.swinViT
        self.net = net

    def forward(self, levels: list[Tensor], image: Tensor) -> Tensor:
        """Decode levels of `SwinEncoder.pyramid` and the volumes they were made of."""
        net: Any = self.net
        up = net.decoder5(net.encoder10(levels[4]), levels[3])
        up = net.decoder4(up, net.encoder4(levels[2]))
        up = net.decoder3(up, net.encoder3(levels[1]))
        up = net.decoder2(up, net.encoder2(levels[0]))
        return net.out(net.decoder1(up, net.encoder1(image)))


def build_swin_encoder(*, size: int, options: dict[str, Any]) -> SwinEncoder:
    """The encoder of MONAI's SwinUNETR.

    Raises:
        UserError: MONAI is missing, an unknown option, a size that is no multiple of 32.
    """
    unknown = sorted(set(options) - set(_DEFAULTS))
    if unknown:
        raise UserError(
            f"model.image_encoder_options: {', '.join(unknown)}: no option of volume_swin_unetr; known: "
            f"{', '.join(_DEFAULTS)}"
        )
    if size % _STRIDE:
        raise UserError(
            f"data.size: {size} is no multiple of the {_STRIDE}-voxel stride of volume_swin_unetr; give "
            f"{max(size // _STRIDE, 1) * _STRIDE}"
        )
    if size < 2 * _STRIDE:
        raise UserError(
            f"data.size: {size} leaves volume_swin_unetr one token, which its decoder cannot normalise; give 64"
        )
    chosen = _DEFAULTS | options
    try:
        return SwinEncoder(_swin_unetr(chosen), size, chosen)
    except ValueError as error:
        raise UserError(f"model.image_encoder_options: {options}: {str(error).splitlines()[0]}") from None


def _swin_unetr(options: dict[str, Any]) -> Any:
    try:
        nets: Any = importlib.import_module("monai.networks.nets")
    except ImportError:
        raise UserError(
            "model.image_encoder: volume_swin_unetr needs the extra `volumes`: pip install 'maskedclip[volumes]'"
        ) from None
    return nets.SwinUNETR(
        in_channels=1,
        out_channels=1,
        feature_size=options["feature_size"],
        depths=tuple(options["depths"]),
        num_heads=tuple(options["num_heads"]),
        window_size=options["window_size"],
    )


def _normalised(level: Tensor) -> Tensor:
    """LayerNorm without weights over the features, (B, F, ...)."""
    moved = level.movedim(1, -1)
    return functional.layer_norm(moved, moved.shape[-1:]).movedim(-1, 1)
