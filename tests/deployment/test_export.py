"""Exports agree with the model in their own runtimes, are published whole or not at all, and load as the card says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from maskedclip.data.store import open_store
from maskedclip.deployment.export import FORMATS, Wanted, export
from maskedclip.deployment.exported import open_exported
from maskedclip.deployment.external import open_model
from maskedclip.deployment.heads_fit import fit_head
from maskedclip.deployment.model import Model
from maskedclip.errors import CheckFailed, UserError
from tests.cli_case import refused, status
from tests.stores import draw

for name in ("onnx", "onnxruntime", "onnxscript", "open_clip"):
    pytest.importorskip(name)

TEXTS = ["Normal fundus.", "a red lesion, and a text that is much longer than all those of the training, " * 2]


@pytest.fixture(scope="module")
def exports(trained_run: Path, trained_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a format, and a timm export of each further output."""
    base = tmp_path_factory.mktemp("exports")
    made = {}
    for kind in FORMATS:
        made[kind] = base / kind
        export(trained_run, made[kind], Wanted(format=kind, check=trained_store, labels=["drusen", "normal"]))
    for output in ("bridge", "projected"):
        made[f"timm {output}"] = base / f"timm_{output}"
        export(trained_run, made[f"timm {output}"], Wanted(format="timm", output=output, check=trained_store))
    return made


def test_export__the_same_features_in_probe_encode_image_and_each_export(
    exports: dict[str, Path], trained_model: Model, trained_store: Path
) -> None:  # P10, P13
    store = open_store(trained_store)
    rows = np.arange(11)
    images = torch.stack([trained_model.preprocess(bytes(store.image_bytes(int(row)))) for row in rows])
    probe = trained_model.features(store, rows)
    direct = trained_model.encode_images(images)
    texts = trained_model.encode_text(TEXTS)
    seen = set()
    for folder in exports.values():
        exported = open_exported(folder)
        for name, values in exported.encode_images(images).items():
            plain = name.removeprefix("native ")
            assert np.array_equal(direct[plain], probe[plain])
            assert np.abs(values - probe[plain]).max() <= 1e-5 * np.abs(probe[plain]).max(), (folder.name, name)
            seen.add((folder.name, name))
        if exported.has_text:
            assert np.abs(exported.encode_text(TEXTS) - texts).max() <= 1e-5 * np.abs(texts).max(), folder.name
            seen.add((folder.name, "text"))
    whole = {(kind, name) for kind in ("huggingface", "onnx", "torch") for name in (*probe, "text")}
    assert seen == whole | {
        ("timm", "encoder"),
        ("timm_bridge", "bridge"),
        ("timm_projected", "projected"),
        ("huggingface", "native encoder"),
        ("open_clip", "projected"),
        ("open_clip", "text"),
    }


def test_export__any_batch(exports: dict[str, Path], trained_model: Model) -> None:
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    expected = trained_model.encode_images(images)["projected"]
    for kind in ("onnx", "torch"):
        exported = open_exported(exports[kind])
        for count in (1, 5):
            found = exported.encode_images(images[:count])["projected"]
            assert found == pytest.approx(expected[:count], abs=1e-5)
        assert exported.encode_text(["a"] * 3).shape == (3, 16)


def test_export__our_reader_takes_the_open_clip_folder(exports: dict[str, Path], trained_model: Model) -> None:
    model = open_model(str(exports["open_clip"]))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    expected = trained_model.encode_images(images)["projected"]
    assert model.encode_images(images)["projected"] == pytest.approx(expected, abs=1e-5)
    assert model.encode_text(TEXTS) == pytest.approx(trained_model.encode_text(TEXTS), abs=1e-5)


