"""Benchmarks run, their figures agree with one another, and plans follow from them."""

import json
import math
from pathlib import Path

import pytest
import torch

from maskedclip.bench.contrastive import measure_contrastive
from maskedclip.bench.loader import measure_loader
from maskedclip.bench.plan import as_text, make_plan
from maskedclip.bench.run import as_table, run_benchmarks
from maskedclip.bench.step import make_workbench, measure_step
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.pretraining import build_objective
from maskedclip.recipe import Recipe, load_recipe
from tests.stores import SENTENCES, TINY, make_store


def _recipe(*options: str, method: str = "maskedclip") -> Recipe:
    return load_recipe([method, "tiny"], [*TINY, *options])


def test_measure_step__parts_and_whole(tmp_path: Path) -> None:
    bench = make_workbench(_recipe())
    found = measure_step(bench, rounds=3)
    assert {"masked pass", "paired pass", "texts", "target of unpaired images", "optimizer"} <= set(found["parts"])
    assert {"contrastive loss", "image decoder", "feature decoder"} <= set(found["parts"])
    assert found["overhead"] == pytest.approx(found["seconds"] / sum(found["parts"].values()))
    assert found["images_per_second"] == pytest.approx(10 / found["seconds"])
    assert found["share_of_matrix_rate"] == pytest.approx(found["operations"] / found["seconds"] / found["matrix_rate"])
    assert found["mfu"] is None  # a processor's peak is not known


@pytest.mark.parametrize("method", ["mae", "clip", "bridge", "clip_mim"])
def test_measure_step__other_methods_have_their_parts(method: str) -> None:
    parts = measure_step(make_workbench(_recipe(method=method)), rounds=1)["parts"]
    assert ("masked pass" in parts) == (method != "clip")
    assert ("texts" in parts) == (method != "mae")


def test_workbench__steps_as_training_does() -> None:
    """The benchmark's parts cost what a step costs: the same operations, counted."""
    bench = make_workbench(_recipe())
    before = [parameter.detach().clone() for parameter in bench.objective.parameters()]
    bench.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, bench.objective.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)


def test_measure_loader__both_ways(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "s"))
    found = measure_loader(store, _recipe("--data.decoded_cache", "off"), workers=0, rounds=1)
    assert found["images_per_second"] == found["images_per_second_from_bytes"]
    assert found["ratio"] == pytest.approx(found["images_per_second"] / found["decode_limit"])
    assert not found["decoded_cache"]
    assert found["images_per_second_from_pixels"] > 0


def test_measure_contrastive__same_numbers_less_memory() -> None:
    found = measure_contrastive(8000, 64, rounds=1)
    assert found["relative_difference"] < 1e-5
    assert found["chunked_bytes"] < found["naive_bytes"] / 3


def test_run_benchmarks__as_json_and_as_table(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s")
    found = run_benchmarks(_recipe(), data=[store], batch=512, rounds=1)
    assert json.loads(json.dumps(found))["loader"]["decode_limit"] > 0
    table = as_table(found)
    for name in ("loader.ratio", "step.overhead", "contrastive.naive_bytes", "embed.images_per_second"):
        assert f"| {name} |" in table
    with pytest.raises(UserError, match="--only: rank: no such benchmark"):
        run_benchmarks(_recipe(), only=["rank"])


def test_make_plan__follows_from_the_recipe_and_a_measured_rate() -> None:
    recipe = _recipe("--training.steps", "100", "--model.small_text_vocabulary", "80")
    model, _ = build_model(recipe, SENTENCES)
    parameters = sum(parameter.numel() for parameter in build_objective(recipe, model).parameters())
    plan = make_plan(recipe, images=1000, rate=50.0)
    assert plan.steps == 100
    assert plan.epochs == pytest.approx(1.0)  # 100 steps of 10
    assert plan.seconds == pytest.approx(20.0)
    assert abs(plan.parameters - parameters) < 0.02 * parameters  # another vocabulary
    assert plan.gradients_sent == plan.features_sent == 0
    many = make_plan(recipe, images=1000, rate=50.0, devices=2, epochs=3)
    assert many.steps == 300
    assert many.seconds == pytest.approx(30.0)
    assert many.activations == pytest.approx(plan.activations / 2, rel=0.01)
    assert many.gradients_sent == 4 * plan.gradients // 4
    text = as_text(many)
    assert "300 steps of 10 on 2 devices" in text
    assert "--rate 50 images/s a device" in text


def test_make_plan__operations_grow_with_the_batch_as_counted() -> None:
    recipe = _recipe()
    plan = make_plan(recipe, images=1000, rate=1.0)
    bench = make_workbench(recipe)
    from maskedclip.bench.step import step_operations

    counted = step_operations(bench)
    assert math.isclose(plan.operations, counted, rel_tol=0.25)  # 2 + 2 images are not 6 + 4, and texts are shorter


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "a rate is needed"),
        ({"measured": {"loader": {}}}, "--bench: holds no step"),
        ({"rate": 1.0, "devices": 3}, "does not divide over them"),
    ],
)
def test_make_plan__says_what_is_missing(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(_recipe(), images=100, **given)
