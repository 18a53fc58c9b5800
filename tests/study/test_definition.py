import argparse
import dataclasses
import re
import textwrap
from pathlib import Path

import pytest

from maskedclip.cli import run
from maskedclip.cli_study import STUDY_VERBS, _overrides
from maskedclip.errors import UserError
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.study.definition import PATHS, load_study, shipped_studies
from maskedclip.study.study_yaml import read_yaml

SMALL = """
data: [store]
config: [tiny]
set: {data.workers: 0, training.lr: 1.0e-3}
methods:
  clip: clip
  low: {config: maskedclip, set: {objective.mkd_weight: 0.5}}
grid:
  - {methods: [clip, low], text_fractions: [0.25], seeds: [0, 1]}
  - {methods: [clip], text_fractions: [0.25, 1.0], seeds: [0]}
steps: 6
"""
ONE = """
data: [store]
config: [tiny]
methods: {one: {config: maskedclip, set: {objective.mkd_weight: 0.5}}}
grid: [{methods: [one]}]
steps: 6
"""


def write(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text)
    return str(path)


def test_load_study__cells_are_the_grid_each_once_seed_by_seed(tmp_path: Path) -> None:
    study = load_study(write(tmp_path, SMALL))
    assert study.combinations == [
        ("clip", "default", 0.25, 0),
        ("low", "default", 0.25, 0),
        ("clip", "default", 1.0, 0),
        ("clip", "default", 0.25, 1),
        ("low", "default", 0.25, 1),
    ]
    assert study.data == study.evaluate == (tmp_path / "store",)
    assert study.reference == "clip"


def test_load_study__fields_reach_the_recipe_of_a_cell(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"")
    text = SMALL.replace("set: {data.workers: 0,", "set: {model.image_weights: weights.safetensors,")
    study = load_study(write(tmp_path, text), overrides={"training.weight_decay": 0.1})
    recipe = study.recipe("low", "default", 0.25, 7, 11)
    assert (recipe.seed, recipe.training.steps, recipe.data.text_fraction) == (7, 11, 0.25)
    assert recipe.objective.mkd_weight == 0.5
    assert recipe.training.lr == 1e-3
    assert recipe.training.weight_decay == 0.1
    assert recipe.model.image_weights == str(tmp_path / "weights.safetensors")


def test_load_study__seed_and_text_fraction_are_put_into_texts(tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/0-0.25.parquet").write_bytes(b"")
    text = SMALL.replace("{objective.mkd_weight: 0.5}", "{data.pairs: 'pairs/{seed}-{text_fraction}.parquet'}")
    text = text.replace("config: maskedclip", "config: clipit_style")
    study = load_study(write(tmp_path, text))
    for seed in (0, 1):
        assert study.recipe("low", "default", 0.25, seed, 6).data.pairs == str(tmp_path / f"pairs/{seed}-0.25.parquet")
    assert study.recipe("clip", "default", 0.25, 1, 6).data.pairs is None
    with pytest.raises(UserError, match=r"data\.pairs: \{sed\} is none of \{seed\}, \{text_fraction\}"):
        load_study(write(tmp_path, text.replace("{seed}", "{sed}")))


def test_load_study__recipes_are_sought_beside_the_file_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, here = tmp_path / "studies", tmp_path / "here"
    for folder, decay in ((beside, 0.1), (here, 0.2)):
        folder.mkdir()
        (folder / "size.yaml").write_text(f"training: {{weight_decay: {decay}}}\n")
    (beside / "maskedclip").write_text("a file that only has the name of a method\n")
    (here / "only.yaml").write_text("objective: {mkd_weight: 0.75}\n")
    monkeypatch.chdir(here)
    text = ONE.replace("config: [tiny]", "config: [tiny, size.yaml]")
    text = text.replace("config: maskedclip,", "config: [maskedclip, only.yaml],").replace(
        "objective.mkd_weight: 0.5", ""
    )
    recipe = load_study(write(beside, text)).recipe("one", "default", 1.0, 0, 6)
    assert (recipe.training.weight_decay, recipe.objective.mkd_weight) == (0.1, 0.75)
    with pytest.raises(UserError, match=r"nosuch\.yaml: no such file"):
        load_study(write(beside, text.replace("size.yaml", "nosuch.yaml")))


def test_load_study__paths_are_those_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text\n")
    fields = "data.texts: texts.csv, data.batch_texts: 4, objective.terms: {mlm: {}}"
    for given in (fields, "data: {texts: texts.csv, batch_texts: 4}, objective.terms: {mlm: {}}"):
        study = load_study(write(tmp_path, ONE.replace("objective.mkd_weight: 0.5", given)))
        assert study.recipe("one", "default", 1.0, 0, 6).data.texts == str(tmp_path / "texts.csv")


def test_paths__are_all_fields_that_may_name_a_file() -> None:
    """A field that is new here belongs into PATHS, or into the list of those that name none."""
    others = {"data.labels", "model.image_encoder", "objective.masking", "training.best_metric"}
    others |= {"training.accelerator", "training.strategy", "training.devices", "training.first_stage"}
    texts = {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Recipe)
        if dataclasses.is_dataclass(section.default_factory)
        for field in dataclasses.fields(section.default_factory)
        if field.type in (str, str | None, int | str)
    }
    assert texts - others == set(PATHS)


