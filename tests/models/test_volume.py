"""Encoders of volumes: the same transformer, three dimensions."""

from typing import Any

import pytest
import torch

from maskedclip.errors import UserError
from maskedclip.models.attention_maps import summed_attention
from maskedclip.models.decoder import Decoder
from maskedclip.models.vit import ImageEncoder, build_image_encoder, gather_patches
from maskedclip.models.volume import patchify_volume, unpatchify_volume
from maskedclip.models.volume_positions import sincos_positions_3d

OPTIONS = {"patch_size": 4, "depth": 2, "embed_dim": 48, "num_heads": 3}


def volume_vit(size: int = 12, **options: int) -> ImageEncoder:
    torch.manual_seed(0)
    return build_image_encoder("volume_vit", size=size, weights=None, options=OPTIONS | options).eval()


def picture_vit() -> ImageEncoder:
    torch.manual_seed(0)
    options = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
    return build_image_encoder("vit_tiny_patch16_224", size=32, weights=None, options=options).eval()


def test_patchify_volume__cuts_cubes_and_comes_back() -> None:
    volume = torch.rand(2, 1, 12, 12, 12)
    patches = patchify_volume(volume, 4)
    assert patches.shape == (2, 27, 64)
    assert torch.equal(unpatchify_volume(patches, 4), volume)
    assert torch.equal(patches[1, 9 * 2 + 3 * 0 + 1].view(4, 4, 4), volume[1, 0, 8:12, 0:4, 4:8])


def test_volume_vit__has_the_interface_of_the_picture_encoder() -> None:
    encoder = volume_vit()
    assert encoder.grid == (3, 3, 3)
    assert (encoder.num_patches, encoder.patch_size, encoder.patch_values) == (27, 4, 64)
    assert (encoder.width, encoder.heads, encoder.num_class_tokens) == (48, 3, 1)
    volume = torch.rand(2, 1, 12, 12, 12)
    tokens = encoder(volume)
    assert tokens.shape == (2, 28, 48)
    assert torch.equal(encoder.patches(tokens), tokens[:, 1:])
    assert torch.equal(encoder.unpatchify(encoder.patchify(volume)), volume)
    assert summed_attention(encoder, volume).shape == (2, 27, 27)


def test_volume_vit__visible_patches_alone_are_those_of_the_whole() -> None:
    encoder, volume = volume_vit(), torch.rand(2, 1, 12, 12, 12)
    order = torch.stack([torch.randperm(27), torch.randperm(27)])
    with torch.no_grad():
        whole, shuffled = encoder(volume), encoder(volume, order)
    assert torch.allclose(gather_patches(encoder.patches(whole), order), encoder.patches(shuffled), atol=1e-5)
    keep = order[:, :7]
    hidden = torch.ones(2, 27, dtype=torch.bool).scatter(1, keep, False)
    spoilt = encoder.patchify(volume).masked_fill(hidden[:, :, None], 9.0)
    with torch.no_grad():
        seen = encoder(volume, keep)
        assert seen.shape == (2, 8, 48)
        assert torch.equal(seen, encoder(encoder.unpatchify(spoilt), keep))


