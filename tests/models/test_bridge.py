"""The bridge, and how it may begin."""

import torch

from maskedclip.models.bridge import Bridge
from maskedclip.models.maskedclip import build_model
from maskedclip.recipe import load_recipe
from tests.stores import TINY


def test_bridge__that_starts_as_identity_is_its_norm_alone_and_still_learns() -> None:
    bridge = Bridge(32, 2, 4)
    bridge.start_as_identity()
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bridge(tokens), bridge.norm(tokens))
    (bridge(tokens) * torch.randn(2, 5, 32)).sum().backward()
    for block in bridge.blocks:
        assert block.attn.proj.weight.grad.abs().sum() > 0  # type: ignore[union-attr]


def test_build_model__bridge_start_changes_the_bridge_alone() -> None:
    models = [
        build_model(load_recipe(["maskedclip", "tiny"], [*TINY, f"--model.bridge_start={start}"]), ["a", "b"])[0]
        for start in ("random", "identity")
    ]
    random, identity = (model.state_dict() for model in models)
    different = {name for name in random if not torch.equal(random[name], identity[name])}
    assert different
    assert all(name.startswith("bridge.blocks.") for name in different)
