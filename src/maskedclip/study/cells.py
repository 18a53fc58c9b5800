"""One cell of a study: train, evaluate, and write down what came out and what it cost.  A killed cell goes on."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.evaluation.development import DevelopmentStore
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.study.definition import Cell, Study
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory

VALIDATION = "probe_auroc"


def cell_folder(out: Path, cell: Cell) -> Path:
    """Where a cell's run, evaluation and result lie."""
    return out / "cells" / cell.name


def read_result(out: Path, cell: Cell) -> dict[str, Any] | None:
    """What `run_cell` wrote; None where the cell is not finished."""
    path = cell_folder(out, cell) / "cell.json"
    return json.loads(path.read_text()) if path.is_file() else None


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this process has the cell to itself; the claim ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claim").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def run_cell(study: Study, cell: Cell, out: Path) -> bool:
    """Train and evaluate a cell, or what is left of it.  Returns whether it is finished.

    False: another process is at it, or a scheduler asked for the end; the next call goes on.

    Raises:
        UserError: the data or the recipe cannot be used.
    """
    folder = cell_folder(out, cell)
    with claimed(folder) as mine:
        if not mine:
            return False
        if read_result(out, cell) is not None:
            return True
        recipe = study.recipe(cell.method, cell.size, cell.text_fraction, cell.seed, cell.steps)
        run = folder / "run"
        done = pretrain(recipe, study.data, run, resume=True, command=["maskedclip", "study", study.name, cell.name])
        if not done.complete:
            return False
        target = folder / "evaluation"
        if not (target / "results.json").is_file():
            shutil.rmtree(target, ignore_errors=True)
            store = open_store(study.evaluate)
            model = load(run)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=study.precision == "bf16-mixed"):
                evaluate(
                    CachedFeatures(model, store, folder / "features"),
                    DevelopmentStore(store) if study.split == "development" else store,  # type: ignore[arg-type]
                    target,
                    protocols=study.protocols,
                    replicates=study.replicates,
                )
        result = {"cell": vars(cell) | {"name": cell.name}, **_training(run)}
        partial = folder / "cell.json.partial"
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(folder / "cell.json")
        shutil.rmtree(folder / "features", ignore_errors=True)
        for place in (run, run / "first_stage"):  # the model stays; a checkpoint is three times its size
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        return True


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
