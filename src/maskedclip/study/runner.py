"""All cells of a study in turn, or as jobs of a SLURM array; finished cells are kept, a killed one goes on."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from maskedclip.console import minutes, say
from maskedclip.errors import UserError
from maskedclip.study.cells import cell_folder, read_result, run_cell
from maskedclip.study.definition import Cell, Study
from maskedclip.study.rates import equal_time_steps, step_rates


def study_cells(study: Study, out: Path) -> list[Cell]:
    """Every cell once: those of the comparison at equal steps, and those at equal time where there is one.

    The first call of a study with `equal_time` measures how long the methods' steps take.
    """
    rates = step_rates(study, out) if study.equal_time else {}
    cells: list[Cell] = []
    for equal_time in (True, False) if study.equal_time else (False,):
        for method, size, fraction, seed in study.combinations:
            steps = equal_time_steps(study, rates, method, size) if equal_time else study.steps
            cells.append(Cell(method=method, size=size, text_fraction=fraction, seed=seed, steps=steps))
    return list(dict.fromkeys(cells))


def claim(study: Study, out: Path, settings: dict) -> None:
    """Make OUT this study's, or refuse it.

    Raises:
        UserError: OUT holds something else, or the same study with other settings.
    """
    mark = out / "study.json"
    if mark.is_file():
        before = json.loads(mark.read_text())
        different = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
        if different:
            raise UserError(
                f"--out {out}: holds this study with other settings ({', '.join(different)}); give them again as they "
                "were, or choose another folder"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is no study's folder; choose another one")
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(settings, indent=1) + "\n")


def run_study(study: Study, out: Path, *, minutes_limit: float = 0.0) -> tuple[int, int]:
    """Run what is left, cell by cell; several processes may share the work.  Returns finished cells, and all.

    minutes_limit: no further cell is begun after so many minutes; 0 is no limit.
    """
    cells = study_cells(study, out)
    began, spent = time.monotonic(), []
    for place, cell in enumerate(cells):
        if read_result(out, cell) is not None:
            continue
        if minutes_limit and time.monotonic() - began > 60 * minutes_limit:
            break
        left = sum(read_result(out, entry) is None for entry in cells[place:])
        about = f", about {minutes(left * sum(spent) / len(spent))} left" if spent else ""
        say(f"cell {place + 1} of {len(cells)}: {cell.name}{about}")
        started = time.monotonic()
        if run_cell(study, cell, out):
            spent.append(time.monotonic() - started)
        else:
            say(f"cell {cell.name}: not finished here; another process may be at it")
    return sum(read_result(out, cell) is not None for cell in cells), len(cells)


def submit(study: Study, out: Path, command: list[str]) -> str:
    """Write OUT/study.sbatch, an array job with a task for each unfinished cell, and hand it to SLURM.

    Args:
        study: its `slurm` options become #SBATCH lines.
        out: the study's folder.
        command: `maskedclip study ...` as it was given, without --slurm.

    Returns: what to tell the user.
    """
    cells = study_cells(study, out)
    left = [place for place, cell in enumerate(cells) if read_result(out, cell) is None]
    if not left:
        return "all cells are finished"
    options = {"job-name": study.name, "output": str(out / "slurm-%A-%a.log"), "requeue": ""} | dict(study.slurm)
    lines = [f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in options.items()]
    lines.append(f"#SBATCH --array={','.join(map(str, left))}")
    # A training asks to be started again with status 75.
    body = [
        f"{' '.join(shlex.quote(part) for part in command)} --cell $SLURM_ARRAY_TASK_ID",
        'status=$?; [ $status -eq 75 ] && scontrol requeue "$SLURM_JOB_ID"; exit $status',
    ]
    script = out / "study.sbatch"
    script.write_text("\n".join(["#!/bin/bash", *lines, *body]) + "\n")
    if shutil.which("sbatch") is None:
        return f"{script} is written; there is no sbatch on this machine: submit it where there is"
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"sbatch {script}: {' '.join(done.stderr.split())}; mend `slurm` in the study's file")
    return f"{done.stdout.strip()}: {len(left)} cells"


def run_one(study: Study, out: Path, place: int) -> None:
    """Run one cell by its number, as a job of an array does; exit status 75 asks for another start."""
    cells = study_cells(study, out)
    if not 0 <= place < len(cells):
        raise UserError(f"--cell: {place} is none of 0 .. {len(cells) - 1}")
    if not run_cell(study, cells[place], out):
        say(f"cell {cell_folder(out, cells[place])}: not finished")
        sys.exit(75)
