"""The report of a tiny run, read as a browser and a reader would read it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from maskedclip.data.store import open_store
from maskedclip.data.transforms import normalise
from maskedclip.errors import UserError
from maskedclip.evaluation.compare import compare_results
from maskedclip.evaluation.report import write_report
from maskedclip.evaluation.report_figures import thin
from maskedclip.evaluation.report_gallery import read_candidates, trained_objective
from maskedclip.evaluation.report_headline import headline
from maskedclip.evaluation.report_names import verdict
from maskedclip.evaluation.report_pictures import (
    denormalise,
    feature_maps,
    patches_in_field,
    reconstruct,
    stored_pixels,
    varied_rows,
)
from maskedclip.evaluation.report_run import method_name
from maskedclip.evaluation.report_subject import read_subject
from maskedclip.evaluation.retrieval import RECALL_AT, image_to_text_ranks
from maskedclip.evaluation.statistics import Estimate
from maskedclip.html import LeftOut, numbers, shorten
from maskedclip.models.vit import gather_patches, patchify
from maskedclip.objectives.base import Batch
from maskedclip.objectives.masking import MaskContext, mask_from_scores
from maskedclip.objectives.reconstruction import pixel_target
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.evaluation.report_world import LABEL, MALICE, SECTIONS, Page, World, make_world
from tests.stores import TINY, make_store


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def whole(world: World) -> Page:
    given = {"trained": world.evaluations["maskedclip"], "untrained": world.evaluations["untrained"]}
    return world.report("whole.html", evaluations=given)


def test_write_report__shows_every_section_of_a_run_with_texts(whole: Page) -> None:
    assert whole.sections == SECTIONS
    reasons = {name for name, text in whole.text_of.items() if "Left out:" in text}
    assert reasons == {"dense"}  # this store has no masks
    assert whole.source.count(">reconstructed</span>") == 8
    assert whole.source.count(">g(f)</span>") == 6
    assert whole.source.count('class="query"') == 6
    assert whole.source.count('class="hit"') >= 8


def test_write_report__is_accessible(whole: Page) -> None:
    assert all(attributes.get("alt") for attributes in whole.all("img"))
    assert all(attributes.get("scope") in {"row", "col"} for attributes in whole.all("th"))
    assert len(whole.all("table")) == len(whole.all("caption"))
    assert whole.all("html") == [{"lang": "en"}]
    targets = {attributes["href"] for attributes in whole.all("a")}
    assert targets == {f"#{name}" for name in SECTIONS}


def test_write_report__fetches_nothing_and_runs_nothing(whole: Page) -> None:
    assert len(whole.source.encode()) < 4_000_000
    assert whole.all("script") == []
    assert all(str(attributes["src"]).startswith("data:image/") for attributes in whole.all("img"))
    for _, attributes in whole.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in {"src", "href", "action", "srcset", "data", "poster"} & set(attributes):
            assert str(attributes[name]).startswith(("data:image/", "#"))
    style = whole.source[whole.source.index("<style>") : whole.source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert re.findall(r"""(?:src|href)\s*=\s*["']?\s*https?:""", whole.source) == []


def test_write_report__escapes_texts_and_names(world: World, whole: Page, tmp_path: Path) -> None:
    assert MALICE in whole.text_of["retrieval"]
    assert LABEL in whole.text_of["tables"]
    name, title = "<script>evil</script>", '"><script>x'
    given = {name: world.evaluations["untrained"]}
    page = Page(write_report(tmp_path / "r.html", world.runs["untrained"], None, evaluations=given, title=title))
    assert title in page.text_of["head"]
    for made in (whole, page):
        assert "<script" not in made.source
        assert made.all("b") == []


def test_write_report__same_inputs_same_bytes(world: World, whole: Page) -> None:
    given = {"trained": world.evaluations["maskedclip"], "untrained": world.evaluations["untrained"]}
    assert world.report("again.html", evaluations=given).source == whole.source


