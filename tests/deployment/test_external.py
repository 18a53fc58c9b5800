"""Encoders from elsewhere: what a file's tensors tell, sizes, and features that are bitwise those of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from maskedclip.data.store import open_store
from maskedclip.deployment.external import open_model
from maskedclip.deployment.external_layout import layout_of, read_layout
from maskedclip.deployment.model import Model, load
from maskedclip.errors import UserError
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.stores import TINY, make_store

NARROW: dict[str, Any] = {"embed_dim": 192, "depth": 2, "num_heads": 3}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {"depth": 2}),
    ("vit_small_patch14_dinov2", NARROW),  # LayerScale
    ("vit_small_patch14_reg4_dinov2", NARROW),  # registers, positions of patches only
    ("vit_base_patch16_siglip_224", NARROW),  # no class token
    ("vit_giant_patch14_dinov2", NARROW),  # SwiGLU
    ("vit_base_patch16_224", NARROW | {"qkv_bias": False, "qk_norm": True}),
]


def _save(path: Path, name: str, options: dict[str, Any], side: int = 4) -> Path:
    """Random weights of a timm encoder for a grid of `side` patches, as a file of its backbone."""
    torch.manual_seed(1)
    patch = 14 if "patch14" in name else 16
    vit = timm.create_model(name, img_size=side * patch, num_classes=0, **options)
    for value in vit.parameters():  # LayerScale begins at 1e-5, where a wrong block changes nothing
        torch.nn.init.normal_(value, std=0.2)
    save_file({key: value for key, value in vit.state_dict().items() if "attn_pool" not in key}, path)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("external") / "s", rows=12, size=64)


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_open_model__infers_what_the_name_says(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = _save(tmp_path / "w.safetensors", name, options)
    inferred = open_model(str(path))
    assert isinstance(inferred, Model)
    patch = inferred.module.encoder.patch_size
    assert inferred.preprocessing.size == 4 * patch
    vit = timm.create_model(name, img_size=4 * patch, num_classes=0, **options).eval()
    vit.load_state_dict(load_file(path), strict=False)
    image = torch.randn(2, 3, 4 * patch, 4 * patch)
    with torch.no_grad():
        theirs: Any = vit.forward_features(image)  # type: ignore[operator]
        ours = inferred.module.encoder.patches(inferred.module.encoder(image))
    assert ours == pytest.approx(theirs[:, vit.num_prefix_tokens :], abs=1e-4)


def test_open_model__reads_dinov2s_own_names(tmp_path: Path) -> None:
    tensors = load_file(_save(tmp_path / "timm.safetensors", "vit_small_patch14_reg4_dinov2", NARROW))
    own = {
        **tensors,
        "mask_token": torch.zeros(1, 192),
        "register_tokens": tensors["reg_token"],
        "pos_embed": torch.cat([torch.full((1, 1, 192), 0.5), tensors["pos_embed"]], dim=1),
        "cls_token": tensors["cls_token"] - 0.5,
    }
    del own["reg_token"]
    save_file(own, tmp_path / "own.safetensors")
    image = torch.randint(0, 255, (2, 3, 56, 56), dtype=torch.uint8)
    first, second = (open_model(str(tmp_path / f"{name}.safetensors")) for name in ("timm", "own"))
    assert first.encode_images(image)["encoder"] == pytest.approx(second.encode_images(image)["encoder"], abs=1e-5)


def test_open_model__named_file_has_the_means_of_its_name(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.safetensors", "vit_tiny_patch16_224", {"depth": 12})
    plain, named = open_model(f"{path}@64"), open_model(f"timm:vit_tiny_patch16_224={path}@64")
    assert isinstance(plain, Model)
    assert isinstance(named, Model)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(plain.module.encoder(image), named.module.encoder(image))
    assert plain.preprocessing.mean == (0.485, 0.456, 0.406)
    assert named.preprocessing.mean == (0.5, 0.5, 0.5)
    assert plain.fingerprint != named.fingerprint


@pytest.mark.parametrize("at", ["", "@64"])
def test_open_model__features_are_bitwise_those_of_a_run_of_no_steps(tmp_path: Path, store: Path, at: str) -> None:
    path = _save(tmp_path / "w.safetensors", "vit_tiny_patch16_224", {"depth": 2})
    options = '{"depth": 2, "embed_dim": 192, "num_heads": 3}'
    overrides = ["--model.image_weights", str(path), "--model.image_encoder_options", options]
    overrides += ["--data.size", "64", "--model.bridge_heads", "3", "--training.steps", "0"]
    pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, *overrides]), store, tmp_path / "run")
    external, run, opened = open_model(f"{path}{at}"), load(tmp_path / "run"), open_store(store)
    rows = np.arange(len(opened))
    expected = run.features(opened, rows)["encoder"]
    assert np.array_equal(external.features(opened, rows)["encoder"], expected)
    assert set(external.features(opened, rows)) == {"encoder"}
    assert not external.has_text
    assert np.array_equal(open_model(str(tmp_path / "run")).features(opened, rows)["encoder"], expected)


@pytest.mark.shared
def test_open_model__real_dinov2(shared: Path) -> None:
    path = shared / "data" / "weights" / "dinov2_vits14_fp16.safetensors"
    layout = read_layout(path)
    assert (layout.size, layout.patch, layout.options["depth"], layout.options["num_heads"]) == (518, 14, 12, 6)
    plain, named = open_model(f"{path}@112"), open_model(f"timm:vit_small_patch14_dinov2={path}@112")
    image = torch.randint(0, 255, (2, 3, 112, 112), dtype=torch.uint8)
    assert np.array_equal(plain.encode_images(image)["encoder"], named.encode_images(image)["encoder"])
    assert open_model(str(path)).preprocessing.size == 252  # 518 cut to a 256 px store


def test_open_model__sizes(tmp_path: Path, store: Path) -> None:
    path = str(_save(tmp_path / "w.safetensors", "vit_tiny_patch16_224", {"depth": 1}, side=14))
    assert open_model(path).preprocessing.size == 224
    assert open_model(path, stored_size=100).preprocessing.size == 96
    assert open_model(path, size=64).preprocessing.size == 64
    assert open_model(f"{path}@320", size=64).preprocessing.size == 320
    assert open_model(f"{path}@320").preprocessing.stored_size == 320
    with pytest.raises(UserError, match=r"w.safetensors@70: 70 px is no multiple .* 64 or 80"):
        open_model(f"{path}@70")
    model = open_model(path)
    assert isinstance(model, Model)
    other, again = model.at_size(96), model.at_size(96)
    assert model.at_size(224) is model
    assert other.fingerprint == again.fingerprint != model.fingerprint
    assert other.features(open_store(store), np.arange(3))["encoder"].shape == (3, 192)
    assert other.patch_features(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))["encoder"].shape == (1, 36, 192)


def test_open_model__a_run_at_another_size_keeps_its_texts(tmp_path: Path, store: Path) -> None:
    pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, "--training.steps", "0"]), store, tmp_path / "run")
    model = open_model(f"{tmp_path / 'run'}@48")
    assert model.preprocessing.size == 48
    assert set(model.features(open_store(store), np.arange(2))) == {"encoder", "bridge", "projected"}
    assert model.encode_text(["normal fundus"]).shape == (1, 16)


def test_open_model__weights_decide_the_fingerprint(tmp_path: Path) -> None:
    path = _save(tmp_path / "w.safetensors", "vit_tiny_patch16_224", {"depth": 1})
    first = open_model(str(path)).fingerprint
    assert open_model(str(path)).fingerprint == first
    tensors = load_file(path)
    tensors["norm.bias"][0] += 1e-3
    save_file(tensors, path)
    assert open_model(str(path)).fingerprint != first


def test_open_model__weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:  # P7
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise FileNotFoundError("the hub\nis not there")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError, match=r"give a local file instead, timm:vit_tiny_patch16_224=FILE.safetensors"
    ) as caught:
        open_model("timm:vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


def _shapes(**changes: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...] | None] = {
        "patch_embed.proj.weight": (384, 3, 16, 16),
        "pos_embed": (1, 197, 384),
        "cls_token": (1, 1, 384),
        "norm.weight": (384,),
        "blocks.0.attn.qkv.weight": (1152, 384),
        "blocks.0.mlp.fc1.weight": (1536, 384),
        "blocks.0.mlp.fc2.weight": (384, 1536),
    }
    changed = shapes | {name.replace("__", "."): shape for name, shape in changes.items()}
    return {name: shape for name, shape in changed.items() if shape is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_embed__proj__weight": (100, 3, 16, 16)}, "attention heads go with a width of 100"),
        ({"patch_embed__proj__weight": (384, 3, 16, 8)}, "patches are 16 x 8 px"),
        ({"patch_embed__proj__weight": (384, 1, 16, 16)}, "of 1 channels"),
        ({"patch_embed__proj__weight": None}, "not in the names of timm or DINOv2"),
        ({"pos_embed": (1, 200, 384)}, "200 positions are no square grid"),
        ({"pos_embed": None}, "no pos_embed"),
        ({"norm__weight": None, "fc_norm__weight": (384,)}, "as after fine-tuning"),
        ({"norm_pre__weight": (384,)}, "GELU or QuickGELU"),
        ({"visual__class_embedding": (384,)}, "timm:vit_base_patch32_clip_224=FILE"),
        ({"blocks__0__attn__qkv__weight": None}, "attn.qkv.weight"),
        ({"blocks__0__mlp__fc1__weight": None}, "mlp.fc1 or mlp.w12"),
        ({"encoder__vit__norm__weight": (384,)}, "give the run directory"),
    ],
)
def test_layout_of__refuses_what_tensors_do_not_tell(changes: dict[str, Any], message: str) -> None:
    assert layout_of(_shapes(), Path("a.safetensors")).size == 224
    with pytest.raises(UserError, match=message) as caught:
        layout_of(_shapes(**changes), Path("a.safetensors"))
    assert "a.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "no such model; give a run directory"),
        ("timm:nosuch", "timm has no nosuch"),
        ("timm:resnet18", "is a ResNet, not a plain vision transformer"),
        ("timm:vit_tiny_patch16_224=none.safetensors", "none.safetensors: no such file"),
        ("timm:vit_tiny_patch16_224@100", "give 96 or 112"),
        ("timm:vit_small_patch14_dinov2=w.safetensors", "timm:NAME=FILE must name the architecture"),
        ("pickle.pth", "may hold code"),
        ("cut.safetensors", "no whole safetensors file"),
        ("folder", "no model folder"),
    ],
)
def test_open_model__says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle.pth").write_bytes(b"pickle")
    (tmp_path / "folder").mkdir()
    _save(tmp_path / "w.safetensors", "vit_tiny_patch16_224", {"depth": 1})
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match=message) as caught:
        open_model(spec)
    assert "\n" not in str(caught.value)
