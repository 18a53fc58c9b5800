"""The model card of an export: what it is, what it was trained on, what it is worth, how it is loaded."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from maskedclip.deployment.export_loading import loading_code
from maskedclip.errors import UserError
from maskedclip.evaluation.summary import summary_lines

_FORMATS = {
    "timm": "The image encoder for timm: weights in timm's own names, a configuration in timm's hub format.",
    "huggingface": "Image and text encoder for transformers. The whole model comes with one file of code, "
    "`modeling_maskedclip.py`, which `trust_remote_code=True` runs; it needs torch and transformers alone.",
    "open_clip": "Image and text tower for open_clip, which loads them with its own classes. The path of the text "
    "tower's files stands in `open_clip_config.json` (`hf_model_name`), for open_clip knows no relative one: after "
    "moving this folder, write its new place there.",
    "onnx": "ONNX graphs of image and text tower, opset {opset}. They read uint8 pictures and token ids; the "
    "normalisation is inside.",
    "torch": "`torch.export` packages of image and text tower: torch runs them without any other package. They read "
    "uint8 pictures and token ids; the normalisation is inside.",
}
_USE = """## Intended use

Research on medical images: features for linear probes and retrieval, zero-shot classification with a person in charge
of the answer, a starting point for fine-tuning. Not for diagnosis, treatment or triage: it is no medical device, and
nobody has examined it as one.

## Limits

- It knows the cameras, the people and the words of its training data; on others, measure before you rely on it.
- Similarities are no probabilities. Calibrate on data of your own before you read them as such.
- Unequal performance between groups of patients has to be measured (`maskedclip evaluate --subgroups`).
- Texts beyond the trained length are cut; language and style should be those of the training reports.

## Licences

To be filled in by the owner: of the training images and reports (consent, allowed uses), of the pretrained weights that
training began with, and of these weights. Weights made from data under a licence may inherit its conditions.
"""


def model_card(
    about: dict[str, Any], checked: Sequence[str], run: Path, evaluation: Path | None, labels: Sequence[str]
) -> str:
    """The text of README.md.

    Args:
        about: the contents of export.json.
        checked: one line an output.
        run: the run directory, for its recipe and environment; what it lacks is said to be unknown.
        evaluation: a folder that `maskedclip evaluate` wrote, or None.
        labels: that the folder carries.
    """
    kind = about["format"]
    wide = ", ".join(f"`{name}` ({width})" for name, width in about["widths"].items())
    parts = [
        f"---\nlibrary_name: {_LIBRARIES[kind]}\ntags: [maskedclip, medical]\n---",
        f"# MaskedCLIP, {kind} export",
        _FORMATS[kind].format(opset=about.get("opset")),
        f"Outputs (width): {wide}. Weights: {_precision(about)}. Input: {about['size']} x {about['size']} px.",
        "## Load it\n\nFrom inside this folder:\n\n```python\n" + loading_code(about) + "```",
        _pictures(about),
        "## Checked\n\n"
        f"Against the model in PyTorch (float32, eager) on {about['check']['on']}; the relative error is the largest "
        "absolute difference over the largest absolute value of an output.\n\n" + _bullets(checked),
        f"## Labels\n\n`labels.json` carries prompts and text directions of: {', '.join(labels)}." if labels else "",
        _training(about, run),
        _worth(evaluation),
        _USE.strip(),
        f"Written by maskedclip {about['maskedclip']} (arXiv 2507.17239). Model fingerprint `{about['fingerprint']}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_LIBRARIES = {
    "timm": "timm",
    "huggingface": "transformers",
    "open_clip": "open_clip",
    "onnx": "onnxruntime",
    "torch": "pytorch",
}


def evaluation_of(run: Path, given: Path | None) -> Path | None:
    """The evaluation that goes into the card: the one given, or the run's own.

    Raises:
        UserError: the one given is none.
    """
    if given is not None:
        if not (given / "results.json").is_file():
            raise UserError(
                f"--evaluation {given}: has no results.json; give a folder that `maskedclip evaluate` wrote"
            )
        return given
    return run / "evaluation" if (run / "evaluation" / "results.json").is_file() else None


def _precision(about: dict[str, Any]) -> str:
    if about["precision"] == "bf16":
        return "bfloat16, to be computed with in float32"
    if about["precision"] == "int8":
        return "int8 in the matrix products (by channel, activations quantised on the fly), else float32"
    return "float32" + ("; float16 cannot hold the bridge's stream in this form" if about.get("scaled") else "")


def _pictures(about: dict[str, Any]) -> str:
    stored, size = about["stored_size"], about["size"]
    sides = f"{size} px" if stored == size else f"{stored} px and then to {size} px"
    crop = (
        "photographs were cropped to the fundus field, padded to a square"
        if about["crop"] == "fundus"
        else "pictures were padded to a square"
    )
    return (
        f"## Pictures\n\nIn training, {crop} with black, and resized to {sides} (bicubic, "
        "antialiased). No library's own transform finds the field: give it pictures that are cropped already. "
        "`maskedclip.data.field.standardise(array, size="
        f'{stored}, crop="{about["crop"]}").image` does it for a uint8 array (H, W, 3), and '
        "`maskedclip.load(RUN).preprocess(photograph)` the whole way, to the bit. Pictures resized by other code "
        "differ by about a grey level, and so do their features, a little. `preprocessing.json` holds all numbers."
    )


def _training(about: dict[str, Any], run: Path) -> str:
    known: list[tuple[str, Any]] = []
    environment = _json(run / "environment.json")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text()) if (run / "recipe.yaml").is_file() else {}
    data = environment.get("data", {})
    known += [("data fingerprint", data.get("fingerprint"))]
    known += [
        (
            "stores",
            ", ".join(
                f"{Path(s).name} ({f})"
                for s, f in zip(data.get("stores", []), data.get("fingerprints", []), strict=False)
            ),
        )
    ]
    for name in ("paired_images", "unpaired_images", "distinct_texts", "patients_with_text"):
        value = environment.get(name)
        if isinstance(value, list):
            value = " of ".join(str(count) for count in value)
        known += [(name.replace("_", " "), value)]
    for section, names in _RECIPE.items():
        part = recipe.get(section) or {}
        known += [(f"{section}.{name}", _without_folders(part.get(name))) for name in names]
    known += [("seed", recipe.get("seed")), ("code", environment.get("code"))]
    rows = [(name, value) for name, value in known if value not in (None, "")]
    if not rows:
        return "## Training\n\nUnknown: the model folder came without its run (recipe.yaml, environment.json)."
    return "## Training\n\n| what | value |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _without_folders(value: object) -> object:
    """The name alone of an absolute path: a card is published, and folders name users and servers."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


_RECIPE = {
    "data": ("size", "batch_paired", "batch_unpaired", "text_fraction"),
    "model": ("image_encoder", "image_weights", "bridge_depth", "text_encoder", "embed_dim"),
    "objective": ("mask_ratio", "mim_weight", "mkd_weight"),
    "training": ("steps", "lr", "precision"),
}


def _worth(evaluation: Path | None) -> str:
    head = "## What it is worth\n\n"
    if evaluation is None:
        return (
            head + "Not evaluated; `maskedclip evaluate RUN --data STORE`, then export again, or give `--evaluation`."
        )
    try:
        told = summary_lines(json.loads((evaluation / "results.json").read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{evaluation}/results.json: is damaged ({error}); evaluate again") from None
    return (
        head
        + "On held-out patients, with 95 % intervals clustered by patient, of the model before export:\n\n"
        + _bullets(told)
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        return {}
