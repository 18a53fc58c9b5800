"""The verb that runs a whole experiment."""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

import yaml

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.console import say
from maskedclip.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from maskedclip.study.definition import Study


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a .yaml file, or a shipped name: semi_supervised, family")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder, or a study to go on with")
    parser.add_argument(
        "--data", action="append", nargs="+", type=path, default=[], metavar="STORE", help="to train on"
    )
    parser.add_argument(
        "--evaluate",
        action="append",
        nargs="+",
        type=path,
        default=[],
        metavar="STORE",
        help="to evaluate on; the default: the first of --data",
    )
    parser.add_argument(
        "--max-minutes", type=float, default=0.0, metavar="M", help="begin no cell after so many minutes"
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument(
        "--slurm", action="store_true", help="a SLURM array job, a task for each cell, after a job that measures rates"
    )
    only.add_argument("--cell", type=int, default=None, metavar="K", help="only cell K, as a task of the array does")
    only.add_argument("--rates", action="store_true", help="only measure how long steps take, for equal_time")
    only.add_argument("--report", action="store_true", help="only tell what the finished cells say")


def _study(args: argparse.Namespace) -> None:
    from maskedclip.study.checks import check_stores
    from maskedclip.study.definition import load_study
    from maskedclip.study.ending import ends_with_status
    from maskedclip.study.runner import claim

    overrides = _overrides(args.rest)
    stores, tested = ([store for group in given for store in group] for given in (args.data, args.evaluate))
    study = load_study(args.study, data=stores, evaluate=tested, overrides=overrides)
    settings: dict[str, Any] = {
        "study": study.name,
        "data": [str(store) for store in study.data],
        "evaluate": [str(store) for store in study.evaluate],
        "steps": study.steps,
        "equal_time": study.equal_time,
        "split": study.split,
        "precision": study.precision,
        "protocols": list(study.protocols),
        "replicates": study.replicates,
        "fields": {name: str(value) for name, value in study.fields.items()},
    }
    if not args.report:  # a page can be written where the stores are not
        check_stores(study)
    claim(study, args.out, settings)
    with ends_with_status():
        _run(study, args)


def _run(study: "Study", args: argparse.Namespace) -> None:
    from maskedclip.study.checks import chosen_on_reported
    from maskedclip.study.page import write_page
    from maskedclip.study.rates import step_rates, unmeasured
    from maskedclip.study.runner import check_cells, run_one, run_study, study_cells, what_failed
    from maskedclip.study.slurm import submit

    warning = chosen_on_reported(study)
    if warning is not None and not args.report:
        say(f"warning: {warning}")
    if args.cell is not None:
        run_one(study, args.out, args.cell)
        return
    if args.rates:
        if study.equal_time is None:
            raise UserError("--rates: this study has no equal_time; name a method there, or leave --rates out")
        rates = step_rates(study, args.out)
        told = (f"{name}: {seconds:.3f} s a step" for name, seconds in rates.items())
        say_next(*told, "next: the same command without --rates trains and evaluates the cells")
        return
    if args.slurm:
        # a node's PATH may lack `maskedclip`, or hold another one
        command = [sys.executable, "-m", "maskedclip", *_without(sys.argv[1:], "--slurm")]
        told = submit(study, args.out, command)
        say_next(told, f"next: the same command with --report, when cells are finished, writes {args.out}/study.html")
        return
    if args.report and study.equal_time and unmeasured(study, args.out):
        raise UserError(
            f"--report: {args.out} doesn't know yet how long the methods' steps take, so no cell can be finished; wait "
            "for the job that measures it (slurm-rates-*.log), or leave --report out"
        )
    if not args.report:
        run_study(study, args.out, minutes_limit=args.max_minutes)
    cells = study_cells(study, args.out)
    check_cells(study, args.out, cells)
    page, lines = write_page(study, args.out, cells)
    say_next(*lines, f"next: look at {page}; tables for a paper are beside it (study.md, study.tex)")
    failed = what_failed(args.out, cells)
    if failed is not None and not args.report:  # a report of what there is has done what it was asked for
        raise CheckFailed(failed)


def _overrides(rest: list[str]) -> dict[str, Any]:
    """--section.field value, or --section.field=value, as `pretrain` takes them.

    A single value stays a text, which the recipe reads as it reads a flag: in YAML `off` is false, 12:30 is 750.
    """
    found: dict[str, Any] = {}
    parts = iter(rest)
    for part in parts:
        name = part.split("=", 1)[0]
        if not part.startswith("--") or ("." not in name and name != "--seed"):
            raise UserError(f"{part}: unknown argument; see `maskedclip study --help`")
        name, given, value = part[2:].partition("=")
        if not given:
            try:
                value = next(parts)
            except StopIteration:
                raise UserError(f"--{name}: give a value") from None
        try:
            loaded = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(
                f"--{name} {value}: can't be read ({' '.join(str(error).split())}); quote it as YAML wants it"
            ) from None
        except ValueError:  # 2026-02-30 is no date, but may be a name
            loaded = value
        found[name] = loaded if isinstance(loaded, dict | list) and not os.path.exists(value) else value
    return found


def _without(arguments: list[str], flag: str) -> list[str]:
    return [argument for argument in arguments if argument != flag]


STUDY_VERBS: dict[str, Verb] = {
    "study": Verb(
        "a grid of recipes, text fractions, seeds and sizes: trained, evaluated and told on one page",
        "maskedclip study semi_supervised --data stores/paired --data stores/unpaired --out studies/first",
        _arguments,
        _study,
        takes_recipe=True,
    ),
}