def test_write_report__without_text_tower(world: World) -> None:
    page = world.report("mae.html", "mae")
    assert page.sections == SECTIONS
    assert "Left out: the model was trained without texts" in page.text_of["retrieval"]
    assert "Left out: the model has no text encoder" in page.text_of["summary"]
    assert "No map of g(f)" in page.text_of["maps"]
    assert page.source.count(">reconstructed</span>") == 8
    assert page.source.count(">f</span>") == 6
    assert "probe on f" in page.source
    assert "probe on g(f)" not in page.source


def test_write_report__untrained_run_has_no_curves(world: World) -> None:
    page = world.report("untrained.html", "untrained", evaluations={})
    assert "Left out: the run logged no step" in page.text_of["curves"]
    for section in ("summary", "roc", "tables"):
        assert "Left out: the model has not been evaluated" in page.text_of[section]
    assert page.source.count(">reconstructed</span>") == 8


def test_write_report__gives_a_reason_for_each_missing_part(world: World, tmp_path: Path) -> None:
    run = tmp_path / "bare"
    run.mkdir()
    shutil.copy(world.runs["maskedclip"] / "recipe.yaml", run)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text("{")
    given = {"trained": tmp_path / "damaged", "lost": tmp_path / "lost"}
    page = Page(write_report(tmp_path / "a" / "bare.html", run, None, evaluations=given))
    assert "environment.json is missing" in page.text_of["training"]
    assert "Left out: the run logged no step" in page.text_of["curves"]
    for section in ("reconstructions", "maps", "retrieval"):
        assert "Left out: no store was given" in page.text_of[section]
    for section in ("summary", "roc", "tables"):
        assert "Left out: trained: results.json is damaged" in page.text_of[section]
    page = Page(write_report(tmp_path / "bare.html", run, world.store))
    for section in ("reconstructions", "maps", "retrieval"):
        assert "has no model folder" in page.text_of[section]


def test_headline__evaluations_that_cannot_be_paired(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.evaluations["maskedclip"], tmp_path / "other")
    table = pq.read_table(tmp_path / "other" / "predictions.parquet")
    first = table.column("id")[0].as_py()
    pq.write_table(table.filter(pc.field("id") != first), tmp_path / "other" / "predictions.parquet")
    results = json.loads((tmp_path / "other" / "results.json").read_text())
    results["about"] |= {"store": "elsewhere", "model": "stranger"}
    (tmp_path / "other" / "results.json").write_text(json.dumps(results))
    shown = headline(world.subject(evaluations={"mine": tmp_path / "other", "lost": tmp_path / "nowhere"}))
    assert "made on another store" in shown
    assert "made with other weights" in shown
    assert "lost: nowhere has no results.json" in shown
    given = {"trained": world.evaluations["maskedclip"], "other": tmp_path / "other"}
    shown = headline(world.subject(evaluations=given))
    assert "the known test rows or their truths differ; evaluate both on the same store" in shown
    assert "made on another store" not in shown
    assert "made with other weights" not in shown


def test_write_report__not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        write_report(tmp_path / "report.html", tmp_path, None)


def test_write_report__figures_are_those_of_results_json(world: World, whole: Page) -> None:
    folders = world.evaluations["maskedclip"], world.evaluations["untrained"]
    results = json.loads((folders[0] / "results.json").read_text())
    summary, tables = whole.text_of["summary"], whole.text_of["tables"]
    for entry in (
        results["linear"]["encoder"]["macro"]["auroc"],
        results["linear"]["bridge"]["macro"]["auroc"],
        results["zero_shot"]["macro"]["auroc"],
    ):
        assert f"{entry['value']:.3f}[{entry['low']:.3f}, {entry['high']:.3f}]" in summary
        assert f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]" in tables
    fixed = results["retrieval"]["image_to_text"]["recall_at_5"]["fixed_order"]
    assert f"commonest texts first {fixed:.3f}" in summary
    assert f"commonest first {fixed:.3f}" in tables
    for direction in ("image_to_text", "image_to_text_per_text", "text_to_image"):
        for metric in ("recall_at_1", "recall_at_5", "recall_at_10"):
            assert numbers(results["retrieval"][direction][metric]) in tables
    for entry in results["linear"]["encoder"]["per_label"].values():
        assert numbers(entry.get("sensitivity_at_90_specificity")) in tables
    used = results["about"]["rows_used"]
    assert f"learnt on {used['train']:,} training images with labels" in tables
    for name in ("brier", "calibration_error"):
        assert numbers(results["linear"]["encoder"]["macro"][name]) in tables
    calibrated = results["zero_shot"]["calibrated"]
    assert ("calibrated on validation rows" in tables) == ("macro" in calibrated)
    difference = compare_results(*folders, replicates=50)["linear", "encoder", "macro"]
    shown = numbers(difference.to_json(), signed=True)
    assert f"trained minus untrained {shown} – {verdict(difference)}" in summary
    assert shown in tables


