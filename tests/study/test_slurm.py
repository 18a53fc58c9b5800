"""The scripts that `study --slurm` writes: what sbatch reads in them, and what they do when SLURM asks for the end."""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from maskedclip.errors import UserError
from maskedclip.study.definition import Study
from maskedclip.study.slurm import submit
from maskedclip.study.study_yaml import read_yaml
from tests.study.fake_cells import read_study

STUDY = """
config: [tiny]
methods: {clip: clip, mae: mae}
grid: [{methods: [clip, mae], seeds: [0, 1]}]
steps: 4
"""
LISTENS = """
import pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
def end(*_):
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    (here / "asked").touch()
    time.sleep(0.5)
    (here / "checkpoint").touch()
    sys.exit(75)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, end)
(here / "ready").touch()
time.sleep(60)
"""
DEAF = """
import pathlib, sys, time
(pathlib.Path(sys.argv[1]) / "ready").touch()
time.sleep(60)
"""


Write = Callable[..., str]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return read_study(tmp_path_factory.mktemp("plain"), STUDY)


@pytest.fixture
def write(plain: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the script of an array, with what a file has in `slurm`."""
    monkeypatch.setattr("maskedclip.study.slurm.shutil.which", lambda _: None)

    def write(slurm: str = "", out: str = "out", command: Sequence[str] = ("maskedclip",)) -> str:
        given = read_yaml(f"slurm: {{{slurm}}}")["slurm"]
        (tmp_path / out).mkdir(parents=True)
        submit(dataclasses.replace(plain, slurm=given), tmp_path / out, command)
        return (tmp_path / out / "study.sbatch").read_text()

    return write


def options(script: str) -> list[str]:
    """What sbatch reads: quotes, backslashes and # mean to it what they mean to a shell in double quotes."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [part for line in lines for part in shlex.split(line, comments=True)]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("time: 12:00:00", "--time=12:00:00"),
        ("time: 4:00:00", "--time=4:00:00"),
        ("time: 90:30", "--time=90:30"),
        ("time: 60", "--time=60"),
        ("time: 1-12:00:00", "--time=1-12:00:00"),
        ("begin: 2026-01-01T12:00:00", "--begin=2026-01-01T12:00:00"),
        ("exclusive: true", "--exclusive"),
        ('exclusive: ""', "--exclusive"),
        ("kill-on-invalid-dep: yes", "--kill-on-invalid-dep=yes"),
        ("gres: gpu:1", "--gres=gpu:1"),
        ("comment: 'a \"b\" \\c # d'", '--comment=a "b" \\c # d'),
        ("signal: B:USR1@120", "--signal=B:USR1@120"),
        ("mem: 016", "--mem=016"),
    ],
)
def test_submit__an_option_reaches_sbatch_as_it_was_written(write: Write, given: str, expected: str) -> None:
    found = options(write(given))
    name = expected.partition("=")[0]
    assert [option for option in found if option.partition("=")[0] == name] == [expected]


@pytest.mark.parametrize("given", ["exclusive: false", "exclusive: null", "exclusive:", "requeue: false"])
def test_submit__false_and_null_leave_an_option_out(write: Write, given: str) -> None:
    name = given.partition(":")[0]
    assert not [option for option in options(write(given)) if name in option]


def test_submit__the_shell_gets_a_signal_five_minutes_before_the_end(write: Write) -> None:
    assert {"--requeue", "--signal=B:USR1@300"} <= set(options(write()))


@pytest.mark.parametrize("given", ["USR1@300", "B:USR2@300"])
def test_submit__a_signal_that_the_script_never_gets_is_refused(write: Write, given: str) -> None:
    with pytest.raises(UserError, match=rf"slurm\.signal: {given}: .*; give e\.g\. B:USR1@300"):
        write(f"signal: {given}")


def test_load_study__an_option_that_is_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"slurm\.gres: \['gpu:1'\]; give one text"):
        read_study(tmp_path, STUDY + "slurm: {gres: ['gpu:1']}\n")


def test_submit__a_folder_with_blanks_and_percent_signs_is_quoted(write: Write, tmp_path: Path) -> None:
    found = options(write(out="out dir/50%"))
    assert f"--output={tmp_path}/out dir/50%%/slurm-%A-%a.log" in found


# --- signals ---------------------------------------------------------------------------------------------------------


class Job:
    """A script under bash, with stand-ins for the program and for scontrol."""

    def __init__(self, folder: Path, write: Write, program: str, **environment: str) -> None:
        self.folder = folder
        tools = folder / "bin"
        tools.mkdir()
        (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(folder))}/scontrol.txt\n')
        (tools / "scontrol").chmod(0o755)
        (folder / "program.py").write_text(program)
        write(command=[sys.executable, str(folder / "program.py"), str(folder)])
        self.bash = subprocess.Popen(
            ["bash", str(folder / "out" / "study.sbatch")],
            env={"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "9", **environment},
            start_new_session=True,
        )

    def wait_for(self, name: str) -> None:
        until = time.monotonic() + 200  # a machine may be busy
        while not (self.folder / name).exists():
            assert time.monotonic() < until
            time.sleep(0.02)

    def ended(self) -> tuple[int, str, bool]:
        """Exit status, what scontrol was given, and whether there is a checkpoint."""
        status = self.bash.wait(30)
        told = self.folder / "scontrol.txt"
        return status, told.read_text().strip() if told.exists() else "", (self.folder / "checkpoint").exists()


def to_all(job: Job, number: int) -> None:
    os.killpg(job.bash.pid, number)


def to_bash(job: Job, number: int) -> None:
    os.kill(job.bash.pid, number)


ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("send", [to_all, to_bash])
def test_script__a_signal_leaves_a_checkpoint_and_requeues(
    tmp_path: Path, write: Write, send: Callable[[Job, int], None], number: int
) -> None:
    job = Job(tmp_path, write, LISTENS, **ARRAY)
    job.wait_for("ready")
    send(job, number)
    job.wait_for("asked")
    send(job, number)  # asked again while the checkpoint is written
    assert job.ended() == (75, "requeue Incomplete 7_3", True)


def test_script__a_job_that_is_no_array_is_requeued_by_its_number(tmp_path: Path, write: Write) -> None:
    job = Job(tmp_path, write, "import sys; sys.exit(75)")
    assert job.ended() == (75, "requeue Incomplete 9", False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_script__a_program_that_a_signal_ended_before_it_listened_is_requeued(
    tmp_path: Path, write: Write, number: int
) -> None:
    job = Job(tmp_path, write, DEAF, **ARRAY)
    job.wait_for("ready")
    to_all(job, number)
    assert job.ended() == (75, "requeue Incomplete 7_3", False)


@pytest.mark.parametrize("status", [0, 1, 2])
def test_script__a_program_that_ends_by_itself_is_not_requeued(tmp_path: Path, write: Write, status: int) -> None:
    assert Job(tmp_path, write, f"import sys; sys.exit({status})", **ARRAY).ended() == (status, "", False)
