"""Nothing kills a run: SIGKILL at any moment, SIGTERM, full disks, damaged checkpoints; early stopping resumes too."""

import importlib
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.kill import survive
from safetensors.torch import load_file

from maskedclip.deployment.model import load
from maskedclip.errors import UserError
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training import trainer as loop
from maskedclip.training.checkpoint import Progress, list_checkpoints, read_checkpoint, read_newest, save_checkpoint
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory
from maskedclip.training.stopping import REQUEUE
from tests.lives import Life
from tests.stores import TINY, make_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("survival") / "s")


def _recipe(*overrides: str) -> Recipe:
    return load_recipe(["maskedclip", "tiny"], [*TINY, *overrides])


def _final(run: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(list_checkpoints(run / "checkpoints")[-1])[0]


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_kill__short_form_of_the_script(folder: Path, tmp_path: Path) -> None:
    """`benchmarks/kill.py` with 50 kills is the long form."""
    killed, _, same = survive(folder, tmp_path, kills=3, steps=60, seed=0)
    assert killed == 3
    assert same


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_sigterm__saves_and_asks_to_be_requeued(folder: Path, tmp_path: Path, number: int) -> None:
    arguments = ["pretrain", "--config", "maskedclip", "--config", "tiny", "--data", folder, "--out", tmp_path / "run"]
    options = [*TINY, "--training.steps", "5000", "--training.checkpoint_every", "5000", "--resume", "true"]
    life = Life([*arguments, *options], tmp_path / "said")
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    life.send_signal(number)
    assert life.wait(90) == REQUEUE, life.error
    assert f"{signal.Signals(number).name} asked for it" in life.out
    assert "--resume true goes on" in life.out
    assert "Traceback" not in life.error
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


@pytest.mark.parametrize("spoil", ["cut", "flip", "state", "missing", "elsewhere"])
def test_read_newest__names_a_damaged_checkpoint_and_takes_the_one_before(tmp_path: Path, spoil: str) -> None:
    for step in (2, 4):
        save_checkpoint(tmp_path, {"a": torch.full((64,), float(step))}, Progress(step=step))
    file, state = (tmp_path / "step-00000004" / name for name in ("state.safetensors", "state.json"))
    content = file.read_bytes()
    if spoil == "cut":
        file.write_bytes(content[:-9])
    elif spoil == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif spoil == "state":
        state.write_text(state.read_text()[:20])
    elif spoil == "missing":
        file.unlink()
    else:
        (tmp_path / "other.safetensors").write_bytes(content)
        state.write_text(state.read_text().replace("state.safetensors", "../other.safetensors"))
    found, complaints = read_newest(tmp_path)
    assert found is not None
    assert found[1].step == 2
    assert torch.equal(found[0]["a"], torch.full((64,), 2.0))
    assert len(complaints) == 1
    assert complaints[0].startswith("step-00000004 is damaged")


def test_early_stopping__keeps_the_best_and_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # P28
    figures = [0.5, 0.6, 0.7, 0.65, 0.7, 0.69, 0.9]  # the first is of step 0; 0.7 at step 2 is never beaten
    seen: list[float] = []

    def measured(self: loop.Trainer, step: int) -> None:
        seen.append(figures[step])
        if step:
            self._count_best(step, figures[step])

    monkeypatch.setattr(loop.Trainer, "_validate", measured)
    options = ["--training.validate_every", "1", "--training.checkpoint_every", "1"]
    options += ["--training.best_metric", "probe_auroc", "--training.patience", "3"]
    done = pretrain(_recipe(*options), folder, tmp_path / "run")
    assert (done.step, done.complete) == (5, True)
    assert "probe_auroc got no better in 3 validations" in done.reason
    best = list_checkpoints(tmp_path / "run" / "checkpoints", "best")
    assert [path.name for path in best] == ["best-00000002"]
    tensors, progress = read_checkpoint(best[0])
    assert (progress.best, progress.best_step) == (0.7, 2)
    saved = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    assert all(torch.equal(value, tensors[f"objective/model.{name}"]) for name, value in saved.items())

    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for path in list_checkpoints(tmp_path / "again" / "checkpoints")[1:]:
        shutil.rmtree(path)  # back to step 4, one validation before the end
    again = pretrain(_recipe(*options), folder, tmp_path / "again", resume=True)
    assert again.step == 5
    assert _same(_final(tmp_path / "again"), _final(tmp_path / "run"))
    finished = pretrain(_recipe(*options), folder, tmp_path / "run", resume=True)
    assert (finished.step, finished.complete) == (5, True)


def test_best_metric__unknown_figure_is_one_line_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    options = ["--training.validate_every", "2", "--training.best_metric", "accuracy"]
    with pytest.raises(UserError, match=r"accuracy is not among the probes' figures \(.*probe_auroc"):
        pretrain(_recipe(*options), folder, tmp_path / "run")
    assert not any(entry["kind"] == "train" for entry in RunDirectory(tmp_path / "run").read_metrics())


def _with_figures(monkeypatch: pytest.MonkeyPatch, figures: dict[int, float]) -> None:
    def measured(self: loop.Trainer, step: int) -> None:
        if step:
            self._count_best(step, figures[step])

    monkeypatch.setattr(loop.Trainer, "_validate", measured)


def _best(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run / "checkpoints", "best")]


