"""A run: resumed = uninterrupted, bit by bit; two ranks = one; bad steps, full disks and wrong folders are survived."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from maskedclip.errors import UserError
from maskedclip.objectives.pretraining import build_objective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training import trainer as loop
from maskedclip.training.checkpoint import list_checkpoints
from maskedclip.training.pretrain import _first_stage, pretrain
from maskedclip.training.rundir import RunDirectory
from tests.ranks import run_torchrun, run_two_ranks
from tests.stores import TINY, make_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("training") / "s")


def _recipe(*overrides: str, method: str = "maskedclip") -> Recipe:
    return load_recipe([method, "tiny"], [*TINY, *overrides])


def _final(run: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(run / "checkpoints")[-1] / "state.safetensors")


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


class _Killed(BaseException):
    pass


def _killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Die inside step `step`, as after a power cut: nothing of the run's own clean-up is relied upon."""
    original = loop.Trainer._step

    def fatal(self: loop.Trainer, at: int, *rest: Any) -> Any:
        if at == step:
            raise _Killed
        return original(self, at, *rest)

    monkeypatch.setattr(loop.Trainer, "_step", fatal)


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict]]:
    runs = {}
    for teacher in ("online", "ema"):
        out = tmp_path_factory.mktemp("whole") / teacher
        pretrain(_recipe("--objective.mkd_teacher", teacher), folder, out)
        runs[teacher] = (out, _final(out))
    return runs


