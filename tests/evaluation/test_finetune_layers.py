"""Layer-wise learning rates, stochastic depth, LoRA and the copy of the encoder."""

import sys
from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from maskedclip.errors import UserError
from maskedclip.evaluation.finetune_layers import FineTuned, build_network, lora_targets, parameter_groups
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from tests.evaluation.finetune_case import make_model


def _network(**changes: Any) -> tuple[FineTuned, FineTuneSettings]:
    chosen = FineTuneSettings(**changes)
    torch.manual_seed(0)
    return build_network(make_model(), 3, chosen)[0], chosen


def test_parameter_groups__the_exact_table_of_a_small_encoder() -> None:
    network, chosen = _network(lr=0.8, batch=32, layer_decay=0.5, weight_decay=0.05)  # 0.8 x 32 / 256 = 0.1
    table = {
        name: (group.name, group.lr, group.weight_decay)
        for group in parameter_groups(network, chosen)
        for name in group.parameters
    }
    assert set(table) == {name for name, _ in network.named_parameters()}
    embedding, first, second, head = (
        (name, pytest.approx(lr))
        for name, lr in {"embedding": 0.0125, "block 1": 0.025, "block 2": 0.05, "head": 0.1}.items()
    )
    expected: dict[str, tuple[Any, ...]] = {
        "encoder.vit.cls_token": (*embedding, 0.0),
        "encoder.vit.pos_embed": (*embedding, 0.0),
        "encoder.vit.patch_embed.proj.weight": (*embedding, 0.05),
        "encoder.vit.patch_embed.proj.bias": (*embedding, 0.0),
        "encoder.vit.norm.weight": (*head, 0.0),
        "encoder.vit.norm.bias": (*head, 0.0),
        "norm.weight": (*head, 0.0),
        "norm.bias": (*head, 0.0),
        "head.weight": (*head, 0.05),
        "head.bias": (*head, 0.0),
    }
    for place, layer in enumerate((first, second)):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            decay = 0.0 if part.startswith("norm") else 0.05
            expected[f"encoder.vit.blocks.{place}.{part}.weight"] = (*layer, decay)
            expected[f"encoder.vit.blocks.{place}.{part}.bias"] = (*layer, 0.0)
    assert table == expected


def test_build_network__drop_path_rises_linearly() -> None:
    torch.manual_seed(0)
    network, _ = build_network(make_model(depth=3), 2, FineTuneSettings(drop_path=0.2))
    rates = [
        [part.drop_prob if isinstance(part, DropPath) else 0.0 for part in (block.drop_path1, block.drop_path2)]
        for block in network.encoder.vit.blocks  # type: ignore[union-attr]
    ]
    assert rates == [pytest.approx([rate, rate]) for rate in (0.0, 0.1, 0.2)]
    images = torch.randn(8, 3, 32, 32)
    nn.init.normal_(network.head.weight)
    assert not torch.equal(network.train()(images), network(images))
    assert torch.equal(network.eval()(images), network(images))


def test_build_network__starts_from_the_encoder_with_free_positions() -> None:
    model = make_model()
    network, adapters = build_network(model, 2, FineTuneSettings())
    assert adapters is None
    copied, given = network.encoder.state_dict(), model.module.encoder.state_dict()
    assert all(torch.equal(copied[name], value) for name, value in given.items())
    assert network.encoder.vit.pos_embed is not None
    assert network.encoder.vit.pos_embed.requires_grad
    with torch.no_grad():
        pooled = model.module.pool(model.module.encoder(torch.ones(1, 3, 32, 32)))
        expected = network.head(nn.functional.layer_norm(pooled, (48,), eps=1e-6))
        assert torch.allclose(network.eval()(torch.ones(1, 3, 32, 32)), expected, atol=1e-6)


def _lora(mlp: bool = False) -> tuple[FineTuned, Any, FineTuneSettings]:
    pytest.importorskip("peft")
    chosen = FineTuneSettings(method="lora", lora_rank=4, lora_alpha=8.0, lora_mlp=mlp)
    torch.manual_seed(0)
    return *build_network(make_model(), 3, chosen), chosen


@pytest.mark.parametrize("mlp", [False, True])
def test_lora__trains_the_additions_and_the_head_alone(mlp: bool) -> None:
    network, _, chosen = _lora(mlp)
    groups = parameter_groups(network, chosen)
    names = {name for group in groups for name in group.parameters}
    layers = {name.split(".lora_")[0] for name in names if ".lora_" in name}
    parts = ["attn.qkv", "attn.proj", *(["mlp.fc1", "mlp.fc2"] if mlp else [])]
    assert layers == {f"encoder.vit.blocks.{block}.{part}" for block in range(2) for part in parts}
    assert {name for name in names if ".lora_" not in name} == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert {group.lr for group in groups} == {chosen.effective_lr}  # additions start from zero in all layers
    width, rank = 48, 4
    additions = (width + 3 * width) + 2 * width + (2 * (width + 4 * width) if mlp else 0)
    trainable = sum(value.numel() for value in network.parameters() if value.requires_grad)
    assert trainable == 2 * rank * additions + 2 * width + 3 * width + 3


def _adapted(network: FineTuned) -> Tensor:
    """Outputs after some steps have moved the additions."""
    optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad], lr=1e-2)
    images = torch.randn(4, 3, 32, 32)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.train()(images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    with torch.no_grad():
        return network.eval()(torch.ones(2, 3, 32, 32))


def test_lora__merged_equals_adapted() -> None:
    network, adapters, _ = _lora(mlp=True)
    plain = {name: value.clone() for name, value in make_model().module.encoder.state_dict().items()}
    adapted = _adapted(network)
    adapters.merge()
    with torch.no_grad():
        assert torch.allclose(network.eval()(torch.ones(2, 3, 32, 32)), adapted, atol=1e-5)
    merged = network.encoder.state_dict()
    assert list(merged) == list(plain)  # plain layers again, under their names
    changed = {name for name, value in plain.items() if not torch.equal(merged[name], value)}
    assert changed == {f"vit.{name}.weight" for name in lora_targets(network.encoder, mlp=True)}


def test_lora__without_peft_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"peft is not installed; pip install 'maskedclip\[finetune\]'") as caught:
        _network(method="lora")
    assert "\n" not in str(caught.value)
