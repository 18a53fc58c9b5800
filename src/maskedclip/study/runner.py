"""All cells of a study in turn; finished cells are kept, a killed one goes on."""

import gc
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from maskedclip.console import minutes, say
from maskedclip.errors import UserError
from maskedclip.study.cells import (
    Ended,
    cell_folder,
    changed_fields,
    read_failure,
    read_result,
    run_cell,
    write_failure,
)
from maskedclip.study.definition import PATHS, Cell, Study
from maskedclip.study.ending import AskedToEnd
from maskedclip.study.locks import NoLocksError
from maskedclip.study.rates import RATES, equal_time_steps, step_rates
from maskedclip.whole_files import PARTIAL, write_whole

_MARK = "study.json"
_FROM = "working_directory"
"""Key of the mark: the folder that the paths in it are relative to."""


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
    """Make OUT this study's, or refuse it; a study of which no cell has begun takes other settings.

    Raises:
        UserError: OUT holds something else, or the same study with other settings.
    """
    mark = out / _MARK
    if mark.is_file():
        try:
            before = json.loads(mark.read_text())
        except ValueError:
            raise UserError(f"{mark}: is damaged; remove it, or choose another --out") from None
        # What an earlier version did not write down is not compared.
        different = sorted(key for key in before if key != _FROM and not _same_setting(key, before, settings))
        if not different:
            return
        if _has_begun(out):
            raise UserError(
                f"--out {out}: holds this study with other settings ({', '.join(different)}); give them again as they "
                "were, or choose another folder"
            )
        if "data" in different:  # of other images steps take another time
            (out / RATES).unlink(missing_ok=True)
    elif out.exists() and (not out.is_dir() or any(not entry.name.startswith(PARTIAL) for entry in out.iterdir())):
        raise UserError(f"--out {out}: exists and is no study's folder; choose another one")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(mark, json.dumps(settings | {_FROM: os.getcwd()}, indent=1) + "\n")


