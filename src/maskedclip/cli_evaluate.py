"""The verb that evaluates a model: on a store, or on a public set by its task file."""

import argparse
import dataclasses
import difflib
import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.console import say
from maskedclip.errors import UserError
from maskedclip.whole_files import PARTIAL, write_whole

if TYPE_CHECKING:
    from maskedclip.data.store import Store
    from maskedclip.deployment.external_open_clip import OpenClipModel
    from maskedclip.deployment.model import Model
    from maskedclip.evaluation.compare_read import Predictions
    from maskedclip.evaluation.finetune_settings import FineTuneSettings
    from maskedclip.evaluation.task_spec import TaskFile

MARK = "task.json"
"""In the store of a task's set: what it was made from."""
MANIFEST = Path("manifest", "manifest.csv")
"""In the same place."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run, timm:NAME, timm:NAME=FILE, FILE.safetensors or an open_clip folder; @SIZE after it",
    )
    parser.add_argument(
        "--data", action="append", nargs="+", type=path, default=[], metavar="STORE", help="with splits and labels"
    )
    parser.add_argument(
        "--task", default=None, metavar="TASK", help="a shipped task, such as aptos2019, or a .yaml file"
    )
    parser.add_argument("--root", type=path, default=None, metavar="FOLDER", help="where the task's set was unpacked")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder for results and report.html")
    parser.add_argument(
        "--protocols",
        default=None,
        metavar="P,P",
        help="some of linear,knn,fewshot,label_efficiency,zero_shot,retrieval,dense,finetune,lora; "
        "default: linear,knn,zero_shot,retrieval, or the task's",
    )
    parser.add_argument("--replicates", type=int, default=1000, metavar="N", help="bootstrap replicates of an interval")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of bootstrap, draws and fine-tuning")
    parser.add_argument("--prompts", type=path, metavar="FILE", help="YAML or JSON: label -> sentences, for zero-shot")
    parser.add_argument("--subgroups", default="", metavar="C,C", help="columns of the store, e.g. age,sex,device")
    parser.add_argument(
        "--finetune", nargs="+", default=[], metavar="NAME=VALUE", help="settings, e.g. epochs=20 lr=1e-3 batch=32"
    )
    parser.add_argument(
        "--dense-size", type=int, default=None, metavar="PX", help="input of the dense probe; default: the stored size"
    )
    parser.add_argument(
        "--against", type=path, metavar="DIR", help="another evaluation of the same store, compared in pairs"
    )


def _evaluate(args: argparse.Namespace) -> None:
    from maskedclip.evaluation.claimed_folder import claimed_folder
    from maskedclip.training.rundir import RunDirectory

    is_run = (Path(args.run) / "recipe.yaml").is_file()
    if is_run:  # a part of one's own is asked for now, not after hours
        RunDirectory(Path(args.run)).read_recipe()
    if args.against is not None and not is_run:
        raise UserError(
            f"--against: {args.run} is no run and gets no report; `maskedclip compare` sets evaluations side by side"
        )
    against = _against(args.against) if args.against is not None else None
    with claimed_folder(args.out):  # now, and not after a public set was curated
        _evaluated(args, is_run, against)


def _evaluated(args: argparse.Namespace, is_run: bool, against: "Predictions | None") -> None:
    from maskedclip.data.prompts import load_prompts
    from maskedclip.evaluation.evaluate import DEFAULT, evaluate
    from maskedclip.evaluation.feature_cache import CachedFeatures
    from maskedclip.evaluation.leakage import run_folder, seen_in_pretraining
    from maskedclip.evaluation.report import write_report
    from maskedclip.evaluation.summary import summary_lines

    finetune = fine_tune_settings(args.finetune)
    store, task = _store(args)
    if against is not None:
        _check_rows(against, store)
    wanted = args.protocols.split(",") if args.protocols else (task.protocols if task is not None else DEFAULT)
    if store.kind == "volumes":
        trained = [name for name in wanted if name.strip() in ("dense", "finetune", "lora")]
        if trained:
            raise UserError(f"--protocols: {', '.join(trained)}: not for volumes; give linear, knn, fewshot, ...")
    leakage = seen_in_pretraining(run_folder(args.run), store, store.rows("test"))
    say(leakage.get("sentence") or leakage["reason"])
    extra: dict[str, Any] = {"seen_in_pretraining": leakage}
    if task is not None:
        extra["task"] = {"name": task.name, "sha256": task_digest(task)}
    results = evaluate(
        CachedFeatures(_model(args.run, store), store),
        store,
        args.out,
        protocols=tuple(name.strip() for name in wanted),
        replicates=args.replicates,
        seed=args.seed,
        prompts=load_prompts(args.prompts) if args.prompts else None,
        subgroups=tuple(name.strip() for name in args.subgroups.split(",") if name.strip()),
        finetune=finetune,
        dense_size=args.dense_size,
        extra=extra,
    )
    lines = summary_lines(results)
    if not is_run:
        say_next(*lines, f"next: maskedclip compare {args.out} OTHER_DIR sets another model beside it")
        return
    evaluations = {"trained": args.out} | ({"against": args.against} if args.against else {})
    report = write_report(args.out / "report.html", Path(args.run), store, evaluations=evaluations)
    say_next(*lines, f"next: look at {report}; maskedclip compare {args.out} OTHER_DIR sets another model beside it")


def _against(folder: Path) -> "Predictions":
    """The evaluation to compare with, read before anything is computed."""
    from maskedclip.evaluation.compare_read import read_predictions, read_results

    try:
        read_results(folder)
        return read_predictions(folder)
    except UserError as error:
        raise UserError(f"--against: {error}") from None


def _check_rows(against: "Predictions", store: "Store") -> None:
    """Refuse an evaluation that cannot be compared in pairs: of other test rows."""
    own = {store.ids[row] for row in store.rows("test").tolist()}
    differing = len(own ^ set(against.ids))
    if against.complete and differing:
        raise UserError(
            f"--against: {against.folder}: {differing:,} test rows are in it or in the store alone; give an evaluation "
            "of the same store"
        )


def _model(spec: str, store: "Store") -> "Model | OpenClipModel":
    from maskedclip.deployment.external import open_model

    prepared = store.crop
    return open_model(spec, stored_size=prepared["size"], crop=prepared["crop"], volumes=store.kind == "volumes")


def _store(args: argparse.Namespace) -> "tuple[Store, TaskFile | None]":
    """The store to evaluate on, made from a public set where there is a task."""
    from maskedclip.data.curate import curate
    from maskedclip.data.store import open_store

    stores = [store for group in args.data for store in group]
    if args.task is None:
        if args.root is not None:
            raise UserError("--root: belongs to --task; name the task, e.g. --task aptos2019")
        if not stores:
            raise UserError("--data: give a store with splits and labels, or --task TASK --root FOLDER")
        return open_store(stores), None
    from maskedclip.evaluation.task_file import load_task
    from maskedclip.evaluation.task_layouts import task_manifest, task_store

    task = load_task(args.task)
    if task.on_store:
        if args.root is not None:
            raise UserError(f"--root: the task {args.task} is about a store; give it with --data, and no --root")
        if not stores:
            raise UserError(f"--data: the task {args.task} is about a store; give it")
        return task_store(task, open_store(stores)), task
    if stores:
        raise UserError(f"--data: the task {args.task} is about a set on files; give --root FOLDER, and no --data")
    if args.root is None:
        raise UserError(f"--root: give the folder in which the set of the task {args.task} was unpacked")
    out = args.out.resolve()  # `.` has no name of its own
    place = out.with_name(f"{out.name}.store")
    manifest = place / MANIFEST
    curated = (place / "store" / "curation.json").is_file()
    _claim_task(place, task, args.root)
    if curated or manifest.is_file():
        _check_manifest(place, task, args.root)
    else:
        task_manifest(task, args.root, manifest.parent)
    if not curated:
        curate(manifest, place / "store", crop=task.crop, allow_outside=True)  # type: ignore[arg-type]
    return task_store(task, open_store(place / "store")), task


def _claim_task(place: Path, task: "TaskFile", root: Path) -> None:
    """Make PLACE the store of this task's set, or refuse it: what an earlier call curated there may be another one.

    Where an earlier call came to no manifest there is nothing of any set.
    """
    mark = place / MARK
    made_from = {"task": task.name, "set_sha256": _set_digest(task), "root": str(root.resolve())}
    if place.exists() and not _is_unused(place):
        try:
            before = json.loads(mark.read_text())
            if "set_sha256" not in before:  # an earlier version kept the hash of the whole file
                made_from = {"task": task.name, "sha256": task_digest(task), "root": made_from["root"]}
        except (OSError, ValueError, TypeError):
            before = None
        if before != made_from:
            raise UserError(
                f"{place}: was made from another task file or --root; remove it, or give another --out, so that the "
                "set is curated again"
            )
        return
    place.mkdir(parents=True, exist_ok=True)
    write_whole(mark, json.dumps(made_from, indent=1) + "\n")


def _is_unused(place: Path) -> bool:
    """Whether it holds no more than what a call leaves whose task did not fit the set, or that was cut off."""
    own = (MARK, MANIFEST.parent.name)
    return (
        place.is_dir()
        and not (place / MANIFEST).exists()
        and all(entry.name in own or entry.name.startswith(PARTIAL) for entry in place.iterdir())
    )


def _check_manifest(place: Path, task: "TaskFile", root: Path) -> None:
    """Refuse what was curated of a set that has changed since: old labels would be evaluated without a word."""
    from maskedclip.evaluation.task_layouts import task_manifest

    kept = place / MANIFEST
    with tempfile.TemporaryDirectory() as scratch:
        now = task_manifest(task, root, Path(scratch) / MANIFEST.parent).read_bytes()
    if not kept.is_file() or kept.read_bytes() != now:
        raise UserError(
            f"{place}: its manifest is not what {root} gives now (other labels, images or splits); remove it, or give "
            "another --out, so that the set is curated again"
        )


def _set_digest(task: "TaskFile") -> str:
    """SHA-256 of what a task's file says of the set: all but its words about it and the protocols."""
    values = yaml.safe_load(task.path.read_text())
    said = {name: value for name, value in values.items() if name not in ("about", "citation", "protocols")}
    return hashlib.sha256(yaml.safe_dump(said, sort_keys=False).encode()).hexdigest()


