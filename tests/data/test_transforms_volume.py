"""Crops and tiles of volumes: from keys alone, covering, and zero outside."""

import numpy as np
import pytest
import torch

from maskedclip import randomness
from maskedclip.data.transforms_volume import (
    as_float,
    crop_and_mirror,
    decode_volume,
    draw_placement,
    encode_volume,
    middle,
    tiles,
)


def keys_of(count: int, step: int = 0) -> np.ndarray:
    return randomness.sample_keys(0, step, np.arange(count))


@pytest.mark.parametrize("kind", [np.uint8, np.float16])
def test_encode_volume__comes_back_as_it_was(kind: type) -> None:
    voxels = (np.random.default_rng(0).random((2, 5, 6, 7)) * 200).astype(kind)
    back = decode_volume(encode_volume(voxels))
    assert np.array_equal(back.numpy(), voxels)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"no volume at all",
        encode_volume(np.zeros((1, 4, 4, 4), np.uint8))[:-3],
        encode_volume(np.zeros((4, 4, 4), np.uint8)),
        encode_volume(np.zeros((1, 4, 4, 4), np.float64)),
    ],
)
def test_decode_volume__refuses_other_bytes(encoded: bytes) -> None:
    with pytest.raises(RuntimeError):
        decode_volume(encoded)


def test_draw_placement__is_a_function_of_the_key_and_uniform_over_what_fits() -> None:
    keys, order = keys_of(6), np.asarray([4, 1, 5, 0, 2, 3])
    shapes = np.asarray([(20, 16, 12 + place) for place in range(6)])
    drawn = draw_placement(keys, shapes, 8, flip=True)
    again = draw_placement(keys[order], shapes[order], 8, flip=True)
    assert np.array_equal(drawn.corners[order], again.corners)
    assert np.array_equal(drawn.mirrored[order], again.mirrored)
    many = draw_placement(keys_of(4000), np.full((4000, 3), 11), 8, flip=True)
    assert many.corners.min() == 0
    assert many.corners.max() == 3
    shares = np.stack([(many.corners == corner).mean(axis=0) for corner in range(4)])
    assert np.abs(shares - 0.25).max() < 0.03
    assert np.abs(many.mirrored.mean(axis=0) - 0.5).max() < 0.03
    assert not draw_placement(keys, shapes, 8, flip=False).mirrored.any()


def test_crop_and_mirror__cuts_what_the_placement_says() -> None:
    volumes = [torch.rand(1, 12, 13, 14).half(), (torch.rand(1, 9, 16, 10) * 255).to(torch.uint8)]
    placement = draw_placement(keys_of(2, 5), np.asarray([volume.shape[1:] for volume in volumes]), 8, flip=True)
    batch = crop_and_mirror(volumes, placement, 8)
    assert batch.shape == (2, 1, 8, 8, 8)
    assert batch.dtype == torch.float16
    for place, volume in enumerate(volumes):
        x, y, z = placement.corners[place].tolist()
        cut = as_float(volume)[:, x : x + 8, y : y + 8, z : z + 8]
        axes = [axis + 1 for axis in range(3) if placement.mirrored[place, axis]]
        assert torch.equal(batch[place], cut.flip(axes))


def test_crop_and_mirror__puts_a_small_volume_in_the_middle_of_zeros() -> None:
    volume = torch.rand(1, 4, 12, 5).half() + 1
    placement = draw_placement(keys_of(1), np.asarray([(4, 12, 5)]), 8, flip=False)
    crop = crop_and_mirror([volume], placement, 8)[0, 0]
    assert int((crop != 0).sum()) == 4 * 8 * 5
    assert torch.equal(crop[2:6, :, 2:7], volume[0, :, placement.corners[0, 1] : placement.corners[0, 1] + 8])


def test_crop_and_mirror__refuses_different_channels() -> None:
    placement = draw_placement(keys_of(2), np.full((2, 3), 8), 8, flip=False)
    with pytest.raises(ValueError, match="channels"):
        crop_and_mirror([torch.zeros(1, 8, 8, 8).half(), torch.zeros(2, 8, 8, 8).half()], placement, 8)


@pytest.mark.parametrize("sides", [(8, 8, 8), (9, 5, 17), (3, 20, 8)])
def test_tiles__cover_every_voxel(sides: tuple[int, int, int]) -> None:
    assert len(tiles(torch.zeros(1, *sides, dtype=torch.uint8), 8)) == int(np.prod([-(-side // 8) for side in sides]))
    for place in np.ndindex(*sides):
        marked = torch.zeros(1, *sides, dtype=torch.uint8)
        marked[(0, *place)] = 255
        assert (tiles(marked, 8) == 1).any()


def test_middle__is_the_tile_of_a_volume_that_just_fits() -> None:
    volume = torch.rand(1, 8, 8, 8).half()
    assert torch.equal(middle(volume, 8), volume)
    assert torch.equal(tiles(volume, 8)[0], volume)
    larger = torch.rand(1, 10, 12, 9).half()
    assert torch.equal(middle(larger, 8), larger[:, 1:9, 2:10, 0:8])
