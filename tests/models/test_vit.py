"""The image encoder equals timm's forward, masked or not, and reads what people have as weights."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from maskedclip.errors import UserError
from maskedclip.models.vit import build_image_encoder, gather_patches

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}
KINDS = [
    ("vit_tiny_patch16_224", 64, SMALL),
    ("vit_small_patch14_dinov2", 56, SMALL),  # LayerScale
    ("vit_small_patch14_reg4_dinov2", 56, SMALL),  # registers; positions without prefix
    ("vit_base_patch16_siglip_224", 64, SMALL | {"global_pool": "avg"}),  # no class token
    ("vit_base_patch16_siglip_224", 64, SMALL),  # pools by attention
    ("vit_little_patch16_reg4_gap_256", 64, SMALL),  # its norm comes after the mean of the patches
    ("vit_base_patch32_clip_224", 64, SMALL),  # norm before the blocks, no bias in the patch embedding
]


@pytest.mark.parametrize(("name", "size", "options"), KINDS)
def test_encoder__equals_timm_and_masking_equals_nothing_hidden(name: str, size: int, options: dict) -> None:
    torch.manual_seed(0)
    encoder = build_image_encoder(name, size=size, weights=None, options=options).eval()
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        theirs = encoder.vit.forward_features(image)
        tokens = encoder(image)
        assert encoder.patches(tokens) == pytest.approx(theirs[:, encoder.vit.num_prefix_tokens :], abs=1e-5)
        if encoder.num_class_tokens:
            assert tokens[:, 0] == pytest.approx(theirs[:, 0], abs=1e-5)
        keep = torch.stack([torch.randperm(encoder.num_patches) for _ in range(2)])  # mask ratio 0
        all_kept = encoder(image, keep)
        assert encoder.patches(all_kept) == pytest.approx(gather_patches(encoder.patches(tokens), keep), abs=1e-5)
        assert all_kept.shape == tokens.shape


def test_encoder__hidden_pixels_change_nothing() -> None:
    encoder = build_image_encoder("vit_tiny_patch16_224", size=64, weights=None, options=SMALL).eval()
    image, keep = torch.randn(1, 3, 64, 64), torch.tensor([[0, 5, 10]])
    other = image.clone()
    other[:, :, 16:32, 32:] = 9.0  # patches 6 and 7
    with torch.no_grad():
        assert torch.equal(encoder(image, keep), encoder(other, keep))
        assert encoder(image, keep).shape == (1, 4, 48)


def test_encoder__fresh_positions_are_fixed() -> None:
    encoder = build_image_encoder("vit_tiny_patch16_224", size=64, weights=None, options=SMALL)
    assert encoder.vit.pos_embed is not None
    assert not encoder.vit.pos_embed.requires_grad
    assert (encoder.vit.pos_embed[:, 0] == 0).all()


def test_build__reads_a_local_file_and_resamples_positions(tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=3, **SMALL)
    assert isinstance(source, VisionTransformer)
    save_file({name: value.half() for name, value in source.state_dict().items()}, tmp_path / "w.safetensors")
    same = build_image_encoder("vit_tiny_patch16_224", size=64, weights=str(tmp_path / "w.safetensors"), options=SMALL)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert same(image) == pytest.approx(source.eval().forward_features(image), abs=2e-2)  # float16 in between
    assert same.vit.pos_embed is not None
    assert same.vit.pos_embed.requires_grad
    larger = build_image_encoder(
        "vit_tiny_patch16_224", size=96, weights=str(tmp_path / "w.safetensors"), options=SMALL
    )
    assert larger(torch.randn(1, 3, 96, 96)).shape == (1, 37, 48)
    finer = build_image_encoder(
        "vit_tiny_patch16_224", size=64, weights=str(tmp_path / "w.safetensors"), options=SMALL | {"patch_size": 8}
    )
    assert finer.num_patches == 64


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "vit_little_patch16_reg4_gap_256"])
def test_build__norm_and_pooling_behind_the_blocks(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    source = timm.create_model(name, img_size=64, num_classes=0, **SMALL).eval()
    assert isinstance(source, VisionTransformer)
    norm = source.fc_norm if isinstance(source.norm, nn.Identity) else source.norm
    nn.init.uniform_(norm.weight)  # type: ignore[arg-type]
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    encoder = build_image_encoder(name, size=64, weights=str(tmp_path / "w.safetensors"), options=SMALL)
    image = torch.randn(2, 3, 64, 64)
    tokens = encoder(image)
    with torch.no_grad():
        theirs = source.forward_features(image)[:, source.num_prefix_tokens :]
        expected = theirs if norm is source.norm else norm(theirs)
    assert encoder.patches(tokens).detach() == pytest.approx(expected, abs=1e-5)
    tokens.square().sum().backward()
    idle = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert idle == []  # data-parallel training waits for every parameter
    without = {name: value for name, value in source.state_dict().items() if not name.startswith("attn_pool")}
    save_file(without, tmp_path / "trunk.safetensors")
    same = build_image_encoder(name, size=64, weights=str(tmp_path / "trunk.safetensors"), options=SMALL)
    assert torch.equal(same(image), tokens)


@pytest.mark.shared
def test_build__real_dinov2_weights(shared: Path) -> None:
    weights = str(shared / "data" / "weights" / "dinov2_vits14_fp16.safetensors")
    encoder = build_image_encoder("vit_small_patch14_dinov2", size=112, weights=weights, options={})
    assert encoder(torch.randn(1, 3, 112, 112)).shape == (1, 65, 384)
    assert float(encoder.vit.blocks[0].ls1.gamma.detach().std()) > 0  # type: ignore[union-attr, arg-type, operator]


@pytest.mark.parametrize(
    ("name", "size", "weights", "options", "message"),
    [
        ("nosuchmodel", 64, None, {}, "model.image_encoder: nosuchmodel"),
        ("resnet18", 64, None, {}, "model.image_encoder: resnet18"),
        ("vit_tiny_patch16_224", 60, None, SMALL, "give 48"),
        ("vit_tiny_patch16_224", 64, None, {"nosuch": 1}, "nosuch"),
        ("vit_tiny_patch16_224", 64, None, {"embed_dim": 90, "num_heads": 3}, "embed_dim 90: sine-cosine.*give 96"),
        ("vit_tiny_patch16_224", 64, None, SMALL | {"depth": 0}, "depth 0: give 1 or more"),
        ("vit_tiny_patch16_224", 64, None, SMALL | {"num_heads": 0}, "num_heads"),
        ("vit_tiny_patch16_224", 64, "missing.safetensors", SMALL, "no such file"),
        ("vit_tiny_patch16_224", 64, "weights.pth", SMALL, "never loaded"),
        ("vit_tiny_patch16_224", 64, "broken.safetensors", SMALL, "no whole safetensors"),
        ("vit_tiny_patch16_224", 64, "other.safetensors", SMALL, "must name the architecture"),
    ],
)
def test_build__says_what_is_wrong(
    tmp_path: Path, name: str, size: int, weights: str | None, options: dict, message: str
) -> None:
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00")
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        build_image_encoder(name, size=size, weights=str(tmp_path / weights) if weights else None, options=options)
    assert "\n" not in str(caught.value)
