"""A trained model as a scikit-learn transformer: photographs in, features out, inside pipelines and cross-validation.

scikit-learn copies, pickles and re-creates estimators freely, so this one holds a path and never the weights: they are
read when they are needed, once a process, and copies share them.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from maskedclip.deployment.embed_outputs import PATCHES, Encode, known_outputs
from maskedclip.deployment.external import open_model
from maskedclip.deployment.external_open_clip import OpenClipModel
from maskedclip.deployment.inputs import in_threads
from maskedclip.deployment.model import Model, Photograph, read_pixels
from maskedclip.errors import UserError
from maskedclip.models.features import BATCH, prepare_pixels


class ImageEncoder(TransformerMixin, BaseEstimator):
    """Features of photographs by a trained model, frozen.

    `fit` learns nothing from the photographs: it opens the model and notes its fingerprint, which a copy or a pickle
    checks before it computes.

    Args:
        run: a run directory, or whatever else `maskedclip embed` takes as a model.
        output: `encoder`, `bridge` or `projected`.
        device: `auto` takes a GPU where there is one; else a torch device.
        batch: photographs in a forward pass.

    Attributes:
        fingerprint_: of the model's weights and preprocessing, known after `fit`.
        n_features_out_: width of the output, known after `fit`.
    """

    def __init__(self, run: Path | str = "", output: str = "encoder", device: str = "auto", batch: int = BATCH) -> None:
        self.run = run
        self.output = output
        self.device = device
        self.batch = batch

    def fit(self, X: Any = None, y: Any = None) -> "ImageEncoder":
        """Open the model.

        Args:
            X: not looked at, but for its being there.
            y: not looked at.

        Raises:
            UserError: no such model, or it lacks the output.
        """
        model = self._model()
        known = [name for name in known_outputs(model) if name not in PATCHES]
        if self.output not in known:
            raise UserError(f"output: {self.output!r} is none of this model's outputs ({', '.join(known)})")
        if self.batch < 1:
            raise UserError(f"batch: {self.batch} photographs are no batch; give 1 or more")
        size = model.preprocessing.size
        probe = Encode(model, [self.output])(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        self.fingerprint_: str = model.fingerprint
        self.n_features_out_: int = probe[self.output].shape[1]
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features (N, D), float32.

        Args:
            X: N photographs: paths, encoded bytes, Pillow images or uint8 arrays (H, W, 3) or (H, W), in a list, an
                array, a pandas column or a table of one column; or one array uint8 (N, H, W, 3); or what
                `Model.preprocess` made, as a tensor uint8 (N, 3, S, S).

        Raises:
            sklearn.exceptions.NotFittedError: `fit` was not called.
            UserError: a photograph cannot be read, or the model has changed since `fit`.
        """
        check_is_fitted(self, "fingerprint_")
        model = self._model()
        if model.fingerprint != self.fingerprint_:
            raise UserError(
                f"{self.run}: holds another model ({model.fingerprint}) than the one that was fitted "
                f"({self.fingerprint_}); fit again, or put the former one back"
            )
        encode = Encode(model, [self.output])
        listed = _listed(X)
        prepare = partial(_prepared, model=model)
        parts: list[NDArray[np.float32]] = []
        waiting: list[Tensor] = []
        for image in in_threads(prepare, listed):
            waiting.append(image)
            if len(waiting) == self.batch:
                parts.append(encode(torch.stack(waiting))[self.output])
                waiting = []
        if waiting:
            parts.append(encode(torch.stack(waiting))[self.output])
        return np.concatenate(parts) if parts else np.zeros((0, self.n_features_out_), np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """`encoder0`, `encoder1`, ...; photographs have no names that could enter."""
        check_is_fitted(self, "n_features_out_")
        return np.asarray([f"{self.output}{column}" for column in range(self.n_features_out_)], object)

    def __sklearn_tags__(self) -> Any:
        """Photographs are no table of numbers: scikit-learn leaves them as they are."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags

    def _model(self) -> Model | OpenClipModel:
        if not str(self.run):
            raise UserError("run: is empty; give the run directory that `maskedclip pretrain --out` wrote")
        return _opened(str(self.run), self.device, _state(str(self.run)))


@lru_cache(maxsize=4)
def _opened(run: str, device: str, state: tuple[int, ...]) -> Model | OpenClipModel:
    """The model, shared by all estimators of this process that name it, until its files change."""
    return open_model(run, device=device)


def _state(run: str) -> tuple[int, ...]:
    """Size and time of change of a model's weights, so that a run that was trained on is read anew."""
    found: list[int] = []
    for path in (Path(run), Path(run) / "weights.safetensors", Path(run) / "model" / "weights.safetensors"):
        if path.is_file():
            state = path.stat()
            found += [state.st_size, state.st_mtime_ns]
    return tuple(found)


def _listed(X: Any) -> Sequence[Any]:
    """N photographs, one by one."""
    if isinstance(X, str | Path | bytes | Image.Image):
        raise UserError("X: is one photograph; give a list of them")
    if isinstance(X, Tensor):
        if X.dtype != torch.uint8 or X.ndim != 4 or X.shape[1] != 3:
            raise UserError(f"X: give tensors as uint8 (N, 3, S, S), not {X.dtype} {tuple(X.shape)}")
        return list(X)
    if hasattr(X, "to_numpy"):  # a column or table of pandas or Polars
        X = X.to_numpy()
    if isinstance(X, np.ndarray):
        if X.dtype == np.uint8 and X.ndim in (3, 4):
            return list(X)
        if X.dtype.kind in "OUST" and (X.ndim == 1 or (X.ndim == 2 and X.shape[1] == 1)):
            return X.ravel().tolist()
        raise UserError(
            f"X: give paths or images (N,), or pixels uint8 (N, H, W, 3) or (N, H, W), not {X.dtype} {X.shape}"
        )
    if not isinstance(X, Iterable):
        raise UserError(f"X: give a list of photographs, not {type(X).__name__}")
    return list(X)


def _prepared(photograph: Photograph | Tensor, *, model: Model | OpenClipModel) -> Tensor:
    size = model.preprocessing.size
    if isinstance(photograph, Tensor):
        if photograph.shape != (3, size, size) or photograph.dtype != torch.uint8:
            raise UserError(
                f"X: a tensor is what model.preprocess made, uint8 (3, {size}, {size}), "
                f"not {photograph.dtype} {tuple(photograph.shape)}"
            )
        return photograph
    return prepare_pixels(read_pixels(photograph), model.preprocessing)
