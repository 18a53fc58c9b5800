"""Studies whose cells nobody trained: real evaluations of stand-ins, and results written by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskedclip.study.cells import cell_folder
from maskedclip.study.definition import Cell, Study, load_study
from tests.evaluation.compare_case import blurred, evaluated

CURVE = [
    {"seconds": 0.0, "step": 0, "probe_auroc": 0.9},
    {"seconds": 60.0, "step": 3, "probe_auroc": 0.6},
    {"seconds": 120.0, "step": 6, "probe_auroc": 0.5},
]


def read_study(folder: Path, text: str, **given: Any) -> Study:
    """A study as a file says it; its store, unless given, does not exist."""
    path = folder / "fake.yaml"
    path.write_text(text)
    return load_study(str(path), **{"data": [folder / "nowhere"], **given})


def finish(
    out: Path, cell: Cell, *, noise: float = 0.5, curve: Sequence[dict] = CURVE, data: str = "a", **result: Any
) -> None:
    """Leave what a finished cell leaves."""
    folder = cell_folder(out, cell)
    evaluated(blurred(noise, cell.seed + 1), folder / "evaluation", replicates=20)
    (folder / "run").mkdir()
    (folder / "run" / "environment.json").write_text(json.dumps({"data": {"fingerprint": data}}))
    told = {"seconds": 120.0, "images_per_second": 10.0, "peak_memory_bytes": 10**9, "validation": list(curve)}
    (folder / "cell.json").write_text(json.dumps({"cell": vars(cell)} | told | result))


def cells_of(study: Study) -> list[Cell]:
    """All cells at equal steps."""
    return [
        Cell(method=method, size=size, text_fraction=fraction, seed=seed, steps=study.steps)
        for method, size, fraction, seed in study.combinations
    ]
