"""A saved composed-retrieval head: composed.json, which a person can read, and composed.safetensors.

It belongs to one model, by fingerprint: on other features its numbers mean nothing.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file

import maskedclip
from maskedclip.deployment.composed import Combiner, RetrievalHead, SumHead
from maskedclip.deployment.composed_features import width_of
from maskedclip.deployment.heads_saving import is_head, refuse_existing
from maskedclip.deployment.model import Model
from maskedclip.deployment.publishing import partial_of, publish
from maskedclip.errors import UserError

FORMAT = 1
FILE = "composed.json"
MODEL = "model"
"""Folder of the tuned model, where there is one."""
_TENSORS = "composed.safetensors"


def save_composed(
    folder: Path,
    head: RetrievalHead,
    model: Model,
    about: dict[str, Any],
    beside: dict[str, str] | None = None,
    tuned: Path | None = None,
) -> None:
    """Write a new head folder; it appears only when it is complete.

    Args:
        folder: must not exist.
        head: what to save.
        model: whose features it reads.
        about: what a person wants to know of its making, plain values.
        beside: texts of further files, by name.
        tuned: folder of the model, where its encoders were tuned for the head; it is moved to FOLDER/model.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    refuse_existing(folder, "--out")
    partial = partial_of(folder)
    try:
        partial.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in head.state_dict().items()}, partial / _TENSORS)
        for name, text in (beside or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        if tuned is not None:
            shutil.move(tuned, partial / MODEL)
        sizes = {name: getattr(head, name) for name in ("projection", "hidden", "dropout") if hasattr(head, name)}
        description = {
            "format": FORMAT,
            "maskedclip": maskedclip.__version__,
            "kind": head.kind,
            "width": width_of(model),
            **sizes,
            "model": model.fingerprint,
            "tensors": hashlib.sha256((partial / _TENSORS).read_bytes()).hexdigest(),
            "about": about,
        }
        (partial / FILE).write_text(json.dumps(description, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except (OSError, SafetensorError, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder}: the head cannot be written ({error}); free space or give another folder") from None
    publish(partial, folder)


def read_composed(folder: Path, model: Model) -> RetrievalHead:
    """A saved head, in evaluation mode, for the model that it was made for.

    Raises:
        UserError: it is none, it is damaged, a later version wrote it, or it belongs to another model.
    """
    if is_head(folder):
        raise UserError(f"--head {folder}: answers labels (of probe); `maskedclip compose` makes one for search")
    if not (folder / FILE).is_file() or not (folder / _TENSORS).is_file():
        raise UserError(f"--head {folder}: no composed-retrieval head; `maskedclip compose RUN --data STORE` makes one")
    try:
        about = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise UserError(
                f"{folder}/{FILE}: format {about['format']}, this version reads {FORMAT}; update maskedclip"
            )
        raw = (folder / _TENSORS).read_bytes()
        if hashlib.sha256(raw).hexdigest() != about["tensors"]:
            raise UserError(f"{folder}/{_TENSORS}: is damaged, or another head's; copy the folder again")
        base, head = str(about["model"]), _head(about, raw)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{folder}/{FILE}: is damaged ({line}); copy the folder again") from None
    if base != model.fingerprint:
        raise UserError(
            f"--head {folder}: was made for the model {base}, and this is {model.fingerprint}; give that model, or "
            "make a head for this one with `maskedclip compose`"
        )
    return head


def _head(about: dict[str, Any], raw: bytes) -> RetrievalHead:
    """Raises ValueError and its kin where parts do not fit each other."""
    if about["kind"] == SumHead.kind:
        return SumHead().eval()
    if about["kind"] != Combiner.kind:
        raise ValueError(f"kind {about['kind']!r}")
    tensors = load(raw)
    width, projection = tensors["text_projection.weight"].shape[::-1]
    hidden = tensors["joint.weight"].shape[0]
    if (width, projection, hidden) != (about["width"], about["projection"], about["hidden"]):
        raise ValueError("sizes do not fit the tensors")
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise ValueError("holds values that are no numbers")
    head = Combiner(width, projection=projection, hidden=hidden, dropout=float(about["dropout"]))
    head.load_state_dict(tensors)
    return head.eval()
