"""An encoder at another size: timm's own resampling, whatever the kind of positions; and back where it was."""

from typing import Any

import pytest
import torch

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP, ModelConfig
from maskedclip.models.resizing import check_size, fitting_size, resized
from maskedclip.models.vit import build_image_encoder

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def _model(name: str, size: int, options: dict[str, Any]) -> MaskedCLIP:
    torch.manual_seed(0)
    encoder = build_image_encoder(name, size=size, weights=None, options=options)
    config = ModelConfig(image_encoder=name, image_encoder_options=options, size=size, bridge_depth=1, bridge_heads=3)
    return MaskedCLIP(config, encoder, None).eval()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_resized__equals_timm_at_that_size(name: str) -> None:
    patch = 14 if "14" in name else 16
    model = _model(name, 4 * patch, SMALL)
    other = resized(model, 7 * patch)
    image = torch.randn(2, 3, 7 * patch, 7 * patch)
    with torch.no_grad():
        tokens = other.encoder(image)
        assert tokens.shape == (2, 50, 48)
        theirs = other.encoder.vit.forward_features(image)[:, other.encoder.vit.num_prefix_tokens :]
        assert other.encoder.patches(tokens) == pytest.approx(theirs, abs=1e-5)
        keep = torch.randperm(49)[None].expand(2, -1)
        assert other.encoder(image, keep).shape == (2, 50, 48)
        assert other.bridge(tokens).shape == tokens.shape
    assert (other.encoder.grid, other.encoder.num_patches, other.config.size) == ((7, 7), 49, 7 * patch)
    assert (model.encoder.grid, model.config.size) == ((4, 4), 4 * patch)  # the model itself is as it was
    assert other.encoder.vit.pos_embed is not None
    assert not other.encoder.vit.pos_embed.requires_grad  # fixed positions stay fixed


def test_resized__same_size_is_the_model_itself() -> None:
    model = _model("vit_tiny_patch16_224", 64, SMALL)
    assert resized(model, 64) is model
    with pytest.raises(UserError, match=r"at: 70 px is no multiple of the encoder's 16 px patches; give 64 or 80"):
        resized(model, 70, "at")


def test_check_size__names_sizes_that_fit() -> None:
    assert [fitting_size(size, 14) for size in (5, 14, 256, 518)] == [14, 14, 252, 518]
    check_size(252, 14, "x")
    with pytest.raises(UserError, match=r"give 14$"):
        check_size(7, 14, "x")
