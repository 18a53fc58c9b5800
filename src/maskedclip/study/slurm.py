"""A study as jobs of SLURM: one that measures rates where that is to do, and an array with a task for each cell."""

import re
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

Options = Mapping[str, str | bool | None]

# Five minutes before the end of its time are enough for a step and a checkpoint.  Without B: SLURM signals the steps of
# srun alone, and the script has none.
_SIGNAL = "B:USR1@300"
_LISTENED_TO = re.compile(r"R?BR?:(SIG)?(USR1|TERM|10|15)(@\d+)?", re.IGNORECASE)
# bash runs a trap only when a program in the foreground has ended, and a signal without a trap ends it before it could
# requeue: so the program runs in the background, and is waited for until it has ended by itself.  SLURM may signal the
# shell alone, or the program as well, which minds no second signal.  Status 75 says that it wants to go on later.
_BODY = """\
asked=0 program=
pass_on() { asked=$((asked + 1)); [ -z "$program" ] || kill -USR1 "$program" 2>/dev/null; }
trap pass_on USR1 TERM
%s &
program=$!
[ $asked -eq 0 ] || kill -USR1 "$program"  # asked before there was a program
while :; do
    before=$asked
    wait "$program"; status=$?
    [ $asked -eq $before ] && break  # else it was the signal that ended the wait
done
# A signal that comes before the program listens ends it: its status is then 128 and more, or one that bash forgot (-1).
[ $asked -eq 0 ] || { [ $status -ge 0 ] && [ $status -lt 127 ]; } || status=75
# The number of an array is also that of one of its tasks, but requeues them all.  Incomplete: not what was cancelled.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
[ $status -ne 75 ] || scontrol requeue Incomplete "${job:-$SLURM_JOB_ID}"
exit $status"""


def submit(study: Study, out: Path, command: Sequence[str]) -> str:
    """Write OUT/study.sbatch, an array job with a task for each unfinished cell, and hand it to SLURM.

    Where the comparison at equal time still lacks rates, OUT/rates.sbatch measures them first, on a node like those
    that train: the machine that jobs are submitted from often has no GPU, or another one.

    Args:
        study: its `slurm` options become #SBATCH lines of both.
        out: the study's folder.
        command: `maskedclip study ...` as it was given, without --slurm, in a way that also runs on a node.

    Returns: what to tell the user.

    Raises:
        UserError: sbatch refused a script, or `slurm` asks for a signal that the script never gets.
    """
    signal = study.slurm.get("signal")
    if isinstance(signal, str) and _LISTENED_TO.fullmatch(signal) is None:
        raise UserError(
            f"study {study.name}: slurm.signal: {signal}: the script listens to USR1 and TERM, and SLURM sends them to "
            f"it only after `B:`; give e.g. {_SIGNAL}"
        )
    measures = bool(study.equal_time and unmeasured(study, out))
    if measures:
        left = list(range(most_cells(study)))
    else:
        cells = study_cells(study, out)
        left = [place for place, cell in enumerate(cells) if read_result(out, cell) is None]
    if not left:
        return "all cells are finished"
    given = " ".join(shlex.quote(part) for part in command)
    options: Options = {"job-name": study.name, "requeue": True, "signal": _SIGNAL} | dict(study.slurm)
    logs = str(out).replace("%", "%%")
    array = _write(
        out / "study.sbatch",
        {"output": f"{logs}/slurm-%A-%a.log"} | options | {"array": ",".join(map(str, left))},
        f"{given} --cell $SLURM_ARRAY_TASK_ID",
    )
    count = f"at most {len(left)} cells" if measures else f"{len(left)} cells"
    if not measures:
        if shutil.which("sbatch") is None:
            return f"{array} is written; there is no sbatch on this machine: submit it where there is"
        return f"job {_sbatch(array)}: {count}"
    rates = _write(
        out / "rates.sbatch",
        options | {"job-name": f"{study.name}-rates", "output": f"{logs}/slurm-rates-%j.log"},
        f"{given} --rates",
    )
    if shutil.which("sbatch") is None:
        first, then = (shlex.quote(str(script)) for script in (rates, array))
        by_hand = f"sbatch --kill-on-invalid-dep=yes --dependency=afterok:$(sbatch --parsable {first}) {then}"
        return f"{rates} and {array} are written; there is no sbatch on this machine: {by_hand} submits both"
    first = _sbatch(rates)
    try:
        second = _sbatch(array, "--kill-on-invalid-dep=yes", f"--dependency=afterok:{first}")
    except UserError as error:
        raise UserError(
            f"{error}; job {first}, which measures rates, is submitted: scancel {first} takes it back"
        ) from None
    return f"job {first} measures how long steps take (slurm-rates-{first}.log), job {second} follows it: {count}"


def _write(script: Path, options: Options, command: str) -> Path:
    lines = [f"#SBATCH --{name}{_value(value)}" for name, value in options.items() if value not in (None, False)]
    script.write_text("\n".join(["#!/bin/bash", *lines, _BODY % command]) + "\n")
    return script


def _value(value: str | bool | None) -> str:
    """=VALUE as sbatch reads it: an unquoted one ends at a blank or #, and a backslash keeps what follows as it is."""
    if value is True or not value:
        return ""
    plain = re.fullmatch(r"[^\s\"'\\#]+", value)
    return f"={value}" if plain else '="' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _sbatch(script: Path, *options: str) -> str:
    """The number of the submitted job."""
    done = subprocess.run(["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sbatch {script}: {' '.join(done.stderr.split())}; mend `slurm` in the study's file")
    return done.stdout.strip().split(";")[0]
