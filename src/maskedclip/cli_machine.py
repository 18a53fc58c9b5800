"""The verbs about a machine: what it has, what it can do, what a run will need on it."""

import argparse
import json
from pathlib import Path
from typing import Any

from maskedclip.cli_verb import Verb, add_config, path, say_next
from maskedclip.errors import UserError


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for a program or an issue report")


def _doctor(args: argparse.Namespace) -> None:
    from maskedclip.doctor import examine, findings_as_text

    findings = examine()
    print(json.dumps(findings, indent=2) if args.json else findings_as_text(findings))


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--only", default=None, metavar="PARTS", help="some of loader,step,contrastive,embed; the default is all"
    )
    parser.add_argument(
        "--data", nargs="+", type=path, default=[], metavar="STORE", help="for the loader; else phantoms"
    )
    parser.add_argument("--batch", type=int, default=16384, metavar="N", help="pairs of the contrastive loss")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each measurement; medians are told")
    parser.add_argument("--json", type=path, default=None, metavar="FILE", help="write the figures here")


def _bench(args: argparse.Namespace) -> None:
    import torch

    from maskedclip.bench.run import PARTS, as_table, run_benchmarks
    from maskedclip.recipe import load_recipe

    for name in ("batch", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: {getattr(args, name)} is too small; give 1 or more")
    _check_free(args.json)
    size = "vitb16" if torch.cuda.is_available() else "vits14_dinov2"
    recipe = load_recipe(args.config or ["maskedclip", size], args.rest)
    only = PARTS if args.only is None else [part.strip() for part in args.only.split(",")]
    found = run_benchmarks(recipe, only=only, data=args.data, batch=args.batch, rounds=args.rounds)
    print(as_table(found))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    say_next("next: maskedclip plan --images 1000000 --bench FILE.json tells what a run needs, from these rates")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--images", type=_count, required=True, metavar="N", help="in the store, e.g. 50000 or 1e6")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs of all machines together")
    parser.add_argument("--epochs", type=float, default=None, metavar="E", help="passes; the default: training.steps")
    parser.add_argument("--bench", type=path, default=None, metavar="FILE", help="of `bench --json`")
    parser.add_argument("--rate", type=float, default=None, metavar="R", help="images/s of one device, measured")
    parser.add_argument("--tflops", type=float, default=None, metavar="T", help="that one device reaches in a step")
    parser.add_argument("--json", type=path, default=None, metavar="FILE", help="write the plan here")


def _count(text: str) -> int:
    value = float(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of images")
    return int(value)


def _plan(args: argparse.Namespace) -> None:
    from maskedclip.bench.plan import as_text, make_plan
    from maskedclip.recipe import load_recipe

    for name in ("devices", "epochs", "rate", "tflops"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name}: {getattr(args, name)} is too small; give more than 0")
    _check_free(args.json)
    measured: dict[str, Any] | None = None
    if args.bench is not None:
        try:
            measured = json.loads(args.bench.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--bench {args.bench}: cannot be read ({error}); `maskedclip bench --json FILE`") from None
    recipe = load_recipe(args.config or ["maskedclip", "vitb16"], args.rest)
    plan = make_plan(
        recipe,
        images=args.images,
        devices=args.devices,
        epochs=args.epochs,
        measured=measured,
        rate=args.rate,
        operations_per_second=None if args.tflops is None else args.tflops * 1e12,
    )
    print(as_text(plan))
    if args.json is not None:
        args.json.write_text(json.dumps(plan.to_dict(), indent=2) + "\n")
    say_next("next: maskedclip pretrain with the same --config; docs/scale.md shows one machine, many, and SLURM")


def _check_free(file: Path | None) -> None:
    if file is not None and file.exists():
        raise UserError(f"--json {file}: exists; choose another name, or remove it")
    if file is not None and not file.absolute().parent.is_dir():
        raise UserError(f"--json {file}: its folder does not exist; make it first")


MACHINE_VERBS: dict[str, Verb] = {
    "bench": Verb(
        "measure this machine: loader, step, memory of the loss, embedding",
        "maskedclip bench --only step --json bench.json",
        _bench_arguments,
        _bench,
        takes_recipe=True,
    ),
    "plan": Verb(
        "what a run will need: memory, storage, network, hours",
        "maskedclip plan --config maskedclip --config vitb16 --images 1e6 --devices 8 --bench bench.json",
        _plan_arguments,
        _plan,
        takes_recipe=True,
    ),
    "doctor": Verb(
        "versions, devices, what is slow or missing here",
        "maskedclip doctor",
        _doctor_arguments,
        _doctor,
    ),
}