def test_best_checkpoint__of_an_abandoned_timeline_is_never_the_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--training.checkpoint_every", "1", "--training.keep_checkpoints", "9"]
    options += ["--training.best_metric", "probe_auroc"]
    every, third = ([*options, "--training.validate_every", count] for count in ("1", "3"))
    run = tmp_path / "run"
    _with_figures(monkeypatch, {1: 0.5, 2: 0.6, 3: 0.2, 4: 0.1, 5: 0.9, 6: 0.3})
    pretrain(_recipe(*every), folder, run)
    assert _best(run) == ["best-00000005"]
    for path in list_checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(path)  # back to step 1, whose best checkpoint is gone, with another validate_every
    _with_figures(monkeypatch, {3: 0.4, 6: 0.3})
    pretrain(_recipe(*third), folder, run, resume=True)
    assert "the best checkpoint (of step 1) is gone" in capsys.readouterr().err
    assert _best(run) == ["best-00000003"]
    tensors, progress = read_checkpoint(run / "checkpoints" / "best-00000003")
    assert (progress.best, progress.best_step) == (0.4, 3)
    saved = load_file(run / "model" / "weights.safetensors")
    assert all(torch.equal(value, tensors[f"objective/model.{name}"]) for name, value in saved.items())


def test_best_checkpoint__that_the_newest_checkpoint_tells_of_outlives_a_better_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--training.checkpoint_every", "2", "--training.validate_every", "1"]
    options += ["--training.best_metric", "probe_auroc"]
    run, step = tmp_path / "run", loop.Trainer._step
    _with_figures(monkeypatch, {1: 0.5, 2: 0.4, 3: 0.6, 4: 0.1, 5: 0.1, 6: 0.1})

    class Killed(BaseException):
        pass

    def fatal(self: loop.Trainer, at: int, *rest: Any) -> Any:
        if at == 3:
            raise Killed
        return step(self, at, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_step", fatal)
        with pytest.raises(Killed):
            pretrain(_recipe(*options), folder, run)
    assert _best(run) == ["best-00000001", "best-00000003"]  # the newest checkpoint, of step 2, knows of the first
    _with_figures(monkeypatch, {3: 0.3, 4: 0.1, 5: 0.1, 6: 0.1})
    pretrain(_recipe(*options), folder, run, resume=True)
    assert _best(run) == ["best-00000001"]


def test_moving_average__is_validated_saved_and_resumed(folder: Path, tmp_path: Path) -> None:  # P3
    options = ["--training.ema_decay", "0.8", "--training.validate_every", "3"]
    pretrain(_recipe(*options), folder, tmp_path / "whole")
    final = _final(tmp_path / "whole")
    saved = load_file(tmp_path / "whole" / "model" / "weights.safetensors")
    assert all(torch.equal(value, final[f"average/{name}"]) for name, value in saved.items())
    name = "encoder.vit.blocks.0.mlp.fc1.weight"
    assert not torch.equal(saved[name], final[f"objective/model.{name}"])

    expected = None  # the average by hand, from one checkpoint a step
    pretrain(
        _recipe(*options, "--training.checkpoint_every", "1", "--training.keep_checkpoints", "9"),
        folder,
        tmp_path / "each",
    )
    start = tmp_path / "zero"
    pretrain(_recipe("--training.steps", "0"), folder, start)
    expected = load_file(start / "model" / "weights.safetensors")[name].double()
    for path in list_checkpoints(tmp_path / "each" / "checkpoints"):
        expected = 0.8 * expected + 0.2 * read_checkpoint(path)[0][f"objective/model.{name}"].double()
    torch.testing.assert_close(saved[name].double(), expected, atol=1e-7, rtol=1e-6)

    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    shutil.rmtree(list_checkpoints(tmp_path / "torn" / "checkpoints")[-1])
    pretrain(_recipe(*options), folder, tmp_path / "torn", resume=True)
    assert _same(_final(tmp_path / "torn"), final)
    assert load(tmp_path / "torn").fingerprint == load(tmp_path / "whole").fingerprint


def test_compile__falls_back_with_a_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(_recipe(), folder, tmp_path / "plain")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler on this machine")

    monkeypatch.setattr(importlib.import_module("torch._inductor.compile_fx"), "compile_fx", broken)
    pretrain(_recipe("--training.compile", "true"), folder, tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("training.compile: not possible here") == 1
    assert "no compiler on this machine" in said
    assert _same(_final(tmp_path / "run"), _final(tmp_path / "plain"))


def test_changed_store__is_refused_on_resume(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "s")
    pretrain(_recipe("--training.max_minutes", "1e-6"), tmp_path / "s", tmp_path / "run")
    facts = json.loads((tmp_path / "s" / "curation.json").read_text())
    (tmp_path / "s" / "curation.json").write_text(json.dumps(facts | {"fingerprint": "0" * 64}))
    before = _final(tmp_path / "run")
    with pytest.raises(UserError, match="the store has changed since"):
        pretrain(_recipe(), tmp_path / "s", tmp_path / "run", resume=True)
    assert _same(_final(tmp_path / "run"), before)
    assert RunDirectory(tmp_path / "run").read_recipe() == _recipe("--training.max_minutes", "1e-6")
