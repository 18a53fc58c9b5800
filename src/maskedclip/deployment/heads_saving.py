"""A saved head: head.json, which a person can read, head.safetensors, and the encoder where it was fine-tuned too.

No pickle is read or written.  A head belongs to one model, by fingerprint: on other features its numbers mean nothing.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import maskedclip
from maskedclip.deployment.heads import STEPS, Abstention, Head, Kind, Method
from maskedclip.deployment.model import Model
from maskedclip.deployment.publishing import partial_of, publish
from maskedclip.errors import UserError
from maskedclip.models.saving import folder_fingerprint, save_model

FORMAT = 1
FILE = "head.json"
_TENSORS = "head.safetensors"
_MODEL = "model"
_BRANCH = ("branch.inner", "branch.offset", "branch.outer")
_NOTICE = "For research; no medical device, and no answer of a model is a diagnosis."


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedHead:
    """What a head folder holds.

    head: ready for use.  base: fingerprint of the model that it was made from.  encoder: folder of the fine-tuned
    model whose features it reads, None where it reads those of the base itself.  preprocessing: of the base, as JSON.
    """

    head: Head
    base: str
    encoder: Path | None
    preprocessing: dict[str, Any]


def save_head(folder: Path, head: Head, model: Model, *, base: str) -> None:
    """Write a new head folder; it appears only when it is complete.

    Args:
        folder: must not exist.
        head: what to save.
        model: whose features it reads; saved along where the head was fine-tuned.
        base: fingerprint of the model that the head was made from.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    refuse_existing(folder, "--out")
    partial = partial_of(folder)
    try:
        partial.mkdir(parents=True)
        save_file(_tensors(head), partial / _TENSORS)
        if head.method in ("finetune", "lora"):
            save_model(partial / _MODEL, model.module, None, model.preprocessing, {})
        text = json.dumps(_description(head, model, base, partial), indent=2, allow_nan=False) + "\n"
        (partial / FILE).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder}: the head cannot be written ({error}); free space or give another folder") from None
    publish(partial, folder)


def refuse_existing(path: Path, option: str) -> None:
    """Raises UserError where something is there already."""
    if path.exists():
        raise UserError(f"{option} {path}: exists; choose another name, or remove it")


def is_head(folder: Path) -> bool:
    """Whether a folder is a saved head."""
    return (folder / FILE).is_file()


def read_head(folder: Path) -> SavedHead:
    """Read a head folder.

    Raises:
        UserError: it is none, it is damaged, a part of it is missing, or a later version wrote it.
    """
    if not is_head(folder):
        raise UserError(f"{folder}: no saved head ({FILE} is missing); `maskedclip probe RUN --data STORE` makes one")
    try:
        about = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise UserError(
                f"{folder}/{FILE}: format {about['format']}, this version reads {FORMAT}; update maskedclip"
            )
        raw = _bytes(folder / _TENSORS)
        if hashlib.sha256(raw).hexdigest() != about["tensors"]:
            raise UserError(f"{folder}/{_TENSORS}: is damaged, or another head's; copy the folder again")
        head = _head(about, load_file(folder / _TENSORS))
        base, preprocessing, own = str(about["model"]), dict(about["preprocessing"]), about["encoder"]
        there = _encoder_fingerprint(folder / _MODEL)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}/{FILE}: is damaged ({_first_line(error)}); copy the folder again") from None
    encoder = folder / _MODEL if head.method in ("finetune", "lora") else None
    if encoder is not None and there != own:
        raise UserError(f"{encoder}: is missing, or another head's; copy the folder again")
    return SavedHead(head=head, base=base, encoder=encoder, preprocessing=preprocessing)


def _tensors(head: Head) -> dict[str, np.ndarray]:
    found = {
        name: np.ascontiguousarray(getattr(head, name)) for name in ("weight", "bias", "slopes", "intercepts", "cuts")
    }
    if head.norm is not None:
        found |= {"norm.weight": head.norm[0], "norm.bias": head.norm[1]}
    if head.branch is not None:
        found |= {name: np.ascontiguousarray(value) for name, value in zip(_BRANCH, head.branch, strict=True)}
    if head.abstention is not None:
        names = ("thresholds", "coverages", "accuracies")
        found |= {f"abstention.{name}": np.ascontiguousarray(getattr(head.abstention, name)) for name in names}
    return found