def task_digest(task: "TaskFile") -> str:
    """SHA-256 of the task's file."""
    return hashlib.sha256(task.path.read_bytes()).hexdigest()


def fine_tune_settings(given: list[str]) -> "FineTuneSettings | None":
    """NAME=VALUE pairs as settings; None where there is none.

    Raises:
        UserError: an unknown name, or a value of the wrong type.
    """
    from maskedclip.evaluation.finetune_settings import FineTuneSettings

    if not given:
        return None
    defaults = {entry.name: entry.default for entry in dataclasses.fields(FineTuneSettings)}
    values: dict[str, Any] = {}
    for pair in given:
        name, equals, text = pair.partition("=")
        if not equals and name in defaults:
            raise UserError(f"--finetune {pair}: give NAME=VALUE, such as {name}={_example(name, defaults[name])}")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(defaults)}"
            raise UserError(f"--finetune {pair}: give NAME=VALUE; {hint}")
        default = defaults[name]
        if isinstance(default, str):  # as it stands: YAML would make booleans of on and off
            values[name] = text
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--finetune {pair}: give a value like {default!r}") from None
        if isinstance(default, float) or default is None:
            whole = name == "size"
            try:
                value = None if default is None and text == "null" else int(text) if whole else float(text)
            except ValueError:
                raise UserError(f"--finetune {pair}: give a {'whole ' * whole}number") from None
        elif isinstance(default, tuple):
            value = tuple(value) if isinstance(value, list) else value
        elif type(value) is not type(default):
            raise UserError(f"--finetune {pair}: give a value like {default!r}")
        values[name] = value
    return FineTuneSettings(**values)


def _example(name: str, default: object) -> str:
    """A value of a setting as it is written on the command line: its default, where that is one."""
    if default is None:
        return {"layer_decay": "0.65", "size": "224"}.get(name, "null")
    return str(default) if isinstance(default, str) else json.dumps(default, separators=(",", ":"))


EVALUATE_VERBS: dict[str, Verb] = {
    "evaluate": Verb(
        "probes, k-shot, zero-shot, retrieval, dense probe and fine-tuning, with intervals",
        "maskedclip evaluate runs/first --data stores/fundus --out runs/first/evaluation",
        _arguments,
        _evaluate,
    ),
}
