"""A loaded run gives the features of training-time evaluation, bit for bit, offline, from the run directory alone."""

import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import maskedclip
from maskedclip.data.images import image_batches
from maskedclip.data.store import open_store
from maskedclip.deployment.embed import embed
from maskedclip.deployment.model import Model, load
from maskedclip.errors import UserError
from maskedclip.models.features import BATCH, stack_features
from maskedclip.recipe import load_recipe
from maskedclip.training import trainer as loop
from maskedclip.training.pretrain import pretrain
from tests.stores import TINY, draw, make_store


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A store, a run moved away from where it was written, and the features computed while it was trained."""
    base = tmp_path_factory.mktemp("deployment")
    store = make_store(base / "store")
    seen: dict[str, np.ndarray] = {}
    original = loop.Trainer._write_model

    def watched(self: loop.Trainer) -> None:
        original(self)
        self.objective.eval()
        batches = image_batches(self.store, np.arange(48), size=32, batch=BATCH)
        seen.update(stack_features(self.model, batches, self.preprocessing))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_write_model", watched)
        pretrain(load_recipe(["maskedclip", "tiny"], TINY), store, base / "run")
    shutil.move(base / "run" / "model", base / "elsewhere" / "model")
    return store, base / "elsewhere", seen


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Path, dict]) -> Model:
    return load(trained[1])


def test_load__same_features_as_while_training_bitwise(trained: tuple[Path, Path, dict], model: Model) -> None:
    features = model.features(open_store(trained[0]), np.arange(48))
    assert set(features) == {"encoder", "bridge", "projected"}
    for name, values in features.items():
        assert np.array_equal(values, trained[2][name])


def test_load__works_offline(trained: tuple[Path, Path, dict], monkeypatch: pytest.MonkeyPatch) -> None:  # P7
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert maskedclip.load(trained[1]).encode_text("normal fundus").shape == (1, 16)  # type: ignore[attr-defined]


def test_encode_image__takes_what_people_have(model: Model, tmp_path: Path) -> None:
    encoded = draw(5, 32, 3)
    (tmp_path / "a.png").write_bytes(encoded)
    picture = Image.open(tmp_path / "a.png")
    expected = model.encode_image(tmp_path / "a.png")
    assert expected.shape == (1, 48)
    for photograph in (str(tmp_path / "a.png"), encoded, picture, np.asarray(picture)):
        assert np.array_equal(model.encode_image(photograph), expected)
    prepared = model.preprocess(picture)
    assert np.array_equal(model.encode_image(prepared[None]), expected)
    assert model.encode_image([encoded, encoded], "projected").shape == (2, 16)
    grey = model.encode_image(np.zeros((20, 30), np.uint8))
    assert np.isfinite(grey).all()


def test_encode_image__equals_the_stored_row(trained: tuple[Path, Path, dict], model: Model) -> None:  # P10
    store = open_store(trained[0])
    raw = [bytes(store.image_bytes(row)) for row in range(48)]
    assert np.array_equal(model.encode_image(raw), model.features(store, np.arange(48))["encoder"])


def test_classify__is_a_distribution_over_the_labels(model: Model) -> None:
    answers = model.classify([draw(1, 32, 1), draw(2, 32, 2)], ["red lesion", "green lesion", "normal fundus"])
    assert [list(answer) for answer in answers] == [["red lesion", "green lesion", "normal fundus"]] * 2
    assert [sum(answer.values()) for answer in answers] == pytest.approx([1, 1])
    direct = model.encode_text(["a", "b"])
    image = model.encode_image(draw(1, 32, 1), "projected")
    scale = float(model.module.scale)
    logits = np.exp(scale * image[0].astype(float) @ direct.T)
    own = model.classify(draw(1, 32, 1), ["x", "y"], prompts={"x": ["a"], "y": ["b"]})[0]
    assert own["x"] == pytest.approx(logits[0] / logits.sum(), rel=1e-5)


def test_embed__a_store_and_a_folder(trained: tuple[Path, Path, dict], model: Model, tmp_path: Path) -> None:  # P13
    embed(model, trained[0], tmp_path / "store.parquet")
    table = pq.read_table(tmp_path / "store.parquet")
    assert table.column("id").to_pylist() == open_store(trained[0]).ids
    stored = np.asarray(table.column("encoder").to_pylist(), np.float32)
    assert np.array_equal(stored, trained[2]["encoder"])
    folder = tmp_path / "photographs"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "one.png").write_bytes(draw(1, 32, 1))
    (folder / "two.png").write_bytes(b"a text file")
    embed(model, folder, tmp_path / "folder.parquet")
    assert pq.read_table(tmp_path / "folder.parquet").column("id").to_pylist() == ["deep/one.png"]
    with pytest.raises(UserError, match="exists"):
        embed(model, folder, tmp_path / "folder.parquet")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no images"):
        embed(model, tmp_path / "none", tmp_path / "none.parquet")


def test_load__names_the_missing_part(trained: tuple[Path, Path, dict], tmp_path: Path) -> None:
    for part in ("config.json", "weights.safetensors", "tokenizer.json", "preprocessing.json"):
        shutil.copytree(trained[1], tmp_path / part)
        (tmp_path / part / "model" / part).unlink()
        with pytest.raises(UserError, match=part.replace(".", r"\.") + " is missing"):
            load(tmp_path / part)
    shutil.copytree(trained[1], tmp_path / "cut")
    weights = tmp_path / "cut" / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        load(tmp_path / "cut")
    with pytest.raises(UserError, match="no such run"):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no model folder"):
        load(tmp_path / "empty")


def test_model__says_what_it_cannot_do(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of this model's outputs"):
        model.encode_image(draw(1, 32, 1), "nonsense")
    with pytest.raises(UserError, match="no such image"):
        model.preprocess(tmp_path / "none.png")
    with pytest.raises(UserError, match="at least two"):
        model.classify(draw(1, 32, 1), ["glaucoma"])
    with pytest.raises(UserError, match="uint8"):
        model.preprocess(np.zeros((4, 4, 3)))
