"""Stored volumes -> crops for training and tiles for inference; what a training crop is depends on its key alone.

C channels, (X, Y, Z) voxels of a stored volume, S voxels on a side of what the encoder reads.  Intensities were mapped
when the volume was curated (`volume_intensity`): float16 as it stands, or uint8 that means 0 to 1.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskedclip import randomness

_STREAM = 6

# Stored voxels are read-only, and nobody writes to a view of them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def encode_volume(voxels: np.ndarray) -> bytes:
    """A volume (C, X, Y, Z), uint8 or float16, as the bytes of an .npy file, which `decode_volume` reads in place."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(voxels), allow_pickle=False)
    return buffer.getvalue()


def decode_volume(encoded: bytes | memoryview) -> Tensor:
    """The volume in a store's bytes, uint8 or float16 (C, X, Y, Z): a view of them, not to be written to.

    Raises:
        RuntimeError: the bytes are no such volume.
    """
    head = io.BytesIO(bytes(encoded[:512]))
    try:
        if np.lib.format.read_magic(head) != (1, 0):
            raise ValueError("another version of .npy")
        shape, by_column, kind = np.lib.format.read_array_header_1_0(head)
        if by_column or len(shape) != 4 or min(shape) < 1 or kind not in (np.uint8, np.float16):
            raise ValueError(f"{kind} {shape}")
        voxels = np.frombuffer(encoded, kind, count=int(np.prod(shape)), offset=head.tell())
    except (ValueError, EOFError) as error:
        raise RuntimeError(f"the bytes are no volume ({error})") from None
    return torch.from_numpy(voxels.reshape(shape))


def as_float(volume: Tensor) -> Tensor:
    """float16 as it stands, uint8 as 0 to 1: any shape -> float16 of the same."""
    return volume.half() if volume.dtype == torch.float16 else (volume.float() / 255).half()


@dataclass(frozen=True)
class Placement:
    """Where the crops of a batch lie, decided by their keys alone.

    corners: first voxel of each crop, int64 (B, 3); negative where the volume is smaller than the crop, which is then
    in its middle.  mirrored: bool (B, 3), along X, Y, Z.
    """

    corners: np.ndarray
    mirrored: np.ndarray


def draw_placement(keys: np.ndarray, shapes: np.ndarray, size: int, *, flip: bool) -> Placement:
    """Corners that are uniform over all places where the crop fits, and for each axis a coin that mirrors it.

    Args:
        keys: of the samples at their step, int64 (B,).
        shapes: of the volumes, (B, 3).
        size: S.
        flip: whether axes are mirrored.
    """
    numbers = randomness.uniform(torch.from_numpy(randomness.stream_keys(keys, _STREAM)), 6).numpy().astype(np.float64)
    room = shapes - size
    corners = np.where(room >= 0, np.floor(numbers[:, :3] * (room + 1)), room // 2).astype(np.int64)
    return Placement(corners, flip & (numbers[:, 3:] < 0.5))


def crop_and_mirror(volumes: Sequence[Tensor], placement: Placement, size: int) -> Tensor:
    """Cut and mirror: B volumes (C, X, Y, Z) -> float16 (B, C, S, S, S), 0 outside a volume.

    Raises:
        ValueError: volumes of different numbers of channels.
    """
    channels = {volume.shape[0] for volume in volumes}
    if len(channels) > 1:
        raise ValueError(f"volumes of {sorted(channels)} channels")
    out = torch.zeros(len(volumes), channels.pop(), size, size, size, dtype=torch.float16)
    for place, (volume, corner) in enumerate(zip(volumes, placement.corners.tolist(), strict=True)):
        _paste(volume, corner, size, out[place])
        axes = [axis + 1 for axis in range(3) if placement.mirrored[place, axis]]
        if axes:
            out[place] = out[place].flip(axes)
    return out


def tiles(volume: Tensor, size: int) -> Tensor:
    """Crops that cover a volume, evenly placed, at its stored scale: the view without augmentation.

    Args:
        volume: (C, X, Y, Z).
        size: S.

    Returns: float16 (T, C, S, S, S), T = ceil(X / S) ceil(Y / S) ceil(Z / S); along an axis shorter than S the volume
        is in the middle of zeros.
    """
    starts = [_starts(side, size) for side in volume.shape[1:]]
    corners = [[x, y, z] for x in starts[0] for y in starts[1] for z in starts[2]]
    out = torch.zeros(len(corners), volume.shape[0], size, size, size, dtype=torch.float16)
    for place, corner in enumerate(corners):
        _paste(volume, corner, size, out[place])
    return out


def middle(volume: Tensor, size: int) -> Tensor:
    """The crop in the middle of a volume: (C, X, Y, Z) -> float16 (C, S, S, S), 0 outside the volume."""
    out = torch.zeros(volume.shape[0], size, size, size, dtype=torch.float16)
    _paste(volume, [(side - size) // 2 for side in volume.shape[1:]], size, out)
    return out


def _starts(side: int, size: int) -> list[int]:
    if side <= size:
        return [(side - size) // 2]
    count = -(-side // size)
    return [round(place * (side - size) / (count - 1)) for place in range(count)]


def _paste(volume: Tensor, corner: Sequence[int], size: int, out: Tensor) -> None:
    """Copy the part of a crop that lies within its volume into zeros (C, S, S, S)."""
    taken, given = [slice(None)], [slice(None)]
    for start, side in zip(corner, volume.shape[1:], strict=True):
        low, high = max(start, 0), min(start + size, side)
        taken.append(slice(low, high))
        given.append(slice(low - start, high - start))
    out[tuple(given)] = as_float(volume[tuple(taken)])
