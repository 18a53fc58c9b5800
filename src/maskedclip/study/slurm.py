"""A study as jobs of SLURM: one that measures rates where that is to do, and an array with a task for each cell."""

import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from maskedclip.errors import UserError
from maskedclip.study.cells import read_result
from maskedclip.study.definition import Study
from maskedclip.study.rates import unmeasured
from maskedclip.study.runner import most_cells, study_cells

# What was asked to end wants to be started again, which status 75 says.
_REQUEUE = 'status=$?; [ $status -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"; exit $status'


def submit(study: Study, out: Path, command: Sequence[str]) -> str:
    """Write OUT/study.sbatch, an array job with a task for each unfinished cell, and hand it to SLURM.

    Where the comparison at equal time still lacks rates, OUT/rates.sbatch measures them first, on a node like those
    that train: the machine that jobs are submitted from often has no GPU, or another one.

    Args:
        study: its `slurm` options become #SBATCH lines of both.
        out: the study's folder.
        command: `maskedclip study ...` as it was given, without --slurm.

    Returns: what to tell the user.

    Raises:
        UserError: sbatch refused a script.
    """
    measures = bool(study.equal_time and unmeasured(study, out))
    if measures:
        left = list(range(most_cells(study)))
    else:
        cells = study_cells(study, out)
        left = [place for place, cell in enumerate(cells) if read_result(out, cell) is None]
    if not left:
        return "all cells are finished"
    given = " ".join(shlex.quote(part) for part in command)
    options = {"job-name": study.name, "requeue": ""} | dict(study.slurm)
    array = _write(
        out / "study.sbatch",
        {"output": str(out / "slurm-%A-%a.log")} | options | {"array": ",".join(map(str, left))},
        f"{given} --cell $SLURM_ARRAY_TASK_ID",
        _REQUEUE,
    )
    count = f"at most {len(left)} cells" if measures else f"{len(left)} cells"
    if not measures:
        if shutil.which("sbatch") is None:
            return f"{array} is written; there is no sbatch on this machine: submit it where there is"
        return f"job {_sbatch(array)}: {count}"
    rates = _write(
        out / "rates.sbatch",
        options | {"job-name": f"{study.name}-rates", "output": str(out / "slurm-rates-%j.log")},
        f"{given} --rates",
        _REQUEUE,
    )
    if shutil.which("sbatch") is None:
        by_hand = f"sbatch --kill-on-invalid-dep=yes --dependency=afterok:$(sbatch --parsable {rates}) {array}"
        return f"{rates} and {array} are written; there is no sbatch on this machine: {by_hand} submits both"
    first = _sbatch(rates)
    try:
        second = _sbatch(array, "--kill-on-invalid-dep=yes", f"--dependency=afterok:{first}")
    except UserError as error:
        raise UserError(
            f"{error}; job {first}, which measures rates, is submitted: scancel {first} takes it back"
        ) from None
    return f"job {first} measures how long steps take (slurm-rates-{first}.log), job {second} follows it: {count}"


def _write(script: Path, options: Mapping[str, str], *body: str) -> Path:
    lines = [f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in options.items()]
    script.write_text("\n".join(["#!/bin/bash", *lines, *body]) + "\n")
    return script


def _sbatch(script: Path, *options: str) -> str:
    """The number of the submitted job."""
    done = subprocess.run(["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sbatch {script}: {' '.join(done.stderr.split())}; mend `slurm` in the study's file")
    return done.stdout.strip().split(";")[0]
