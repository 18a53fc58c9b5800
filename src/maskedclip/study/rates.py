"""How long a step of each method takes on this machine, so that methods can be given the same time.

Runs of a few steps in alternation, through the real loop with its loader; the fastest of the medians of each method,
since a neighbour can only slow a step down.  Written once to OUT/rates.json, each with a hash of its recipe: a resumed
study keeps its steps, and a method that means something else by now is measured anew while none of its cells is
finished.
"""

import hashlib
import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskedclip.console import bar, say
from maskedclip.errors import UserError
from maskedclip.recipe import Recipe
from maskedclip.study.definition import PATHS, Study
from maskedclip.study.ending import check_not_asked
from maskedclip.study.locks import lock
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory
from maskedclip.whole_files import write_whole

RATES = "rates.json"
STEPS, ROUNDS = 8, 3
_WARM = 3
Rates = dict[str, float]


def step_rates(study: Study, out: Path) -> Rates:
    """Seconds a step by "method size", for all that occur in the grid; measured where OUT/rates.json lacks one.

    A method of two stages counts by the mean of its stages, weighted with their shares of the steps.
    """
    if not unmeasured(study, out):
        return _known(out)
    with _alone(out):
        return _measured(study, out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Only one process measures at a time, whose figures the others then find.

    Raises:
        NoLocksError: the file system has no locks.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".rates").open("w") as handle:
        lock(handle, wait=True)
        yield


def _measured(study: Study, out: Path) -> Rates:
    missing = unmeasured(study, out)
    if missing:
        say(f"measuring the seconds of a step of {len(missing)} methods, for the comparison at equal time")
        found: dict[tuple[str, str], list[float]] = {}
        with bar("rates", len(missing) * ROUNDS) as shown:
            for _ in range(ROUNDS):
                for pair in missing:
                    found.setdefault(pair, []).append(_seconds(study, *pair))
                    shown.advance()
        entries = _entries(out)
        for pair, values in found.items():
            entries[_name(*pair)] = {
                "seconds": min(values),
                "recipe": _recipe_hash(study, *pair),
                "resolved": _recipe_hash(study, *pair, resolved=True),
            }
        write_whole(out / RATES, json.dumps(entries, indent=1) + "\n")
    return _known(out)


def unmeasured(study: Study, out: Path) -> list[tuple[str, str]]:
    """Methods with sizes of the grid whose step OUT/rates.json doesn't tell, or tells of another recipe.

    Where a cell is finished whose steps follow from a rate, the rate stays: the cells beside it have to fit.
    """
    entries = _entries(out)
    pairs = dict.fromkeys((method, size) for method, size, _, _ in study.combinations)
    return [
        pair
        for pair in pairs
        if _name(*pair) not in entries or (_changed(study, entries, *pair) and not _is_used(study, out, *pair))
    ]


def _changed(study: Study, entries: Mapping[str, Any], method: str, size: str) -> bool:
    """Whether a rate is of another recipe; one of an earlier version, which kept no hash, counts as of this one."""
    entry = entries[_name(method, size)]
    if not isinstance(entry, dict) or entry["recipe"] == _recipe_hash(study, method, size):
        return False
    return entry.get("resolved") != _recipe_hash(study, method, size, resolved=True)


def _is_used(study: Study, out: Path, method: str, size: str) -> bool:
    """Whether a cell is finished whose number of steps the rate decides: of the method, or of all for equal_time's."""
    methods = "*" if method == study.equal_time else method
    return any((out / "cells").glob(f"{methods}-{size}-text*/cell.json"))


def _recipe_hash(study: Study, method: str, size: str, *, resolved: bool = False) -> str:
    """Of the recipe without what belongs to a cell; what a cell's seed fills in is that of the first seed.

    resolved: files as they lie, however they are spelled; a folder that was moved as a whole spells them as before.
    """
    fields = _measured_recipe(study, method, size).to_dict()
    for section, _, name in (field.partition(".") for field in PATHS if resolved):
        value = fields[section].get(name)
        if isinstance(value, str) and Path(value).exists():
            fields[section][name] = str(Path(value).resolve())
    del fields["seed"], fields["data"]["text_fraction"], fields["training"]["steps"]
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _measured_recipe(study: Study, method: str, size: str) -> Recipe:
    """Of a method's largest share of the texts, and of the first seed that has it."""
    found = [(fraction, seed) for name, own, fraction, seed in study.combinations if (name, own) == (method, size)]
    fraction, seed = max(found, key=lambda entry: entry[0])
    return study.recipe(method, size, fraction, seed, STEPS)


def equal_time_steps(study: Study, rates: Rates, method: str, size: str) -> int:
    """Steps of a method that take the time of `study.steps` steps of `study.equal_time`."""
    assert study.equal_time is not None
    return max(1, round(study.steps * rates[_name(study.equal_time, size)] / rates[_name(method, size)]))


def _known(out: Path) -> Rates:
    return {
        name: entry["seconds"] if isinstance(entry, dict) else float(entry) for name, entry in _entries(out).items()
    }


def _entries(out: Path) -> dict[str, Any]:
    """By "method size" {"seconds", "recipe"}, or the seconds alone: of an earlier version, or written by a user.

    Raises:
        UserError: no such file of rates.
    """
    path = out / RATES
    if not path.is_file():
        return {}
    mend = "mend it, or remove it to measure anew"
    try:
        entries = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); {mend}") from None
    if not isinstance(entries, dict):
        raise UserError(f'{path}: is no object of seconds by "method size"; {mend}')
    for name, entry in entries.items():
        whole = isinstance(entry, dict) and isinstance(entry.get("recipe"), str)
        seconds = entry.get("seconds") if whole else entry
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise UserError(
                f'{path}: {name}: give the seconds of a step, above 0, alone or as "seconds" beside "recipe"; {mend}'
            )
    return entries


def _name(method: str, size: str) -> str:
    return f"{method} {size}"


def _seconds(study: Study, method: str, size: str) -> float:
    """Median seconds of a step, its first steps left out."""
    recipe = _measured_recipe(study, method, size)
    two_stages, share = recipe.training.first_stage is not None, recipe.training.first_stage_share
    recipe = recipe.replace(
        training={
            "steps": STEPS * (1 + two_stages),
            "first_stage_share": 0.5,
            "log_every": 1,
            "validate_every": 0,
            "checkpoint_every": 10 * STEPS,
            "tensorboard": False,
            "best_metric": None,
            "patience": 0,
        }
    )
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        check_not_asked(pretrain(recipe, study.data, run, command=["maskedclip", "study"]))
        last = _median(run)
        return share * _median(run / "first_stage") + (1 - share) * last if two_stages else last


def _median(run: Path) -> float:
    directory = RunDirectory(run)
    batch = sum(directory.read_recipe().batch_sizes)
    lines = [line for line in directory.read_metrics() if line["kind"] == "train"]
    return statistics.median(batch / line["images_per_second"] for line in lines[_WARM:])
