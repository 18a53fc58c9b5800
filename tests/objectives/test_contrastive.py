"""L_clip against a double loop in float64, and against InfoNCE."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from maskedclip.objectives.contrastive import clip_loss


def _naive(image: torch.Tensor, text: torch.Tensor, keys: list[int], scale: float) -> float:
    """The mean of row and column cross-entropy, written as loops."""
    n = len(keys)
    total = 0.0
    for a, b in ((image, text), (text, image)):
        for i in range(n):
            logits = [scale * sum(float(x) * float(y) for x, y in zip(a[i], b[j], strict=True)) for j in range(n)]
            top = max(logits)
            log_sum = top + math.log(sum(math.exp(value - top) for value in logits))
            positives = [j for j in range(n) if keys[j] == keys[i]]
            total += sum(log_sum - logits[j] for j in positives) / len(positives) / n
    return total / 2


@settings(max_examples=40, deadline=None)
@given(keys=st.lists(st.integers(0, 3), min_size=1, max_size=9), seed=st.integers(0, 10**6))
def test_clip_loss__equals_double_loop_in_float64(keys: list[int], seed: int) -> None:  # P17
    generator = torch.Generator().manual_seed(seed)
    image, text = (functional.normalize(torch.randn(len(keys), 8, generator=generator), dim=-1) for _ in range(2))
    expected = _naive(image.double(), text.double(), keys, 10.0)
    assert clip_loss(image, text, torch.tensor(keys), torch.tensor(10.0)).item() == pytest.approx(expected, abs=1e-5)


def test_clip_loss__is_infonce_when_all_texts_differ() -> None:
    image, text = (functional.normalize(torch.randn(7, 8), dim=-1) for _ in range(2))
    logits = 14.3 * image @ text.T
    infonce = (
        functional.cross_entropy(logits, torch.arange(7)) + functional.cross_entropy(logits.T, torch.arange(7))
    ) / 2
    assert clip_loss(image, text, torch.arange(7), torch.tensor(14.3)).item() == pytest.approx(infonce.item(), abs=1e-6)
    plain = clip_loss(image, text, torch.zeros(7, dtype=torch.int64), torch.tensor(14.3), soft_targets=False)
    assert plain.item() == pytest.approx(infonce.item(), abs=1e-6)


def test_clip_loss__stays_in_float32_under_autocast() -> None:
    image, text = (functional.normalize(torch.randn(16, 64), dim=-1) for _ in range(2))
    keys, scale = torch.arange(16), torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = clip_loss(image, text, keys, scale)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, clip_loss(image, text, keys, scale))


def test_clip_loss__all_texts_equal_is_the_uniform_target() -> None:
    image, text = (functional.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    keys = torch.zeros(5, dtype=torch.int64)
    expected = _naive(image.double(), text.double(), [0] * 5, 3.0)
    assert clip_loss(image, text, keys, torch.tensor(3.0)).item() == pytest.approx(expected, abs=1e-5)


def _gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@settings(max_examples=30, deadline=None)
@given(
    keys=st.lists(st.integers(0, 5), min_size=2, max_size=24),
    block=st.integers(1, 30),
    soft=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_clip_loss__blocks_equal_the_whole_matrix_in_float64(
    keys: list[int], block: int, soft: bool, seed: int
) -> None:  # P5
    generator = torch.Generator().manual_seed(seed)
    image, text = (functional.normalize(torch.randn(len(keys), 12, generator=generator), dim=-1) for _ in range(2))
    key = torch.tensor(keys)
    inputs = [value.clone().requires_grad_() for value in (image, text, torch.tensor(20.0))]
    mine = clip_loss(inputs[0], inputs[1], key, inputs[2], soft_targets=soft, block=block)
    exact = [value.double().clone().requires_grad_() for value in (image, text, torch.tensor(20.0))]
    logits = exact[2] * exact[0] @ exact[1].T
    same = (key[:, None] == key[None, :]) if soft else torch.eye(len(keys), dtype=torch.bool)
    target = same.double() / same.sum(dim=1, keepdim=True)
    naive = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    assert mine.item() == pytest.approx(naive.item(), rel=1e-6, abs=1e-6)
    for a, b in zip(_gradients(mine, *inputs), _gradients(naive, *exact), strict=True):
        assert float((a - b).norm()) <= 1e-6 * float(b.norm()) + 1e-7


def test_clip_loss__holds_blocks_not_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:  # P5
    pairs, block = 600, 50
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    image, text = (functional.normalize(torch.randn(pairs, 16), dim=-1).requires_grad_() for _ in range(2))
    with Watch():
        clip_loss(image, text, torch.arange(pairs) % 7, torch.tensor(20.0), block=block).backward()
    assert largest == pairs * block


def test_clip_loss__gradient_is_float32_even_when_backward_runs_under_autocast() -> None:
    image, text = (functional.normalize(torch.randn(16, 64), dim=-1).requires_grad_() for _ in range(2))
    loss = clip_loss(image, text, torch.arange(16), torch.tensor(100.0))
    outside = torch.autograd.grad(loss, image, retain_graph=True)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(loss, image)[0]
    assert torch.equal(outside, inside)
