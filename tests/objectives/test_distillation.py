"""Each form of L_mkd against a naive float64 reference."""

import math

import pytest
import torch
from torch.nn import functional

from maskedclip.objectives import distillation


def test_cosine_loss__equals_loop() -> None:
    prediction, target = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    values = []
    for a, b in zip(prediction.flatten(0, 1).double(), target.flatten(0, 1).double(), strict=True):
        values.append(1 - float(a @ b / (a.norm() * b.norm())))
    assert distillation.cosine_loss(prediction, target).item() == pytest.approx(sum(values) / 10, abs=1e-6)
    assert distillation.cosine_loss(3 * target, target).item() == pytest.approx(0, abs=1e-6)


def test_smooth_l1_loss__normalises_the_target() -> None:
    prediction, target = torch.randn(2, 5, 7), 4 * torch.randn(2, 5, 7) + 2
    double = target.double()
    normal = (double - double.mean(-1, keepdim=True)) / (double.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    gap = (prediction.double() - normal).abs()
    expected = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean()
    assert distillation.smooth_l1_loss(prediction, target).item() == pytest.approx(float(expected), abs=1e-5)


def test_mse_loss__equals_mean_square() -> None:
    prediction, target = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    expected = (prediction.double() - target.double()).square().mean()
    assert distillation.mse_loss(prediction, target).item() == pytest.approx(float(expected), abs=1e-6)


def test_prototype_loss__is_kl_over_distinct_texts() -> None:
    prediction, target, text = (
        functional.normalize(torch.randn(*shape), dim=-1) for shape in ((2, 3, 6), (2, 3, 6), (4, 6))
    )
    keys = torch.tensor([1, 2, 3, 4])
    expected = 0.0
    for a, b in zip(prediction.flatten(0, 1).double(), target.flatten(0, 1).double(), strict=True):
        p = [float(b @ t) / 0.04 for t in text.double()]
        q = [float(a @ t) / 0.1 for t in text.double()]
        log_p = [value - math.log(sum(math.exp(other - max(p)) for other in p)) - max(p) for value in p]
        log_q = [value - math.log(sum(math.exp(other - max(q)) for other in q)) - max(q) for value in q]
        expected += sum(math.exp(x) * (x - y) for x, y in zip(log_p, log_q, strict=True)) / 6
    actual = distillation.prototype_loss(prediction, target, text, keys, (0.04, 0.1))
    assert actual.item() == pytest.approx(expected, rel=1e-4)
    repeated = distillation.prototype_loss(
        prediction, target, torch.cat([text, text[:1], text[:1]]), torch.tensor([1, 2, 3, 4, 1, 1]), (0.04, 0.1)
    )
    assert repeated.item() == pytest.approx(actual.item(), rel=1e-4)


def test_spread__tells_collapse_from_health() -> None:
    healthy = torch.randn(8, 50, 64)
    constant = torch.randn(1, 1, 64).expand(8, 50, 64) + 1e-4 * torch.randn(8, 50, 64)
    assert distillation.spread(healthy).item() == pytest.approx(1, abs=0.05)
    assert distillation.spread(constant).item() < 0.01
