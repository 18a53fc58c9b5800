"""Standardisation is torch's batch normalisation without scale and shift; afterwards no batch matters."""

import torch

from maskedclip.models.standardise import BatchStandardise


def test_batch_standardise__equals_torch_batch_norm_in_training() -> None:
    ours, theirs = BatchStandardise(6), torch.nn.BatchNorm1d(6, affine=False)
    first = torch.randn(9, 6, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    weight = torch.randn(9, 6)
    (ours(first * 3 + 1) * weight).sum().backward()
    (theirs(second * 3 + 1) * weight).sum().backward()
    torch.testing.assert_close(ours(first), theirs(second))
    torch.testing.assert_close(first.grad, second.grad, atol=1e-5, rtol=1e-4)


def test_batch_standardise__an_image_alone_is_as_in_a_batch_afterwards() -> None:
    layer = BatchStandardise(4)
    for _ in range(200):
        layer(torch.randn(64, 4) * 2 + 5)
    layer.eval()
    batch = torch.randn(16, 4) * 2 + 5
    assert torch.equal(layer(batch)[3:4], layer(batch[3:4]))
    assert layer(batch).mean().abs() < 0.5
    assert 0.6 < layer(batch).std() < 1.4
