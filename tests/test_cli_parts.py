"""`maskedclip parts`, and --part from a training to the evaluation of its run."""

import json
from pathlib import Path

import pytest

from maskedclip import cli, parts
from maskedclip.errors import UserError
from maskedclip.recipe import load_recipe
from maskedclip.training.rundir import RunDirectory
from tests.cli_case import status
from tests.stores import TINY, make_store
from tests.test_parts import SIZE


@pytest.fixture(autouse=True)
def _none_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_registered", {"masking": {}, "terms": {}})


def test_parts__lists_every_part_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("parts", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["masking"]) == set(parts.known("masking"))
    assert set(told["terms"]) == set(parts.known("terms"))
    assert all({"weight", "ramp"} <= set(entry["options"]) for entry in told["terms"].values())
    assert all(entry["about"] for names in told.values() for entry in names.values())
    assert status("parts", "random") == 0
    assert "Random masking" in capsys.readouterr().out
    with pytest.raises(UserError, match="rndm: no such part"):
        cli.run(["parts", "rndm"])


def test_part__is_kept_with_the_run_and_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "size_of_features.py").write_text(SIZE)
    store, run = make_store(tmp_path / "store"), tmp_path / "run"
    common = ["--data", store, "--out", run, "--config", "maskedclip", "--config", "tiny", *TINY]
    terms = "--objective.terms={size_of_features: {weight: 0.5}}"
    assert status("pretrain", *common, terms, "--part", tmp_path / "size_of_features.py") == 0
    assert "size" in json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    kept = run / "parts" / "size_of_features.py"
    assert kept.read_text() == SIZE
    monkeypatch.setattr(parts, "_registered", {"masking": {}, "terms": {}})
    with pytest.raises(
        UserError, match=r"size_of_features: no such part; the run was made with --part .*read it, then"
    ):
        RunDirectory(run).read_recipe()
    capsys.readouterr()
    evaluated = ["evaluate", run, "--data", store, "--out", tmp_path / "evaluation", "--protocols", "knn"]
    assert status(*evaluated, "--part", kept) == 0
    assert "size_of_features" in (tmp_path / "evaluation" / "report.html").read_text()


def test_part__that_has_changed_is_refused_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "size_of_features.py"
    own.write_text(SIZE)
    store, run = make_store(tmp_path / "store"), tmp_path / "run"
    command = ["pretrain", "--data", store, "--out", run, "--config", "maskedclip", "--config", "tiny", *TINY]
    command += ["--objective.terms={size_of_features: {weight: 0.5}}", "--resume", "true", "--part"]
    assert status(*command, own) == 0
    own.write_text(SIZE + "\n# another formula\n")
    monkeypatch.setattr(parts, "_registered", {"masking": {}, "terms": {}})
    with pytest.raises(UserError, match=r"--part .*: has changed since .* began; give .*parts.size_of_features.py"):
        cli.run([str(part) for part in [*command, own]])
    monkeypatch.setattr(parts, "_registered", {"masking": {}, "terms": {}})
    assert status(*command, run / "parts" / "size_of_features.py") == 0


def test_part__of_another_packages_entry_point_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import ModuleType

    module = ModuleType("theirs")
    exec(compile(SIZE, "theirs", "exec"), module.__dict__)

    class Announced:
        name = "theirs"

        @staticmethod
        def load() -> ModuleType:
            return module

    monkeypatch.setattr(parts, "_announced", lambda slot: (Announced,) if slot == "terms" else ())
    recipe = load_recipe(["maskedclip", "tiny"], ["--objective.terms={theirs: {target: 3}}"])
    assert recipe.objective.term_options["theirs"].target == 3.0
