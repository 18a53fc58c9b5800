"""The head that learns from texts, and the loss of its labels."""

import math

import numpy as np
import pytest
import torch

from maskedclip.data.label_columns import label_groups
from maskedclip.objectives.privileged import PrivilegedHead, known_mean, label_loss

COLUMNS = ("amd", "grade=0", "grade=1", "grade=2", "drusen", "side=left", "side=right")


def test_label_groups__classes_of_one_label_stand_together() -> None:
    assert label_groups(COLUMNS) == [(0, 1), (1, 4), (4, 5), (5, 7)]
    assert label_groups(["a=x", "b=x", "b=y"]) == [(0, 1), (1, 3)]
    assert label_groups([]) == []


def test_label_loss__is_the_plain_mean_over_known_labels() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(9, 7))
    labels = np.zeros((9, 7))
    labels[:, 0], labels[:, 4] = random.integers(0, 2, 9), random.integers(0, 2, 9)
    labels[np.arange(9), 1 + random.integers(0, 3, 9)] = 1
    labels[np.arange(9), 5 + random.integers(0, 2, 9)] = 1
    labels[2, 0] = labels[3, 1:4] = labels[7, 4] = np.nan
    expected = []
    for row in range(9):
        for start, stop in label_groups(COLUMNS):
            own, truth = logits[row, start:stop], labels[row, start:stop]
            if np.isnan(truth).any():
                continue
            if stop - start == 1:
                share = 1 / (1 + math.exp(-own[0]))
                expected.append(-math.log(share if truth[0] else 1 - share))
            else:
                expected.append(-math.log(np.exp(own[truth == 1]).item() / np.exp(own).sum()))
    found = label_loss(torch.tensor(logits), torch.tensor(labels), label_groups(COLUMNS))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)
    order = random.permutation(9)
    again = label_loss(torch.tensor(logits[order]), torch.tensor(labels[order]), label_groups(COLUMNS))
    assert again.item() == pytest.approx(found.item(), rel=1e-6)


def test_label_loss__gets_below_the_trap_s_floor() -> None:
    """The official code takes the cross-entropy of a softmax's output, which stays above 0.31 for two classes."""
    logits, labels = torch.tensor([[12.0, -12.0], [-12.0, 12.0]]), torch.eye(2)
    trap = torch.nn.functional.cross_entropy(logits.softmax(dim=1), labels.argmax(dim=1))
    assert trap > 0.31
    assert label_loss(logits, labels, [(0, 2)]) < 1e-6
    assert label_loss(logits[:, :1], labels[:, :1], [(0, 1)]) < 1e-4


def test_label_loss__without_any_known_label_is_0_with_gradient_0() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = label_loss(logits, torch.full((3, 2), float("nan")), [(0, 1), (1, 2)])
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()
    assert known_mean(torch.tensor([3.0, 5.0, 9.0]), torch.tensor([True, True, False])).item() == 4


def test_head__folded_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    head = PrivilegedHead(12, 8, 3).double()
    pooled = torch.randn(20, 12, dtype=torch.float64)
    weight, bias, inner, offset, outer = head.folded()
    bent = torch.nn.functional.leaky_relu(pooled @ inner.T + offset, 0.1)
    logits, text = head(pooled)
    torch.testing.assert_close(pooled @ weight.T + bias + bent @ outer.T, logits.detach(), atol=1e-12, rtol=0)
    assert text.shape == (20, 8)
    restored = PrivilegedHead.of_tensors(head.float().state_dict())
    torch.testing.assert_close(restored(pooled.float())[0], logits.detach().float())
