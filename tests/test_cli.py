"""The command line: quick help, one clear line and status 2 for what the user gave, and nothing lost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskedclip import cli
from tests.cli_case import refused, status
from tests.stores import TINY, draw, make_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("cli") / "s")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    out = folder.parent / "run"
    assert status("pretrain", "--config", "maskedclip", "--config", "tiny", "--data", folder, "--out", out, *TINY) == 0
    return out


def test_help__imports_nothing_heavy() -> None:
    """What keeps `--help` under half a second."""
    code = (
        "import sys; sys.argv = ['maskedclip', '--help']; from maskedclip.cli import main; main(); "
        "heavy = {'torch', 'timm', 'transformers', 'daft', 'sklearn', 'matplotlib', 'numpy', 'jsonargparse'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {verb}" in done.stdout for verb in cli.VERBS)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_help__of_every_verb_shows_its_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert f"maskedclip {verb}" in cli.VERBS[verb].example
    assert cli.VERBS[verb].example.split("--")[0].strip() in shown
    if verb == "pretrain":
        assert "--objective.mkd_weight" in shown
        assert "Fragile" in shown


def test_unknown_verb_and_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean `pretrain`" in refused(capsys, "pretran")
    assert "unrecognized arguments: --nosuch" in refused(capsys, "doctor", "--nosuch")


def test_pretrain__recipe_faults(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("pretrain", "--config", "tiny", "--data", folder, "--out", tmp_path / "run")
    assert "data.siz" in refused(capsys, *base, "--data.siz", "64")
    assert "data.size" in refused(capsys, *base, "--data.size", "large")
    assert "data.text_fraction: 7.0 is outside (0, 1]" in refused(capsys, *base, "--data.text_fraction", "7")
    assert "no such recipe; shipped: bridge, clip" in refused(capsys, *base, "--config", "nosuch")
    (tmp_path / "own.yaml").write_text("objective:\n  mkd_wait: 1\n")
    assert "mkd_wait" in refused(capsys, *base, "--config", tmp_path / "own.yaml")
    (tmp_path / "broken.yaml").write_text("objective: [1\n")
    assert "broken.yaml" in refused(capsys, *base, "--config", tmp_path / "broken.yaml")
    assert not (tmp_path / "run").exists()


def test_pretrain__data_faults(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("pretrain", "--config", "maskedclip", "--config", "tiny", "--out", tmp_path / "run", "--data")
    assert "no such store" in refused(capsys, *base, tmp_path / "none")
    bare = make_store(tmp_path / "bare", text_share=0.0)
    assert "--config mae" in refused(capsys, *base, bare)
    assert "no unpaired images" in refused(capsys, *base, folder)
    assert not (tmp_path / "run").exists()


def test_pretrain__an_existing_folder_is_left_alone(
    folder: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    command = ("pretrain", "--config", "maskedclip", "--config", "tiny", "--data", folder, "--out", trained, *TINY)
    assert "--resume true" in refused(capsys, *command)
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert status("pretrain", "--data", folder, "--out", trained, "--resume", "true") == 0  # the run's own recipe


def test_evaluate__and_its_faults(
    folder: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("evaluate", trained, "--data", folder, "--out", tmp_path / "e", "--replicates", "50") == 0
    said = capsys.readouterr().out
    assert "linear probe, encoder: macro AUROC" in said
    assert "next: look at" in said
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert set(results["linear"]) >= {"encoder", "bridge"}
    assert set(results["linear"]["encoder"]["macro"]["auroc"]) >= {"value", "low", "high", "n"}
    assert set(results["zero_shot"]) >= {"macro", "per_label"}
    assert "recall_at_1" in results["retrieval"]["image_to_text"]
    assert (tmp_path / "e" / "report.html").is_file()
    assert "exist" in refused(capsys, "evaluate", trained, "--data", folder, "--out", tmp_path / "e")
    assert "nosuch" in refused(
        capsys, "evaluate", trained, "--data", folder, "--out", tmp_path / "f", "--protocols", "nosuch"
    )
    assert "no such model" in refused(capsys, "evaluate", tmp_path / "none", "--data", folder, "--out", tmp_path / "f")


def test_classify_and_embed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(draw(3, 32, 1))
    (tmp_path / "b.png").write_text("not an image")
    assert status("classify", trained, tmp_path / "a.png", "--labels", "red lesion,normal fundus", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["probabilities"]) == ["red lesion", "normal fundus"]
    assert "b.png: is a text file" in refused(capsys, "classify", trained, tmp_path / "b.png", "--labels", "a,b")
    assert "at least two" in refused(capsys, "classify", trained, tmp_path / "a.png", "--labels", "a")
    assert status("embed", trained, "--data", tmp_path, "--out", tmp_path / "f.parquet") == 0
    assert "1 of 2 left out" in capsys.readouterr().err
    assert "exists" in refused(capsys, "embed", trained, "--data", tmp_path, "--out", tmp_path / "f.parquet")


def test_curate__bad_files_are_named_and_the_good_ones_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # P25
    good = draw(1, 64, 3)
    for name, content in {"a.png": good, "empty.png": b"", "cut.png": good[:500], "text.png": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "m.csv").write_text("image,text\na.png,red\nempty.png,\ncut.png,\ntext.png,\nmissing.png,\n")
    assert status("curate", tmp_path / "m.csv", "--out", tmp_path / "store") == 0
    said = capsys.readouterr()
    assert "1 images in" in said.out
    assert "4 quarantined" in said.out
    for name in ("empty.png", "cut.png", "text.png", "missing.png"):
        assert sum(f", {name}: " in line for line in said.err.splitlines()) == 1
    assert len((tmp_path / "store" / "quarantine.csv").read_text().splitlines()) == 5
    assert "exist" in refused(capsys, "curate", tmp_path / "m.csv", "--out", tmp_path / "store")
    assert "no such" in refused(capsys, "curate", tmp_path / "none.csv", "--out", tmp_path / "other").lower()


def test_demo__does_the_whole_way_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("demo", "--out", tmp_path / "d", "--steps", "2", "--images", "60")
    assert status(*command) == 0
    made = ["run/model", "report.html", "evaluation/trained/results.json", "evaluation/untrained/results.json"]
    assert all((tmp_path / "d" / name).exists() for name in made)
    assert "trained minus untrained" in capsys.readouterr().out
    began = time.monotonic()
    (tmp_path / "d" / "report.html").unlink()
    assert status(*command) == 0
    assert (tmp_path / "d" / "report.html").is_file()
    assert time.monotonic() - began < 60
    assert "other settings" in refused(capsys, "demo", "--out", tmp_path / "d", "--steps", "3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("precious")
    assert "no demo's folder" in refused(capsys, "demo", "--out", tmp_path / "mine")


def test_doctor__answers_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"versions", "cores", "gpus", "advice", "matrix_gflops_on_processor"} <= set(found)
    assert status("doctor") == 0
    assert "next: maskedclip demo" in capsys.readouterr().out
