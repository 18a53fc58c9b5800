"""The parts of a report that tell how a run was trained: its facts and its curves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from maskedclip.console import minutes
from maskedclip.evaluation.report_figures import Line, curves
from maskedclip.evaluation.report_subject import Subject
from maskedclip.html import LeftOut, escape, facts, figure, grid, paragraph, picture
from maskedclip.recipe import Recipe, recipe_from_dict, recipe_path, shipped_recipes
from maskedclip.training.checkpoint import list_checkpoints
from maskedclip.training.monitor import collapse_message
from maskedclip.training.optimizer import effective_lr
from maskedclip.training.rundir import RunDirectory

_UNKNOWN = "not recorded"
_MODULES = {
    "image_encoder": "image encoder f",
    "bridge": "bridge g",
    "text_encoder": "text encoder t",
    "decoders": "decoders (training only)",
}
Metrics = Sequence[Mapping[str, Any]]


def training_facts(subject: Subject) -> str:
    """What was trained on what, as small tables."""
    recorded = _environment(subject.run)
    tables = [
        facts("Data", _data(subject, recorded)),
        facts("Method", _method(subject.recipe)),
        facts("Training", _training(subject, recorded)),
        facts("Parameters", _parameters(recorded)),
        facts("Software", _software(recorded)),
    ]
    return "".join(paragraph(note, "warning") for note in _warnings(subject, recorded)) + grid(tables, "tables")


def training_curves(subject: Subject) -> str:
    """Charts of what the run logged, and of its first stage where it has one.

    Raises:
        LeftOut: nothing was logged.
    """
    metrics = read_metrics(subject.run)
    if not metrics:
        raise LeftOut("the run logged no step (training.steps 0, or metrics.jsonl is missing), so there are no curves")
    charts = _charts(subject.recipe, metrics)
    if not charts:
        raise LeftOut("metrics.jsonl holds none of the quantities that are drawn here")
    verdict = collapse_message(_last(metrics, "validation"))
    body = (paragraph(f"Warning: {verdict}", "warning") if verdict else "") + grid(charts, "charts")
    first = subject.recipe.training.first_stage
    before = _charts(subject.recipe, read_metrics(RunDirectory(subject.run.path / "first_stage"))) if first else []
    if before:
        body += f"<h3>First stage: {escape(first)}</h3>" + grid(before, "charts")
    return body


def read_metrics(run: RunDirectory) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without the half line that a killed run may leave."""
    if not run.metrics.is_file():
        return []
    entries = []
    for line in run.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "step" in entry:
            entries.append(entry)
    return entries


def steps_done(run: RunDirectory) -> int:
    """Optimizer steps that a run has taken."""
    logged = [int(entry["step"]) for entry in read_metrics(run) if entry.get("kind") == "train"]
    return max([int(_progress(run).get("step", 0)), *logged])


def method_name(recipe: Recipe) -> str:
    """The shipped method whose pools, losses and modules a recipe has; "own" where there is none."""
    for name in shipped_recipes():
        values = yaml.safe_load(recipe_path(name).read_text())
        if "objective" in values and _structure(recipe_from_dict(values)) == _structure(recipe):
            return name
    return "own"


def _structure(recipe: Recipe) -> tuple:
    chosen = recipe.objective
    losses = tuple(weight > 0 for weight in (chosen.clip_weight, chosen.mim_weight, chosen.mkd_weight))
    added = tuple(sorted(chosen.term_options)), chosen.masking
    return recipe.data.pool, recipe.reads_text and recipe.model.bridge, losses, added, recipe.training.first_stage


def _environment(run: RunDirectory) -> dict[str, Any]:
    if not run.environment_file.is_file():
        return {}
    try:
        return run.environment()
    except ValueError:
        return {}


def _progress(run: RunDirectory) -> dict[str, Any]:
    """Step, seconds and counters of the newest readable checkpoint."""
    for folder in reversed(list_checkpoints(run.checkpoints)):
        try:
            return json.loads((folder / "state.json").read_text())["progress"]
        except (OSError, ValueError, KeyError):
            continue
    return {}


def _warnings(subject: Subject, recorded: Mapping[str, Any]) -> list[str]:
    notes = []
    if not recorded:
        notes.append("environment.json is missing or damaged, so data, device and versions of the run are not known.")
    trained_on = recorded.get("data", {}).get("fingerprints", [])
    if subject.store is not None and trained_on and not set(subject.store.fingerprints) <= set(trained_on):
        notes.append("The store shown and evaluated here is none that the run was trained on (another fingerprint).")
    return notes


