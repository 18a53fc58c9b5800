"""Any encoder in the hands of evaluation: a run, an encoder by timm's name, a weights file, an open_clip folder.

What an encoder of another project reads, for a fair comparison: the same stored pictures, normalised as it was trained,
at its own input size but with no more pixels than a stored picture has (a DINOv2 of 518 px reads 252 px of a 256 px
store).  To compare at equal cost, give each the same size, as in `timm:NAME@112`.
"""

import logging
import re
from pathlib import Path
from typing import Literal

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from maskedclip.console import say
from maskedclip.deployment.external_layout import Layout, read_layout
from maskedclip.deployment.external_open_clip import CONFIG, OpenClipModel, load_open_clip
from maskedclip.deployment.model import Model, load
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import MaskedCLIP, ModelConfig
from maskedclip.models.resizing import check_size, fitting_size
from maskedclip.models.saving import Preprocessing, SavedModel, weights_fingerprint
from maskedclip.models.vit import build_image_encoder
from maskedclip.recipe_sections import IMAGENET_MEAN, IMAGENET_STD

_TIMM = "timm:"
_PICKLES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}


def open_model(
    spec: str,
    *,
    device: str = "auto",
    size: int | None = None,
    stored_size: int = 256,
    crop: Literal["fundus", "none"] = "fundus",
    volumes: bool = False,
) -> Model | OpenClipModel:
    """Open a model for evaluation.

    Args:
        spec: a run directory; `timm:NAME`, whose weights timm fetches; `timm:NAME=FILE.safetensors`;
            `FILE.safetensors`, an encoder in the names of timm or DINOv2 whose tensors tell its architecture; or a
            folder with open_clip_config.json and weights in safetensors.  Each may end in `@SIZE`, its input in pixels.
        device: `auto` takes a GPU where there is one; else a torch device.
        size: input in pixels where the spec has no `@SIZE`; None: a run's and an open_clip model's own; of the others
            their own, cut to `stored_size` and to whole patches.
        stored_size: side of the store's pictures, pixels.
        crop: how the store's pictures were prepared, for photographs that come from elsewhere.
        volumes: whether the store holds volumes, which only a run of a volume recipe reads.

    Returns: a `Model`, whose `module.encoder` can be fine-tuned, without texts unless it is a run's;
        or an `OpenClipModel`.

    Raises:
        UserError: there is nothing of this name, a part of it is missing, or its size does not fit the patches.
    """
    name, at = _split_size(spec)
    size = at if at is not None else size
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    path = Path(name)
    if volumes and (size is not None or not path.is_dir() or (path / CONFIG).is_file()):
        raise UserError(f"{spec}: the store holds volumes; give the directory of a run that was trained on volumes")
    if name.startswith(_TIMM):
        return _timm_model(name, chosen, size, stored_size, crop)
    if (path / CONFIG).is_file():
        return load_open_clip(path, chosen, size=size, stored_size=stored_size, crop=crop)
    if path.is_dir():
        model = load(path, device=str(chosen), volumes=volumes)
        return model if size is None else model.at_size(size, spec)
    if path.suffix in _PICKLES and path.is_file():
        raise UserError(
            f"{name}: may hold code (a pickle), which is never loaded; convert it once with "
            "safetensors.torch.save_file where you trust it"
        )
    if path.suffix == ".safetensors" and path.is_file():
        layout = read_layout(path)
        return _encoder_model(name, layout, path, IMAGENET_MEAN, IMAGENET_STD, chosen, size, stored_size, crop)
    raise UserError(
        f"{name}: no such model; give a run directory, timm:NAME, timm:NAME=FILE.safetensors, FILE.safetensors or a "
        f"folder with {CONFIG}, each with @SIZE or without"
    )


def _split_size(spec: str) -> tuple[str, int | None]:
    """`NAME@112` -> NAME and 112; a path that has such a name itself stays whole."""
    found = re.fullmatch(r"(.+)@(\d+)", spec)
    if found is None or Path(spec).exists():
        return spec, None
    return found[1], int(found[2])


def _timm_model(
    name: str, device: torch.device, size: int | None, stored_size: int, crop: Literal["fundus", "none"]
) -> Model:
    """`timm:NAME` or `timm:NAME=FILE`."""
    architecture, _, file = name.removeprefix(_TIMM).partition("=")
    try:
        known = timm.get_pretrained_cfg(architecture)
        with torch.device("meta"):  # no memory, no time: only its patches are of interest
            sketch = timm.create_model(architecture)
    except RuntimeError:
        raise UserError(f"{name}: timm has no {architecture}; `timm.list_models('vit*')` lists names") from None
    if not isinstance(sketch, VisionTransformer):
        raise UserError(
            f"{name}: is a {type(sketch).__name__}, not a plain vision transformer; choose a timm model whose name "
            "begins with vit_ or deit_"
        )
    patch = sketch.patch_embed.patch_size[0]
    own = known.input_size[-1] if known is not None else fitting_size(224, patch)
    mean, std = (known.mean, known.std) if known is not None else (IMAGENET_MEAN, IMAGENET_STD)
    layout = Layout(name=architecture, options={}, size=own, patch=patch)
    if file and not Path(file).is_file():
        raise UserError(f"{name}: {file}: no such file; give timm:NAME=FILE.safetensors")
    return _encoder_model(name, layout, Path(file) if file else None, mean, std, device, size, stored_size, crop)


def _encoder_model(
    name: str,
    layout: Layout,
    weights: Path | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device,
    size: int | None,
    stored_size: int,
    crop: Literal["fundus", "none"],
) -> Model:
    """An image encoder as a MaskedCLIP model that has nothing else; weights None are fetched by timm."""
    where = name if size is None else f"{name}@{size}"
    size = fitting_size(min(layout.size, stored_size), layout.patch) if size is None else size
    check_size(size, layout.patch, where)
    if weights is None:
        say(f"{name}: asking timm for the weights (from its cache, or from a model hub)")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # else a dozen lines on its tries
    try:
        encoder = build_image_encoder(
            layout.name, size=size, weights="pretrained" if weights is None else str(weights), options=layout.options
        )
    except UserError as error:
        raise UserError(_in_the_users_words(name, str(error))) from None
    config = ModelConfig(
        image_encoder=layout.name,
        image_encoder_options=layout.options,
        size=size,
        bridge_depth=0,
        bridge_heads=encoder.heads,
    )
    module = MaskedCLIP(config, encoder, None).eval()
    preprocessing = Preprocessing(
        crop=crop,
        stored_size=max(stored_size, size),
        size=size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )
    return Model(SavedModel(module, None, preprocessing, weights_fingerprint(module, preprocessing)), device)


def _in_the_users_words(name: str, message: str) -> str:
    """An error of the recipe's fields, which nobody gave here, as one of the spec."""
    if "cannot be fetched" in message:
        architecture = name.removeprefix(_TIMM)
        return (
            f"{name}: timm's weights cannot be fetched here; give a local file instead, "
            f"timm:{architecture}=FILE.safetensors, or run once where a model hub can be reached"
        )
    message = re.sub(r"^model\.image_(weights|encoder): ", "", message)
    return f"{name}: {message.replace('model.image_encoder must name', 'timm:NAME=FILE must name')}"