@pytest.mark.parametrize(("step", "teacher"), [(1, "online"), (3, "ema"), (5, "online")])
def test_pretrain__resumed_equals_uninterrupted_bitwise(
    folder: Path, tmp_path: Path, uninterrupted: dict, monkeypatch: pytest.MonkeyPatch, step: int, teacher: str
) -> None:  # P2, P3
    recipe = _recipe("--objective.mkd_teacher", teacher)
    with monkeypatch.context() as patch:
        _killed_at(patch, step)
        with pytest.raises(_Killed):
            pretrain(recipe, folder, tmp_path / "run")
    done = pretrain(recipe, folder, tmp_path / "run", resume=True)
    assert done.complete
    whole, final = uninterrupted[teacher]
    assert _same(_final(tmp_path / "run"), final)
    logged = [
        {
            name: value
            for name, value in entry.items()
            if name not in {"images_per_second", "data_wait", "peak_memory_bytes"}
        }
        for run in (whole, tmp_path / "run")
        for entry in RunDirectory(run).read_metrics()
    ]
    assert logged[: len(logged) // 2] == logged[len(logged) // 2 :]


def test_pretrain__a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    folder: Path, tmp_path: Path, uninterrupted: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, final = uninterrupted["online"]
    shutil.copytree(whole, tmp_path / "run")
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "state.safetensors").write_bytes(content)
    (newest.parent / ".partial-00000008").mkdir()
    pretrain(_recipe(), folder, tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "step-00000006 is damaged" in said
    assert "resumed at step 4" in said
    assert _same(_final(tmp_path / "run"), final)
    assert not list(newest.parent.glob(".partial-*"))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_pretrain__two_ranks_equal_one(folder: Path, tmp_path: Path, norm: str) -> None:
    """Losses and updated weights to 1e-5, over gloo on two processes, once as torchrun starts them.

    Standardisation makes the gradient of the bias before it zero but for rounding, which Adam turns into steps of any
    sign; with it, only the losses can be compared.
    """
    exact = ["--training.precision", "32-true", "--training.steps", "4", "--training.lr", "2e-3"]
    exact += ["--model.projection_norm", norm]
    pretrain(_recipe(*exact), folder, tmp_path / "one")
    (run_torchrun if norm == "none" else run_two_ranks)(folder, tmp_path / "two", *exact)
    one, two = RunDirectory(tmp_path / "one").read_metrics(), RunDirectory(tmp_path / "two").read_metrics()
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        for name in ("clip", "mim", "mkd", "loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-5)
    alone, together = _final(tmp_path / "one"), _final(tmp_path / "two")
    for name, value in alone.items():
        # The softmax does not see the keys' bias: its gradient is rounding alone, which Adam blows up.
        if name.startswith("objective/") and norm == "none" and not name.endswith("key.bias"):
            torch.testing.assert_close(
                together[name], value, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_pretrain__the_learning_rates_are_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # P27
    pretrain(_recipe("--training.steps", "1", "--training.text_lr_factor", "0.2"), folder, tmp_path / "run")
    said = capsys.readouterr().err
    assert "image_encoder 2.07e-04, text_encoder 4.14e-05, others 2.07e-04" in said
    assert "(0.0053 x 10 / 256)" in said
    assert "0.0% are cut" in said  # P18


def test_pretrain__zero_steps_writes_the_untrained_model(folder: Path, tmp_path: Path) -> None:
    from maskedclip.deployment.model import load

    first = pretrain(_recipe("--training.steps", "0"), folder, tmp_path / "a")
    assert (first.step, first.complete) == (0, True)
    pretrain(_recipe("--training.steps", "0"), folder, tmp_path / "b")
    assert load(tmp_path / "a").fingerprint == load(tmp_path / "b").fingerprint


def test_pretrain__stops_at_its_time_and_goes_on(folder: Path, tmp_path: Path, uninterrupted: dict) -> None:
    done = pretrain(_recipe("--training.max_minutes", "1e-6"), folder, tmp_path / "run")
    assert (done.step, done.complete) == (1, False)
    assert (tmp_path / "run" / "model" / "weights.safetensors").is_file()
    assert pretrain(_recipe(), folder, tmp_path / "run", resume=True).complete
    assert _same(_final(tmp_path / "run"), uninterrupted["online"][1])


def test_pretrain__sequential_alternative_starts_from_the_first_stage(folder: Path, tmp_path: Path) -> None:
    done = pretrain(_recipe("--training.image_lr_factor", "1e-30", method="clip_mae_init"), folder, tmp_path / "run")
    assert (done.step, done.complete) == (3, True)
    first, second = _final(tmp_path / "run" / "first_stage"), _final(tmp_path / "run")
    name = "objective/model.encoder.vit.blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=0)
    assert RunDirectory(tmp_path / "run" / "first_stage").read_recipe().data.pool == "all"


def test_pretrain__the_first_stage_takes_the_user_s_masking_and_learning_rates(folder: Path, tmp_path: Path) -> None:
    options = ["--objective.mask_ratio", "0.5", "--objective.decoded_share", "0.5", "--objective.normalise_pixels"]
    factors = ["--training.lr_factors", '{"text_encoder": 0.5, "patch_embed": 0}']
    recipe = _recipe(*options, "false", *factors, method="clip_mae_init")
    assert pretrain(recipe, folder, tmp_path / "run").complete
    first = RunDirectory(tmp_path / "run" / "first_stage").read_recipe()
    assert (first.objective.mask_ratio, first.objective.decoded_share) == (0.5, 0.5)
    assert not first.objective.normalise_pixels
    assert (first.objective.clip_weight, first.objective.mim_weight) == (0.0, 1.0)
    assert first.training.lr_factors == {"patch_embed": 0}
    assert RunDirectory(tmp_path / "run").read_recipe().training.lr_factors == recipe.training.lr_factors
    assert pretrain(recipe, folder, tmp_path / "run", resume=True).complete
    mistyped = _recipe("--training.lr_factors", '{"txt_encoder": 0.5}', method="clip_mae_init")
    with pytest.raises(UserError, match=r"training\.lr_factors: txt_encoder matches no parameter"):
        pretrain(mistyped, folder, tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()


def test_pretrain__the_first_stage_keeps_a_masking_that_reads_no_texts() -> None:
    hiding = ["--training.first_stage", "mae", "--objective.masking", "block"]
    options = ["--objective.masking_options", "{largest: 0.5}", "--objective.mask_ratio", "0.6"]
    first = _first_stage(_recipe(*hiding, *options), build_objective).objective
    assert (first.masking, first.masking_options, first.mask_ratio) == ("block", {"largest": 0.5}, 0.6)
    guided = _recipe("--training.first_stage", "mae", "--objective.masking", "text_guided")
    assert _first_stage(guided, build_objective).objective.masking == "random"


def test_pretrain__skips_counts_captures_and_replays_bad_steps(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # P1
    from maskedclip.training.replay import replay

    original = loop.Trainer._step

    def poisoned(self: loop.Trainer, step: int, host: loop.HostBatch, *rest: Any) -> Any:
        healthy = torch.tensor(self.recipe.data.mean)
        self.objective.mean.copy_(healthy if step != 2 else torch.full((3,), float("nan")))
        return original(self, step, host, *rest)

    monkeypatch.setattr(loop.Trainer, "_step", poisoned)
    pretrain(_recipe(), folder, tmp_path / "run")
    assert "step 2 skipped: not finite" in capsys.readouterr().err
    assert RunDirectory(tmp_path / "run").read_metrics()[-1]["bad_steps"] == 1
    assert all(torch.isfinite(value).all() for value in _final(tmp_path / "run").values() if value.is_floating_point())
    capture = tmp_path / "run" / "bad_steps" / "step-00000002"
    assert json.loads((capture / "batch.json").read_text())["values"]["mim"] == "nan"
    figures = replay(capture)  # without the poison the same step is healthy
    assert all(torch.isfinite(torch.tensor(value)) for value in figures.values())

    def doomed(self: loop.Trainer, *given: Any) -> Any:
        self.objective.mean.fill_(float("nan"))
        return original(self, *given)

    monkeypatch.setattr(loop.Trainer, "_step", doomed)
    with pytest.raises(UserError, match="3 steps were not finite"):
        pretrain(_recipe("--training.max_bad_steps", "2"), folder, tmp_path / "doomed")


def test_pretrain__online_probes_are_logged(folder: Path, tmp_path: Path) -> None:  # P26
    pretrain(_recipe("--training.validate_every", "3", "--training.tensorboard", "true"), folder, tmp_path / "run")
    validation = [entry for entry in RunDirectory(tmp_path / "run").read_metrics() if entry["kind"] == "validation"]
    assert [entry["step"] for entry in validation] == [0, 3, 6]
    assert {"knn_auroc", "probe_auroc", "target_rank", "target_spread", "encoder_rank"} <= set(validation[0])
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_pretrain__refuses_what_would_lose_or_mix_runs(folder: Path, tmp_path: Path, uninterrupted: dict) -> None:
    whole, _ = uninterrupted["online"]
    with pytest.raises(UserError, match="exists and is not empty; go on with --resume true"):
        pretrain(_recipe(), folder, whole)
    with pytest.raises(UserError, match=r"another recipe: training\.lr \(0\.0053 -> 0\.1\)"):
        pretrain(_recipe("--training.lr", "0.1"), folder, whole, resume=True)
    other = make_store(tmp_path / "other", seed=5)
    with pytest.raises(UserError, match="the store has changed"):
        pretrain(_recipe(), other, whole, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.doc").write_text("precious")
    with pytest.raises(UserError, match="no run"):
        pretrain(_recipe(), folder, tmp_path / "mine", resume=True)
    assert (tmp_path / "mine" / "thesis.doc").read_text() == "precious"


def test_pretrain__a_full_disk_is_one_line_and_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict
) -> None:
    from maskedclip.training import checkpoint

    calls = []

    def full(tensors: dict, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    save = checkpoint.save_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match=r"No space left on device.*--resume true"):
            pretrain(_recipe(), folder, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    pretrain(_recipe(), folder, tmp_path / "run", resume=True)
    assert _same(_final(tmp_path / "run"), uninterrupted["online"][1])