def test_write_report__an_error_is_what_one_half_puts_on_the_wrong_side(world: World, whole: Page) -> None:
    table = pq.read_table(world.evaluations["maskedclip"] / "predictions.parquet").to_pylist()
    rows = [row for row in table if (row["protocol"], row["feature"]) == ("linear", "encoder") and not row["class"]]
    expected = {"false alarm": 0, "missed": 0, "highest without it": 0, "lowest with it": 0}
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        scores = [[row["score"] for row in own if row["truth"] == truth] for truth in (0, 1)]
        for score in sorted(scores[0])[::-1][:2]:
            expected["false alarm" if score > 0.5 else "highest without it"] += 1
        for score in sorted(scores[1])[:2]:
            expected["lowest with it" if score > 0.5 else "missed"] += 1
    shown = whole.text_of["errors"]
    assert {name: len(re.findall(rf"{name} ?\d\.\d\d", shown)) for name in expected} == expected


def test_write_report__undefined_stays_undefined(world: World, whole: Page) -> None:
    results = json.loads((world.evaluations["maskedclip"] / "results.json").read_text())
    labels = results["linear"]["encoder"]["per_label"]
    undefined = [name for name, entry in labels.items() if entry["auroc"]["value"] is None]
    assert undefined == ["red"]  # every test image of this store has it
    assert labels["red"]["auroc"]["note"] in whole.text_of["tables"]
    assert "red (one class only, n=12)" in whole.text_of["roc"]
    assert whole.text_of["roc"].count(" positive") == 1


def test_training_facts__tell_what_was_trained_on_what(world: World, whole: Page) -> None:
    environment = json.loads((world.runs["maskedclip"] / "environment.json").read_text())
    facts = whole.text_of["training"]
    assert f"{environment['paired_images']}, the texts of 12 of 24 patients" in facts
    for shown in (environment["data"]["fingerprint"], environment["platform"], "steps4", "L_clip + L_mim + L_mkd"):
        assert shown in facts
    assert str(world.folder) not in facts.replace(environment["command"], "")


def test_training_facts__tell_which_step_validation_chose(world: World, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.runs["maskedclip"], run)
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["step"] == 4  # the last one, as nothing chose another
    assert "step of the model's weights" not in Page(write_report(tmp_path / "a.html", run, None)).text_of["training"]
    (run / "model" / "config.json").write_text(json.dumps(config | {"step": 2}))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["training"]["best_metric"] = "probe_auroc"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = Page(write_report(tmp_path / "b.html", run, None)).text_of["training"]
    assert "step of the model's weights" in told
    assert "2, the best by probe_auroc on validation rows" in told


def test_training_facts__warn_of_a_store_that_was_not_trained_on(world: World, tmp_path: Path) -> None:
    warning = "none that the run was trained on"
    both = [world.folder / "store", make_store(tmp_path / "second", rows=36, seed=1)]
    pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, "--training.steps", "0"]), both, tmp_path / "run")
    for store, warned in ((both, False), (both[:1], False), (make_store(tmp_path / "third", seed=2), True)):
        page = Page(write_report(tmp_path / "report.html", tmp_path / "run", open_store(store), evaluations={}))
        assert (warning in page.source) == warned


