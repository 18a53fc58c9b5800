"""3-D pre-training from a store of volumes to an evaluated model, on the loop and the objectives of 2-D."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import maskedclip
from maskedclip import randomness
from maskedclip.data.store import open_store
from maskedclip.data.transforms_volume import crop_and_mirror, draw_placement
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.models.saving import Preprocessing, SavedModel
from maskedclip.objectives.corruption import channel_mask
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.targets.disrupted import Disrupted
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.checkpoint import read_newest
from maskedclip.training.pretrain import pretrain
from tests.cli_case import refused, status
from tests.stores import TINY, make_store
from tests.volume_case import VOLUME_TINY, make_volume_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_volume_store(tmp_path_factory.mktemp("volumes") / "store", rows=32, text=True)


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "dae"
    given = ["--config", "dae", "--config", "volume_tiny", *VOLUME_TINY, "--training.validate_every", "3"]
    assert status("pretrain", *given, "--data", store, "--out", run) == 0
    return run


def test_dae__trains_validates_and_evaluates_by_the_verbs(run: Path, store: Path, tmp_path: Path) -> None:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [entry for entry in entries if entry["kind"] == "train"]
    assert len(trained) == 6
    assert all(np.isfinite(entry["loss"]) and "disrupted" in entry and "modality" in entry for entry in trained)
    assert "probe_auroc" in next(entry for entry in entries if entry["kind"] == "validation" and entry["step"])
    assert (run / "report.html").is_file()
    assert status("evaluate", run, "--data", store, "--out", tmp_path / "e", "--replicates", "20") == 0
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert 0 <= results["linear"]["encoder"]["per_label"]["ball"]["auroc"]["value"] <= 1
    report = (tmp_path / "e" / "report.html").read_text()
    assert "Labels and their test volumes" in report
    assert "16 voxels a side" in report


def test_embed__writes_the_features_of_volumes_that_evaluation_reads(
    run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "volumes.parquet"
    assert status("embed", run, "--data", store, "--out", out) == 0
    table, opened = pq.read_table(out), open_store(store)
    assert table.column("id").to_pylist() == opened.ids
    assert "label.ball" in table.column_names
    found = np.stack(table.column("encoder").to_numpy())
    assert np.array_equal(found, maskedclip.load(run, volumes=True).features(opened, np.arange(len(opened)))["encoder"])
    assert "32 volumes in" in capsys.readouterr().out
    search = ["search", out, "--id", opened.ids[0], "--output", "encoder"]
    assert status(*search, "--out", tmp_path / "found.csv") == 0
    code = status(*search, "--sheet", tmp_path / "found.png")
    assert code == 0, capsys.readouterr().err
    assert refused(
        capsys, "embed", run, "--data", store, "--out", tmp_path / "no.parquet", "--outputs", "patches"
    ).startswith("error: --outputs: 'patches' is none of this model's outputs (encoder")


def test_embed__refuses_pictures_to_a_volume_model_and_the_reverse(
    run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, plain = make_store(tmp_path / "pictures"), tmp_path / "plain"
    assert "reads volumes" in refused(capsys, "embed", run, "--data", pictures, "--out", tmp_path / "a.parquet")
    given = ["--config", "mae", "--config", "tiny", *TINY, "--data", pictures, "--out", plain]
    assert status("pretrain", *given) == 0
    assert "reads pictures" in refused(capsys, "embed", plain, "--data", store, "--out", tmp_path / "b.parquet")


def test_load__gives_the_mean_over_tiles(run: Path, store: Path) -> None:
    model, opened = maskedclip.load(run, volumes=True), open_store(store)
    rows = np.asarray([3, 0])
    features = model.features(opened, rows)["encoder"]
    volume = opened.image(3).float()
    corners = [(x, y, z) for x in (0, 4) for y in (0, 4) for z in (0, 4)]  # 20 voxels, tiles of 16
    cut = torch.stack([volume[:, x : x + 16, y : y + 16, z : z + 16] for x, y, z in corners])
    with torch.no_grad():
        expected = model.module.pool(model.module.encoder(cut)).mean(dim=0).numpy()
    assert features.shape == (2, 48)
    assert np.allclose(features[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("mae", []),
        ("maskedclip", ["--data.batch_paired", "4", "--data.batch_unpaired", "2", "--data.text_fraction", "0.5"]),
    ],
)
def test_other_recipes__train_on_volumes_as_they_are(
    store: Path, tmp_path: Path, method: str, overrides: list[str]
) -> None:
    more = ["--model.projection_norm", "none", "--model.bridge_depth", "1", "--training.steps", "2", *overrides]
    finished = pretrain(load_recipe([method, "volume_tiny"], [*VOLUME_TINY, *more]), store, tmp_path / "run")
    assert finished.complete
    model = maskedclip.load(tmp_path / "run", volumes=True)
    features = model.features(open_store(store), np.arange(2))
    assert ("projected" in features) == (method == "maskedclip")


def test_dae__trains_on_pictures(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "store")
    alone = '{"disrupted": {"contrast_weight": 0.0}}'
    recipe = load_recipe(["dae", "tiny"], [*TINY, "--objective.terms", alone, "--training.steps", "2"])
    assert pretrain(recipe, folder, tmp_path / "run").complete


def test_dae__resumed_is_uninterrupted(store: Path, run: Path, tmp_path: Path) -> None:
    recipe = load_recipe(["dae", "volume_tiny"], VOLUME_TINY)
    out = tmp_path / "run"
    pretrain(recipe.replace(training={"max_minutes": 1e-9, "checkpoint_every": 2}), store, out)
    assert pretrain(recipe, store, out, resume=True).complete
    first, second = (load_file(path / "model" / "weights.safetensors") for path in (run, out))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pretrain__refuses_volumes_for_pictures_and_the_reverse(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = make_store(tmp_path / "pictures", rows=12)
    given = ["--data", pictures, "--out", tmp_path / "run"]
    told = refused(capsys, "pretrain", "--config", "dae", "--config", "volume_tiny", *given)
    assert "holds pictures, but model.image_encoder volume_vit reads volumes" in told
    told = refused(capsys, "pretrain", "--config", "mae", "--config", "tiny", "--data", store, "--out", tmp_path / "r")
    assert "holds volumes, but model.image_encoder vit_tiny_patch16_224 reads pictures" in told
    assert not (tmp_path / "run").exists()


def test_other_verbs__refuse_models_and_stores_of_volumes(
    run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = make_store(tmp_path / "pictures", rows=12)
    out = tmp_path / "out"
    for arguments in (
        ("export", run, "--format", "onnx", "--out", out),
        ("serve", run),
        ("embed", run, "--data", pictures, "--out", out),
        ("segment", run, pictures, "--labels", "a", "--out", out),
        ("evaluate", run, "--data", pictures, "--out", out),
    ):
        assert "its model reads volumes" in refused(capsys, *arguments), arguments
    assert "not for volumes" in refused(
        capsys, "evaluate", run, "--data", store, "--out", out, "--protocols", "linear,dense"
    )
    assert "holds volumes" in refused(capsys, "evaluate", "timm:vit_tiny_patch16_224", "--data", store, "--out", out)
    assert "holds volumes" in refused(capsys, "audit", store, "--out", out)
    told = refused(capsys, "bench", "--config", "mae", "--config", "volume_tiny")
    assert "reads volumes; bench measures pictures" in told
    reader = build_model(load_recipe(["mae", "tiny"], TINY), [])[0].eval()
    prepared = Preprocessing(crop="none", stored_size=32, size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    model = Model(SavedModel(reader, None, prepared, "none"), torch.device("cpu"))
    with pytest.raises(UserError, match="the store holds volumes, and the model reads pictures"):
        model.features(open_store(store), np.arange(2))


def _trained(recipe: Recipe, store: Path, run: Path) -> PretrainingObjective:
    pretrain(recipe, store, run)
    objective = build_objective(recipe, build_model(recipe, [])[0])
    restored, _ = read_newest(run / "checkpoints")
    assert restored is not None
    names = {name.removeprefix("objective/"): value for name, value in restored[0].items()}
    objective.load_state_dict({name: names[name] for name in objective.state_dict()})
    return objective.eval()


def test_dae__restores_held_out_volumes_better_than_the_input_and_than_a_plain_autoencoder(
    store: Path, tmp_path: Path
) -> None:
    # On these phantoms the mean squared error of the disrupted input is measured as 0.30, of the plain autoencoder
    # as 0.25 and of DAE as 0.12.
    steps = ["--training.steps", "60", "--training.checkpoint_every", "60", "--training.lr", "4e-3"]
    plain = '{"disrupted": {"noise_variance": 0.0, "downsample": 1, "channel_ratio": 0.0, "contrast_weight": 0.0}}'
    objectives = {
        name: _trained(load_recipe(["dae", "volume_tiny"], [*VOLUME_TINY, *steps, *more]), store, tmp_path / name)
        for name, more in (("dae", []), ("plain", ["--objective.terms", plain]))
    }
    opened = open_store(store)
    rows = np.concatenate([opened.rows("val"), opened.rows("test")])
    keys = randomness.sample_keys(5, 0, rows)
    volumes = [opened.image(row) for row in rows.tolist()]
    shapes = np.asarray([volume.shape[1:] for volume in volumes])
    clean = crop_and_mirror(volumes, draw_placement(keys, shapes, 16, flip=False), 16).float()
    own = torch.from_numpy(keys)
    judged = objectives["dae"].terms["disrupted"]
    assert isinstance(judged, Disrupted)
    disrupted = judged.disrupt(clean, own)
    errors = {"input": float((disrupted - clean).square().mean())}
    for name, objective in objectives.items():
        term = objective.terms["disrupted"]
        assert isinstance(term, Disrupted)
        hidden = channel_mask(own, 48, 0.6) if name == "dae" else None  # the plain one never met hidden channels
        with torch.no_grad():
            restored, _ = term.restore(objective.model.encoder, disrupted, hidden)
        errors[name] = float((restored - clean).square().mean())
    print(errors)
    assert errors["dae"] < 0.8 * errors["input"], errors
    assert errors["dae"] < 0.9 * errors["plain"], errors