def _description(head: Head, model: Model, base: str, folder: Path) -> dict[str, Any]:
    stored = model.preprocessing
    return {
        "format": FORMAT,
        "maskedclip": maskedclip.__version__,
        "notice": _NOTICE,
        "method": head.method,
        "kind": head.kind,
        "labels": list(head.labels),
        "output": head.output,
        "unit_features": head.unit,
        "calibrated": [bool(value) for value in head.calibrated],
        "abstain": head.abstain,
        "model": base,
        "preprocessing": {name: getattr(stored, name) for name in ("crop", "stored_size", "size", "mean", "std")},
        "tensors": hashlib.sha256((folder / _TENSORS).read_bytes()).hexdigest(),
        "encoder": _encoder_fingerprint(folder / _MODEL),
        "about": head.about,
    }


def _head(about: dict[str, Any], tensors: dict[str, np.ndarray]) -> Head:
    """Raises KeyError or ValueError where parts are missing or do not fit each other."""
    if not isinstance(about["labels"], list):
        raise ValueError("labels")
    labels = tuple(about["labels"])
    count = len(labels)
    if about["kind"] not in get_args(Kind) or about["method"] not in get_args(Method):
        raise ValueError(f"kind {about['kind']!r}, method {about['method']!r}")
    if not count or not all(isinstance(label, str) for label in labels) or len(set(labels)) != count:
        raise ValueError("labels")
    if not all(isinstance(value, bool) for value in about["calibrated"]):
        raise ValueError("calibrated")
    weight = tensors["weight"]
    width = weight.shape[1]
    shapes = {"weight": (count, width), **dict.fromkeys(("bias", "slopes", "intercepts", "cuts"), (count,))}
    if "norm.weight" in tensors:
        shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    branched = _BRANCH[0] in tensors
    if branched:
        hidden = len(tensors[_BRANCH[0]])
        shapes |= dict(zip(_BRANCH, ((hidden, width), (hidden,), (count, hidden)), strict=True))
    if "abstention.thresholds" in tensors:
        rows = 1 if about["kind"] == "exclusive" else count
        shapes |= {f"abstention.{name}": (rows, STEPS) for name in ("thresholds", "coverages", "accuracies")}
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != np.float64:
            raise ValueError(f"{name} is {tensors[name].dtype} {tensors[name].shape}, not float64 {shape}")
    for name in ("weight", "bias", "slopes", "intercepts", *(_BRANCH if branched else ())):
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} holds values that are no numbers")
    head = Head(
        labels=labels,
        kind=about["kind"],
        method=about["method"],
        output=str(about["output"]),
        unit=bool(about["unit_features"]),
        calibrated=np.array(about["calibrated"], bool).reshape(count),
        norm=(tensors["norm.weight"], tensors["norm.bias"]) if "norm.weight" in tensors else None,
        branch=(tensors[_BRANCH[0]], tensors[_BRANCH[1]], tensors[_BRANCH[2]]) if branched else None,
        abstention=Abstention(
            thresholds=tensors["abstention.thresholds"],
            coverages=tensors["abstention.coverages"],
            accuracies=tensors["abstention.accuracies"],
        )
        if "abstention.thresholds" in tensors
        else None,
        about=dict(about["about"]),
        weight=weight,
        bias=tensors["bias"],
        slopes=tensors["slopes"],
        intercepts=tensors["intercepts"],
        cuts=tensors["cuts"],
    )
    return head.abstaining(float(about["abstain"]))


def _encoder_fingerprint(folder: Path) -> str | None:
    """Of the fine-tuned model in a head's folder, as its weights are now; None where there is none."""
    try:
        return folder_fingerprint(folder)
    except OSError:
        return None


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: is missing; copy the whole folder again")
    return path.read_bytes()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
