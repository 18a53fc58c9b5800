"""How a study begins, is shared, fails and ends, with trainings that are only pretended."""

import errno
import fcntl
import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.cli import run
from maskedclip.errors import UserError
from maskedclip.study import cells, rates, runner
from maskedclip.study.cells import Ended, cell_folder, claimed, read_failure, write_failure
from maskedclip.study.definition import Cell, Study
from maskedclip.study.ending import ends_with_status
from maskedclip.study.rates import step_rates
from maskedclip.study.runner import check_cells, claim, run_one, run_study, study_cells, what_failed
from maskedclip.training.trainer import Finished
from tests.cli_case import status
from tests.stores import make_store
from tests.study.fake_cells import cells_of, read_study

STUDY = """
config: [tiny]
methods: {clip: clip, maskedclip: maskedclip}
grid: [{methods: [clip, maskedclip], text_fractions: [0.5], seeds: [3, 0]}]
steps: 4
protocols: [linear]
replicates: 20
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("runner") / "store")


def command(folder: Path, store: Path, text: str = STUDY, *more: str) -> list[str]:
    (folder / "own.yaml").write_text(text)
    return ["study", str(folder / "own.yaml"), "--data", str(store), "--out", str(folder / "out"), *more]


def changed_store(folder: Path, **columns: Callable[[pa.Table], list]) -> Path:
    """A store with other values in some columns."""
    make_store(folder)
    for shard in folder.glob("*.parquet"):
        table = pq.read_table(shard)
        for name, values in columns.items():
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values(table), table.schema.field(name).type))
        pq.write_table(table, shard)
    return folder


def pretended(ends: Callable[[Cell], Ended], began: list[str]) -> Callable[..., Ended]:
    """A `run_cell` that trains nothing."""

    def run_cell(study: object, cell: Cell, out: Path) -> Ended:
        began.append(cell.name)
        ended = ends(cell)
        if ended is Ended.FINISHED:
            folder = cell_folder(out, cell)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cell.json").write_text('{"seconds": 1.0}')
        return ended

    return run_cell


# --- the start -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "text", "said"),
    [
        ({"split": lambda table: ["train"] * len(table)}, STUDY, "no row has split 'test'"),
        (
            {"split": lambda table: [s if s != "val" else "train" for s in table.column("split").to_pylist()]},
            STUDY + "split: development\n",
            "no row has split 'val'",
        ),
        ({"patient": lambda table: ["p0"] * len(table)}, STUDY, "1 patients are in the test split and in another"),
    ],
)
def test_study__stores_that_evaluate_would_refuse_are_refused_at_the_start(
    tmp_path: Path, columns: dict, text: str, said: str
) -> None:
    store = changed_store(tmp_path / "store", **columns)
    with pytest.raises(UserError, match=said):
        run(command(tmp_path, store, text))
    assert not (tmp_path / "out").exists()  # nothing is locked in


def test_study__protocols_that_read_the_stores_own_splits_are_refused_with_those_of_development(
    tmp_path: Path, store: Path
) -> None:
    text = STUDY.replace("[linear]", "[linear, finetune, dense]") + "split: development\n"
    with pytest.raises(UserError, match="protocols: finetune, dense: read the stores' own splits"):
        run(command(tmp_path, store, text))
    assert not (tmp_path / "out").exists()


def test_study__a_store_that_is_not_there_is_refused_at_the_start(tmp_path: Path, store: Path) -> None:
    with pytest.raises(UserError, match="nosuchstore"):
        run(command(tmp_path, store, STUDY, "--evaluate", str(tmp_path / "nosuchstore")))
    assert not (tmp_path / "out").exists()


def test_claim__other_settings_are_taken_until_a_cell_has_begun(tmp_path: Path) -> None:
    study, out = read_study(tmp_path, STUDY), tmp_path / "out"
    claim(study, out, {"steps": 4, "data": ["a"]})
    (out / "rates.json").write_text("{}")
    claim(study, out, {"steps": 5, "data": ["a"]})
    assert json.loads((out / "study.json").read_text())["steps"] == 5
    assert (out / "rates.json").exists()
    claim(study, out, {"steps": 5, "data": ["b"]})
    assert not (out / "rates.json").exists()  # of other data
    (out / "cells" / "one").mkdir(parents=True)
    (out / "cells" / "one" / "failed.txt").write_text("before its first step\n")
    claim(study, out, {"steps": 6, "data": ["b"]})
    (out / "cells" / "one" / "run").mkdir()
    with pytest.raises(UserError, match=r"other settings \(steps\)"):
        claim(study, out, {"steps": 7, "data": ["b"]})
    claim(study, out, {"steps": 6, "data": ["b"]})
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def begun(out: Path) -> None:
    (out / "cells" / "one" / "run").mkdir(parents=True)


def test_claim__stores_and_weights_are_the_same_however_they_are_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = read_study(tmp_path, STUDY), tmp_path / "out"

    def settings(folder: str, **fields: str) -> dict[str, Any]:
        named = {"model.image_weights": f"{folder}weights.safetensors", "data.size": "32"} | fields
        return {"data": [f"{folder}stores/a", f"{folder}stores/b"], "evaluate": [f"{folder}stores/a"], "fields": named}

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    claim(study, out, settings(""))
    begun(out)
    monkeypatch.chdir(tmp_path / "elsewhere")
    claim(study, out, settings("../"))
    claim(study, out, settings(f"{tmp_path}/"))
    claim(study, out, settings(""))  # on another machine, whose folders have other names
    for changed, said in (
        (settings("more/"), "data, evaluate, fields"),
        (settings("../") | {"data": ["../stores/a"]}, "data"),
        (settings("../", **{"data.size": "64"}), "fields"),
        (settings("../", **{"data.workers": "1"}), "fields"),
    ):
        with pytest.raises(UserError, match=rf"other settings \({said}\)"):
            claim(study, out, changed)


def test_claim__values_that_an_earlier_version_wrote_as_python_does_are_the_same(tmp_path: Path) -> None:
    study, out = read_study(tmp_path, STUDY), tmp_path / "out"
    before = {"training.tensorboard": "False", "training.best_metric": "None", "training.lr": "0.00025"}
    claim(study, out, {"fields": before})
    begun(out)
    claim(
        study, out, {"fields": {"training.tensorboard": "off", "training.best_metric": "null", "training.lr": "2.5e-4"}}
    )
    with pytest.raises(UserError, match=r"other settings \(fields\)"):
        claim(study, out, {"fields": before | {"training.tensorboard": "true"}})


def test_check_cells__weights_are_the_same_however_they_are_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study(weights: str) -> Study:
        return read_study(tmp_path, STUDY, overrides={"model.image_weights": weights})

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    first, out = study("w.safetensors"), tmp_path / "out"
    claim(first, out, {})
    cell = study_cells(first, out)[0]
    recipe = first.recipe(cell.method, cell.size, cell.text_fraction, cell.seed, cell.steps).to_dict()
    cell_folder(out, cell).mkdir(parents=True)
    (cell_folder(out, cell) / "cell.json").write_text(json.dumps({"recipe": recipe}))
    monkeypatch.chdir(tmp_path / "elsewhere")
    check_cells(study("../w.safetensors"), out, [cell])
    with pytest.raises(UserError, match=r"other fields \(model\.image_weights\)"):
        check_cells(study("../v.safetensors"), out, [cell])


def test_study__a_choice_on_the_reported_rows_is_told_at_the_start(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run_cell", pretended(lambda _: Ended.ASKED, []))
    fields = ["--training.best_metric", "probe_auroc", "--training.validate_every", "2"]
    with pytest.raises(SystemExit):
        run(command(tmp_path, store, STUDY + "split: development\n", *fields))
    assert "warning: The figures are on validation rows" in capsys.readouterr().err


# --- the end ---------------------------------------------------------------------------------------------------------


def test_study__a_training_that_was_asked_to_end_ends_the_study(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began = []

    def asked(recipe: object, data: object, out: Path, **_: Any) -> Finished:
        began.append(out)
        return Finished(out, 2, False, "SIGTERM asked for it", status=75)

    monkeypatch.setattr(cells, "pretrain", asked)
    for more in ([], ["--cell", "1"]):
        began.clear()
        with pytest.raises(SystemExit) as left:
            run(command(tmp_path, store, STUDY, *more))
        assert left.value.code == 75
        assert len(began) == 1
        said = capsys.readouterr().err
        assert "a scheduler asked for the end; what is finished is kept, and the same command goes on" in said


def test_study__a_signal_between_trainings_ends_it_with_status_75(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[str] = []

    def signalled(cell: Cell) -> Ended:
        os.kill(os.getpid(), signal.SIGUSR1)
        return Ended.FINISHED

    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(runner, "run_cell", pretended(signalled, began))
    with pytest.raises(SystemExit) as left:
        run(command(tmp_path, store))
    assert left.value.code == 75
    assert len(began) == 1
    assert "SIGUSR1 asked for it" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGUSR1) == before


def test_ends_with_status__two_signals_at_once_are_one_request() -> None:
    """A scheduler's own to the whole job, and the one that the job's script passes on."""

    def ask() -> None:
        both = {signal.SIGTERM, signal.SIGUSR1}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, both)
        try:
            # To this thread: another one would take what is sent to the process, while this one still blocks it.
            for number in both:
                signal.pthread_kill(threading.get_ident(), number)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        time.sleep(1)

    with pytest.raises(SystemExit) as left, ends_with_status():
        ask()
    assert left.value.code == 75


def test_step_rates__a_measurement_that_was_asked_to_end_ends_the_study(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Finished(tmp_path, 2, False, "SIGTERM asked for it", status=75)
    monkeypatch.setattr(rates, "pretrain", lambda *_, **__: asked)
    with pytest.raises(SystemExit) as left:
        run(command(tmp_path, store, STUDY + "equal_time: clip\n", "--rates"))
    assert left.value.code == 75


def test_run_one__a_cell_of_somebody_else_is_no_failure(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run_cell", pretended(lambda _: Ended.TAKEN, []))
    run(command(tmp_path, store, STUDY, "--cell", "0"))
    assert "another process is at it; nothing to do" in capsys.readouterr().err


# --- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_claimed__a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    said = r"files can't be locked there .* give an --out on a file system with locks"
    with pytest.raises(UserError, match=said), claimed(tmp_path / "cell"):
        pass
    study = read_study(tmp_path, STUDY + "equal_time: clip\n")
    with pytest.raises(UserError, match="files can't be locked there"):
        step_rates(study, tmp_path)
    plain = read_study(tmp_path, STUDY)
    for begin in (lambda: run_study(plain, tmp_path), lambda: run_one(plain, tmp_path, 0)):
        with pytest.raises(UserError, match="files can't be locked there"):
            begin()
    assert not list(tmp_path.glob("cells/*/failed.txt"))  # no fault of a cell


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES])
def test_claimed__a_lock_of_another_process_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def taken(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", taken)
    with claimed(tmp_path / "cell") as mine:
        assert not mine


# --- failures --------------------------------------------------------------------------------------------------------


def test_run_study__any_failure_of_a_cell_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, began = read_study(tmp_path, STUDY), []

    def fails(cell: Cell) -> Ended:
        if cell.method == "clip":
            raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")
        return Ended.FINISHED

    monkeypatch.setattr(runner, "run_cell", pretended(fails, began))
    assert run_study(study, tmp_path / "out") == (2, 4)
    assert len(began) == 4
    assert "failed: RuntimeError: CUDA out of memory. Tried to allocate 2 GiB" in capsys.readouterr().err
    failed = next(cell for cell in study_cells(study, tmp_path / "out") if cell.method == "clip")
    said = read_failure(tmp_path / "out", failed)
    assert said is not None
    assert said.startswith("RuntimeError: CUDA out of memory.")
    assert "Traceback" in (cell_folder(tmp_path / "out", failed) / "failed.log").read_text()


def test_what_failed__names_the_cells_and_tells_of_the_others(tmp_path: Path) -> None:
    listed = cells_of(read_study(tmp_path, STUDY))
    assert what_failed(tmp_path, listed) is None
    write_failure(tmp_path, listed[0], UserError("no memory"))
    said = what_failed(tmp_path, listed)
    assert said is not None
    assert said.startswith(
        f"1 of 4 cells failed ({listed[0].name}; failed.txt in their folders says why), 0 are finished"
    )
    for cell in listed[1:]:
        cell_folder(tmp_path, cell).mkdir(parents=True)
        (cell_folder(tmp_path, cell) / "cell.json").write_text("{}")
    said = what_failed(tmp_path, listed)
    assert said is not None
    assert "the others are finished; the same command tries the failed ones again" in said


def test_study__exits_with_1_where_a_cell_failed_and_its_report_with_0(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(cell: Cell) -> Ended:
        if cell.method == "clip":
            raise UserError("the loss is not finite")
        return Ended.FINISHED

    monkeypatch.setattr(runner, "run_cell", pretended(fails, []))
    monkeypatch.setattr("maskedclip.study.page.write_page", lambda study, out, _: (out / "study.html", []))
    monkeypatch.setattr(runner, "changed_fields", lambda *_: [])
    given = command(tmp_path, store)
    assert status(*given) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "2 of 4 cells failed (clip-default-text0.5-seed0-steps4, clip-default-text0.5-seed3-steps4;" in error
    assert "the others are finished" in error
    assert status(*given, "--report") == 0


def test_study__slurm_runs_this_python_whatever_the_path_of_a_node_is(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskedclip.study.slurm.shutil.which", lambda _: None)
    monkeypatch.setattr("sys.executable", "/an env/bin/python")
    (tmp_path / "a folder").mkdir()
    given = command(tmp_path / "a folder", store)
    assert status(*given, "--slurm") == 0
    script = (tmp_path / "a folder" / "out" / "study.sbatch").read_text().splitlines()
    (line,) = [line for line in script if "--cell" in line]
    told = [*given, "--cell", "$SLURM_ARRAY_TASK_ID", "&"]
    assert shlex.split(line) == ["/an env/bin/python", "-m", "maskedclip", *told]


def test_run_study__of_nothing_but_failures_the_first_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(cell: Cell) -> Ended:
        raise RuntimeError(f"no {cell.seed}")

    monkeypatch.setattr(runner, "run_cell", pretended(fails, []))
    with pytest.raises(UserError, match=r"^RuntimeError: no 0 \("):
        run_study(read_study(tmp_path, STUDY), tmp_path / "out")


def test_run_one__a_failure_is_written_down_and_fails_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(cell: Cell) -> Ended:
        raise RuntimeError("no memory")

    study, out = read_study(tmp_path, STUDY), tmp_path / "out"
    monkeypatch.setattr(runner, "run_cell", pretended(fails, []))
    with pytest.raises(RuntimeError, match="no memory"):
        run_one(study, out, 1)
    said = read_failure(out, study_cells(study, out)[1])
    assert said is not None
    assert said.startswith("RuntimeError: no memory")
