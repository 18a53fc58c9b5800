"""A run for other runtimes: written, run there, compared with the model here, and published only if it agrees."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import maskedclip
from maskedclip.data.prompts import Overrides, prompts_for
from maskedclip.deployment import export_check as check
from maskedclip.deployment.export_card import evaluation_of, model_card
from maskedclip.deployment.export_tokenizer import write_tokenizer
from maskedclip.deployment.exported import ABOUT, open_exported
from maskedclip.deployment.model import Model, load
from maskedclip.deployment.publishing import partial_of, publish
from maskedclip.errors import CheckFailed, UserError

PRECISIONS = {
    "timm": ("float32", "bf16"),
    "huggingface": ("float32", "bf16"),
    "open_clip": ("float32", "bf16"),
    "onnx": ("float32", "bf16", "int8"),
    "torch": ("float32", "bf16"),
}
"""By format, what its runtime can do here."""
FORMATS = tuple(PRECISIONS)
OUTPUTS = ("encoder", "bridge", "projected")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an export shall be.

    format: of FORMATS.  precision: float32; bf16, weights stored in bfloat16; int8.  output: of a timm export.
    images: most pictures of the check.  tolerance: the largest relative error, None for the precision's own.
    labels: whose prompts and text directions go along; prompts: sentences of the user's for some of them.
    head: folder of a saved head that goes along.  evaluation: folder whose metrics go into the card; None: the run's.
    """

    format: str
    precision: str = "float32"
    output: str = "encoder"
    check: Path | None = None
    images: int = 32
    tolerance: float | None = None
    labels: Sequence[str] = ()
    prompts: Overrides = field(default_factory=dict)
    head: Path | None = None
    evaluation: Path | None = None


@dataclass(frozen=True)
class Export:
    """A finished export: its folder, how it agrees with the model, and on what."""

    folder: Path
    agreements: list[check.Agreement]
    limits: check.Limits
    checked_on: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "checked_on": self.checked_on,
            "limits": asdict(self.limits),
            "outputs": [entry.to_dict() for entry in self.agreements],
        }


