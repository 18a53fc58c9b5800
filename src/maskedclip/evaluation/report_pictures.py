"""What a report shows of a model at work on images: masked and repainted ones, and its patch features as colours.

B images, L patches on a grid (h, w), P pixels on a patch's side, S on an image's, D features of a patch.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from maskedclip import randomness
from maskedclip.data.images import decoded_image, stored_image
from maskedclip.data.store import Store
from maskedclip.data.text import normalise_text
from maskedclip.data.transforms import normalise
from maskedclip.html import LeftOut
from maskedclip.models.vit import patchify, unpatchify
from maskedclip.objectives.base import Batch, Views
from maskedclip.objectives.pretraining import PretrainingObjective
from maskedclip.objectives.reconstruction import Reconstruction

_HIDDEN = 205  # grey level of hidden patches: lighter than a retina, darker than paper
_VARIANCE_FLOOR = 1e-6  # of `pixel_target`
_BLACK = 12  # mean grey level up to which a patch is outside the photograph's field
_OUTSIDE = 48  # grey level of such patches in a feature map
_MOST_PIXELS = 256
_VOLUMES = "the store holds volumes, which are not drawn here"


@dataclass(frozen=True, kw_only=True)
class Reconstructed:
    """original, masked, painted: uint8 (B, S, S, 3); hidden: bool (B, L).

    `painted` holds the original in visible patches.
    """

    original: NDArray[np.uint8]
    masked: NDArray[np.uint8]
    painted: NDArray[np.uint8]
    hidden: NDArray[np.bool_]


@torch.inference_mode()
def reconstruct(objective: PretrainingObjective, image: Tensor, keys: Tensor) -> Reconstructed:
    """Mask images as a training step does, and paint the hidden patches as the image decoder h_x predicts them.

    Where the recipe normalises the pixels of each patch, the prediction is led back with the mean and deviation of the
    original patch: h_x was never asked for them.

    Args:
        objective: with a term `mim`, in evaluation mode.
        image: uint8 (B, 3, S, S), on the objective's device.
        keys: decide each image's mask, int64 (B,).
    """
    term = objective.terms["mim"]
    assert isinstance(term, Reconstruction)
    pixels = normalise(image, objective.mean, objective.std)
    batch = Batch(image=image, keys=keys, num_paired=0)
    views = Views(objective.model, batch, pixels, objective.masker, objective.mask_ratio, progress=1.0)
    predicted = term.decoder(views.masked_tokens, views.mask.restore).float()
    patches = patchify(pixels, term.patch_size)
    if term.normalise:
        predicted = denormalise(predicted, patches)
    hidden = views.mask.is_hidden()
    painted = unpatchify(torch.where(hidden[:, :, None], predicted, patches), term.patch_size)
    original = patchify(image.float(), term.patch_size)
    masked = unpatchify(original.masked_fill(hidden[:, :, None], _HIDDEN), term.patch_size)
    grey = painted * objective.std[:, None, None] + objective.mean[:, None, None]
    return Reconstructed(
        original=_pixels(image),
        masked=_pixels(masked),
        painted=_pixels(grey * 255),
        hidden=hidden.cpu().numpy(),
    )


def denormalise(predicted: Tensor, patches: Tensor) -> Tensor:
    """Undo `pixel_target` with the mean and variance of the original patches; both (B, L, P P 3)."""
    deviation = (patches.var(dim=-1, keepdim=True) + _VARIANCE_FLOOR).sqrt()
    return predicted * deviation + patches.mean(dim=-1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class FeatureMaps:
    """colours: uint8 (B, h, w, 3).  explained: share of the patches' variance that the three colours hold, 0-1."""

    colours: NDArray[np.uint8]
    explained: float


