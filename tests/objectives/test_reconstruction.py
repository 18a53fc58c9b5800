"""L_mim against loops in float64."""

import pytest
import torch

from maskedclip.models.vit import patchify, unpatchify
from maskedclip.objectives.masking import mask_from_scores
from maskedclip.objectives.reconstruction import pixel_target, reconstruction_loss


def test_patchify__is_row_by_row_and_invertible() -> None:
    image = torch.randn(2, 3, 12, 12)
    patches = patchify(image, 4)
    assert torch.equal(patches[1, 5].reshape(4, 4, 3), image[1, :, 4:8, 8:12].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 4), image)


def test_pixel_target__is_normalised_within_each_patch() -> None:
    image = torch.randn(2, 3, 8, 8)
    image[0, :, :4, :4] = 0.7  # a constant patch must not divide by zero
    target = pixel_target(image, 4)
    patches = patchify(image.double(), 4)
    expected = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    assert target.double() == pytest.approx(expected, abs=1e-4)  # 1e-6 under the root magnifies rounding
    assert torch.equal(pixel_target(image, 4, normalise=False), patchify(image, 4))


def test_reconstruction_loss__reads_hidden_patches_only() -> None:
    prediction, target = torch.randn(3, 16, 12), torch.randn(3, 16, 12)
    mask = mask_from_scores(torch.rand(3, 16), 0.75)
    expected, count = 0.0, 0
    for image in range(3):
        for place in mask.hidden[image].tolist():
            expected += float((prediction[image, place].double() - target[image, place].double()).square().mean())
            count += 1
    assert reconstruction_loss(prediction, target, mask.hidden).item() == pytest.approx(expected / count, rel=1e-5)
    changed = prediction.clone()
    changed[mask.is_hidden().logical_not()] += 100
    assert torch.equal(
        reconstruction_loss(changed, target, mask.hidden), reconstruction_loss(prediction, target, mask.hidden)
    )