@pytest.mark.parametrize("written", ["off", "'off'"])
def test_load_study__a_text_that_yaml_takes_for_another_thing_reaches_the_recipe(tmp_path: Path, written: str) -> None:
    fields = f"data.decoded_cache: {written}, training.tensorboard: {written}"
    study = load_study(write(tmp_path, ONE.replace("objective.mkd_weight: 0.5", fields)))
    recipe = study.recipe("one", "default", 1.0, 0, 6)
    assert (recipe.data.decoded_cache, recipe.training.tensorboard) == ("off", False)


def test_overrides__flags_are_read_as_pretrain_reads_them(tmp_path: Path) -> None:
    expected = {
        "--data.decoded_cache=on": "on",
        "--model.text_encoder=012": "012",
        "--model.image_encoder=12:30": "12:30",
        "--training.strategy=2026-02-30": "2026-02-30",
        "--model.image_weights=null": None,
        "--training.tensorboard=no": False,
        "--training.lr=1_0e-4": 1e-3,
        "--data.mean=[0.1, 0.2, 0.3]": (0.1, 0.2, 0.3),
        "--objective.terms={}": {},
    }
    study = load_study(write(tmp_path, ONE), overrides=_overrides(list(expected)))
    for recipe in (study.recipe("one", "default", 1.0, 0, 6), load_recipe(["tiny", "maskedclip"], list(expected))):
        for flag, read in expected.items():
            section, name = flag[2:].partition("=")[0].split(".")
            assert getattr(getattr(recipe, section), name) == read


def test_read_yaml__keeps_texts_in_set_and_slurm_and_yaml_elsewhere() -> None:
    values = "{a: off, b: 12:00:00, c: 7, d: 2026-01-01, e: null, f: true, g: 0.5, h: [off, 1:30], i: =}"
    text = (
        f"set: {values}\nslurm: {values}\nmethods: {{m: {{set: {{a: no}}}}, n: clip}}\nequal_time: off\nsteps: 1:30\n"
    )
    given = read_yaml(text)
    kept = {"a": "off", "b": "12:00:00", "d": "2026-01-01", "e": None, "f": True, "h": [False, 90], "i": "="}
    assert given["set"] == kept | {"c": 7, "g": 0.5}
    assert given["slurm"] == kept | {"c": "7", "g": "0.5"}
    assert (given["methods"]["m"]["set"], given["equal_time"], given["steps"]) == ({"a": "no"}, False, 90)
    assert read_yaml("set: {data: {a: off, b: [off]}}")["set"] == {"data": {"a": "off", "b": [False]}}
    assert read_yaml("set: {objective.masking_options: {a: off}}")["set"] == {"objective.masking_options": {"a": False}}
    assert read_yaml("sizes: {s: {set: {data: {a: 1:30, b: 7}}}}")["sizes"]["s"]["set"] == {
        "data": {"a": "1:30", "b": 7}
    }
    assert read_yaml("") is None


