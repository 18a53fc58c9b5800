"""A trained model in a user's hands: images and texts in, features and answers out, offline, from a run alone."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskedclip.data import imaging
from maskedclip.data.images import image_batches
from maskedclip.data.prompts import prompts_for
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.models.features import BATCH, prepare_pixels, stack_features, text_features, to_input
from maskedclip.models.resizing import resized
from maskedclip.models.saving import SavedModel, read_model, weights_fingerprint
from maskedclip.models.volume_features import volume_features

Photograph = str | Path | bytes | Image.Image | np.ndarray
"""A path, encoded bytes, a Pillow image, or a uint8 array (H, W, 3) or (H, W)."""


class Model:
    """Image and text encoder of one run, on one device.

    Attributes: `fingerprint` of weights and preprocessing; `has_text`, whether texts can be encoded; `preprocessing`;
    `tokenizer`, None where it was trained without texts.
    """

    def __init__(self, saved: SavedModel, device: torch.device) -> None:
        self.module = saved.model.to(device)
        self.device = device
        self.preprocessing, self.fingerprint = saved.preprocessing, saved.fingerprint
        self.tokenizer = saved.tokenizer

    @property
    def has_text(self) -> bool:
        """Whether the model was trained with texts."""
        return self.tokenizer is not None

    def preprocess(self, photograph: Photograph) -> Tensor:
        """Prepare one photograph exactly as curation and evaluation do: crop, square, resize; uint8 (3, S, S).

        Raises:
            UserError: it cannot be read as an image.
        """
        return prepare_pixels(read_pixels(photograph), self.preprocessing)

    def encode_image(
        self, photographs: Photograph | Tensor | Sequence[Photograph], output: str = "encoder"
    ) -> np.ndarray:
        """Features of photographs, or of a batch that `preprocess` made, float32.

        Args:
            photographs: one, several, or uint8 (B, 3, S, S).
            output: `encoder`, mean of the patch tokens of f (B, D), the default feature; `bridge`, of g(f) (B, D);
                `projected`, unit length, comparable with texts (B, E).

        Raises:
            UserError: an unknown output, one that this model lacks, or an image that cannot be read.
        """
        return self.encode_images(photographs)[self._known(output)]

    def encode_images(self, photographs: Photograph | Tensor | Sequence[Photograph]) -> dict[str, np.ndarray]:
        """All outputs of `encode_image` at once, by name."""
        if isinstance(photographs, Tensor):
            batches: Iterable[Tensor] = photographs.split(BATCH)
        else:
            listed = photographs if isinstance(photographs, list | tuple) else [photographs]
            batches = (
                torch.stack([self.preprocess(entry) for entry in listed[start : start + BATCH]])  # type: ignore[arg-type]
                for start in range(0, len(listed), BATCH)
            )
        return stack_features(self.module, batches, self.preprocessing)

    def features(self, store: Store, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Features of rows of a store, by output name; the same numbers as `encode_image` of the stored images.

        Of a store of volumes the mean over the tiles that cover each.

        Raises:
            UserError: the store holds pictures and the model reads volumes, or the reverse.
        """
        volumes = getattr(store, "kind", "images") == "volumes"
        if volumes != self.module.reads_volumes:
            kinds = ("volumes", "pictures") if volumes else ("pictures", "volumes")
            raise UserError(f"the store holds {kinds[0]}, and the model reads {kinds[1]}; give a store of {kinds[1]}")
        if volumes:
            return volume_features(self.module, store, rows, self.preprocessing)
        batches = image_batches(store, rows, size=self.preprocessing.size, batch=BATCH)
        return stack_features(self.module, batches, self.preprocessing)

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Embeddings of texts, unit length, float32 (N, E).

        Raises:
            UserError: the model was trained without texts.
        """
        if self.tokenizer is None:
            raise UserError(
                "this model was trained without texts (recipe mae) and cannot read any; train with --config maskedclip"
            )
        return text_features(self.module, self.tokenizer, [texts] if isinstance(texts, str) else list(texts))

    def classify(
        self,
        photographs: Photograph | Sequence[Photograph],
        labels: Sequence[str],
        *,
        prompts: dict[str, list[str]] | None = None,
    ) -> list[dict[str, float]]:
        """Zero-shot probabilities of labels that exclude each other; not calibrated, and no diagnosis.

        Args:
            photographs: one or several.
            labels: names or sentences, e.g. `["glaucoma", "cataract", "normal fundus"]`.
            prompts: sentences for some of the labels, instead of the shipped ensembles.

        Returns: for each photograph, its probability for each label, in the order of `labels`.
        """
        if len(set(labels)) < 2:
            raise UserError("labels: give at least two different ones, e.g. glaucoma,cataract,normal fundus")
        ensembles = [(prompts or {}).get(label) or prompts_for(label) for label in labels]
        directions = np.stack([_unit(self.encode_text(sentences).mean(axis=0)) for sentences in ensembles])
        images = self.encode_image(photographs, "projected")
        assert self.module.logit_scale is not None
        logits = float(self.module.scale.detach()) * images.astype(np.float64) @ directions.T
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return [dict(zip(labels, row.tolist(), strict=True)) for row in shares]

    def patch_features(self, images: Tensor) -> dict[str, np.ndarray]:
        """Patch tokens of prepared images uint8 (B, 3, S, S): `encoder` and, with a text tower, `bridge`, (B, L, D)."""
        with torch.inference_mode():
            tokens = self.module.encoder(to_input(images.to(self.device), self.preprocessing))
            spaces = {"encoder": tokens}
            if self.module.image_projection is not None:
                spaces["bridge"] = self.module.bridge(tokens)
            return {name: self.module.encoder.patches(value).cpu().numpy() for name, value in spaces.items()}

    def at_size(self, size: int, where: str = "size") -> "Model":
        """The same model with another input size, positions resampled; `where` is named in errors.

        Raises:
            UserError: the size is no multiple of the patch.
        """
        module = resized(self.module, size, where)
        if module is self.module:
            return self
        preprocessing = replace(self.preprocessing, stored_size=max(self.preprocessing.stored_size, size), size=size)
        saved = SavedModel(module, self.tokenizer, preprocessing, weights_fingerprint(module, preprocessing))
        return Model(saved, self.device)

    def _known(self, output: str) -> str:
        known = ["encoder", "bridge", "projected"] if self.has_text else ["encoder"]
        if output not in known:
            raise UserError(f"output: {output!r} is none of this model's outputs ({', '.join(known)})")
        return output


def load(run: Path | str, *, device: str = "auto", volumes: bool | None = False) -> Model:
    """Load the model of a run directory (or its `model` folder), offline.

    Args:
        run: what `maskedclip pretrain --out` wrote.
        device: `auto` takes a GPU where there is one; else a torch device.
        volumes: whether the model must read volumes, must not, or (None) may.

    Raises:
        UserError: no such run, a part of it is missing or damaged, or it reads volumes and must not, or the reverse.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{run}: no such run directory; `maskedclip pretrain --out {run}` makes one")
    if not (folder / "config.json").is_file():
        if not (folder / "model").is_dir():
            raise UserError(
                f"{run}: has no model folder; its training has not ended (go on with --resume true), or it is no run"
            )
        folder = folder / "model"
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    saved = read_model(folder)
    if volumes is not None and saved.model.reads_volumes != volumes:
        raise UserError(
            f"{run}: its model reads {'pictures' if volumes else 'volumes'}; "
            + (
                "give a run of a volume recipe, or a store of pictures"
                if volumes
                else "`maskedclip evaluate` and `embed` take it with a store of volumes, Python by load(RUN, "
                "volumes=True); no other verb does"
            )
        )
    return Model(saved, torch.device(chosen))


def read_pixels(photograph: Photograph) -> np.ndarray:
    """Any photograph -> RGB uint8 (H, W, 3).

    Raises:
        UserError: it cannot be read as an image, or is an array of another type or shape.
    """
    name = str(photograph) if isinstance(photograph, str | Path) else "the image"
    if isinstance(photograph, str | Path):
        if not Path(photograph).is_file():
            raise UserError(f"{photograph}: no such image file")
        photograph = Path(photograph).read_bytes()
    if isinstance(photograph, bytes):
        try:
            return imaging.decode(photograph, name=name)
        except imaging.UndecodableImage as error:
            raise UserError(f"{name}: {error}") from None
    if isinstance(photograph, Image.Image):
        return np.asarray(photograph.convert("RGB"))
    array: Any = np.asarray(photograph)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UserError(f"{name}: give uint8 (H, W, 3) or (H, W), not {array.dtype} {array.shape}")
    return np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