def _same_setting(key: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    old, new, folder = before[key], now.get(key), Path(before.get(_FROM, "."))
    if old == new or new is None:
        return old == new
    if key in ("data", "evaluate"):
        return len(old) == len(new) and all(_same_place(*pair, folder) for pair in zip(old, new, strict=True))
    if key != "fields":
        return False
    return old.keys() == new.keys() and all(
        _meaning(old[name]) == _meaning(new[name]) or (name in PATHS and _same_place(old[name], new[name], folder))
        for name in old
    )


def _same_place(before: str, now: str, folder: Path) -> bool:
    """Whether two paths are one, however they are spelled; folder: what the one before is relative to."""
    return before == now or (folder / before).resolve() == Path(now).resolve()


def _meaning(text: str) -> str:
    """A field's value as Python writes it, which is what an earlier version kept: `false` and `off` are False."""
    try:
        return str(yaml.safe_load(text))
    except (yaml.YAMLError, ValueError):  # a ValueError: no date of the calendar
        return text


def _has_begun(out: Path) -> bool:
    """Whether anything of a cell has been trained; a folder in which one failed before that holds nothing to lose."""
    return any(next((out / "cells").glob(f"*/{name}"), None) is not None for name in ("run", "evaluation", "cell.json"))


def check_cells(study: Study, out: Path, cells: Sequence[Cell]) -> None:
    """Refuse to set finished cells beside others under a method that means something else by now.

    Raises:
        UserError: a finished cell was trained with other fields than the study gives it.
    """
    for cell in cells:
        result = read_result(out, cell)
        changed = changed_fields(study, cell, result) if result is not None else []
        changed = [name for name in changed if not _is_same_file(study, out, cell, name)]
        if changed:
            raise UserError(
                f"{cell_folder(out, cell)}: was trained with other fields ({', '.join(changed)}) than the study's file "
                "gives now; give them as they were, name the new method otherwise, or remove the cell's folder"
            )


def _is_same_file(study: Study, out: Path, cell: Cell, name: str) -> bool:
    """Whether a field names the file that a finished cell was trained with, spelled relative to another folder."""
    result, mark = read_result(out, cell), out / _MARK
    if result is None or name not in PATHS or not mark.is_file():
        return False
    section, key = name.split(".")
    recipe = study.recipe(cell.method, cell.size, cell.text_fraction, cell.seed, cell.steps).to_dict()
    before, now = result["recipe"][section][key], recipe[section][key]
    folder = Path(json.loads(mark.read_text()).get(_FROM, "."))
    return None not in (before, now) and _same_place(before, now, folder)


def what_failed(out: Path, cells: Sequence[Cell]) -> str | None:
    """A sentence about unfinished cells whose last attempt failed; None where there are none."""
    failed = [cell.name for cell in cells if read_failure(out, cell) is not None]
    if not failed:
        return None
    finished = sum(read_result(out, cell) is not None for cell in cells)
    others = "the others are finished" if finished + len(failed) == len(cells) else f"{finished} are finished"
    return (
        f"{len(failed)} of {len(cells)} cells failed ({', '.join(failed)}; failed.txt in their folders says why), "
        f"{others}; the same command tries the failed ones again"
    )


def _check_pairs(study: Study, out: Path, cells: Sequence[Cell]) -> None:
    """Ask for every unfinished cell's table of pairs now, not when its turn comes."""
    for cell in cells:
        recipe = study.recipe(cell.method, cell.size, cell.text_fraction, cell.seed, cell.steps)
        pairs = recipe.data.pairs
        if pairs is not None and read_result(out, cell) is None and not Path(pairs).is_file():
            raise UserError(f"cell {cell.name}: data.pairs: {pairs}: no such file; `maskedclip pair` makes one")


def run_study(study: Study, out: Path, *, minutes_limit: float = 0.0) -> tuple[int, int]:
    """Run what is left, cell by cell; several processes may share the work.  Returns finished cells, and all.

    A cell that fails, as one that diverges or needs more memory than there is, is told, and the others go on; the next
    call tries it again.

    minutes_limit: no further cell is begun after so many minutes; 0 is no limit.

    Raises:
        UserError: of the first cell that failed, where none was finished in this call or before.
        AskedToEnd: a scheduler asked for the end.
    """
    cells = study_cells(study, out)
    check_cells(study, out, cells)
    _check_pairs(study, out, cells)
    began, spent, failures = time.monotonic(), [], []
    for place, cell in enumerate(cells):
        if read_result(out, cell) is not None:
            continue
        if minutes_limit and time.monotonic() - began > 60 * minutes_limit:
            break
        left = sum(read_result(out, entry) is None for entry in cells[place:])
        about = f", about {minutes(left * sum(spent) / len(spent))} left" if spent else ""
        say(f"cell {place + 1} of {len(cells)}: {cell.name}{about}")
        started = time.monotonic()
        try:
            ended = run_cell(study, cell, out)
        except NoLocksError:
            raise
        except Exception as error:
            said = write_failure(out, cell, error)
            failures.append(said)
            say(f"cell {cell.name}: failed: {said}")
            _free(error)
            continue
        if ended is Ended.ASKED:
            raise AskedToEnd(f"cell {cell.name}: {ended.value}")
        if ended is Ended.FINISHED:
            spent.append(time.monotonic() - started)
        else:
            say(f"cell {cell.name}: not finished here: {ended.value}")
    if failures and not any(read_result(out, cell) for cell in cells):
        raise UserError(failures[0])
    return sum(read_result(out, cell) is not None for cell in cells), len(cells)


def _free(error: Exception) -> None:
    """Let go of what a failed training holds, or the next one finds no memory."""
    error.__traceback__ = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def most_cells(study: Study) -> int:
    """How many cells there can be, whatever the rates turn out to be.

    The method that gives the time has the same steps in both comparisons; others may by chance.
    """
    count = len(study.combinations)
    if not study.equal_time:
        return count
    return 2 * count - sum(method == study.equal_time for method, _, _, _ in study.combinations)


def run_one(study: Study, out: Path, place: int) -> None:
    """Run one cell by its number, as a job of an array does.

    Raises:
        UserError: no such number.
        AskedToEnd: the cell is not finished and nobody else is at it, so it needs another start.
        Exception: what the cell failed of.
    """
    cells = study_cells(study, out)
    if not 0 <= place < most_cells(study):
        raise UserError(f"--cell: {place} is none of 0 .. {most_cells(study) - 1}")
    if place >= len(cells):
        say(f"cell {place}: the rates left {len(cells)} cells; nothing to do")
        return
    cell = cells[place]
    try:
        ended = run_cell(study, cell, out)
    except NoLocksError:
        raise
    except Exception as error:
        write_failure(out, cell, error)
        raise
    if ended is Ended.TAKEN:
        say(f"cell {cell.name}: {ended.value}; nothing to do")
    elif ended is not Ended.FINISHED:
        raise AskedToEnd(f"cell {cell.name}: {ended.value}")