def export(run: Path, out: Path, wanted: Wanted) -> Export:
    """Write a run for another runtime and check it there.

    Args:
        run: a run directory or its model folder.
        out: a folder that does not exist; it appears when everything is written and checked.
        wanted: the format and what goes along.

    Raises:
        UserError: something given cannot be used, or the format cannot hold the model.
        CheckFailed: the export's features differ from the model's by more than the tolerance; nothing is kept.
    """
    _check_wanted(out, wanted)
    model = load(run, device="cpu")
    run = run.parent if (run / "config.json").is_file() else run  # a model folder lies in its run
    evaluation = evaluation_of(run, wanted.evaluation)
    size = model.preprocessing
    given = (
        check.phantom_material(size, wanted.images)
        if wanted.check is None
        else check.material(wanted.check, size, wanted.images)
    )
    partial = partial_of(out)
    with _removed_on_failure(partial):
        about = _write(partial, model, wanted)
        carried = _carry_along(partial, model, wanted)
        exported = open_exported(partial)
        found = check.agreements(exported, model, given)
        limits = check.LIMITS[wanted.precision]
        limits = limits if wanted.tolerance is None else replace(limits, relative=wanted.tolerance)
        failed = check.failures(found, limits)
        if failed:
            raise CheckFailed(
                f"--format {wanted.format}: differs from the model beyond the tolerance (relative {limits.relative:g}, "
                f"cosine {limits.cosine:g}) on {given.origin}: {'; '.join(check.lines(failed))}; nothing was kept"
            )
        about["check"] = check.to_json(found, limits, given)
        (partial / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        card = model_card(about, check.lines(found), run, evaluation, carried)
        (partial / "README.md").write_text(card)
        if wanted.format == "open_clip":
            from maskedclip.deployment.export_open_clip import relocate

            relocate(partial, out)
        if out.exists():
            raise UserError(f"--out {out}: came to be meanwhile; choose another folder")
        publish(partial, out)
    return Export(out, found, limits, given.origin)


def _check_wanted(out: Path, wanted: Wanted) -> None:
    if out.exists():
        raise UserError(f"--out {out}: exists; choose another folder")
    if wanted.format not in PRECISIONS:
        raise UserError(f"--format {wanted.format}: give one of {', '.join(FORMATS)}")
    possible = PRECISIONS[wanted.format]
    if wanted.precision not in possible:
        raise UserError(
            f"--precision {wanted.precision}: a {wanted.format} export can be {' or '.join(possible)}; "
            "int8 is for --format onnx"
        )
    if wanted.output != "encoder" and wanted.format != "timm":
        raise UserError(f"--output {wanted.output}: is for --format timm; a {wanted.format} export has all outputs")
    if wanted.images < 2:
        raise UserError(f"--images {wanted.images}: too few to compare; give 2 or more")
    if wanted.tolerance is not None and not wanted.tolerance > 0:
        raise UserError(f"--tolerance {wanted.tolerance}: give a number above 0, e.g. 1e-4")


@contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    try:
        partial.mkdir(parents=True)
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{partial}: cannot be written ({error.strerror or error}); free some space") from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(folder: Path, model: Model, wanted: Wanted) -> dict[str, Any]:
    """The towers, export.json and what belongs to them; returns the contents of export.json."""
    module, prepared, tokenizer = model.module, model.preprocessing, model.tokenizer
    dtype = torch.bfloat16 if wanted.precision == "bf16" else torch.float32
    config = module.config
    widths = {"encoder": module.encoder.width}
    if module.image_projection is not None:
        widths |= {"bridge": module.encoder.width, "projected": module.image_projection.out_features}
    about: dict[str, Any] = {
        "format": wanted.format,
        "precision": wanted.precision,
        "maskedclip": maskedclip.__version__,
        "fingerprint": model.fingerprint,
        "output": wanted.output,
        "text_length": config.text_length if wanted.format != "timm" else 0,
        "patch_size": module.encoder.patch_size,
        "widths": widths,
        **asdict(prepared),
    }
    if wanted.format == "timm":
        from maskedclip.deployment.export_timm import write_timm

        write_timm(folder, module, prepared, wanted.output, dtype)
        about |= {"widths": {wanted.output: widths[wanted.output]}}
        about |= {"scaled": wanted.output != "encoder" and config.bridge_depth > 0}
    elif wanted.format == "open_clip":
        from maskedclip.deployment.export_open_clip import write_open_clip

        write_open_clip(folder, module, tokenizer, prepared, dtype)
        about |= {"widths": {"projected": widths["projected"]}, "scaled": config.bridge_depth > 0}
    elif wanted.format == "huggingface":
        from maskedclip.deployment.export_huggingface import write_huggingface

        about |= {"native": write_huggingface(folder, module, prepared, dtype)}
    elif wanted.format == "onnx":
        from maskedclip.deployment.export_onnx import OPSET, write_onnx

        write_onnx(folder, module, prepared, wanted.precision)
        about |= {"opset": OPSET}
    else:
        from maskedclip.deployment.export_torch import write_torch

        write_torch(folder, module, prepared, dtype)
    if tokenizer is not None and wanted.format != "timm":
        write_tokenizer(folder, tokenizer)
    (folder / "preprocessing.json").write_text(json.dumps(asdict(prepared), indent=2) + "\n")
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
    return about


def _carry_along(folder: Path, model: Model, wanted: Wanted) -> list[str]:
    """labels.json and a head; returns the labels."""
    if wanted.head is not None:
        _copy_head(wanted.head, folder, model)
    labels = [label.strip() for label in wanted.labels if label.strip()]
    if not labels:
        return []
    entries = []
    for label in labels:
        sentences = prompts_for(label, wanted.prompts)
        direction = model.encode_text(sentences).astype(np.float64).mean(axis=0)
        direction /= max(float(np.linalg.norm(direction)), 1e-12)
        entries.append({"label": label, "prompts": sentences, "direction": direction.tolist()})
    scale = float(model.module.scale.detach())
    about = "probabilities of labels that exclude each other: softmax over labels of scale * projected . direction"
    text = json.dumps({"about": about, "scale": scale, "labels": entries}, indent=1)
    (folder / "labels.json").write_text(text + "\n")
    return labels


def _copy_head(head: Path, folder: Path, model: Model) -> None:
    from maskedclip.deployment.heads_saving import read_head

    saved = read_head(head)
    if saved.encoder is not None:
        raise UserError(
            f"--head {head}: reads an encoder that was fine-tuned with it; export that one, {saved.encoder}, instead"
        )
    if saved.base != model.fingerprint:
        raise UserError(f"--head {head}: belongs to model {saved.base}, and this run is {model.fingerprint}")
    (folder / "head").mkdir()
    for name in ("head.json", "head.safetensors"):
        shutil.copyfile(head / name, folder / "head" / name)
