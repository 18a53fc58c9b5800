"""How long a step of each method takes on this machine, so that methods can be given the same time.

Runs of a few steps in alternation, through the real loop with its loader; the fastest of the medians of each method,
since a neighbour can only slow a step down.  Written once to OUT/rates.json: a resumed study keeps its steps.
"""

import fcntl
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskedclip.console import bar, say
from maskedclip.study.definition import Study
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory

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
    """Only one process measures at a time, whose figures the others then find."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".rates").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _measured(study: Study, out: Path) -> Rates:
    path = out / RATES
    known, missing = _known(out), unmeasured(study, out)
    if missing:
        say(f"measuring the seconds of a step of {len(missing)} methods, for the comparison at equal time")
        found: dict[str, list[float]] = {}
        with bar("rates", len(missing) * ROUNDS) as shown:
            for _ in range(ROUNDS):
                for method, size in missing:
                    found.setdefault(_name(method, size), []).append(_seconds(study, method, size))
                    shown.advance()
        known |= {name: min(values) for name, values in found.items()}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(known, indent=1) + "\n")
        partial.replace(path)
    return known


def unmeasured(study: Study, out: Path) -> list[tuple[str, str]]:
    """Methods with sizes of the grid whose step OUT/rates.json doesn't tell."""
    known = _known(out)
    pairs = dict.fromkeys((method, size) for method, size, _, _ in study.combinations)
    return [pair for pair in pairs if _name(*pair) not in known]


def equal_time_steps(study: Study, rates: Rates, method: str, size: str) -> int:
    """Steps of a method that take the time of `study.steps` steps of `study.equal_time`."""
    assert study.equal_time is not None
    return max(1, round(study.steps * rates[_name(study.equal_time, size)] / rates[_name(method, size)]))


def _known(out: Path) -> Rates:
    path = out / RATES
    return json.loads(path.read_text()) if path.is_file() else {}


def _name(method: str, size: str) -> str:
    return f"{method} {size}"


def _seconds(study: Study, method: str, size: str) -> float:
    """Median seconds of a step, its first steps left out."""
    fraction = max(entry[2] for entry in study.combinations if entry[:2] == (method, size))
    recipe = study.recipe(method, size, fraction, 0, STEPS)
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
        pretrain(recipe, study.data, run, command=["maskedclip", "study"])
        last = _median(run)
        return share * _median(run / "first_stage") + (1 - share) * last if two_stages else last


def _median(run: Path) -> float:
    directory = RunDirectory(run)
    batch = sum(directory.read_recipe().batch_sizes)
    lines = [line for line in directory.read_metrics() if line["kind"] == "train"]
    return statistics.median(batch / line["images_per_second"] for line in lines[_WARM:])