def feature_maps(patches: NDArray, grid: tuple[int, int], seen: NDArray[np.bool_]) -> FeatureMaps:
    """The first three principal components of patch features as red, green and blue.

    One basis for all images, so that equal colours mean similar features within one call; fitted on the patches that
    are `seen`, since the black border would else take the first component.  A component is scaled from its 1st to its
    99th percentile; its sign makes its largest loading positive, as a sign means nothing.

    Args:
        patches: (B, L, D).
        grid: (h, w).
        seen: bool (B, L); the others come out dark grey.  Fewer than four seen ones: all are taken.
    """
    seen = seen if seen.sum() >= 4 else np.ones_like(seen)
    values = patches.astype(np.float64)
    mean = values[seen].mean(axis=0)
    centred = values[seen] - mean
    strength, basis = np.linalg.eigh(centred.T @ centred)  # ascending
    basis = basis[:, ::-1][:, :3]
    largest = basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])]
    basis = basis * np.where(largest < 0, -1, 1)
    scores = (values - mean) @ basis
    low, high = np.percentile(scores[seen], (1, 99), axis=0)
    colours = np.full((*scores.shape[:2], 3), 127.5)
    colours[..., : basis.shape[1]] = 255 * ((scores - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colours[~seen] = _OUTSIDE
    shown = rearrange(colours.round().astype(np.uint8), "b (h w) c -> b h w c", h=grid[0], w=grid[1])
    total = max(float(strength.sum()), 1e-12)
    return FeatureMaps(colours=shown, explained=float(strength[::-1][:3].sum() / total))


def patches_in_field(image: Tensor, patch_size: int) -> NDArray[np.bool_]:
    """Which patches of uint8 images (B, 3, S, S) are not black: bool (B, L)."""
    return (patchify(image.float(), patch_size).mean(dim=-1) > _BLACK).cpu().numpy()


def varied_rows(store: Store, rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """At most `count` of the rows, each with another text and of another patient while there are such.

    Rows without text count by their labels.  The order of choice is a seeded hash of the ids.
    """
    order = rows[randomness.order(np.asarray([store.ids[row] for row in rows], str), seed)].tolist()
    chosen: list[int] = []
    keys: set[str] = set()
    patients: set[str] = set()
    for new_key, new_patient in ((True, True), (True, False), (False, True), (False, False)):
        for row in order:
            if len(chosen) == count:
                break
            key, patient = _key(store, row), _patient(store, row)
            if row not in chosen and not (new_key and key in keys) and not (new_patient and patient in patients):
                chosen.append(row)
                keys.add(key)
                patients.add(patient)
    return np.asarray(chosen, np.int64)


def stored_pixels(store: Store, rows: NDArray[np.int64], size: int) -> Tensor:
    """Rows of a store as the model sees them, uint8 (B, 3, size, size).

    Raises:
        LeftOut: they are volumes.
    """
    if store.kind == "volumes":
        raise LeftOut(_VOLUMES)
    return torch.stack([stored_image(store, int(row), size) for row in rows])


def photograph(store: Store, row: int) -> bytes:
    """A row as it is stored, for a reader's eye: a JPEG of at most 256 pixels, however few the model reads.

    Raises:
        LeftOut: it is a volume.
        UserError: it cannot be decoded.
    """
    if store.kind == "volumes":
        raise LeftOut(_VOLUMES)
    return jpeg(decoded_image(store, row).permute(1, 2, 0).numpy())


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """A photograph (H, W, 3) for a page, at most 256 pixels wide."""
    image = Image.fromarray(pixels)
    if image.width > _MOST_PIXELS:
        image = image.resize((_MOST_PIXELS, round(image.height * _MOST_PIXELS / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=90, subsampling=0)
    return buffer.getvalue()


def map_png(colours: NDArray[np.uint8], size: int) -> bytes:
    """A feature map (h, w, 3) at a picture's size, each patch a square of one colour."""
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((size, size), Image.Resampling.NEAREST).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """(B, 3, S, S) of 0-255 -> uint8 (B, S, S, 3)."""
    shown = image.float().round().clamp(0, 255).to(torch.uint8)
    return rearrange(shown.cpu().numpy(), "b c h w -> b h w c")


def _key(store: Store, row: int) -> str:
    text = normalise_text(store.text(row) or "")
    return text or str([str(column[row]) for column in store.labels.values()])


def _patient(store: Store, row: int) -> str:
    return store.patients[row] or f"row {row}"
