"""L_mim against loops in float64."""

from dataclasses import dataclass

import pytest
import torch

from maskedclip.models.decoder import Decoder
from maskedclip.models.vit import gather_patches, patchify, unpatchify
from maskedclip.objectives.masking import Mask, decode_some, mask_from_scores
from maskedclip.objectives.reconstruction import Reconstruction, pixel_target


def test_patchify__is_row_by_row_and_invertible() -> None:
    image = torch.randn(2, 3, 12, 12)
    patches = patchify(image, 4)
    assert torch.equal(patches[1, 5].reshape(4, 4, 3), image[1, :, 4:8, 8:12].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 4), image)


def test_pixel_target__is_normalised_within_each_patch() -> None:
    image = torch.randn(2, 3, 8, 8)
    image[0, :, :4, :4] = 0.7  # a constant patch must not divide by zero
    target = pixel_target(patchify(image, 4))
    patches = patchify(image.double(), 4)
    expected = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    assert target.double() == pytest.approx(expected, abs=1e-4)  # 1e-6 under the root magnifies rounding
    assert torch.equal(pixel_target(patchify(image, 4), normalise=False), patchify(image, 4))


class _Painter(torch.nn.Module):
    """Says of every patch where it stands: 12 numbers made of the image and the place."""

    def forward(self, tokens: torch.Tensor, restore: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(tokens))[:, None, None] * 0.37
        return rows + decoded[:, :, None] * 0.11 + torch.arange(12) * 0.01


@dataclass
class _Stage:
    image: torch.Tensor
    mask: Mask
    masked_tokens: torch.Tensor

    @property
    def image_patches(self) -> torch.Tensor:
        return patchify(self.image, 2)

    def keep_patch_error(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Nobody asks for it."""


def test_reconstruction__is_the_mean_over_hidden_patches_only() -> None:
    image = torch.randn(3, 3, 8, 8)
    mask = mask_from_scores(torch.rand(3, 16), 0.75)
    stage = _Stage(image, mask, torch.zeros(3, 5, 7))
    loss = Reconstruction(_Painter(), 2, normalise=False)(stage)[0]["mim"]  # type: ignore[arg-type]
    expected, count = 0.0, 0
    for row in range(3):
        for place in mask.hidden[row].tolist():
            predicted = row * 0.37 + place * 0.11 + torch.arange(12, dtype=torch.float64) * 0.01
            expected += float((predicted - patchify(image, 2)[row, place].double()).square().mean())
            count += 1
    assert count == 36
    assert loss.item() == pytest.approx(expected / count, rel=1e-5)


def test_decoder__some_hidden_patches_in_the_order_asked_for() -> None:
    torch.manual_seed(0)
    decoder = Decoder(encoder_width=12, class_tokens=1, grid=(4, 4), width=24, depth=2, heads=2, out=5)
    mask = mask_from_scores(torch.rand(3, 16), 0.75)
    tokens = torch.randn(3, 5, 12)
    whole = decoder(tokens, mask.restore)
    torch.testing.assert_close(decoder(tokens, mask.restore, mask.hidden), gather_patches(whole, mask.hidden))
    few = decoder(tokens, mask.restore, mask.hidden[:, :2])
    assert few.shape == (3, 2, 5)
    assert not torch.allclose(few, gather_patches(whole, mask.hidden[:, :2]))  # fewer tokens to look at


def test_decode_some__is_a_random_part_that_depends_on_the_key() -> None:
    keys = torch.arange(400) * 7919
    mask = mask_from_scores(torch.arange(16.0).expand(400, 16), 0.75)  # hides patches 4 .. 15
    some = decode_some(mask, keys, 0.5)
    assert some.decoded.shape == (400, 6)
    assert all(len(set(row)) == 6 and min(row) >= 4 for row in some.decoded.tolist())
    counts = torch.bincount(some.decoded.flatten(), minlength=16)[4:]
    assert counts.min() > 150
    assert counts.max() < 250
    assert torch.equal(decode_some(mask, keys, 0.5).decoded, some.decoded)
    assert torch.equal(decode_some(mask, keys, 1.0).decoded, mask.hidden)
