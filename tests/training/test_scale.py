"""Ranks, sharding and checkpoints: the same run however many processes it is spread over."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from maskedclip.recipe import load_recipe
from maskedclip.training.checkpoint import list_checkpoints, read_checkpoint
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory
from tests.ranks import run_two_ranks, torchrun_command
from tests.stores import TINY, make_store

EXACT = [
    *("--training.precision", "32-true", "--training.lr", "2e-3", "--model.projection_norm", "none"),
    *("--training.validate_every", "3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("scale") / "s")


def _command(folder: Path, out: Path, *options: str) -> list[str]:
    return torchrun_command(folder, out, *EXACT, *options)


def _two_ranks(folder: Path, out: Path, *options: str) -> str:
    return run_two_ranks(folder, out, *EXACT, *options)


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT]), folder, out)
    return out


def _close(out: Path, alone: Path) -> None:
    mine, theirs = (read_checkpoint(list_checkpoints(run / "checkpoints")[-1]) for run in (out, alone))
    assert mine[1].step == theirs[1].step == 6
    assert mine[0].keys() == theirs[0].keys()
    for name, value in theirs[0].items():
        # The softmax does not see the keys' bias: its gradient is rounding alone, which Adam blows up.
        if name.startswith("objective/") and not name.endswith("key.bias"):
            torch.testing.assert_close(mine[0][name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for a, b in zip(RunDirectory(out).read_metrics(), RunDirectory(alone).read_metrics(), strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        for name in {"clip", "mim", "mkd", "loss", "probe_auroc", "knn_auroc"} & set(b):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("fsdp", ["--training.sharded_checkpoints", "true"]),
        ("fsdp", ["--training.ema_decay", "0.5", "--training.gradient_checkpointing", "true"]),
        ("ddp", ["--training.micro_batches", "1", "--training.sharded_checkpoints", "true"]),
    ],
)
def test_two_ranks__equal_one(folder: Path, tmp_path: Path, alone: Path, strategy: str, options: list[str]) -> None:
    _two_ranks(folder, tmp_path / "run", "--training.strategy", strategy, *options)
    if "--training.ema_decay" in options:
        pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT, *options]), folder, tmp_path / "alone")
        alone = tmp_path / "alone"
    _close(tmp_path / "run", alone)
    if "--training.sharded_checkpoints" in options:
        files = sorted(path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")[-1].glob("*"))
        assert files == ["shard-00000.safetensors", "shard-00001.safetensors", "state.json"]


def test_two_ranks__parts_of_the_batch_equal_the_whole(folder: Path, tmp_path: Path) -> None:  # P6
    sizes = ["--data.batch_paired", "8", "--data.batch_unpaired", "4", "--training.micro_batches", "2"]
    pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT, *sizes[:4]]), folder, tmp_path / "alone")
    _two_ranks(folder, tmp_path / "ddp", *sizes)
    _close(tmp_path / "ddp", tmp_path / "alone")
    _two_ranks(folder, tmp_path / "fsdp", *sizes, "--training.strategy", "fsdp")
    _close(tmp_path / "fsdp", tmp_path / "alone")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks__parts_of_the_batch_in_bfloat16(folder: Path, tmp_path: Path, strategy: str) -> None:
    sizes = ["--data.batch_paired", "8", "--data.batch_unpaired", "4", "--training.steps", "2"]
    mixed = [*sizes, "--training.precision", "bf16-mixed"]
    pretrain(load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT, *mixed]), folder, tmp_path / "alone")
    _two_ranks(folder, tmp_path / "run", *mixed, "--training.micro_batches", "2", "--training.strategy", strategy)
    mine, theirs = (RunDirectory(tmp_path / name).read_metrics() for name in ("run", "alone"))
    for a, b in zip(mine, theirs, strict=True):
        for name in {"clip", "mim", "mkd", "loss"} & set(b):
            assert a[name] == pytest.approx(b[name], rel=2e-2)


def test_checkpoint__of_two_ranks_resumes_on_one_and_back(folder: Path, tmp_path: Path, alone: Path) -> None:
    out = tmp_path / "run"
    sharded = ["--training.strategy", "fsdp", "--training.sharded_checkpoints", "true"]
    _two_ranks(folder, out, *sharded)
    for path in list_checkpoints(out / "checkpoints")[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, *EXACT])
    said = pretrain(recipe.replace(training={"max_minutes": 1e-6}), folder, out, resume=True)
    assert said.step == 5  # one rank does the fifth step
    told = _two_ranks(folder, out, *sharded, "--resume", "true")  # and two the sixth
    assert "resumed at step 5 of 6" in told
    _close(out, alone)


def test_a_rank_that_dies__ends_the_others_within_the_timeout(folder: Path, tmp_path: Path) -> None:
    options = ["--training.steps", "100000", "--training.timeout_minutes", "0.2"]
    command = _command(folder, tmp_path / "run", *options)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    life = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(
        ["pgrep", "-P", str(life.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    ranks = [pid for pid in children if b"maskedclip" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) >= 2
    os.kill(int(ranks[-1]), signal.SIGKILL)
    began = time.monotonic()
    _, error = life.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert life.returncode != 0
    checkpoints = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert all(read_checkpoint(path) for path in checkpoints)
    assert error


def test_batch__that_does_not_divide_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as failed:
        _two_ranks(folder, tmp_path / "run", "--data.batch_paired", "7")
    said = str(failed.value)
    assert "data.batch_paired: 7 does not divide over 2 ranks; give 6 or 8" in said
    assert "Traceback" not in said
