"""A model folder: weights, configuration, tokenizer, preprocessing; all that loading needs, offline, without pickle."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP, ModelConfig, model_from_config
from maskedclip.models.text import TextTokenizer, load_tokenizer

FORMAT = 1
_WEIGHTS, _DECODERS = "weights.safetensors", "decoders.safetensors"


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a photograph to the encoder's input, the same at every entrance.

    crop: how curation prepared the images.  stored_size: its side, pixels.  size: the encoder's, pixels.
    mean, std: of the channels, values in [0, 1].
    """

    crop: Literal["fundus", "none"]
    stored_size: int
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def save_model(
    folder: Path,
    model: MaskedCLIP,
    tokenizer: TextTokenizer | None,
    preprocessing: Preprocessing,
    decoders: Mapping[str, Tensor],
    step: int | None = None,
) -> None:
    """Write a model folder, replacing an earlier one only when the new one is complete.

    step: optimizer steps of its weights, for a reader of config.json; None where it has no training of its own.

    Raises:
        UserError: it cannot be written, e.g. for want of space; an earlier one is left as it was.
    """
    partial = folder.with_name(folder.name + ".partial")
    try:
        _write(partial, model, tokenizer, preprocessing, decoders, step)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{folder}: the model cannot be written ({error}); free some space, then --resume true"
        ) from None
    earlier = folder.with_name(folder.name + ".earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.rename(earlier)  # removing it first would take as long as it is large, and a kill then leaves neither
    partial.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)


def _write(
    partial: Path,
    model: MaskedCLIP,
    tokenizer: TextTokenizer | None,
    preprocessing: Preprocessing,
    decoders: Mapping[str, Tensor],
    step: int | None,
) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, partial / _WEIGHTS
    )
    save_file({name: value.detach().cpu().contiguous() for name, value in decoders.items()}, partial / _DECODERS)
    if tokenizer is not None:
        tokenizer.save(partial)
    (partial / "preprocessing.json").write_text(json.dumps(asdict(preprocessing), indent=2) + "\n")
    config = {"format": FORMAT, "fingerprint": folder_fingerprint(partial), "model": model.config.to_dict()}
    config |= {} if step is None else {"step": step}
    (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@dataclass(frozen=True)
class SavedModel:
    """What a model folder holds; the model is in evaluation mode."""

    model: MaskedCLIP
    tokenizer: TextTokenizer | None
    preprocessing: Preprocessing
    fingerprint: str


def read_model(folder: Path) -> SavedModel:
    """Read a model folder.

    Raises:
        UserError: a part is missing, damaged or of a later format.
    """
    stamp = _stamp(folder)
    config = _read_json(folder, "config.json")
    if config.get("format") != FORMAT:
        raise UserError(
            f"{folder}/config.json: format {config.get('format')}, this version reads {FORMAT}; update maskedclip"
        )
    try:
        model_config = ModelConfig(**config["model"])
        stored = _read_json(folder, "preprocessing.json")
        preprocessing = Preprocessing(**{**stored, "mean": tuple(stored["mean"]), "std": tuple(stored["std"])})
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: config.json or preprocessing.json is damaged ({error}); copy the folder again"
        ) from None
    tokenizer = None
    if model_config.text is not None:
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"{folder}: tokenizer.json is missing, so texts cannot be read; copy the whole folder again"
            )
        tokenizer = load_tokenizer(folder, model_config.text_length)
    model = model_from_config(model_config)
    model.tokenizer = tokenizer
    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise UserError(f"{folder}: {_WEIGHTS} is missing; copy the whole folder again")
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{weights} is damaged ({str(error).splitlines()[0]}); copy it again") from None
    fingerprint = folder_fingerprint(folder)
    if _stamp(folder) != stamp:
        return read_model(folder)  # a training put others there while these were read
    return SavedModel(model.eval(), tokenizer, preprocessing, fingerprint)


def _stamp(folder: Path) -> list[tuple[int, int, int]]:
    """What changes when one of the files is exchanged."""
    found = [path.stat() for name in (_WEIGHTS, "preprocessing.json") if (path := folder / name).is_file()]
    return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in found]


def read_decoders(folder: Path) -> dict[str, Tensor]:
    """Weights of the decoders h_x and h_z that were trained with the model; empty where there are none."""
    path = folder / _DECODERS
    return load_file(path) if path.is_file() else {}


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise UserError(f"{folder}: {name} is missing; give the folder of a run, and copy all of it")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); copy it again") from None


def folder_fingerprint(folder: Path) -> str:
    """Of the weights and the preprocessing in a model folder, as they lie there.

    What config.json states was true when it was written; weights that were averaged or exchanged since make other
    features, and those kept of the former ones must not be taken for them.

    Raises:
        OSError: one of the files cannot be read.
    """
    digest = hashlib.sha256()
    for name in (_WEIGHTS, "preprocessing.json"):
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


def weights_fingerprint(module: MaskedCLIP, preprocessing: Preprocessing) -> str:
    """Of architecture, weights and preprocessing: what a feature depends on."""
    digest = hashlib.sha256(json.dumps([module.config.to_dict(), asdict(preprocessing)], sort_keys=True).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
