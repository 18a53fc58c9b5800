"""`maskedclip audit` and `maskedclip split`, as a user runs them."""

import json
from pathlib import Path

import pytest

from maskedclip.cli_audit import AUDIT_VERBS
from maskedclip.cli_verb import VerbParser
from maskedclip.errors import CheckFailed, UserError
from tests.data.audit.eyes import eye, stored, write_store


def _run(name: str, *arguments: object) -> None:
    verb = AUDIT_VERBS[name]
    parser = VerbParser(prog=f"maskedclip {name}", allow_abbrev=False)
    verb.arguments(parser)
    verb.run(parser.parse_args([str(argument) for argument in arguments]))


def _store(folder: Path, *, leaks: bool) -> Path:
    pictures = [stored(eye(seed)) for seed in (0, 1, 2, 0 if leaks else 3)]
    splits = ["train", "train", "val", "test"]
    return write_store(folder, pictures, patient=["a", "b", "c", "d"], split=splits)


def test_audit__passes_and_says_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("audit", _store(tmp_path / "s", leaks=False), "--out", tmp_path / "out", "--json", tmp_path / "f.json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 images audited"
    assert lines[-1] == f"next: look at {tmp_path}/out/audit.html"
    assert json.loads((tmp_path / "f.json").read_text())["passed"] is True


def test_audit__fails_on_leakage_with_everything_written(tmp_path: Path) -> None:  # P24
    store = _store(tmp_path / "s", leaks=True)
    arguments = ["--out", tmp_path / "out", "--json", tmp_path / "f.json", "--fix", tmp_path / "new.csv"]
    with pytest.raises(CheckFailed, match="1 pair of duplicates crosses splits, such as") as failed:
        _run("audit", store, *arguments)
    assert f"next: maskedclip curate {tmp_path}/new.csv" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert json.loads((tmp_path / "f.json").read_text())["passed"] is False
    assert (tmp_path / "out" / "audit.html").is_file()
    assert len((tmp_path / "new.csv").read_text().splitlines()) == 1 + 3


@pytest.mark.parametrize("flag", ["--json", "--fix"])
def test_audit__overwrites_nothing_and_says_so_early(tmp_path: Path, flag: str) -> None:
    taken = tmp_path / "taken.csv"
    taken.write_text("mine")
    with pytest.raises(UserError, match="nothing is overwritten"):
        _run("audit", tmp_path / "no such store", flag, taken)
    assert taken.read_text() == "mine"


def test_audit__against_several(tmp_path: Path) -> None:
    store, other = _store(tmp_path / "s", leaks=False), _store(tmp_path / "t", leaks=False)
    with pytest.raises(UserError, match="no such store"):
        _run("audit", store, "--against", other, tmp_path / "none")
    _run("audit", store, "--against", other)  # the same pictures, but in the same splits


def test_split__says_the_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "m.csv"
    lines = [f"{row}.png,p{row // 2},{int(row // 2 % 4 == 0)}" for row in range(80)]
    manifest.write_text("\n".join(["image,patient,label.dr", *lines]) + "\n")
    _run("split", manifest, "--out", tmp_path / "n.csv", "--val", "0.1", "--test", "0.2", "--seed", "0")
    told = capsys.readouterr().out
    assert "train 28 patients (70.0%), val 4 patients (10.0%), test 8 patients (20.0%)" in told
    assert "dr = 1: train 25.0% (14), val 25.0% (2), test 25.0% (4)" in told
    assert told.splitlines()[-1].startswith("next: maskedclip curate")