@pytest.mark.parametrize(
    "name", ["mae", "clip", "clip_mae_init", "clip_mim", "bridge", "maskedclip", "maskedclip_paired"]
)
def test_method_name__every_shipped_method_at_any_size(name: str) -> None:
    assert method_name(load_recipe([name, "tiny"], ["--training.steps", "7"])) == name


def test_method_name__own() -> None:
    assert method_name(load_recipe(["mae", "tiny"], ["--data.pool", "paired"])) == "own"


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_reconstruct__equals_the_objectives_own_prediction(world: World) -> None:
    subject = world.subject()
    objective = trained_objective(subject)
    image = stored_pixels(world.store, subject.examples, 32)
    keys = torch.arange(len(image)) + 11
    predictions: list[Any] = []
    decoder = objective.terms["mim"].decoder
    assert isinstance(decoder, torch.nn.Module)
    handle = decoder.register_forward_hook(lambda _module, _inputs, output: predictions.append(output))
    shown = reconstruct(objective, image, keys)
    with torch.inference_mode():
        ids = torch.ones(len(image), 8, dtype=torch.int64)
        objective(Batch(image=image, keys=keys, num_paired=len(image), text_ids=ids, text_mask=ids, text_key=keys), 1.0)
    handle.remove()
    mine, theirs = predictions
    assert shown.hidden.sum(axis=1).tolist() == [12] * len(image)
    places = mask_from_scores(objective.masker.score(MaskContext(keys, 16, 1.0)), objective.mask_ratio).hidden
    torch.testing.assert_close(gather_patches(mine, places), theirs)
    patches = patchify(normalise(image, objective.mean, objective.std), 8)
    painted = patchify(torch.from_numpy(shown.painted).permute(0, 3, 1, 2).float() / 255, 8)
    mean, std = objective.mean.repeat(64), objective.std.repeat(64)
    expected = (denormalise(mine, patches) * std + mean).clamp(0, 1)
    hidden = torch.from_numpy(shown.hidden)
    torch.testing.assert_close(painted[hidden], expected[hidden], atol=0.51 / 255, rtol=0)
    original = patchify(image.float() / 255, 8)
    torch.testing.assert_close(painted[~hidden], original[~hidden])
    masked = patchify(torch.from_numpy(shown.masked).permute(0, 3, 1, 2).float() / 255, 8)
    torch.testing.assert_close(masked[~hidden], original[~hidden])
    assert len(masked[hidden].unique()) == 1


def test_denormalise__inverts_the_target() -> None:
    image = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denormalise(pixel_target(patchify(image, 4)), patchify(image, 4)), patchify(image, 4))


def test_trained_objective__decoders_of_another_recipe(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.runs["maskedclip"], tmp_path / "run")
    shutil.copy(world.runs["mae"] / "model" / "decoders.safetensors", tmp_path / "run" / "model")
    with pytest.raises(LeftOut, match="does not belong to this recipe"):
        trained_objective(read_subject(tmp_path / "run", world.store, {}, 0))
    (tmp_path / "run" / "model" / "decoders.safetensors").unlink()
    with pytest.raises(LeftOut, match="is missing"):
        trained_objective(read_subject(tmp_path / "run", world.store, {}, 0))