def _data(subject: Subject, recorded: Mapping[str, Any]) -> list[tuple[str, str]]:
    stores = [Path(folder).name for folder in recorded.get("data", {}).get("stores", [])]
    kept = recorded.get("patients_with_text")
    patients = f", the texts of {kept[0]:,} of {kept[1]:,} patients" if kept and kept[1] else ""
    paired = recorded.get("paired_images")
    cut = recorded.get("truncated_texts")
    entries = [
        ("store", ", ".join(stores) or _UNKNOWN),
        ("fingerprint", recorded.get("data", {}).get("fingerprint", _UNKNOWN)),
        (f"paired {subject.unit}", _UNKNOWN if paired is None else f"{paired:,}{patients}"),
        (f"unpaired {subject.unit}", _count(recorded.get("unpaired_images"))),
    ]
    if subject.recipe.reads_text:
        entries.append(("distinct texts", _count(recorded.get("distinct_texts"))))
        entries.append((f"paired {subject.unit} whose text was cut", _UNKNOWN if cut is None else f"{cut:.1%}"))
    if subject.store is not None:
        rows = ", ".join(f"{len(subject.store.rows(split)):,} {split}" for split in ("train", "val", "test"))
        entries.append(("rows of the store shown here", rows))
    return entries


def _method(recipe: Recipe) -> list[tuple[str, str]]:
    data, model, objective = recipe.data, recipe.model, recipe.objective
    weights = {"L_clip": objective.clip_weight, "L_mim": objective.mim_weight, "L_mkd": objective.mkd_weight}
    weights |= {name: options.weight for name, options in objective.term_options.items()}
    total = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items() if weight > 0)
    paired, unpaired = recipe.batch_sizes
    options = ", ".join(f"{name} {value}" for name, value in model.image_encoder_options.items())
    entries = [
        ("method", method_name(recipe)),
        ("loss", total),
        *([("masking", f"{objective.masking}, {objective.mask_ratio:.0%} hidden")] if objective.masks else []),
        (
            "volumes a step" if model.reads_volumes else "images a step",
            f"{paired} paired + {unpaired} unpaired, {data.size} {'voxels' if model.reads_volumes else 'px'} a side",
        ),
        ("image encoder f", model.image_encoder + (f" ({options})" if options else "")),
        ("its first weights", "fresh" if model.image_weights is None else Path(model.image_weights).name),
    ]
    if recipe.training.first_stage:
        share = recipe.training.first_stage_share
        entries.append(("first stage", f"{recipe.training.first_stage}, {share:.0%} of the steps"))
    if recipe.reads_text:
        depth = model.bridge_depth if model.bridge else 0
        entries += [
            ("bridge g", f"{depth} block{'s' if depth > 1 else ''}" if depth else "none: g(f) is f"),
            (
                "text encoder t",
                "small BERT, from scratch" if model.text_encoder == "small" else Path(model.text_encoder).name,
            ),
            ("texts", f"{data.sentences} sentences, at most {data.context_length} tokens"),
            ("share of patients with text kept", f"{data.text_fraction:.0%}"),
            ("shared space", f"{model.embed_dim} numbers"),
        ]
    if recipe.masks:
        entries.append(("hidden share of an image", f"{objective.mask_ratio:.0%}"))
    if objective.mkd_weight > 0:
        entries.append(
            ("L_mkd", f"{objective.mkd_loss} on {objective.mkd_patches} patches, {objective.mkd_teacher} teacher")
        )
    return entries


def _chosen_step(subject: Subject) -> list[tuple[str, str]]:
    """Whose step the model's weights are, where a validation figure chose it."""
    metric = subject.recipe.training.best_metric
    try:
        step = json.loads((subject.run.model / "config.json").read_text()).get("step")
    except (OSError, ValueError, AttributeError):
        step = None
    if metric is None or step is None:
        return []
    return [("step of the model's weights", f"{step:,}, the best by {metric} on validation rows")]


def _training(subject: Subject, recorded: Mapping[str, Any]) -> list[tuple[str, str]]:
    training, progress = subject.recipe.training, _progress(subject.run)
    done, wanted = steps_done(subject.run), training.steps
    if training.first_stage:
        wanted -= round(wanted * training.first_stage_share)
    seconds, ranks = progress.get("seconds"), recorded.get("world_size", 1)
    entries = [
        ("steps", f"{done:,}" if done == wanted else f"{done:,} of {wanted:,}"),
        *_chosen_step(subject),
        ("time", minutes(seconds) if seconds else ("none" if done == 0 else _UNKNOWN)),
        ("device", str(recorded.get("device", _UNKNOWN)) + (f", {ranks} processes" if ranks != 1 else "")),
        ("precision", training.precision),
        ("peak learning rate", f"{effective_lr(subject.recipe):.2e}"),
        ("seed", str(subject.recipe.seed)),
    ]
    if progress.get("bad_steps"):
        entries.append(("steps skipped, not finite", f"{progress['bad_steps']:,}"))
    if progress.get("substituted"):
        entries.append(("undecodable images replaced", f"{progress['substituted']:,}"))
    return entries


