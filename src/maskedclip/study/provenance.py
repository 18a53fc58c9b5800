"""How a study was made: its settings, grid and command, and the versions that its cells were trained with."""

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import maskedclip
from maskedclip.study.cells import cell_folder, read_result
from maskedclip.study.definition import DEFAULT_SIZE, Block, Cell, Choice, Study, shipped_studies
from maskedclip.training.rundir import RunDirectory

_UNKNOWN = "not recorded"
# Of environment.json's versions; maskedclip's has a row of its own.
_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "lightning-fabric", "numpy", "pyarrow")


def how_it_was_done(study: Study, out: Path, cells: Sequence[Cell]) -> dict[str, str]:
    """What a reader needs to do it again, by name.  Versions are of the finished cells, which may differ in them."""
    mark = out / "study.json"
    given = json.loads(mark.read_text()) if mark.is_file() else {}
    fields = given.pop("fields", {})
    given.pop("working_directory", None)  # of the machine, no setting
    finished = [cell for cell in cells if read_result(out, cell) is not None]
    entries: dict[str, object] = {
        "command": command(study, out),
        **given,
        "protocols": study.protocols,
        "replicates": f"{study.replicates:,}",
        "reference": study.reference,
        "chain": study.chain or "none",
        **_grid(study),
        "cells": f"{len(cells)}, of which {len(finished)} are finished",
        **_versions([_environment(out, cell) for cell in finished]),
        "page written by": f"maskedclip {maskedclip.__version__}",
        **{f"set {name}" if name in given else name: value for name, value in fields.items()},
        **{f"size {name}": _choice(choice) for name, choice in study.sizes.items()},
        **{f"method {name}": _choice(choice) for name, choice in study.methods.items()},
    }
    return {name: _words(value) for name, value in entries.items()}


def command(study: Study, out: Path) -> str:
    """The command that makes the study, or goes on with it, given where its file lies and its paths begin."""
    name = study.name if study.name in shipped_studies() else f"{study.name}.yaml"
    words = ["maskedclip", "study", name]
    for flag, stores in (("--data", study.data), ("--evaluate", study.evaluate)):
        words += [word for store in stores for word in (flag, str(store))]
    words += ["--out", str(out)]
    words += [word for field, value in study.overrides.items() for word in (f"--{field}", _yaml(value))]
    return shlex.join(words)


def _grid(study: Study) -> dict[str, str]:
    """Methods x shares of the texts x seeds (x sizes) of each block."""
    blocks = {
        f"grid {place}" if len(study.grid) > 1 else "grid": _block(block)
        for place, block in enumerate(study.grid, start=1)
    }
    budgets = f"{study.steps:,} steps" + (f", and as long as {study.equal_time} takes" if study.equal_time else "")
    return blocks | {"each": budgets}


def _block(block: Block) -> str:
    shares = ", ".join(f"{100 * fraction:.3g}" for fraction in block.text_fractions)
    seeds = ", ".join(map(str, block.seeds))
    parts = [", ".join(block.methods), f"{shares} % of the texts", f"seed{'s' * (len(block.seeds) > 1)} {seeds}"]
    sizes = [size for size in block.sizes if size != DEFAULT_SIZE]
    return " × ".join([*parts, *([f"sizes {', '.join(sizes)}"] if sizes else [])])


def _environment(out: Path, cell: Cell) -> dict[str, Any]:
    run = RunDirectory(cell_folder(out, cell) / "run")
    return run.environment() if run.environment_file.is_file() else {}


def _versions(environments: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Of maskedclip, its commit, Python, the libraries and the devices, with counts of cells where these differ."""
    versions = [entry.get("versions", {}) for entry in environments]
    libraries = [", ".join(f"{name} {own[name]}" for name in _LIBRARIES if name in own) for own in versions]
    return {
        "version of maskedclip": _counted([own.get("maskedclip") for own in versions]),
        "commit of maskedclip": _counted([entry.get("code") for entry in environments]),
        "Python": _counted([entry.get("python") for entry in environments]),
        "libraries": _counted(libraries),
        "device": _counted([entry.get("device") for entry in environments]),
    }


def _counted(values: Sequence[str | None]) -> str:
    """One value for all, or each with the number of cells that have it."""
    counts = Counter(value or _UNKNOWN for value in values)
    if len(counts) < 2:
        return next(iter(counts), _UNKNOWN)
    return "; ".join(f"{value} ({count} cell{'s' * (count > 1)})" for value, count in counts.most_common())


def _choice(choice: Choice) -> str:
    """The recipes that a method or size stacks, and the fields that it sets."""
    return " + ".join(choice.config) + (f" with {json.dumps(choice.fields)}" if choice.fields else "")


def _words(value: object) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _yaml(value: object) -> str:
    """A field's value as the command line takes it."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
