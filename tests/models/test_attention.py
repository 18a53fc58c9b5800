"""Both attention kernels compute the same function, and training on a processor takes the faster one."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from maskedclip.models.attention import evaluation_kernels, plain_is_faster, set_attention
from maskedclip.models.bridge import Bridge
from maskedclip.models.text import TextEncoder, bert_from_config, small_bert_config


def _bridge() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    tokens = torch.randn(3, 11, 32)
    return Bridge(32, 2, 4), lambda module: module(tokens)


def _text_encoder() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    bert = bert_from_config(small_bert_config(vocabulary=50, width=32, depth=2, heads=2, positions=12))
    ids, mask = torch.randint(0, 50, (3, 12)), (torch.arange(12) < torch.tensor([[12], [5], [1]])).long()
    return TextEncoder(bert, 16), lambda module: module(ids, mask)


@pytest.mark.parametrize("make", [_bridge, _text_encoder])
def test_set_attention__same_outputs_and_gradients(
    make: Callable[[], tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]],
) -> None:
    torch.manual_seed(0)
    module, run = make()
    found = []
    for fused in (True, False):
        set_attention(module, fused=fused)
        module.zero_grad()
        out = run(module)
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)])
    assert len(found[0]) > 10
    for fused_value, plain_value in zip(*found, strict=True):
        assert torch.allclose(fused_value, plain_value, atol=1e-5)


@pytest.mark.parametrize("make", [_bridge, _text_encoder])
def test_set_attention__changes_the_kernel(make: Callable[[], tuple[nn.Module, Callable]]) -> None:
    module, run = make()
    kernels = []
    for fused in (True, False):
        set_attention(module, fused=fused)
        with torch.profiler.profile() as profile:
            run(module)
        kernels.append(any("scaled_dot_product" in event.key for event in profile.key_averages()))
    assert kernels == [True, False]


def test_evaluation_kernels__for_a_while_only() -> None:
    module, _ = _bridge()
    set_attention(module, fused=False)
    with evaluation_kernels(module):
        assert all(block.attn.fused_attn for block in module.blocks)  # type: ignore[union-attr]
    assert not any(block.attn.fused_attn for block in module.blocks)  # type: ignore[union-attr]


def test_plain_is_faster__only_for_bfloat16_on_processors() -> None:
    assert plain_is_faster(torch.device("cpu"), "bf16-mixed")
    assert not plain_is_faster(torch.device("cpu"), "32-true")
    assert not plain_is_faster(torch.device("cuda"), "bf16-mixed")