def test_feature_maps__shapes_colours_and_unseen_patches() -> None:
    random = np.random.Generator(np.random.Philox(0))
    kinds = random.integers(0, 3, (4, 15))
    centres = random.normal(size=(3, 10)) * 5
    patches = centres[kinds] + random.normal(size=(4, 15, 10)) * 1e-3
    seen = np.ones((4, 15), bool)
    seen[:, 0] = False
    patches[:, 0] = 1e3  # would take the first component if it were part of the fit
    maps = feature_maps(patches.astype(np.float32), (3, 5), seen)
    assert maps.colours.shape == (4, 3, 5, 3)
    assert maps.colours.dtype == np.uint8
    assert 0.99 < maps.explained <= 1
    colours = maps.colours.reshape(4, 15, 3).astype(int)
    assert len(np.unique(colours[:, 0])) == 1
    means = [colours[:, 1:][kinds[:, 1:] == kind][:, :2].mean(axis=0) for kind in range(3)]
    gaps = [np.abs(means[a] - means[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > 40


def test_feature_maps__nothing_seen_or_constant() -> None:
    flat = feature_maps(np.ones((1, 4, 2)), (2, 2), np.zeros((1, 4), bool))
    assert flat.colours.shape == (1, 2, 2, 3)


def test_patches_in_field__black_border() -> None:
    image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    image[:, :, :8] = 90
    assert patches_in_field(image, 8).tolist() == [[True, True, False, False]]


def test_varied_rows__other_texts_and_other_patients_first(world: World) -> None:
    store, rows = world.store, world.store.rows("train")
    chosen = varied_rows(store, rows, 4, 0)
    assert len({store.text(row) for row in chosen}) == len({store.text(row) for row in rows}) == 4
    assert len(set(store.patients[chosen])) == 4
    assert (varied_rows(store, rows, 4, 0) == chosen).all()
    assert (varied_rows(store, rows, 4, 1) != chosen).any()
    everything = varied_rows(store, rows, 10_000, 0)
    assert sorted(everything.tolist()) == rows.tolist()


def test_read_candidates__agree_with_the_evaluated_retrieval(world: World) -> None:
    found = read_candidates(world.subject())
    assert len(found.rows) == len(world.store.rows("test"))
    assert MALICE in found.texts
    ranks = image_to_text_ranks(found.similarity, np.eye(len(found.texts)), found.own)
    results = json.loads((world.evaluations["maskedclip"] / "results.json").read_text())
    for k in RECALL_AT:
        assert (ranks <= k).mean() == pytest.approx(results["retrieval"]["image_to_text"][f"recall_at_{k}"]["value"])


def test_read_candidates__embed_no_image_a_second_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = world.subject()
    expected = read_candidates(subject).similarity

    def features(store: object, rows: object) -> dict:
        raise AssertionError("features were computed again")

    monkeypatch.setattr(subject.model, "features", features)
    assert (read_candidates(subject).similarity == expected).all()


# --- words and numbers -----------------------------------------------------------------------------------------------


def test_numbers__value_interval_or_reason() -> None:
    assert numbers({"value": 0.81234, "low": 0.7, "high": 0.9, "n": 3}) == "0.812 [0.700, 0.900]"
    assert (
        numbers({"value": -0.01, "low": -0.05, "high": 0.03, "n": 3}, digits=2, signed=True) == "−0.01 [−0.05, +0.03]"
    )
    assert numbers({"value": 0.5, "low": None, "high": None, "n": 3}) == "0.500 no interval"
    assert numbers({"value": None, "low": None, "high": None, "n": 3}) == "undefined (n=3)"
    undefined = {"value": None, "low": None, "high": None, "n": 3, "note": "undefined (n=3, one class only)"}
    assert numbers(undefined) == "undefined (n=3, one class only)"
    assert numbers(None) == "–"


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "no difference shown")]
)
def test_verdict__follows_the_interval(low: float, high: float, said: str) -> None:
    assert verdict(Estimate(value=(low + high) / 2, low=low, high=high, n=9)).startswith(said)


def test_verdict__undefined() -> None:
    assert verdict(Estimate(value=np.nan, low=np.nan, high=np.nan, n=9)) == "undefined"


def test_shorten__cuts_at_a_word() -> None:
    assert shorten("a  b\nc") == "a b c"
    assert shorten("one two three", 9) == "one two …"


def test_thin__averages_equal_runs() -> None:
    assert thin(np.arange(5.0), 5).tolist() == [0, 1, 2, 3, 4]
    assert thin(np.arange(6.0), 3).tolist() == [0.5, 2.5, 4.5]