def test_docs__the_example_of_slurm_is_read_as_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "study.md").read_text()
    (block,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.S) if "slurm:" in block]
    given = load_study(write(tmp_path, ONE + textwrap.dedent(block))).slurm
    assert given["time"] == "12:00:00"
    assert given["exclusive"] is True


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("steps: 6", "steps: 0", "steps: 0; give a whole number"),
        ("steps: 6", "stepps: 6\nsteps: 6", "stepps: no such key; did you mean steps?"),
        ("methods: [clip, low]", "methods: [clip, hog]", "'hog' is not among"),
        ("seeds: [0, 1]", "seeds: [one]", "give numbers"),
        ("seeds: [0, 1]", "seeds: [0.5, 0.7]", "grid[0].seeds: [0.5, 0.7]; give whole numbers"),
        ("seeds: [0, 1]", "seeds: [1, 0, 1]", "grid[0].seeds: 1 is given twice"),
        ("[0.25, 1.0]", "[0.25, 1.0, 1]", "grid[1].text_fractions: 1 is given twice"),
        ("[0.25, 1.0]", "[0.25, 0.25000001]", "grid[1].text_fractions: 0.25 is given twice"),
        ("methods: [clip, low]", "methods: [clip, low, clip]", "grid[0].methods: clip is given twice"),
        ("methods: [clip, low]", "methods: []", "grid[0].methods: none is given"),
        ("training.lr: 1.0e-3", "training.lrr: 1", "training.lr"),
        ("clip: clip", "clip: klip", "klip"),
        ("data: [store]", "data: []", "no store is named"),
        ("steps: 6", "steps: 6\nsplit: train", "neither test nor development"),
        ("steps: 6", "steps: 6\nequal_time: lo", "'lo' is not among"),
        ("steps: 6", "steps: 6\nprotocols: [liner]", "protocols: 'liner' is not a protocol; did you mean linear?"),
        ("steps: 6", "steps: 6\nprotocols: []", "protocols: none is given; choose from linear"),
        ("steps: 6", "steps: 6\nreplicates: 1", "replicates: 1; give a whole number above 1"),
        (
            "training.lr: 1.0e-3",
            "training.steps: 9",
            "set: training.steps: is the cell's own in a study; give it",
        ),
        ("training.lr: 1.0e-3", "training: {steps: 9}", "set: training.steps: is the cell's own in a study"),
        (
            "objective.mkd_weight: 0.5",
            "seed: 3",
            "methods.low.set: seed: is the cell's own in a study; give",
        ),
        (
            "config: [tiny]",
            "sizes: {a: {config: tiny, set: {data.text_fraction: 1.0}}}",
            "sizes.a.set: data.text_fraction: is the cell's own in a study; give it as `grid: text_fractions:`",
        ),
        (SMALL, "just words", "holds no keys"),
        (SMALL, "a: [", "is no YAML"),
    ],
)
def test_load_study__a_fault_is_one_line_that_names_the_key(tmp_path: Path, before: str, after: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_study(write(tmp_path, SMALL.replace(before, after)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--training.steps", "9"], "--training.steps: is the cell's own in a study; give it as `steps:` in its file"),
        (["--data.text_fraction=1"], "--data.text_fraction: is the cell's own in a study"),
        (["--seed", "3"], "--seed: is the cell's own in a study; give it as `grid: seeds:` in its file"),
        (["--training.lr", "["], "--training.lr [: can't be read"),
    ],
)
def test_study__a_flag_that_would_be_ignored_or_cannot_be_read_is_one_line(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        run(["study", write(tmp_path, SMALL), "--out", str(tmp_path / "out"), *flags])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_load_study__the_command_line_wins_against_methods_and_sizes(tmp_path: Path) -> None:
    text = SMALL.replace("config: [tiny]", "sizes: {small: {config: tiny, set: {training.weight_decay: 0.2}}}")
    given = {"objective.mkd_weight": 0.75, "training.weight_decay": 0.3}
    recipe = load_study(write(tmp_path, text), overrides=given).recipe("low", "small", 0.25, 0, 6)
    assert (recipe.objective.mkd_weight, recipe.training.weight_decay) == (0.75, 0.3)


def test_load_study__unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="semi_supervised"):
        load_study("nothing")


def test_shipped_studies__are_those_that_are_tested_here() -> None:
    assert shipped_studies() == ["family", "semi_supervised"]
    parser = argparse.ArgumentParser()
    STUDY_VERBS["study"].arguments(parser)
    assert all(name in parser.format_help() for name in shipped_studies())


def test_semi_supervised__has_the_methods_of_the_experiment(tmp_path: Path) -> None:
    study = load_study("semi_supervised", data=[tmp_path])
    methods = {"mae", "clip", "clip_mae_init", "clip_mim", "bridge", "maskedclip", "maskedclip_paired"}
    assert {entry[0] for entry in study.combinations if entry[2] == 0.25} == methods
    assert {(entry[0], entry[2]) for entry in study.combinations} >= {("clip", 0.1), ("maskedclip", 1.0)}


def test_family__names_recipes_that_exist_and_methods_that_can_be_combined() -> None:
    study = load_study("family", data=[Path("paired"), Path("unpaired")])
    recipes = {method: study.recipe(method, size, share, seed, 10) for method, size, share, seed in study.combinations}
    assert recipes["maskedclip_ehm_xclip"].objective.masking == "ehm"
    assert list(recipes["maskedclip_ehm_xclip"].objective.terms) == ["xclip"]
    assert recipes["dae"].objective.term_options["disrupted"].contrast_weight == 0
    assert recipes["dae"].objective.terms["disrupted"]["noise_variance"] == 0.1
    assert {recipe.data.size for recipe in recipes.values()} == {112}
