"""A run that is killed before its first checkpoint begins anew, and its files are whole or absent."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskedclip import whole_files
from maskedclip.cli import run
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training import rundir
from maskedclip.training.checkpoint import list_checkpoints
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory
from maskedclip.whole_files import write_whole
from tests.stores import TINY, make_store


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("rundir") / "store")


def recipe(*more: str) -> Recipe:
    return load_recipe(["clip", "tiny"], [*TINY, *more])


@pytest.mark.parametrize("written", [0, 1])
def test_pretrain__a_run_killed_while_it_describes_itself_begins_anew(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    run, calls = RunDirectory(tmp_path / "run"), []

    def killed(path: Path, text: str) -> None:
        calls.append(path.name)
        if len(calls) > written:
            (path.parent / f"{whole_files.PARTIAL}{path.name}-0").write_text(text[:9])
            raise KilledError
        write_whole(path, text)

    monkeypatch.setattr(rundir, "write_whole", killed)
    with pytest.raises(KilledError):
        pretrain(recipe(), store, run.path)
    assert not run.recipe_file.is_file()
    monkeypatch.undo()
    with pytest.raises(UserError, match="exists and is not empty; go on with --resume true"):
        pretrain(recipe(), store, run.path)
    assert pretrain(recipe(), store, run.path, resume=True).complete
    assert run.read_recipe() == recipe()
    assert calls == ["environment.json", "recipe.yaml"][: written + 1]


def test_pretrain__what_an_earlier_version_left_half_written_begins_anew(store: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.recipe_file.write_text("seed: 0\n")
    run.environment_file.write_text('{"command": "ma')
    run.metrics.write_text('{"kind": "validation", "step": 0}\n')
    assert pretrain(recipe(), store, run.path, resume=True).complete
    assert run.environment()["seed"] == 0
    assert [line["step"] for line in run.read_metrics() if line["kind"] == "train"][-1] == recipe().training.steps


def test_pretrain__no_checkpoint_but_a_model_is_no_fresh_start(store: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    pretrain(recipe(), store, run.path)
    for path in list_checkpoints(run.checkpoints):
        path.rename(tmp_path / path.name)
    with pytest.raises(UserError, match="began with another recipe"):
        pretrain(recipe("--training.lr", "0.1"), store, run.path, resume=True)


def test_check_resumable__a_file_may_be_spelled_relative_to_another_folder(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, opened = RunDirectory(tmp_path / "runs" / "a"), open_store(store)
    run.path.mkdir(parents=True)
    for name in ("weights.safetensors", "other.safetensors"):
        (tmp_path / name).touch()
    began = recipe("--model.image_weights", "weights.safetensors")
    run.recipe_file.write_text(yaml.safe_dump(began.to_dict()))
    run.environment_file.write_text(json.dumps({"data": {"fingerprint": opened.fingerprint}}))
    monkeypatch.chdir(tmp_path / "runs")
    for spelled in ("weights.safetensors", "../weights.safetensors", str(tmp_path / "weights.safetensors")):
        run.check_resumable(recipe("--model.image_weights", spelled), opened)
    for spelled in ("../other.safetensors", "../missing.safetensors", "null"):
        with pytest.raises(UserError, match=r"another recipe: model\.image_weights \(weights\.safetensors -> "):
            run.check_resumable(recipe("--model.image_weights", spelled), opened)


def test_run_directory__damaged_files_are_one_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.recipe_file.write_text("")
    run.environment_file.write_text('{"data": ')
    with pytest.raises(UserError, match=r"recipe\.yaml: is damaged"):
        run.read_recipe()
    with pytest.raises(UserError, match=r"environment\.json: is damaged"):
        run.environment()


def test_truncate_metrics__keeps_the_old_lines_until_the_new_ones_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text("".join(json.dumps({"kind": "train", "step": step}) + "\n" for step in range(1, 9)))

    def full(self: Path, text: str, **_: Any) -> None:
        with self.open("w") as handle:
            handle.write(text[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        run.truncate_metrics(4)
    monkeypatch.undo()
    assert len(run.read_metrics()) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    run.truncate_metrics(4)
    assert len(run.read_metrics()) == 4


def test_pretrain_verb__takes_no_recipe_for_granted_where_a_run_lost_its_own(store: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").write_text("{}")
    with pytest.raises(UserError, match=r"run: holds no recipe\.yaml; give --config as when the run began"):
        run(["pretrain", "--data", str(store), "--out", str(tmp_path / "run"), "--resume", "true"])
