"""The verb `compare`: one table of several evaluations, and one clear line for what can't be compared."""

import argparse
import json
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from maskedclip.cli_compare import COMPARE_VERBS
from maskedclip.cli_verb import VerbParser
from maskedclip.errors import UserError
from maskedclip.evaluation import compare_inputs
from maskedclip.evaluation.compare_inputs import find_reference, group_names, names_of
from maskedclip.evaluation.evaluate import evaluate
from tests.evaluation.compare_case import MODEL, STORE, blurred, evaluated, rewritten
from tests.evaluation.stand_ins import ArrayModel, ArrayStore, changed

VERB = COMPARE_VERBS["compare"]


def _run(*arguments: object, replicates: int | None = 20) -> None:
    parser = VerbParser(prog="maskedclip compare", allow_abbrev=False)
    VERB.arguments(parser)
    asked = [] if replicates is None else ["--replicates", str(replicates)]
    args: argparse.Namespace = parser.parse_args([*map(str, arguments), *asked])
    VERB.run(args)


def _refused(*arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        _run(*arguments)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cli") / "runs"
    models = {"a": MODEL, "b": blurred(2.0), "c": blurred(2.0, 3, text=False)}
    return {name: evaluated(model, root / name / "evaluation") for name, model in models.items()}


def test_compare__shows_tables_and_says_what_is_next(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _run(folders["a"], folders["b"], folders["c"])
    said = capsys.readouterr().out
    assert "AUROC minus a" in said
    assert re.search(r"^  b +0\.\d{3} \(0\.\d{3}–0\.\d{3}\) +−0\.\d{3} \(−0\.\d{3} to −0\.\d{3}\)", said, re.MULTILINE)
    assert "Missing: c has no Zero-shot, text prompts; no retrieval" in said
    assert said.count(": every label") == 1
    assert said.splitlines()[-1].startswith("next: --figure forest.svg")
    _run(folders["a"], folders["b"], "--per-label", "--protocols", "linear")
    said = capsys.readouterr().out
    assert said.count(": every label") == 2
    assert "k-NN" not in said


def test_compare__writes_what_is_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    outputs = {
        "--json": tmp_path / "c.json",
        "--markdown": tmp_path / "c.md",
        "--latex": tmp_path / "c.tex",
        "--figure": tmp_path / "c.svg",
        "--label-figure": tmp_path / "l.svg",
    }
    given = [part for option, file in outputs.items() for part in (option, file)]
    _run(folders["a"], folders["b"], "--names", "trained,untrained", "--reference", "untrained", *given)
    written = json.loads(outputs["--json"].read_text())
    assert written["reference"] == "untrained"
    assert list(written["models"]) == ["trained", "untrained"]
    assert written["about"]["replicates"] == 20
    assert written["differences"]["trained"]["linear"]["encoder"]["macro"]["auroc"]["low"] > 0
    assert set(written["tests"]["trained"]["linear"]["encoder"]["per_label"]) == {"glaucoma", "drusen", "normal"}
    assert "### Means over the labels" in outputs["--markdown"].read_text()
    assert r"\bottomrule" in outputs["--latex"].read_text()
    assert outputs["--figure"].read_bytes() != outputs["--label-figure"].read_bytes()
    before = {file: file.read_bytes() for file in outputs.values()}
    for option, file in outputs.items():
        assert f"{option} {file}: exists; choose another name, or add --overwrite" in _refused(
            folders["b"], folders["a"], option, file
        )
    assert before == {file: file.read_bytes() for file in outputs.values()}
    _run(folders["b"], folders["a"], "--json", outputs["--json"], "--overwrite")
    assert json.loads(outputs["--json"].read_text())["reference"] == "b"


def test_compare__seeds_of_one_method(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = evaluated(blurred(2.0, 9), tmp_path / "b1")
    given = (folders["a"], folders["b"], second)
    _run(*given, "--names", "a:0,b:0,b:1", "--group", "--reference", "b:1", "--json", tmp_path / "g.json")
    said = capsys.readouterr().out
    assert "AUROC minus b" in said
    assert "Means over training seeds (a 1, b 2)" in said
    assert json.loads((tmp_path / "g.json").read_text())["models"]["b"]["seeds"] == 2
    assert "--group: all are seeds of b" in _refused(folders["b"], second, "--names", "b:0,b:1", "--group")


def test_compare__refusals(folders: dict[str, Path], tmp_path: Path) -> None:
    a, b = folders["a"], folders["b"]
    assert "one model is no comparison" in _refused(a)
    assert "stands twice (as" in _refused(a, b, a)
    assert "no such folder" in _refused(a, tmp_path / "none")
    assert "neither an evaluation (no results.json) nor a run" in _refused(a, tmp_path)
    assert "--names: 3 names for 2 models" in _refused(a, b, "--names", "x,y,z")
    assert "'x' stands twice" in _refused(a, b, "--names", "x,x")
    assert "is empty" in _refused(a, b, "--names", "x,")
    assert "--reference other: is none of the models; choose from a, b" in _refused(a, b, "--reference", "other")
    assert "no evaluation has finetune" in _refused(a, b, "--protocols", "finetune")
    assert "figures are SVG" in _refused(a, b, "--figure", tmp_path / "f.png")
    assert "its folder does not exist" in _refused(a, b, "--json", tmp_path / "none" / "f.json")
    assert "is a folder" in _refused(a, b, "--latex", tmp_path)
    assert "is the file of --json too" in _refused(a, b, "--json", tmp_path / "f", "--latex", tmp_path / "f")
    damaged = rewritten(a, tmp_path / "damaged")
    (damaged / "results.json").write_text("{")
    assert "results.json: is damaged" in _refused(damaged, b)
    (damaged / "results.json").write_bytes((a / "results.json").read_bytes())
    (damaged / "predictions.parquet").write_text("no")
    assert "is not a table of predictions" in _refused(damaged, b)
    elsewhere = evaluated(MODEL, tmp_path / "e", changed(STORE, fingerprint="store-2"))
    assert "evaluated on different stores" in _refused(elsewhere, b)
    labels = {**STORE.labels, "drusen": 1 - STORE.labels["drusen"]}
    other = evaluated(MODEL, tmp_path / "t", changed(STORE, labels=labels))
    assert "linear/encoder/drusen: the known test rows or their truths differ" in _refused(other, b)
    assert list(tmp_path.glob("f*")) == []


class _Stored(ArrayStore):
    crop: ClassVar = {"size": 256, "crop": "fundus"}

    def rows(self, split: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.splits == split)


@pytest.fixture
def external(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for external encoders; the list holds what was opened."""
    opened: list[str] = []

    def open_model(spec: str, *, stored_size: int, crop: str) -> ArrayModel:
        assert (stored_size, crop) == (256, "fundus")
        opened.append(spec)
        return blurred(1.0, len(spec))

    monkeypatch.setattr(compare_inputs, "open_model", open_model)
    monkeypatch.setattr(compare_inputs, "CachedFeatures", lambda model, store: model)
    monkeypatch.setattr(compare_inputs, "open_store", lambda folders: _Stored(**vars(STORE)))
    return opened


def test_compare__evaluates_what_is_not_evaluated_yet(
    folders: dict[str, Path], external: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (folders["a"], "timm:vit_tiny=weights.safetensors@112", "--data", tmp_path, "--out", tmp_path / "out")
    _run(*command)
    assert external == ["timm:vit_tiny=weights.safetensors@112"]
    first = (tmp_path / "out" / "vit_tiny" / "results.json").read_bytes()
    assert "vit_tiny" in capsys.readouterr().out
    _run(*command)
    assert "evaluated already" in capsys.readouterr().err
    assert (tmp_path / "out" / "vit_tiny" / "results.json").read_bytes() == first
    assert "was evaluated with --replicates 20 --seed 0; give the same" in _refused(*command, "--seed", "1")
    (tmp_path / "out" / "vit_tiny").rename(tmp_path / "out" / "other")
    assert "holds an evaluation of another model" in _refused(
        folders["a"], "timm:x=y", "--names", "a,other", "--data", tmp_path, "--out", tmp_path / "out"
    )


def test_compare__what_is_kept_is_told_by_its_model_and_not_by_its_name(
    folders: dict[str, Path], external: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = (folders["a"], "timm:vit_tiny=w.safetensors@112", "--data", tmp_path, "--out", out)
    _run(*command)
    (out / "broken").mkdir()
    (out / "broken" / "results.json").write_text("{")
    (out / "vit_tiny").rename(out / "former")
    _run(*command)
    assert f"evaluated already, in {out / 'former'}" in capsys.readouterr().err
    _run(*command, "--names", "a,new")
    assert sorted(entry.name for entry in out.iterdir()) == ["broken", "former"]
    # With other settings it is of no use, and of two models alike only one can be it.
    _run(*command, "--names", "a,new", "--protocols", "linear", replicates=30)
    assert (out / "new" / "results.json").is_file()
    twin = "timm:vit_tinX=w.safetensors@112"
    _run(*command[:2], twin, *command[2:])
    assert (out / "vit_tinX" / "results.json").is_file() != (out / "vit_tiny" / "results.json").is_file()


def test_compare__one_with_prompts_of_its_own_is_not_taken_under_another_name(
    folders: dict[str, Path], external: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (folders["a"], "timm:vit_tiny=w.safetensors@112", "--data", tmp_path, "--out", out)
    _run(*command)
    (out / "vit_tiny").rename(out / "with-prompts")
    path = out / "with-prompts" / "results.json"
    results = json.loads(path.read_text())
    results["about"]["settings"] = {"prompts": {"a": ["an a"]}, "finetune": None}
    path.write_text(json.dumps(results))
    _run(*command)
    assert (out / "vit_tiny" / "results.json").is_file()


def test_compare__a_kept_evaluation_of_other_labels_is_refused(
    folders: dict[str, Path], external: list[str], tmp_path: Path
) -> None:
    command = (folders["a"], "timm:vit_tiny=w.safetensors@112", "--data", tmp_path, "--out", tmp_path)
    _run(*command, "--protocols", "linear")
    assert "was evaluated without knn" in _refused(*command, "--protocols", "linear,knn")
    file = tmp_path / "vit_tiny" / "results.json"
    results = json.loads(file.read_text())
    results["about"]["labels_fingerprint"] = "other"
    file.write_text(json.dumps(results))
    assert "was evaluated with other labels or splits" in _refused(*command, "--protocols", "linear")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two evaluations with means over draws, of 25 replicates and seed 3."""
    root = tmp_path_factory.mktemp("drawn")
    for name, model in (("a", MODEL), ("b", blurred(1.0))):
        evaluate(model, STORE, root / name, protocols=["linear", "fewshot"], replicates=25, seed=3)
    return root / "a", root / "b"


def test_compare__takes_the_replicates_of_the_evaluations_where_all_agree(
    drawn: tuple[Path, Path], external: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.json"
    _run(*drawn, "--json", out, replicates=None)
    told = json.loads(out.read_text())
    assert (told["about"]["replicates"], told["about"]["seed"]) == (25, 3)
    assert set(told["differences"]["b"]) == {"linear", "fewshot"}
    assert told["unpaired"] == []
    assert "25 bootstrap replicates that resample patients, the same for all models." in capsys.readouterr().out
    # What is evaluated for the comparison has them too.
    _run(drawn[0], "timm:x=y", "--protocols", "linear", "--data", tmp_path, "--out", tmp_path / "o", replicates=None)
    about = json.loads((tmp_path / "o" / "x" / "results.json").read_text())["about"]
    assert (about["replicates"], about["seed"]) == (25, 3)
    evaluate(MODEL, STORE, tmp_path / "d", protocols=["linear"], replicates=20)
    _run(drawn[0], tmp_path / "d", "--json", out, "--overwrite", replicates=None)
    about = json.loads(out.read_text())["about"]
    assert (about["replicates"], about["seed"]) == (1000, 0)


def test_compare__says_why_means_over_draws_are_not_paired(
    drawn: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "f.svg"
    _run(*drawn, "--figure", figure, "--seed", "3", replicates=30)
    said = " ".join(capsys.readouterr().out.split())
    why = "means over draws were kept with 25 replicates, this comparison has 30 replicates; give --replicates 25"
    assert "lacks the scores" not in said
    assert f"–: no paired difference in Few-shot: {why}." in said
    assert "from 30 bootstrap replicates that resample patients, the same for all models; those of balanced" in said
    assert "those of balanced accuracy, Few-shot from the evaluations' own 25." in said
    assert "means over draws were kept with 25 replicates" in figure.read_text()
    _run(*drawn, "--protocols", "fewshot", replicates=30)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("95 % intervals from the evaluations' own 25 bootstrap replicates that resample patients.") == 2
    assert said.count(f"–: no paired difference in Few-shot: {why}.") == 1
    assert said.count(f"–: no paired difference: {why}.") == 1


def test_compare__a_model_needs_data_and_a_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    assert "is not evaluated yet; add --data STORE --out DIR" in _refused(folders["a"], "timm:x")
    assert "is not evaluated yet; add --out DIR" in _refused(folders["a"], "timm:x", "--data", tmp_path)
    (tmp_path / "run" / "model").mkdir(parents=True)
    for spec in (tmp_path / "run", f"{tmp_path / 'run'}@112"):
        assert "is not evaluated yet" in _refused(folders["a"], spec)
    assert "no such folder" in _refused(folders["a"], "none@112")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["runs/a/evaluation", "runs/b/evaluation"], ["a", "b"]),
        (["demo/evaluation/trained", "demo/evaluation/untrained"], ["trained", "untrained"]),
        (["a", "b/ev"], ["a", "b/ev"]),
        (["a/x/ev", "a/y/x/ev"], ["a", "a/y"]),
        (["runs/a", "timm:vit_small_patch14_dinov2=FILE.safetensors@112"], ["a", "vit_small_patch14_dinov2"]),
        (["st/cells/a/run", "st/cells/b/run", "timm:vit=W@112"], ["a", "b", "vit"]),
        (["st/cells/a/run", "timm:vit=W@112", "w/own.safetensors@56"], ["a", "vit", "own"]),
        (["runs/vit", "timm:vit"], ["runs/vit", "vit"]),
        (["timm:vit=W@112", "timm:vit=W@224"], ["vit@112", "vit@224"]),
        (["x/w.safetensors", "y/w.safetensors"], ["x/w.safetensors", "y/w.safetensors"]),
        (["run", "timm:vit"], ["run", "vit"]),
    ],
)
def test_names_of__what_tells_the_paths_apart(given: list[str], names: list[str]) -> None:
    assert names_of(given) == names


def test_group_names__and_the_reference_by_name_seed_or_path(tmp_path: Path) -> None:
    names = ["clip:0", "mae", "clip:1"]
    groups = group_names(names)
    assert groups == {"clip": [0, 2], "mae": [1]}
    given = ["x", str(tmp_path), "z"]
    for wanted, expected in (
        (None, "clip"),
        ("mae", "mae"),
        ("clip:1", "clip"),
        (f"{tmp_path}/.", "mae"),
        ("z", "clip"),
    ):
        assert find_reference(wanted, given, names, list(groups)) == expected


def test_compare__settings_that_differ_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = {"glaucoma": ["glaucoma"]}
    for name, given in (("a", None), ("b", prompts), ("c", None)):
        evaluate(MODEL, STORE, tmp_path / name, protocols=("linear", "zero_shot"), replicates=20, prompts=given)
    _run(tmp_path / "a", tmp_path / "b", tmp_path / "c", "--replicates", "20", "--json", tmp_path / "out.json")
    assert "Not made alike: prompts: a, c default; b" in " ".join(capsys.readouterr().out.split())
    assert len(json.loads((tmp_path / "out.json").read_text())["unlike"]) == 1
    _run(tmp_path / "a", tmp_path / "c", "--replicates", "20")
    assert "Not made alike" not in capsys.readouterr().out
