"""Encoder, norm and bridge as one plain transformer, and as weights of other libraries, for encoders of many kinds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maskedclip.deployment.export import Wanted, export
from maskedclip.deployment.export_plain import folded_projection, plain_bridge, plain_encoder
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP, ModelConfig, model_from_config
from maskedclip.models.saving import Preprocessing, save_model
from maskedclip.models.text import TextTokenizer, small_bert_config, train_tokenizer

SMALL = {"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
SENTENCES = ["a red lesion", "no lesion, normal fundus"]


def _model(name: str = "vit_tiny_patch16_224", *, heads: int = 3, depth: int = 2, **options: Any) -> MaskedCLIP:
    """Weights drawn far from their start: norms, scales and statistics too."""
    config = ModelConfig(
        image_encoder=name,
        image_encoder_options=SMALL | options,
        size=32,
        bridge_depth=depth,
        bridge_heads=heads,
        embed_dim=16,
        projection_norm="batch",
        text=small_bert_config(vocabulary=64, width=32, depth=2, heads=2, positions=16),
        text_length=16,
    )
    torch.manual_seed(0)
    model = model_from_config(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.mul_(1 + torch.randn_like(module.weight) / 4)
                module.bias.add_(torch.randn_like(module.bias) / 4)
        for name, value in model.state_dict().items():
            if name.endswith(("mean", "gamma")):
                value.add_(torch.randn_like(value) / 4)
            elif name.endswith("variance"):
                value.mul_(torch.rand_like(value) + 0.1)
    return model


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 0.5},
    "registers": {"reg_tokens": 2, "no_embed_class": True},
    "registers with positions": {"reg_tokens": 2},
    "no class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "norm before": {"pre_norm": True},
    "narrow perceptron": {"mlp_ratio": 1.5},
    "no bias": {"qkv_bias": False},
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "registers" not in kind])
def test_plain_bridge__is_the_bridge_of_the_encoder(kind: str) -> None:
    model = _model(**KINDS[kind])
    pixels = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        tokens = model.encoder(pixels)
        bridge = model.pool(model.bridge(tokens))
        found = plain_bridge(model, "timm").vit(pixels)
        assert torch.equal(plain_encoder(model).vit(pixels), model.pool(tokens))
        assert (found - bridge).abs().max() <= 1e-5 * bridge.abs().max()
        weight, bias = folded_projection(model)
        projected = nn.functional.normalize(found @ weight.T + bias, dim=-1)
        assert (projected - model.project_pooled(bridge)).abs().max() <= 1e-5


def test_plain_encoder__whose_norm_timm_puts_behind_the_mean() -> None:
    model = _model(class_token=False, global_pool="avg")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain_encoder(model).vit(pixels), model.pool(model.encoder(pixels)))
        expected = model.pool(model.bridge(model.encoder(pixels)))
        torch.testing.assert_close(plain_bridge(model, "timm").vit(pixels), expected, atol=1e-5, rtol=1e-4)
    model.encoder.vit.norm = torch.nn.Identity()
    with pytest.raises(UserError, match="no final LayerNorm"):
        plain_bridge(model, "timm")


def test_plain_bridge__without_a_bridge_is_the_encoder() -> None:
    model = _model(depth=0)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain_bridge(model, "timm").vit(pixels), model.pool(model.encoder(pixels)))


def test_plain_bridge__a_large_stream_is_replaced_to_the_last_bit() -> None:
    """Massive activations, as pretrained encoders have them, leave no trace in the bridge's stream."""
    model = _model()
    with torch.no_grad():
        model.encoder.vit.blocks[1].mlp.fc2.bias[7] += 500  # type: ignore[index, operator, union-attr]
        pixels = torch.randn(4, 3, 32, 32)
        bridge = model.pool(model.bridge(model.encoder(pixels)))
        assert (plain_bridge(model, "timm").vit(pixels) - bridge).abs().max() <= 1e-5 * bridge.abs().max()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"heads": 2}, "2 attention heads and the encoder 3"),
        ({"reg_tokens": 2}, "register tokens do not go on"),
        ({"qk_norm": True}, "normalises queries and keys"),
        ({"act_layer": "gelu_tanh"}, "activation"),
    ],
)
def test_plain_bridge__says_why_not(options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        plain_bridge(_model(**options), "open_clip")


def _saved(folder: Path, model: MaskedCLIP) -> Path:
    tokenizer = TextTokenizer(train_tokenizer(SENTENCES, 64), 16)
    prepared = Preprocessing(crop="none", stored_size=32, size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2))
    save_model(folder / "model", model, tokenizer, prepared, {})
    return folder


@pytest.mark.parametrize("kind", ["layer scale", "registers", "registers with positions", "no class token"])
def test_export__encoders_of_many_kinds(tmp_path: Path, kind: str) -> None:
    """`export` itself compares: that it returns is the assertion; open_clip holds those with one class token alone."""
    run = _saved(tmp_path / "run", _model(**KINDS[kind]))
    names = export(run, tmp_path / "hf", Wanted(format="huggingface", images=4)).agreements
    natively = "native encoder" in [entry.output for entry in names]
    assert natively == (kind != "no class token")
    if kind == "layer scale":
        export(run, tmp_path / "open_clip", Wanted(format="open_clip", images=4))
    else:
        why = "open_clip's tower has one class token" if kind == "no class token" else "register tokens"
        with pytest.raises(UserError, match=why):
            export(run, tmp_path / "open_clip", Wanted(format="open_clip", images=4))
    assert not list(tmp_path.glob("*.partial"))


def test_export__a_model_without_texts(tmp_path: Path) -> None:
    config = ModelConfig(
        image_encoder="vit_tiny_patch16_224", image_encoder_options=SMALL, size=32, bridge_depth=0, bridge_heads=3
    )
    prepared = Preprocessing(crop="none", stored_size=32, size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.2))
    save_model(tmp_path / "run" / "model", model_from_config(config).eval(), None, prepared, {})
    for kind in ("timm", "huggingface", "torch"):
        done = export(tmp_path / "run", tmp_path / kind, Wanted(format=kind, images=4))
        assert {entry.output.removeprefix("native ") for entry in done.agreements} == {"encoder"}
    with pytest.raises(UserError, match="trained without texts"):
        export(tmp_path / "run", tmp_path / "x", Wanted(format="open_clip", images=4))
    with pytest.raises(UserError, match="--output bridge: this model was trained without texts"):
        export(tmp_path / "run", tmp_path / "x", Wanted(format="timm", output="bridge", images=4))
    with pytest.raises(UserError, match="trained without texts"):
        export(tmp_path / "run", tmp_path / "x", Wanted(format="timm", images=4, labels=["a", "b"]))