def _parameters(recorded: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = recorded.get("parameters")
    if not counts:
        return [("modules", _UNKNOWN)]
    listed = [(_MODULES.get(name) or str(name), _millions(count)) for name, count in counts.items() if count]
    return [*listed, ("together", _millions(sum(counts.values())))]


def _software(recorded: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in recorded.get("versions", {}).items())
    return [
        ("command", recorded.get("command") or _UNKNOWN),
        ("commit", recorded.get("code") or _UNKNOWN),
        ("Python", recorded.get("python") or _UNKNOWN),
        ("platform", recorded.get("platform") or _UNKNOWN),
        ("versions", versions or _UNKNOWN),
    ]


def _count(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e5 else f"{count:,}"


@dataclass(frozen=True, kw_only=True)
class _Chart:
    """A chart of some logged series.  series: key in metrics.jsonl -> name.  reading: how to look at it.

    percent, logarithmic, level: of `curves`.
    """

    title: str
    kind: str
    series: Mapping[str, str]
    reading: str
    percent: bool = False
    logarithmic: bool = False
    level: tuple[float, str] | None = None


_CHARTS = (
    _Chart(
        title="Total loss",
        kind="train",
        series={"loss": "loss"},
        reading="Weighted sum of the losses; may rise while the weight of L_mkd is ramped up.",
    ),
    _Chart(
        title="Image-text loss L_clip",
        kind="train",
        series={"clip": "L_clip"},
        reading="Should fall: images find their texts. A new text mix each step makes it noisy.",
    ),
    _Chart(
        title="Masked image loss L_mim",
        kind="train",
        series={"mim": "L_mim"},
        reading="Should fall: hidden patches are painted better.",
    ),
    _Chart(
        title="Masked distillation loss L_mkd",
        kind="train",
        series={"mkd": "L_mkd"},
        reading="Good only while the target's spread and rank stay up: a constant target is easy to predict.",
    ),
    _Chart(
        title="Nearest text in the batch is the right one",
        kind="train",
        series={"clip_accuracy": "share"},
        reading="Should rise.",
        percent=True,
    ),
    _Chart(
        title="Encoder on the validation split",
        kind="validation",
        series={"knn_auroc": "k-NN", "probe_auroc": "linear probe"},
        reading="Macro AUROC of f on some validation rows, to watch learning; what counts stands in the tables.",
        level=(0.5, "chance"),
    ),
    _Chart(
        title="Spread of the patch features of g(f)",
        kind="validation",
        series={"target_spread": "spread"},
        reading="Target of L_mkd. About 1: patches point everywhere; 0: all alike (collapse). No bridge: g(f) is f.",
    ),
    _Chart(
        title="Effective rank",
        kind="validation",
        series={"target_rank": "g(f)", "encoder_rank": "f"},
        reading="How many directions the pooled features fill. Near 1: collapse.",
    ),
    _Chart(title="Learning rate", kind="train", series={"lr": "learning rate"}, reading="Warm-up, then cosine to 0."),
    _Chart(
        title="Gradient norm before clipping",
        kind="train",
        series={"grad_norm": "norm"},
        reading="Peaks are clipped; growth without end is divergence.",
        logarithmic=True,
    ),
    _Chart(
        title="Images a second",
        kind="train",
        series={"images_per_second": "images/s"},
        reading="Over all processes.",
    ),
    _Chart(
        title="Time spent waiting for data",
        kind="train",
        series={"data_wait": "share"},
        reading="Above some 10 % the loader is the bottleneck: raise data.workers.",
        percent=True,
    ),
)


_NOT_DRAWN = {"step", "kind", "time", "bad_steps", "substituted", "peak_memory_bytes", "logit_scale", "target_spread"}
_MOST_OF_PARTS = 16


def _charts_of_parts(metrics: Metrics) -> list[_Chart]:
    """A chart for each loss and figure of the recipe's own parts."""
    known = {key for chart in _CHARTS for key in chart.series} | _NOT_DRAWN
    names = dict.fromkeys(key for line in metrics if line.get("kind") == "train" for key in line)
    return [
        _Chart(title=name, kind="train", series={name: name}, reading="Of a part of this recipe, as logged.")
        for name in names
        if name not in known
    ][:_MOST_OF_PARTS]


def _charts(recipe: Recipe, metrics: Metrics) -> list[str]:
    drawn = []
    for chart in (*_CHARTS[:4], *_charts_of_parts(metrics), *_CHARTS[4:]):
        lines = [
            line for key, name in chart.series.items() if (line := _line(metrics, chart.kind, key, name)) is not None
        ]
        if lines:
            data = curves(lines, percent=chart.percent, logarithmic=chart.logarithmic, level=chart.level)
            ends = "; ".join(f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines)
            alt = f"{chart.title} over steps {lines[0].x[0]:.0f} to {lines[0].x[-1]:.0f}: {ends}."
            drawn.append(
                figure(f"<h3>{escape(chart.title)}</h3>{picture(data, 'svg+xml', alt)}", chart.reading, "chart")
            )
    return drawn


def _line(metrics: Metrics, kind: str, key: str, name: str) -> Line | None:
    points = [(entry["step"], entry[key]) for entry in metrics if entry.get("kind") == kind and key in entry]
    finite = np.asarray([point for point in points if np.isfinite(point[1])], np.float64)
    return Line(name=name, x=finite[:, 0], y=finite[:, 1]) if len(finite) else None


def _last(metrics: Metrics, kind: str) -> dict[str, float]:
    found = [entry for entry in metrics if entry.get("kind") == kind]
    return {name: value for name, value in found[-1].items() if name not in ("kind", "step")} if found else {}
