"""A whole study on a store of small images: cells, resume, equal time, page, SLURM."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from maskedclip.cli import run
from maskedclip.errors import CheckFailed, UserError
from maskedclip.recipe import Recipe
from maskedclip.study import cells
from maskedclip.study.cells import Ended, cell_folder, claimed, read_result, run_cell
from maskedclip.study.definition import load_study
from maskedclip.study.rates import equal_time_steps, step_rates
from maskedclip.study.results import read_budgets
from maskedclip.study.runner import study_cells
from tests.stores import TINY, make_store

STUDY = """
config: [tiny]
methods: {clip: clip, maskedclip: maskedclip, clip_mae_init: clip_mae_init}
grid:
  - {methods: [clip, maskedclip, clip_mae_init], text_fractions: [0.5], seeds: [0, 1]}
  - {methods: [clip, maskedclip], text_fractions: [1.0], seeds: [0]}
steps: 4
chain: [clip, maskedclip]
protocols: [linear, zero_shot, retrieval]
replicates: 50
"""
CHANGED = "maskedclip: {config: maskedclip, set: {objective.mkd_weight: 0.5}},"
_SET = dict(zip(TINY[::2], TINY[1::2], strict=True)) | {"--training.validate_every": "2"}
FIELDS = [
    part for name in _SET if name not in ("--data.text_fraction", "--training.steps") for part in (name, _SET[name])
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_store(folder / "store", rows=60)
    make_store(folder / "more", rows=24, text_share=0, seed=1)
    (folder / "own.yaml").write_text(STUDY)
    return folder


def command(place: Path, out: str, *more: str) -> list[str]:
    stores = ["--data", str(place / "store"), "--data", str(place / "more")]
    return ["study", str(place / "own.yaml"), "--out", str(place / out), *stores, *FIELDS, *more]


@pytest.fixture(scope="module")
def done(place: Path) -> Path:
    run(command(place, "out"))
    return place / "out"


def test_study__every_cell_is_trained_evaluated_and_told(done: Path) -> None:
    results = json.loads((done / "results.json").read_text())
    assert results["progress"] == "8 of 8 cells are finished"
    groups = {(group["method"], group["text_fraction"]): group for group in results["steps"]}
    assert set(groups) == {
        ("clip", 0.5),
        ("maskedclip", 0.5),
        ("clip_mae_init", 0.5),
        ("clip", 1.0),
        ("maskedclip", 1.0),
    }
    assert len(groups["clip", 0.5]["cells"]) == 2
    assert results["reference"] == "clip"
    assert set(groups["maskedclip", 0.5]["minus_reference"]) >= {"linear/encoder"}
    assert groups["clip", 0.5]["minus_reference"] == {}
    assert 0 <= groups["clip", 0.5]["recall"]["image_to_text_per_text/recall_at_10"]["value"] <= 1
    for group in groups.values():
        value = group["auroc"]["linear/encoder"]
        assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
        for cell in group["cells"]:
            assert cell["seconds"] > 0
            assert cell["evaluated_step"] == cell["cell"]["steps"] == 4
            assert cell["images_per_second"] > 0
            assert cell["peak_memory_bytes"] > 1e8
            assert [entry["step"] for entry in cell["validation"]][-1] > 0
    html = (done / "study.html").read_text()
    assert "maskedclip minus clip" in html
    assert "differences of methods with the same seeds are paired in them where that leaves 3" in html
    assert html.count("<img") >= 2
    assert "memory, GB" in html
    assert "step evaluated" in html
    assert "validation, start and best" in html
    assert "recall at 10, mean over texts" in html
    cell = next(iter((done / "cells").glob("clip-*-text1-*")))
    recall = json.loads((cell / "evaluation/results.json").read_text())["retrieval"]["image_to_text_per_text"]
    assert f"{recall['recall_at_10']['value']:.3f}" in html
    assert (done / "study.tex").read_text().count(r"\begin{table}") == 4
    for name in ("linear probe on f", "zero-shot"):
        assert any(
            "50 % of the texts" in line and f", {name}: " in line and "seeds" in line for line in results["verdicts"]
        )


def test_study__finished_cells_are_kept_and_a_lost_one_is_made_again_bitwise(done: Path, place: Path) -> None:
    results = sorted((done / "cells").glob("*/cell.json"))
    before = {path: path.stat().st_mtime_ns for path in results}
    lost = results[0]
    predictions = lost.parent / "evaluation" / "predictions.parquet"
    kept = predictions.read_bytes()
    for path in (lost, lost.parent / "evaluation" / "results.json"):
        path.unlink()
    run(command(place, "out"))
    assert predictions.read_bytes() == kept
    after = {path: path.stat().st_mtime_ns for path in results}
    assert [path for path in results if after[path] != before[path]] == [lost]


def test_study__a_finished_cell_is_not_set_beside_a_method_that_means_something_else(done: Path, place: Path) -> None:
    text = (place / "own.yaml").read_text()
    given = command(place, "out", "--report")
    try:
        (place / "own.yaml").write_text(text.replace("maskedclip: maskedclip,", CHANGED))
        with pytest.raises(UserError, match=r"maskedclip-.*other fields \(objective\.mkd_weight\)"):
            run(given)
    finally:
        (place / "own.yaml").write_text(text)
    run(given)


def test_study__a_cell_that_fails_is_told_and_the_others_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "two.yaml").write_text(
        "config: [tiny]\nmethods: {clip: clip, maskedclip: maskedclip}\n"
        "grid: [{methods: [clip, maskedclip], text_fractions: [0.5], seeds: [0]}]\n"
        "steps: 4\nprotocols: [linear]\nreplicates: 20\n"
    )
    given = ["study", str(place / "two.yaml"), "--out", str(place / "two"), "--data", str(place / "store"), *FIELDS]
    whole = cells.pretrain

    def fails(recipe: Recipe, *rest: Any, **named: Any) -> Any:
        if recipe.objective.mim_weight == 0:
            raise UserError("the loss is not finite")
        return whole(recipe, *rest, **named)

    monkeypatch.setattr(cells, "pretrain", fails)
    with pytest.raises(CheckFailed, match=r"1 of 2 cells failed \(clip-default.*, the others are finished"):
        run(given)
    said = "".join(capsys.readouterr())
    assert "cell clip-default-text0.5-seed0-steps4: failed: the loss is not finite" in said
    html = (place / "two" / "study.html").read_text()
    assert "1 of 2 cells are finished" in html
    assert "clip-default-text0.5-seed0-steps4 failed: the loss is not finite" in html
    assert "None of the" in html  # the test images were looked for among the training images
    monkeypatch.setattr(cells, "pretrain", whole)
    run(given)
    html = (place / "two" / "study.html").read_text()
    assert "2 of 2 cells are finished" in html
    assert "failed" not in html


def test_study__its_seeds_are_blocks_of_one_share_of_the_texts(done: Path, place: Path) -> None:
    study = load_study(str(place / "own.yaml"), data=[place / "store", place / "more"], overrides=_overrides())
    (budget,) = read_budgets(study, done, study_cells(study, done))
    blocks = budget.comparison.blocks["linear", "encoder", "macro"]
    for group in budget.groups:
        seeds = (0, 1) if group.text_fraction == 0.5 else (0,)
        assert set(blocks[group.name]) == {("default", group.text_fraction, seed) for seed in seeds}


def test_study__a_report_measures_nothing(place: Path, tmp_path: Path) -> None:
    (tmp_path / "timed.yaml").write_text(STUDY + "equal_time: maskedclip\n")
    given = ["study", str(tmp_path / "timed.yaml"), "--data", str(place / "store"), "--out", str(tmp_path / "timed")]
    with pytest.raises(UserError, match=r"--report: .* doesn't know yet how long the methods' steps take"):
        run([*given, *FIELDS, "--report"])
    assert not (tmp_path / "timed" / "rates.json").exists()
    for both in (["--slurm", "--rates"], ["--slurm", "--report"]):
        with pytest.raises(UserError, match=f"{both[1]}: not allowed with argument --slurm"):
            run([*given, *FIELDS, *both])


def test_study__equal_time_has_to_be_in_the_grid(tmp_path: Path, place: Path) -> None:
    (tmp_path / "lacking.yaml").write_text(
        "config: [tiny]\nmethods: {clip: clip, mae: mae}\nequal_time: mae\nsteps: 4\n"
        "grid: [{methods: [clip], seeds: [0]}]\n"
    )
    with pytest.raises(UserError, match="equal_time: 'mae' gives the others their time, but the grid lacks it at size"):
        load_study(str(tmp_path / "lacking.yaml"), data=[place / "store"])


def test_step_rates__two_processes_measure_once(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timed.yaml").write_text(STUDY + "equal_time: maskedclip\n")
    study = load_study(str(tmp_path / "timed.yaml"), data=[place / "store"], overrides=_overrides())
    asked: list[str] = []

    def seconds(study: object, method: str, size: str) -> float:
        asked.append(method)
        time.sleep(0.02)
        return 1.0 + len(asked)

    monkeypatch.setattr("maskedclip.study.rates._seconds", seconds)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: step_rates(study, tmp_path), range(2))
    kept = json.loads((tmp_path / "rates.json").read_text())
    assert first == second == {name: entry["seconds"] for name, entry in kept.items()}
    assert len(asked) == 9  # three methods, three rounds


def test_study__other_settings_are_refused(done: Path, place: Path) -> None:
    with pytest.raises(UserError, match=r"other settings \(fields\)"):
        run(command(place, "out", "--training.weight_decay", "0.2"))
    with pytest.raises(UserError, match="no study's folder"):
        run(command(place, "store"))
    with pytest.raises(UserError, match="unknown argument"):
        run(command(place, "out", "--wrong", "1"))


def test_study_cells__equal_time_gives_a_quicker_method_more_steps(place: Path, tmp_path: Path) -> None:
    text = STUDY + "equal_time: maskedclip\n"
    (tmp_path / "timed.yaml").write_text(text)
    study = load_study(str(tmp_path / "timed.yaml"), data=[place / "store"])
    rates = {"clip default": 0.5, "maskedclip default": 2.0, "clip_mae_init default": 1.0}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    steps = {(cell.method, cell.steps) for cell in study_cells(study, tmp_path)}
    # at equal time 16, 4 and 8 steps; at equal steps 4 each, which is one cell for maskedclip
    assert steps == {("clip", 16), ("clip", 4), ("maskedclip", 4), ("clip_mae_init", 8), ("clip_mae_init", 4)}
    assert equal_time_steps(study, rates, "clip", "default") == 16


def test_step_rates__are_measured_once(place: Path, tmp_path: Path) -> None:
    (place / "timed.yaml").write_text(
        STUDY.replace("[clip, maskedclip, clip_mae_init]", "[maskedclip, clip_mae_init]") + "equal_time: maskedclip\n"
    )
    study = load_study(str(place / "timed.yaml"), data=[place / "store", place / "more"], overrides=_overrides())
    first = study_cells(study, tmp_path)
    rates = json.loads((tmp_path / "rates.json").read_text())
    assert set(rates) == {"maskedclip default", "clip default", "clip_mae_init default"}
    assert all(entry["seconds"] > 0 for entry in rates.values())
    assert study_cells(study, tmp_path) == first


def test_run_cell__another_process_at_it_is_left_alone(place: Path, tmp_path: Path) -> None:
    study = load_study(str(place / "own.yaml"), data=[place / "store"], overrides=_overrides())
    cell = study_cells(study, tmp_path)[0]
    with claimed(cell_folder(tmp_path, cell)) as mine:
        assert mine
        assert run_cell(study, cell, tmp_path) is Ended.TAKEN
    assert read_result(tmp_path, cell) is None


@pytest.fixture
def sbatch(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where a stand-in for sbatch leaves what it was given: 1.sbatch, 1.options, 2.sbatch, ..."""
    tools, given = tmp_path / "bin", tmp_path / "given"
    tools.mkdir()
    given.mkdir()
    (tools / "sbatch").write_text(
        f"#!/bin/sh\nn=$(($(ls {given} | wc -l) / 2 + 1))\n"
        f'for last; do :; done\ncp "$last" {given}/$n.sbatch\necho "$@" > {given}/$n.options\necho "4$n;cluster"\n'
    )
    (tools / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return given


def _submitted(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["maskedclip", *given])
    run(given)


def test_study__slurm_gets_an_array_of_the_unfinished_cells(
    place: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _submitted(command(place, "slurm", "--slurm"), monkeypatch)
    assert len(list(sbatch.glob("*.sbatch"))) == 1  # nothing to measure
    script = (sbatch / "1.sbatch").read_text()
    assert "#SBATCH --array=0,1,2,3,4,5,6,7" in script
    assert "--cell $SLURM_ARRAY_TASK_ID" in script
    assert "--slurm" not in script
    assert "job 41: 8 cells" in capsys.readouterr().out
    run(command(place, "slurm", "--cell", "1"))
    finished = list((place / "slurm" / "cells").glob("*/cell.json"))
    assert len(finished) == 1
    run(command(place, "slurm", "--report"))
    assert "1 of 8 cells are finished" in (place / "slurm" / "study.html").read_text()
    _submitted(command(place, "slurm", "--slurm"), monkeypatch)
    assert "#SBATCH --array=0,2,3,4,5,6,7" in (sbatch / "2.sbatch").read_text()
    with pytest.raises(UserError, match="--rates: this study has no equal_time"):
        run(command(place, "slurm", "--rates"))


def test_study__slurm_measures_rates_on_a_node_and_not_where_jobs_are_submitted(
    place: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "nodes.yaml").write_text(
        "config: [tiny]\nmethods: {clip: clip, mae: mae}\nequal_time: mae\nsteps: 4\nprotocols: [linear]\n"
        "grid: [{methods: [clip, mae], seeds: [0, 1]}]\nreplicates: 20\nslurm: {gres: 'gpu:1'}\n"
    )
    given = ["study", str(place / "nodes.yaml"), "--data", str(place / "store"), "--out", str(place / "nodes"), *FIELDS]
    _submitted([*given, "--slurm"], monkeypatch)
    assert not (place / "nodes" / "rates.json").exists()
    rates, array = ((sbatch / f"{n}.sbatch").read_text() for n in (1, 2))
    assert "--rates" in rates
    assert "--array" not in rates
    assert "--gres=gpu:1" in rates
    assert "--gres=gpu:1" in array
    # two seeds of clip twice, of mae once: it has the same steps in both comparisons
    assert "#SBATCH --array=0,1,2,3,4,5\n" in array
    assert "--dependency=afterok:41" in (sbatch / "2.options").read_text()
    assert (
        "job 41 measures how long steps take (slurm-rates-41.log), job 42 follows it: at most 6 cells"
        in capsys.readouterr().out
    )

    run([*given, "--rates"])  # what the first job does
    assert "clip default: " in capsys.readouterr().out
    known = place / "nodes" / "rates.json"
    assert set(json.loads(known.read_text())) == {"clip default", "mae default"}
    known.write_text(json.dumps({"clip default": 1.0, "mae default": 1.0}))
    run([*given, "--cell", "5"])  # a task that the rates left without a cell
    assert "cell 5: the rates left 4 cells; nothing to do" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--cell: 6 is none of 0 \.\. 5"):
        run([*given, "--cell", "6"])
    _submitted([*given, "--slurm"], monkeypatch)
    assert "#SBATCH --array=0,1,2,3\n" in (sbatch / "3.sbatch").read_text()


def test_study__slurm_without_sbatch_says_what_to_submit(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    (tmp_path / "alone.yaml").write_text(
        "config: [tiny]\nmethods: {clip: clip, mae: mae}\nequal_time: mae\nsteps: 4\n"
        "grid: [{methods: [clip, mae], seeds: [0]}]\n"
    )
    out = tmp_path / "alone"
    _submitted(
        ["study", str(tmp_path / "alone.yaml"), "--data", str(place / "store"), "--out", str(out), "--slurm", *FIELDS],
        monkeypatch,
    )
    told = capsys.readouterr().out
    assert (
        f"--dependency=afterok:$(sbatch --parsable {out / 'rates.sbatch'}) {out / 'study.sbatch'} submits both" in told
    )


def _overrides() -> dict[str, object]:
    from maskedclip.cli_study import _overrides as parse

    return parse(FIELDS)


def test_study__precision_of_the_features_changes_them_a_little_and_nothing_else(place: Path) -> None:
    (place / "half.yaml").write_text(
        "config: [tiny]\nmethods: {clip: clip}\ngrid: [{methods: [clip], text_fractions: [1.0], seeds: [0]}]\n"
        "steps: 4\nprotocols: [linear]\nreplicates: 20\n"
    )
    scores = {}
    for precision in ("32-true", "bf16-mixed"):
        text = (place / "half.yaml").read_text() + f"precision: {precision}\n"
        (place / f"{precision}.yaml").write_text(text)
        out = place / f"out-{precision}"
        run(["study", str(place / f"{precision}.yaml"), "--out", str(out), "--data", str(place / "store"), *FIELDS])
        table = pq.read_table(next((out / "cells").glob("*/evaluation/predictions.parquet")))
        scores[precision] = np.asarray(table.column("score").to_pylist())
    difference = np.abs(scores["32-true"] - scores["bf16-mixed"])
    assert 0 < difference.max() < 0.1
    (place / "half.yaml").write_text((place / "half.yaml").read_text() + "precision: half\n")
    with pytest.raises(UserError, match="precision: 'half' is neither 32-true nor bf16-mixed"):
        run(["study", str(place / "half.yaml"), "--out", str(place / "x"), "--data", str(place / "store"), *FIELDS])
