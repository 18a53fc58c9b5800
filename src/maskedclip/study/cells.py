"""One cell of a study: train, evaluate, and write down what came out and what it cost.  A killed cell goes on."""

import json
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.errors import UserError
from maskedclip.evaluation.development import DevelopmentStore
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.leakage import seen_in_pretraining
from maskedclip.study.definition import Cell, Study
from maskedclip.study.evaluated_step import VALIDATION, evaluated_step
from maskedclip.study.locks import lock
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory
from maskedclip.training.stopping import REQUEUE
from maskedclip.whole_files import write_whole

FAILED = "failed.txt"
_TRACE = "failed.log"
# What the step of the evaluated weights follows from.
_CHOOSES = ("steps", "best_metric", "validate_every", "first_stage", "first_stage_share")


class Ended(Enum):
    """How a call of `run_cell` ended."""

    FINISHED = "it is finished"
    TAKEN = "another process is at it"
    ASKED = "a scheduler asked for the end"
    PAUSED = "training.max_minutes is over"


def cell_folder(out: Path, cell: Cell) -> Path:
    """Where a cell's run, evaluation and result lie."""
    return out / "cells" / cell.name


def read_result(out: Path, cell: Cell) -> dict[str, Any] | None:
    """What `run_cell` wrote; None where the cell is not finished."""
    path = cell_folder(out, cell) / "cell.json"
    return json.loads(path.read_text()) if path.is_file() else None


def read_failure(out: Path, cell: Cell) -> str | None:
    """Why the last attempt at an unfinished cell failed; None where none did."""
    path = cell_folder(out, cell) / FAILED
    return path.read_text().strip() if path.is_file() and read_result(out, cell) is None else None


def read_finished(study: Study, out: Path, cell: Cell) -> dict[str, Any] | None:
    """`read_result` with the step of the evaluated weights, which earlier versions did not write down."""
    result = read_result(out, cell)
    if result is not None and "evaluated_step" not in result:
        recipe = study.recipe(cell.method, cell.size, cell.text_fraction, cell.seed, cell.steps)
        if "recipe" in result:
            kept = result["recipe"]["training"]  # of the version that trained, which may lack fields of this one
            recipe = recipe.replace(training={name: kept[name] for name in _CHOOSES if name in kept})
        result["evaluated_step"] = evaluated_step(recipe, result["validation"], cell_folder(out, cell) / "run")
    return result


def write_failure(out: Path, cell: Cell, error: Exception) -> str:
    """Leave beside an unfinished cell why it failed, and where a fault isn't the user's its traceback; returns why."""
    said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {' '.join(str(error).split())}"
    folder = cell_folder(out, cell)
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(error, UserError):
        write_whole(folder / _TRACE, "".join(traceback.format_exception(error)))
        said += f" ({folder / _TRACE})"
    write_whole(folder / FAILED, f"{said}\n")
    return said


def changed_fields(study: Study, cell: Cell, result: dict[str, Any]) -> list[str]:
    """Fields in which a finished cell was trained otherwise than the study now says.

    Only those that both know: a later version may have more fields, and an earlier one kept none.
    """
    now = _flat(study.recipe(cell.method, cell.size, cell.text_fraction, cell.seed, cell.steps).to_dict())
    before = _flat(result.get("recipe", {}))
    return sorted(name for name in before.keys() & now.keys() if before[name] != now[name])


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """{"data.size": ...} of a recipe, with values as JSON gives them back."""
    plain = json.loads(json.dumps(fields))
    return {
        name: value
        for section, part in plain.items()
        for name, value in (
            {f"{section}.{key}": entry for key, entry in part.items()} if isinstance(part, dict) else {section: part}
        ).items()
    }


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has the cell to itself; the claim ends with the process, however it ends.

    Raises:
        NoLocksError: the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claim").open("w") as handle:
        yield lock(handle, wait=False)


def run_cell(study: Study, cell: Cell, out: Path) -> Ended:
    """Train and evaluate a cell, or what is left of it; where it isn't finished, the next call goes on.

    Raises:
        UserError: the data or the recipe cannot be used.
    """
    folder = cell_folder(out, cell)
    with claimed(folder) as mine:
        if not mine:
            return Ended.TAKEN
        if read_result(out, cell) is not None:
            return Ended.FINISHED
        recipe = study.recipe(cell.method, cell.size, cell.text_fraction, cell.seed, cell.steps)
        run = folder / "run"
        done = pretrain(recipe, study.data, run, resume=True, command=["maskedclip", "study", study.name, cell.name])
        if not done.complete:
            return Ended.ASKED if done.status == REQUEUE else Ended.PAUSED
        target = folder / "evaluation"
        for name in (FAILED, _TRACE):
            (folder / name).unlink(missing_ok=True)
        if not (target / "results.json").is_file():
            shutil.rmtree(target, ignore_errors=True)
            store = open_store(study.evaluate)
            model = load(run)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=study.precision == "bf16-mixed"):
                # Validation rows are what a development store calls its test rows.
                development = study.split == "development"
                rows = store.rows("val" if development else "test")
                evaluate(
                    CachedFeatures(model, store, folder / "features"),
                    DevelopmentStore(store) if development else store,  # type: ignore[arg-type]
                    target,
                    protocols=study.protocols,
                    replicates=study.replicates,
                    extra={"seen_in_pretraining": seen_in_pretraining(run, store, rows)},
                )
        result = {"cell": vars(cell) | {"name": cell.name}, "recipe": recipe.to_dict(), **_training(run)}
        result["evaluated_step"] = evaluated_step(recipe, result["validation"], run)
        write_whole(folder / "cell.json", json.dumps(result, indent=1) + "\n")
        shutil.rmtree(folder / "features", ignore_errors=True)
        for place in (run, run / "first_stage"):  # the model stays; a checkpoint is three times its size
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        return Ended.FINISHED


def _training(run: Path) -> dict[str, Any]:
    """Seconds, images a second, peak memory and the validation curve of a run, its first stage included."""
    seconds, images, memory, curve = 0.0, 0.0, None, []
    for place in (run / "first_stage", run):
        directory = RunDirectory(place)
        if not directory.recipe_file.is_file():
            continue
        batch = sum(directory.read_recipe().batch_sizes)
        before = 0
        for line in directory.read_metrics():
            if line["kind"] == "train":
                done = (line["step"] - before) * batch
                images, seconds, before = images + done, seconds + done / line["images_per_second"], line["step"]
                memory = max(memory or 0, line.get("peak_memory_bytes", 0)) or None
            elif VALIDATION in line:
                curve.append({"seconds": seconds, "step": line["step"], VALIDATION: line[VALIDATION]})
    return {
        "seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
        "peak_memory_bytes": memory,
        "validation": curve,
    }
