"""What the weights had seen that a run began from counts, however far back it was."""

import shutil
from pathlib import Path

import pytest
import yaml

from maskedclip.data.sampler import Pools
from maskedclip.data.store import open_store
from maskedclip.evaluation.leakage import seen_in_pretraining
from maskedclip.recipe import load_recipe
from maskedclip.training.seen import SEEN, write_seen
from tests.stores import make_store


class World:
    """Runs, as a training leaves them for the check, on the training rows of a store or on its test rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = open_store(make_store(folder / "store", rows=36))
        self.recipe = load_recipe(["maskedclip", "tiny"])

    def write(self, name: str, split: str = "train", weights: str | Path | None = None, first: bool = False) -> Path:
        """A run's folder; of its model the file alone.  weights: what it began from.  first: it has a first stage."""
        run = self.folder / name
        (run / "model").mkdir(parents=True)
        (run / "model" / "weights.safetensors").write_bytes(b"")
        recipe = self.recipe.replace(
            model={"image_weights": None if weights is None else str(weights)},
            training={"first_stage": "mae" if first else None},
        )
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
        rows = self.store.rows(split)
        write_seen(run, self.store, Pools(paired=rows[:0], unpaired=rows, patients_with_text=(0, 0)))
        return run

    def found(self, run: Path) -> dict:
        return seen_in_pretraining(run, self.store, self.store.rows("test"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def _weights(run: Path) -> Path:
    return run / "model" / "weights.safetensors"


def _leaks(found: dict) -> bool:
    return found["images"]["n"] == found["images"]["of"] > 0 and found["sentence"].startswith("Leakage: of")


def test_seen__of_the_first_stage_of_the_run_that_gave_the_weights(world: World) -> None:
    first = world.write("a", first=True)
    world.write("a/first_stage", split="test")
    assert _leaks(world.found(first))
    second = world.write("b", weights=_weights(first))
    assert _leaks(world.found(second))
    assert _leaks(world.found(world.write("c", weights=_weights(second))))


def test_seen__of_the_weights_of_the_weights_and_those_of_a_first_stage(world: World) -> None:
    first = world.write("a", split="test")
    second = world.write("b", weights=_weights(first))
    third = world.write("c", weights=_weights(second))
    assert _leaks(world.found(third))
    assert "not_known" not in world.found(third)
    staged = world.write("d", first=True)
    world.write("d/first_stage", weights=_weights(second))
    assert _leaks(world.found(staged))


def test_seen__weights_of_another_project_are_told_wherever_they_came_in(world: World) -> None:
    stranger = world.folder / "stranger.safetensors"
    stranger.write_bytes(b"")
    first = world.write("a", weights=stranger, first=True)
    world.write("a/first_stage", weights=stranger)
    found = world.found(first)
    assert not _leaks(found)
    assert found["sentence"].endswith("What the weights it began from (stranger.safetensors) had seen is not known.")
    second = world.write("b", weights=_weights(first))
    told = "What the weights that a began from (stranger.safetensors) had seen is not known."
    assert world.found(second)["sentence"].endswith(told)
    assert world.found(world.write("c", weights=_weights(second)))["sentence"].endswith(told)
    fetched = world.write("d", weights="pretrained")
    assert world.found(fetched)["not_known"] == ["the weights it began from (pretrained)"]


def test_seen__a_project_with_a_recipe_of_its_own_is_no_run(world: World) -> None:
    project = world.folder / "project"
    weights = project / "pretrained" / "stranger.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"")
    (project / "recipe.yaml").write_text("model: {image_weights: other.safetensors}\n")
    assert world.found(world.write("a", weights=weights))["not_known"] == [
        "the weights it began from (stranger.safetensors)"
    ]


def test_seen__what_is_gone_or_cannot_be_read_is_told(world: World) -> None:
    first = world.write("a", first=True)
    assert world.found(first)["sentence"].endswith("What its first stage had seen is not known.")
    second = world.write("b", weights=_weights(first))
    assert world.found(second)["sentence"].endswith("What the first stage of a had seen is not known.")
    (first / "recipe.yaml").write_text("[")
    assert world.found(second)["sentence"].endswith("What the first weights of a had seen is not known.")
    (first / "recipe.yaml").unlink()
    assert world.found(second)["not_known"] == ["the first weights of a"]
    (first / SEEN).write_bytes(b"no parquet")
    told = "What the weights it began from (weights.safetensors) had seen is not known."
    assert world.found(second)["sentence"].endswith(told)
    shutil.rmtree(first)
    assert world.found(second)["sentence"].endswith(told)


def test_seen__runs_that_name_each_other_end(world: World) -> None:
    second = world.write("b", weights=world.folder / "a" / "model" / "weights.safetensors")
    first = world.write("a", split="test", weights=_weights(second))
    assert _leaks(world.found(second))
    assert _leaks(world.found(first))
    assert world.found(second)["images"]["of"] == len(world.store.rows("test"))


def test_seen__a_relative_path_is_looked_for_around_the_run(
    world: World, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write("runs/a", split="test")
    second = world.write("runs/b", weights=Path("runs/a/model/weights.safetensors"))
    monkeypatch.chdir(world.folder)
    assert _leaks(world.found(second))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert _leaks(world.found(second))


def test_seen__the_parts_that_a_run_used_are_not_asked_for(world: World) -> None:
    first = world.write("a", split="test")
    recipe = world.recipe.to_dict()
    recipe["objective"]["masking"] = "of_my_own"
    (first / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert _leaks(world.found(world.write("b", weights=_weights(first))))
