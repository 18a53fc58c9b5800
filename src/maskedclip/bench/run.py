"""All benchmarks of this machine, as one dictionary and as a table."""

import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maskedclip.bench.contrastive import measure_contrastive
from maskedclip.bench.loader import measure_loader
from maskedclip.bench.step import Workbench, make_workbench, measure_step
from maskedclip.bench.timing import medians
from maskedclip.console import say
from maskedclip.data.store import Store, open_store, refuse_volumes
from maskedclip.errors import UserError
from maskedclip.models.features import image_features
from maskedclip.models.saving import Preprocessing
from maskedclip.recipe import Recipe

PARTS = ("loader", "step", "contrastive", "embed")
_PHANTOMS = 400


def run_benchmarks(
    recipe: Recipe, *, only: Sequence[str] = PARTS, data: Sequence[Path] = (), batch: int = 16384, rounds: int = 5
) -> dict[str, Any]:
    """Measure this machine.

    Args:
        recipe: whose step, loader and model are measured; weights are not read.
        only: some of `PARTS`.
        data: stores for the loader; none draws phantoms.
        batch: pairs of the contrastive loss.
        rounds: of each measurement; medians are told.

    Raises:
        UserError: an unknown part, a recipe of volumes.
    """
    unknown = sorted(set(only) - set(PARTS))
    if unknown:
        raise UserError(f"--only: {', '.join(unknown)}: no such benchmark; known: {', '.join(PARTS)}")
    if recipe.model.reads_volumes:
        raise UserError(f"model.image_encoder: {recipe.model.image_encoder} reads volumes; bench measures pictures")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, Any] = {"machine": _machine(cores), "recipe": recipe.to_dict()}
    if "loader" in only:
        say("loader: whole batches against decoding alone")
        found["loader"] = _with_store(recipe, data, workers=cores, rounds=rounds)
    bench = make_workbench(recipe) if {"step", "embed"} & set(only) else None
    if "step" in only and bench is not None:
        say(f"step: {len(bench.batch.image)} images of {recipe.data.size} px on {bench.device}")
        found["step"] = measure_step(bench, rounds=rounds)
    if "embed" in only and bench is not None:
        found["embed"] = _measure_embedding(bench, rounds)
    if "contrastive" in only:
        device = "cuda" if torch.cuda.is_available() and recipe.training.accelerator != "cpu" else "cpu"
        say(f"contrastive loss: {batch:,} pairs, ours and the whole matrix in turn")
        found["contrastive"] = measure_contrastive(batch, recipe.model.embed_dim, device=device, rounds=rounds)
    return found


def _machine(cores: int) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if gpu else None,
        "torch": torch.__version__,
        "platform": platform.platform(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _with_store(recipe: Recipe, data: Sequence[Path], *, workers: int, rounds: int) -> dict[str, Any]:
    if data:
        given = open_store(list(data))
        refuse_volumes(given, "bench")
        return measure_loader(given, recipe, workers=workers, rounds=rounds)
    from maskedclip.data.curate import curate
    from maskedclip.data.phantom import write_phantoms

    with tempfile.TemporaryDirectory() as folder:
        say(f"no --data: drawing {_PHANTOMS} phantoms")
        write_phantoms(Path(folder) / "phantoms", images=_PHANTOMS, seed=0)
        curate(Path(folder) / "phantoms" / "manifest.csv", Path(folder) / "store")
        store: Store = open_store(Path(folder) / "store")
        return measure_loader(store, recipe, workers=workers, rounds=rounds)


def _measure_embedding(bench: Workbench, rounds: int) -> dict[str, Any]:
    recipe = bench.recipe
    preprocessing = Preprocessing(
        crop="none",
        stored_size=recipe.data.size,
        size=recipe.data.size,
        mean=recipe.data.mean,
        std=recipe.data.std,
    )
    model = bench.objective.model.eval()
    image = bench.batch.image[:64]
    (taken,) = medians([lambda: image_features(model, image, preprocessing)], bench.device, rounds=rounds)
    model.train()
    return {"images_per_second": len(image) / taken, "precision": "float32"}


def as_table(found: dict[str, Any]) -> str:
    """The figures as lines of a Markdown table."""
    machine = found["machine"]
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    lines = [
        f"{machine['processor']}, {machine['cores']} cores{gpu}, PyTorch {machine['torch']}",
        "",
        "| what | figure |",
        "|---|---|",
    ]
    for section in PARTS:
        for name, value in found.get(section, {}).items():
            if isinstance(value, dict):
                lines += [f"| {section}.{name}: {key} | {_figure('seconds', part)} |" for key, part in value.items()]
            else:
                lines.append(f"| {section}.{name} | {_figure(name, value)} |")
    return "\n".join(lines)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, bool | str) or value is None:
        return {True: "yes", False: "no", None: "not known"}.get(value, str(value))  # type: ignore[call-overload]
    if name.endswith("_bytes") and not name.endswith("from_bytes"):
        return f"{value / 2**20:,.0f} MiB"
    if name.endswith("seconds"):
        return f"{value * 1000:,.1f} ms"
    if name in {"operations", "operations_per_second", "matrix_rate"}:
        return f"{value / 1e9:,.0f} G{'FLOP' if name == 'operations' else 'FLOP/s'}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