def test_export__the_card_loads_it(exports: dict[str, Path], tmp_path: Path) -> None:
    """The code block of each card, as a user pastes it, all in one fresh process, offline."""
    (tmp_path / "eye.png").write_bytes(draw(3, 40, 2))
    script = ["import os, socket", "def refuse(*_): raise AssertionError('the network was asked for')"]
    script += ["socket.socket.connect = refuse", "socket.getaddrinfo = refuse"]
    for kind, folder in exports.items():
        copied = tmp_path / kind.replace(" ", "_")
        shutil.copytree(folder, copied)
        Image.open(tmp_path / "eye.png").save(copied / "eye.jpg")
        card = (copied / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        script += [f"os.chdir({str(copied)!r})", code]
        script += [f"print({kind!r}, {'cosines.shape' if 'cosines' in code else 'tuple(features.shape)'})"]
    (tmp_path / "all.py").write_text("\n".join(script))
    done = subprocess.run(
        [sys.executable, tmp_path / "all.py"], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "timm (1, 48)",
        "huggingface torch.Size([1, 2])",
        "open_clip torch.Size([1, 2])",
        "onnx (1, 2)",
        "torch torch.Size([1, 2])",
        "timm bridge (1, 48)",
        "timm projected (1, 16)",
    ]


def test_export__torch_alone_runs_the_package(exports: dict[str, Path], trained_model: Model, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    tokenizer = trained_model.tokenizer
    assert tokenizer is not None
    ids, mask = tokenizer(TEXTS)
    save_file({"image": image, "ids": ids, "mask": mask}, tmp_path / "given.safetensors")
    code = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("maskedclip", "timm", "transformers", "torchvision"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import torch
from safetensors.torch import load_file, save_file
given = load_file("given.safetensors")
found = torch.export.load({str(exports["torch"] / "image.pt2")!r}).module()(given["image"])
found |= torch.export.load({str(exports["torch"] / "text.pt2")!r}).module()(given["ids"], given["mask"])
save_file({{name: value.contiguous() for name, value in found.items()}}, "found.safetensors")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    for name, values in (trained_model.encode_images(image) | {"text": trained_model.encode_text(TEXTS)}).items():
        assert found[name].numpy() == pytest.approx(values, abs=1e-6)


def test_export__smaller_weights_within_their_limits(
    exports: dict[str, Path], trained_run: Path, trained_store: Path, tmp_path: Path
) -> None:
    sizes = [(exports["onnx"] / "image.onnx").stat().st_size]
    for precision, words in (("bf16", "Weights: bfloat16"), ("int8", "Weights: int8")):
        out = tmp_path / precision
        done = export(trained_run, out, Wanted(format="onnx", precision=precision, check=trained_store, images=8))
        sizes.append((out / "image.onnx").stat().st_size)
        assert max(entry.relative for entry in done.agreements) > 1e-4  # they are rounded indeed
        assert words in (out / "README.md").read_text()
    assert sizes[2] < sizes[1] < sizes[0]
    with pytest.raises(UserError, match=r"a torch export can be float32 or bf16; int8 is for --format onnx"):
        export(trained_run, tmp_path / "x", Wanted(format="torch", precision="int8"))


def test_export__nothing_is_kept_of_one_that_differs(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskedclip.deployment import export_timm

    original = export_timm.save_file

    def spoilt(tensors: dict[str, torch.Tensor], *rest: Any) -> None:
        tensors["norm.weight"] = tensors["norm.weight"] * 1.001
        original(tensors, *rest)

    monkeypatch.setattr(export_timm, "save_file", spoilt)
    out = tmp_path / "timm"
    with pytest.raises(CheckFailed, match=r"differs from the model beyond the tolerance .* encoder: max"):
        export(trained_run, out, Wanted(format="timm", images=4))
    assert not list(tmp_path.iterdir())
    assert status("export", trained_run, "--format", "timm", "--out", out, "--images", "4") == 1
    assert "nothing was kept" in capsys.readouterr().err
    assert status("export", trained_run, "--format", "timm", "--out", out, "--images", "4", "--tolerance", "0.01") == 0


def test_export__tells_and_carries(
    trained_run: Path, trained_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line with its JSON, the card with an evaluation's intervals, labels with their directions."""
    estimate = {"value": 0.81, "low": 0.79, "high": 0.83, "n": 40}
    (tmp_path / "evaluation").mkdir()
    results = {"zero_shot": {"macro": {"auroc": estimate}}}
    (tmp_path / "evaluation" / "results.json").write_text(json.dumps(results))
    out = tmp_path / "timm"
    arguments = ("--format", "timm", "--out", out, "--images", "3", "--labels", "drusen,normal fundus", "--json")
    assert status("export", trained_run, *arguments, "--evaluation", tmp_path / "evaluation") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(entry["output"], entry["n"]) for entry in told["outputs"]] == [("encoder", 3)]
    card = (out / "README.md").read_text()
    environment = json.loads((trained_run / "environment.json").read_text())
    for part in ("zero-shot: macro AUROC 0.810 (0.790-0.830, n 40)", environment["data"]["fingerprint"], "(n 3)"):
        assert part in card
    for heading in ("## Intended use", "## Limits", "## Licences", "To be filled in"):
        assert heading in card
    labels = json.loads((out / "labels.json").read_text())["labels"]
    assert [entry["label"] for entry in labels] == ["drusen", "normal fundus"]
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    logits = trained_model.encode_image(image, "projected")[0] @ np.asarray([entry["direction"] for entry in labels]).T
    shares = np.exp(float(trained_model.module.scale.detach()) * logits)
    prepared = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    expected = list(trained_model.classify(prepared, ["drusen", "normal fundus"])[0].values())
    assert shares / shares.sum() == pytest.approx(expected, rel=1e-5)


def test_export__carries_a_head_of_this_model_alone(
    trained_run: Path, trained_model: Model, trained_store: Path, tmp_path: Path
) -> None:
    fit_head(trained_model, open_store(trained_store)).save(tmp_path / "head")
    export(trained_run, tmp_path / "timm", Wanted(format="timm", images=2, head=tmp_path / "head"))
    for name in ("head.json", "head.safetensors"):
        assert (tmp_path / "timm" / "head" / name).read_bytes() == (tmp_path / "head" / name).read_bytes()
    about = json.loads((tmp_path / "head" / "head.json").read_text()) | {"model": "0" * 16}
    (tmp_path / "head" / "head.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="belongs to model 0000000000000000"):
        export(trained_run, tmp_path / "x", Wanted(format="timm", images=2, head=tmp_path / "head"))
    assert not (tmp_path / "x").exists()


def test_export__refuses_in_one_line(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: object) -> str:
        return refused(capsys, "export", trained_run, "--format", "timm", "--out", tmp_path / "out", *arguments)

    (tmp_path / "there").mkdir()
    assert "there: exists" in refused(capsys, "export", trained_run, "--format", "timm", "--out", tmp_path / "there")
    assert "--check" in said("--check", tmp_path / "there") or "there" in said("--check", tmp_path / "there")
    assert "--images 1: too few" in said("--images", "1")
    assert "--tolerance" in said("--tolerance", "-1")
    assert "has no results.json" in said("--evaluation", tmp_path / "there")
    assert "no saved head" in said("--head", tmp_path / "there")
    assert "is for --format timm" in refused(
        capsys, "export", trained_run, "--format", "onnx", "--out", tmp_path / "out", "--output", "bridge"
    )
    assert "no such run" in refused(capsys, "export", tmp_path / "x", "--format", "onnx", "--out", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_export__without_the_packages(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    original = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name in ("onnx", "open_clip"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    for kind in ("onnx", "open_clip"):
        with pytest.raises(UserError, match=r"pip install 'maskedclip\[export\]'"):
            export(trained_run, tmp_path / kind, Wanted(format=kind, images=2))
    assert not list(tmp_path.iterdir())


def test_export__is_quick_to_say_what_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no export.json"):
        open_exported(tmp_path)
    (tmp_path / "export.json").write_text('{"format": "rar"}')
    with pytest.raises(UserError, match=r"is none of timm"):
        open_exported(tmp_path)
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        open_exported(tmp_path)
