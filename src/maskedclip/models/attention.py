"""Which attention kernel the transformer blocks run: the fused one of PyTorch, or two batched matrix products.

On processors, PyTorch's fused kernel is slow in bfloat16, above all backward: at 32 images, 6 heads and 197 tokens it
takes 73 ms forward and backward where the plain products take 30 ms (2 cores of an AMD EPYC with AVX-512 BF16, PyTorch
2.14).  Everywhere else the fused kernel is the faster one and the leaner one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import nn


def plain_is_faster(device: torch.device, precision: str) -> bool:
    """Whether training on this device at this precision is faster without the fused kernel."""
    return device.type == "cpu" and precision == "bf16-mixed"


def _layers(module: nn.Module) -> list[Any]:
    """The attention layers of timm, and the whole models of transformers."""
    return [
        part for part in module.modules() if isinstance(part, Attention) or hasattr(part, "set_attn_implementation")
    ]


def _is_fused(layer: Any) -> bool:
    return bool(layer.fused_attn) if isinstance(layer, Attention) else layer.config._attn_implementation == "sdpa"


def _set(layer: Any, fused: bool) -> None:
    if _is_fused(layer) == fused:
        return
    if isinstance(layer, Attention):
        layer.fused_attn = fused  # type: ignore[misc]
    else:
        layer.set_attn_implementation("sdpa" if fused else "eager")


def set_attention(module: nn.Module, *, fused: bool) -> None:
    """Choose the kernel of all timm and transformers attention layers inside a module.

    Both kernels compute the same function; in bfloat16 the plain one rounds the scores before the softmax.
    """
    for layer in _layers(module):
        _set(layer, fused)


@contextmanager
def evaluation_kernels(module: nn.Module) -> Iterator[None]:
    """The fused kernel, uncompiled, for a while: so features are computed at every entrance, and agree to the bit."""
    layers = _layers(module)
    before = [_is_fused(layer) for layer in layers]
    for layer in layers:
        _set(layer, True)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer, fused in zip(layers, before, strict=True):
            _set(layer, fused)
