"""A tiny open_clip folder: open_clip's own features, and clear words where a part or the package is missing."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskedclip.data.store import open_store
from maskedclip.deployment.external import open_model
from maskedclip.deployment.external_open_clip import CONFIG, OpenClipModel
from maskedclip.errors import UserError
from tests.stores import make_store

VIT = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TIMM = {
    "image_size": 224,
    "timm_model_name": "vit_tiny_patch16_224",
    "timm_model_pretrained": False,
    "timm_pool": "avg",
    "timm_proj": "linear",
}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}


def _folder(path: Path, vision: dict[str, Any]) -> Path:
    open_clip = pytest.importorskip("open_clip")
    path.mkdir()
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT},
        "preprocess_cfg": {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3]},
    }
    (path / CONFIG).write_text(json.dumps(config))
    torch.manual_seed(0)
    towers = open_clip.create_model(f"local-dir:{path}")
    save_file(
        {name: value.contiguous() for name, value in towers.state_dict().items()}, path / "open_clip_model.safetensors"
    )
    return path


@pytest.mark.parametrize("vision", [VIT, TIMM, RESNET], ids=["vit", "timm", "resnet"])
def test_open_model__open_clip_folder(tmp_path: Path, vision: dict[str, Any]) -> None:
    open_clip = pytest.importorskip("open_clip")
    folder = _folder(tmp_path / "clip", vision)
    model = open_model(str(folder))
    assert isinstance(model, OpenClipModel)
    size = vision["image_size"]
    assert (model.preprocessing.size, model.preprocessing.mean, model.has_text) == (size, (0.4, 0.4, 0.4), True)
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    image = torch.randint(0, 255, (3, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        normalised = (image.float() / 255 - 0.4) / 0.3
        expected = theirs.eval().encode_image(normalised, normalize=True).numpy()
        tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a red lesion", "normal"])
        texts = theirs.encode_text(tokens, normalize=True).numpy()
        pooled = theirs.encode_image(normalised).numpy()
    features = model.encode_images(image)
    assert features["projected"] == pytest.approx(expected, abs=1e-5)
    assert model.encode_text(["a red lesion", "normal"]) == pytest.approx(texts, abs=1e-5)
    if vision is RESNET:
        assert features["encoder"] == pytest.approx(pooled, abs=1e-5)
    else:
        assert features["encoder"].shape == (3, theirs.visual.trunk.embed_dim if vision is TIMM else 64)
    store = open_store(make_store(tmp_path / "store", rows=6))
    assert {name: len(value) for name, value in model.features(store, np.arange(5)).items()} == {
        "encoder": 5,
        "projected": 5,
    }


def test_open_model__open_clip_mean_of_normalised_patch_tokens(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    model = open_model(str(_folder(tmp_path / "clip", VIT)))
    assert isinstance(model, OpenClipModel)
    image = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    visual = model.towers.visual
    kept: list[torch.Tensor] = []
    hook = visual.transformer.register_forward_hook(lambda *args: kept.append(args[2]))
    with torch.no_grad():
        visual((image.float() / 255 - 0.4) / 0.3)
        expected = visual.ln_post(kept[0])[:, 1:].mean(dim=1)
    hook.remove()
    assert model.encode_images(image)["encoder"] == pytest.approx(expected.numpy(), abs=1e-5)


def test_open_model__open_clip_at_another_size(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    for name, vision in (("vit", VIT), ("timm", TIMM)):
        folder = _folder(tmp_path / name, vision)
        model = open_model(f"{folder}@64")
        assert model.preprocessing.size == 64
        assert model.fingerprint != open_model(str(folder)).fingerprint
        assert model.encode_images(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))["projected"].shape == (2, 24)
        with pytest.raises(UserError, match="@65: 65 px is no multiple of the encoder's"):
            open_model(f"{folder}@65")
    with pytest.raises(UserError, match="its image tower is no vision transformer"):
        open_model(f"{_folder(tmp_path / 'resnet', RESNET)}@64")


def test_open_model__open_clip_folder_with_faults(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    folder = _folder(tmp_path / "clip", VIT)
    weights = folder / "open_clip_model.safetensors"
    whole, config = weights.read_bytes(), (folder / CONFIG).read_text()
    tensors = load_file(weights)
    weights.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"open_clip_model.safetensors: does not fit .* or is damaged"):
        open_model(str(folder))
    save_file({name: value for name, value in tensors.items() if "ln_post" not in name}, weights)
    with pytest.raises(UserError, match="does not fit"):
        open_model(str(folder))
    weights.rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(UserError, match=r"may hold code \(a pickle\)"):
        open_model(str(folder))
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"has no open_clip_model.safetensors"):
        open_model(str(folder))
    weights.write_bytes(whole)
    (folder / CONFIG).write_text(config.replace('"vision_cfg"', '"vision"'))
    with pytest.raises(UserError, match="cannot build the model"):
        open_model(str(folder))
    hub = json.loads(config)
    hub["model_cfg"]["text_cfg"] = {"hf_model_name": str(tmp_path / "none"), "hf_tokenizer_name": "x"}
    (folder / CONFIG).write_text(json.dumps(hub))
    with pytest.raises(UserError, match=r"name a local folder in its text_cfg.hf_model_name"):
        open_model(str(folder))
    (folder / CONFIG).write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        open_model(str(folder))


def test_open_model__without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(UserError, match=r"maskedclip\[open_clip\]"):
        open_model(str(tmp_path))
