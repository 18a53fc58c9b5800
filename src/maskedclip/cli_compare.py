"""The verb that compares models."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import UserError

if TYPE_CHECKING:
    from maskedclip.evaluation.compare_models import Comparison
    from maskedclip.evaluation.compare_sheets import Sheet


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="DIR",
        help="folders that `evaluate` wrote; with --data also runs and timm:NAME=FILE@SIZE",
    )
    parser.add_argument(
        "--reference", default=None, metavar="DIR", help="the others are compared with it; default: the first"
    )
    parser.add_argument("--names", default=None, metavar="a,b,c", help="of the models, in their order")
    parser.add_argument("--group", action="store_true", help="names NAME:SEED are seeds of one method, NAME")
    parser.add_argument("--protocols", default=None, metavar="P,P", help="only some, e.g. linear,zero_shot")
    parser.add_argument(
        "--replicates",
        type=int,
        default=None,
        metavar="N",
        help="bootstrap replicates of an interval; default: the evaluations' own where all have the same, else 1000",
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="of the bootstrap; default: the evaluations' own, else 0"
    )
    parser.add_argument("--per-label", action="store_true", help="show the labels of every protocol, not of the first")
    parser.add_argument(
        "--data", nargs="+", type=path, default=[], metavar="STORE", help="evaluate models that are not evaluated yet"
    )
    parser.add_argument("--out", type=path, default=None, metavar="DIR", help="folder for these evaluations")
    parser.add_argument("--json", type=path, default=None, metavar="FILE", help="everything, for a program")
    parser.add_argument("--markdown", type=path, default=None, metavar="FILE", help="tables")
    parser.add_argument("--latex", type=path, default=None, metavar="FILE", help="tables for a paper, with booktabs")
    parser.add_argument("--figure", type=path, default=None, metavar="FILE.svg", help="forest plot of the means")
    parser.add_argument(
        "--label-figure", type=path, default=None, metavar="FILE.svg", help="forest plot of the first protocol's labels"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace output files that exist")


def _compare(args: argparse.Namespace) -> None:
    from rich.console import Console

    from maskedclip.evaluation.compare_inputs import (
        bootstrap_of,
        evaluate_inputs,
        find_reference,
        group_names,
        names_of,
        read_inputs,
    )
    from maskedclip.evaluation.compare_models import compare_models
    from maskedclip.evaluation.compare_sheets import sheets
    from maskedclip.evaluation.compare_table import print_tables

    _check_outputs(args)
    inputs = read_inputs(args.models, data=args.data)
    names = names_of(args.models, args.names)
    groups = group_names(names) if args.group else {name: [place] for place, name in enumerate(names)}
    if len(groups) < 2:
        raise UserError(
            f"--group: all are seeds of {names[0].rpartition(':')[0]}; give a second method to compare with"
        )
    reference = find_reference(args.reference, args.models, names, list(groups))
    protocols = None if args.protocols is None else [name.strip() for name in args.protocols.split(",")]
    folders = evaluate_inputs(
        inputs,
        names,
        data=args.data,
        out=args.out,
        protocols=protocols,
        replicates=args.replicates,
        seed=args.seed,
    )
    replicates, seed = bootstrap_of(folders, args.replicates, args.seed)
    comparison = compare_models(
        {name: [folders[place] for place in places] for name, places in groups.items()},
        reference,
        protocols=protocols,
        replicates=replicates,
        seed=seed,
        shown=True,
    )
    tables = sheets(comparison)
    written = _write(args, comparison, tables)
    labels = [sheet for sheet in tables if sheet.name.startswith("labels-")]
    shown = [sheet for sheet in tables if args.per_label or sheet not in labels[1:]]
    console = Console(highlight=False)
    print_tables(shown, console if console.is_terminal else Console(highlight=False, width=140))
    say_next(_next(args, written))


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse, before minutes of work, a file that can't or mustn't be written."""
    given: dict[Path, str] = {}
    for option, file in _outputs(args).items():
        if file.is_dir():
            raise UserError(f"{option} {file}: is a folder; give a file's name")
        if file.exists() and not args.overwrite:
            raise UserError(f"{option} {file}: exists; choose another name, or add --overwrite")
        if not file.absolute().parent.is_dir():
            raise UserError(f"{option} {file}: its folder does not exist; make it first")
        if file.absolute() in given:
            raise UserError(f"{option} {file}: is the file of {given[file.absolute()]} too; choose another name")
        if option in {"--figure", "--label-figure"} and file.suffix != ".svg":
            raise UserError(f"{option} {file}: figures are SVG; give a name that ends in .svg")
        given[file.absolute()] = option


def _outputs(args: argparse.Namespace) -> dict[str, Path]:
    options = ("--json", "--markdown", "--latex", "--figure", "--label-figure")
    files = {option: getattr(args, option[2:].replace("-", "_")) for option in options}
    return {option: file for option, file in files.items() if file is not None}


def _write(args: argparse.Namespace, comparison: "Comparison", tables: "list[Sheet]") -> list[Path]:
    from maskedclip.evaluation.compare_figure import forest_plot, label_blocks, macro_blocks
    from maskedclip.evaluation.compare_table import to_latex, to_markdown
    from maskedclip.evaluation.report_names import row_name

    first = comparison.sections[0]
    contents: dict[str, Callable[[], bytes]] = {
        "--json": lambda: (json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n").encode(),
        "--markdown": lambda: to_markdown(tables).encode(),
        "--latex": lambda: to_latex(tables).encode(),
        "--figure": lambda: forest_plot(comparison, macro_blocks(comparison), title="Means over the labels"),
        "--label-figure": lambda: forest_plot(comparison, label_blocks(comparison, first), title=row_name(*first)),
    }
    outputs = _outputs(args)
    for option, file in outputs.items():
        file.write_bytes(contents[option]())
    return list(outputs.values())


def _next(args: argparse.Namespace, written: list[Path]) -> str:
    if args.figure is not None:
        return f"next: look at {args.figure}"
    if written:
        return f"next: {written[-1]} is written; --figure forest.svg draws the intervals"
    return "next: --figure forest.svg draws the intervals, --latex table.tex and --markdown table.md write the tables"


COMPARE_VERBS: dict[str, Verb] = {
    "compare": Verb(
        "several models in one table, with paired differences and their intervals",
        "maskedclip compare runs/a/evaluation runs/b/evaluation --figure forest.svg --latex table.tex",
        _compare_arguments,
        _compare,
    ),
}