@pytest.mark.parametrize("width", [6, 24, 48, 100])
def test_sincos_positions_3d__tell_places_and_axes_apart(width: int) -> None:
    positions = sincos_positions_3d((3, 4, 5), width)
    assert positions.shape == (1, 60, width)
    assert len(torch.unique(positions[0], dim=0)) == 60
    grid = positions.view(3, 4, 5, width)
    each = 2 * (width // 6)
    assert torch.equal(grid[:, :1, :1, :each].expand(3, 4, 5, each), grid[..., :each])  # X alone
    assert torch.equal(grid[:1, :1, :, 2 * each : 3 * each].expand(3, 4, 5, each), grid[..., 2 * each : 3 * each])
    assert not grid[..., 3 * each :].any()
    assert torch.allclose(grid[2, 0, 0, 0].double(), torch.sin(torch.tensor(2.0, dtype=torch.float64)))


def hides_channels_everywhere(before: torch.Tensor, after: torch.Tensor, count: int) -> bool:
    """Whether exactly `count` channels of (B, L, D) are zero at all places, and the others are as they were."""
    zero = (after == 0).all(dim=1)  # (B, D)
    kept = torch.where(zero[:, None, :], 0.0, before)
    return bool((zero.sum(dim=1) == count).all()) and torch.equal(kept, after)


@pytest.mark.parametrize("build", [volume_vit, picture_vit])
def test_encoder__channels_are_zero_at_all_places_and_others_unchanged(build: Any) -> None:
    encoder: Any = build()
    sides = (12, 12, 12) if len(encoder.grid) == 3 else (32, 32)
    image = torch.rand(3, 1 if len(sides) == 3 else 3, *sides)
    count = int(0.6 * encoder.patch_channels)
    channels = torch.zeros(3, encoder.patch_channels, dtype=torch.bool)
    for row in range(3):
        channels[row, torch.randperm(encoder.patch_channels)[:count]] = True
    reached: list[torch.Tensor] = []
    hook = encoder.vit.blocks[0].register_forward_pre_hook(lambda _, given: reached.append(given[0].detach()))
    with torch.no_grad():
        masked = encoder(image, channels=channels)
        plain = encoder(image)
    hook.remove()
    positions = encoder.vit.pos_embed[:, 1:].expand(3, -1, -1)
    embedded = encoder.vit.patch_embed(image).detach()
    expected = embedded.masked_fill(channels[:, None], 0.0)
    assert hides_channels_everywhere(embedded, expected, count)
    assert torch.equal(reached[0][:, 1:], expected + positions)
    assert torch.equal(reached[1][:, 1:], embedded + positions)
    assert not torch.allclose(masked, plain)
    tokens_hidden = embedded.clone()
    tokens_hidden[:, : int(0.6 * embedded.shape[1])] = 0
    assert not hides_channels_everywhere(embedded, tokens_hidden, count)


def test_decoder__predicts_each_patch_of_a_grid_in_space() -> None:
    encoder = volume_vit()
    decoder = Decoder(encoder_width=48, class_tokens=1, grid=encoder.grid, width=24, depth=1, heads=2, out=64).eval()
    tokens = encoder(torch.rand(2, 1, 12, 12, 12), torch.arange(9).expand(2, -1))
    restore = torch.arange(27).expand(2, -1)
    assert decoder(tokens, restore).shape == (2, 27, 64)
    some = decoder(tokens, restore, torch.tensor([[20, 11], [26, 9]]))
    assert some.shape == (2, 2, 64)
    assert decoder.positions.shape == (1, 27, 24)


@pytest.mark.parametrize(
    ("name", "size", "options", "weights", "told"),
    [
        ("volume_vit", 13, {}, None, "data.size: 13 is no multiple of the 4-voxel patches"),
        ("volume_vit", 12, {"patch": 4}, None, "patch: no option of volume_vit; known: patch_size"),
        ("volume_vit", 12, {"depth": 0}, None, "depth 0: give a whole number above 0"),
        ("volume_vit", 12, {"num_heads": 5}, None, "multiple of 5 heads"),
        ("volume_vit", 12, {}, "a.safetensors", "starts from nothing"),
        ("volume_cnn", 12, {}, None, "no such encoder of volumes"),
    ],
)
def test_build_volume_encoder__refuses_in_one_line(
    name: str, size: int, options: dict[str, int], weights: str | None, told: str
) -> None:
    with pytest.raises(UserError, match=told) as caught:
        build_image_encoder(name, size=size, weights=weights, options=OPTIONS | options)
    assert "\n" not in str(caught.value)


SWIN = {"feature_size": 12, "window_size": 4}


def test_swin__is_monais_encoder_and_decoder() -> None:
    nets: Any = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    whole = nets.SwinUNETR(in_channels=1, out_channels=1, feature_size=12, window_size=4).eval()
    encoder: Any = build_image_encoder("volume_swin_unetr", size=64, weights=None, options=SWIN).eval()
    encoder.swinViT.load_state_dict(whole.swinViT.state_dict())
    decoder: Any = encoder.pyramid_decoder().eval()
    rest = {name: value for name, value in whole.state_dict().items() if not name.startswith("swinViT.")}
    decoder.net.load_state_dict(rest)
    volume = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        levels = encoder.pyramid(volume)
        assert torch.allclose(decoder(levels, volume), whole(volume), atol=1e-5)
        assert encoder.tokens(levels).shape == (1, encoder.num_patches, encoder.width) == (1, 8, 192)
        channels = torch.zeros(1, 12, dtype=torch.bool)
        channels[:, :7] = True
        small = torch.rand(1, 1, 32, 32, 32)
        assert torch.allclose(encoder.pyramid(small)[-1], whole.swinViT(small)[-1], atol=1e-5)
        level = encoder.pyramid(small, channels)[0]
        assert torch.equal(level[:, :7], level[:, :1].expand(-1, 7, -1, -1, -1))  # zero before the level is normalised
        with pytest.raises(UserError, match="visible patches alone"):
            encoder(volume, torch.zeros(1, 1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("size", "options", "told"),
    [
        (48, SWIN, "no multiple of the 32-voxel stride"),
        (32, SWIN, "one token"),
        (32, {"width": 12}, "width: no option of volume_swin_unetr"),
        (64, {"feature_size": 13}, "divisible by 12"),
    ],
)
def test_build_swin_encoder__refuses_in_one_line(size: int, options: dict[str, int], told: str) -> None:
    pytest.importorskip("monai.networks.nets")
    with pytest.raises(UserError, match=told):
        build_image_encoder("volume_swin_unetr", size=size, weights=None, options=options)


def test_build_swin_encoder__names_the_extra_where_monai_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(UserError, match=r"pip install 'maskedclip\[volumes\]'"):
        build_image_encoder("volume_swin_unetr", size=64, weights=None, options=SWIN)
