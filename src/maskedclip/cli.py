"""The command line: one short function a verb.  Heavy imports happen inside the verbs, so that help is quick."""

import argparse
import errno
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

# A thread that waits for the others sleeps instead of spinning: beside one other busy process, a training step on two
# cores is nine times as fast (benchmarks/RESULTS.md).  Read when the first heavy import loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from maskedclip import __version__
from maskedclip.cli_audit import AUDIT_VERBS
from maskedclip.cli_classify import CLASSIFY_VERBS
from maskedclip.cli_compare import COMPARE_VERBS
from maskedclip.cli_compose import COMPOSE_VERBS
from maskedclip.cli_embed import EMBED_VERBS
from maskedclip.cli_evaluate import EVALUATE_VERBS
from maskedclip.cli_export import EXPORT_VERBS
from maskedclip.cli_machine import MACHINE_VERBS
from maskedclip.cli_manifest import MANIFEST_VERBS
from maskedclip.cli_pair import PAIR_VERBS
from maskedclip.cli_parts import PARTS_VERBS, add_part, register_parts
from maskedclip.cli_search import SEARCH_VERBS
from maskedclip.cli_segment import SEGMENT_VERBS
from maskedclip.cli_serve import SERVE_VERBS
from maskedclip.cli_store import STORE_VERBS
from maskedclip.cli_study import STUDY_VERBS
from maskedclip.cli_verb import Verb, VerbParser, add_config, add_manifest_reading, boolean, path, say_next
from maskedclip.cli_volumes import VOLUME_VERBS
from maskedclip.errors import CheckFailed, UserError

# --- phantom ---------------------------------------------------------------------------------------------------------


def _phantom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder for images, masks, manifest")
    parser.add_argument(
        "--images", type=int, default=400, metavar="N", help="how many photographs (two eyes a patient)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="decides every picture and sentence")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="side of a picture")


def _phantom(args: argparse.Namespace) -> None:
    from maskedclip.data.phantom import write_phantoms

    manifest = write_phantoms(args.out, images=args.images, seed=args.seed, size=args.size)
    say_next(f"{args.images} phantoms in {args.out}", f"next: maskedclip curate {manifest} --out STORE")


# --- curate ----------------------------------------------------------------------------------------------------------


def _curate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "manifest", type=path, help="CSV, TSV, Parquet or JSONL with a column image; or a folder or archive of images"
    )
    parser.add_argument("--out", type=path, required=True, metavar="STORE", help="new folder for the store")
    parser.add_argument("--size", type=int, default=None, metavar="PX", help="side of a stored image; default 256")
    parser.add_argument(
        "--crop", choices=["fundus", "none"], default=None, help="find and crop the fundus field; the default"
    )
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="this machine, or a Ray cluster")
    parser.add_argument("--image-format", choices=["jpeg", "png"], default=None, help="png is lossless; default jpeg")
    add_manifest_reading(parser)
    parser.add_argument(
        "--about", type=path, metavar="FILE", help="YAML for the data card: source, licence, consent, ..."
    )
    parser.add_argument(
        "--append", action="store_true", help="add the rows that STORE does not have yet, prepared as its own are"
    )


def _curate(args: argparse.Namespace) -> None:
    from maskedclip.data.card import read_provenance
    from maskedclip.data.curate import curate
    from maskedclip.data.curate_append import append

    common: dict[str, Any] = {
        "engine": args.engine,
        "text_encoding": args.encoding,
        "allow_outside": args.allow_outside,
    }
    if args.append:
        for name in ("size", "crop", "image_format", "about"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')}: new rows are prepared as the store's own; leave it out")
        done = append(args.manifest, args.out, **common)
    else:
        done = curate(
            args.manifest,
            args.out,
            size=args.size or 256,
            crop=args.crop or "fundus",
            encoding=args.image_format or "jpeg",
            provenance=read_provenance(args.about) if args.about else None,
            **common,
        )
    counts = done.counts
    for rejected in done.quarantine[:20]:
        print(f"quarantined: row {rejected.row}, {rejected.image}: {rejected.reason}", file=sys.stderr)
    say_next(
        *done.notes,
        f"{counts['stored']:,} images in {args.out} ({counts['paired']:,} with text, {counts['unpaired']:,} without), "
        + (f"{done.images_per_second:.0f} images/s" if done.images_per_second else "none of them new"),
        f"{counts['quarantined']:,} quarantined"
        + (f"; every reason is in {args.out}/quarantine.csv" if counts["quarantined"] else ""),
        f"next: maskedclip pretrain --config maskedclip --config tiny --data {args.out} --out RUN",
    )


# --- pretrain --------------------------------------------------------------------------------------------------------


def _pretrain_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--data",
        action="append",
        nargs="+",
        type=path,
        required=True,
        metavar="STORE",
        help="one store or several",
    )
    parser.add_argument("--out", type=path, required=True, metavar="RUN", help="the run directory")
    parser.add_argument(
        "--resume",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="go on from the newest whole checkpoint",
    )


def _pretrain(args: argparse.Namespace) -> None:
    from maskedclip.ranks import leave_ranks
    from maskedclip.recipe import load_recipe
    from maskedclip.training.pretrain import pretrain
    from maskedclip.training.rundir import RunDirectory

    run = RunDirectory(args.out)
    if args.resume and not args.config and not args.rest and run.recipe_file.is_file():
        recipe = run.read_recipe()
    elif args.resume and not args.config and not args.rest and run.is_used():
        raise UserError(f"{args.out}: holds no recipe.yaml; give --config as when the run began")
    else:
        recipe = load_recipe(args.config or ["maskedclip", "vitb16"], args.rest)
    stores = [store for group in args.data for store in group]
    done = pretrain(recipe, stores, args.out, resume=args.resume)
    leave_ranks()
    if not done.leads:
        sys.exit(done.status)
    from maskedclip.data.store import open_store
    from maskedclip.evaluation.report import write_report

    report = write_report(args.out / "report.html", args.out, open_store(stores))
    if done.complete:
        say_next(
            f"{args.out}: {done.step} steps done; the model is in {args.out}/model, curves and pictures in {report}",
            f"next: maskedclip evaluate {args.out} --data {stores[0]} --out {args.out}/evaluation",
        )
    else:
        say_next(
            f"{args.out}: stopped at step {done.step}, {done.reason}; the model so far is in {args.out}/model",
            "next: the same command with --resume true goes on",
        )
    if done.status:
        sys.exit(done.status)


# --- demo, doctor ----------------------------------------------------------------------------------------------------


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=path, required=True, metavar="DIR", help="new folder; an interrupted demo goes on in it"
    )
    parser.add_argument(
        "--steps", type=int, default=None, metavar="N", help="training steps; the default takes minutes"
    )
    parser.add_argument("--images", type=int, default=None, metavar="N", help="phantoms")
    parser.add_argument("--seed", type=int, default=0, metavar="S")


def _demo(args: argparse.Namespace) -> None:
    from maskedclip.demo import demo

    report = demo(args.out, steps=args.steps, images=args.images, seed=args.seed)
    say_next(f"next: open {report} in a browser; then train on your own images, see README.md")


VERBS: dict[str, Verb] = {
    "demo": Verb(
        "phantoms -> store -> training -> evaluation -> report.html, in minutes",
        "maskedclip demo --out demo",
        _demo_arguments,
        _demo,
    ),
    "phantom": Verb(
        "draw synthetic fundus photographs with reports, labels and masks",
        "maskedclip phantom --out phantoms --images 400 --seed 0",
        _phantom_arguments,
        _phantom,
    ),
    **MANIFEST_VERBS,
    **VOLUME_VERBS,
    "curate": Verb(
        "a table of images -> a store: decode, crop, resize, quarantine",
        "maskedclip curate manifest.csv --out stores/fundus",
        _curate_arguments,
        _curate,
    ),
    "pretrain": Verb(
        "train a recipe on one store or several",
        "maskedclip pretrain --config maskedclip --config tiny --data stores/fundus --out runs/first",
        _pretrain_arguments,
        _pretrain,
        takes_recipe=True,
    ),
    **EVALUATE_VERBS,
    **PAIR_VERBS,
    **COMPARE_VERBS,
    **AUDIT_VERBS,
    **STORE_VERBS,
    **STUDY_VERBS,
    **EMBED_VERBS,
    **SEARCH_VERBS,
    **COMPOSE_VERBS,
    **CLASSIFY_VERBS,
    **SEGMENT_VERBS,
    **EXPORT_VERBS,
    **SERVE_VERBS,
    **PARTS_VERBS,
    **MACHINE_VERBS,
}


def _overview() -> str:
    width = max(map(len, VERBS))
    listed = "\n".join(f"  {name:<{width}}  {verb.about}" for name, verb in VERBS.items())
    return (
        "MaskedCLIP: one model from images with reports and images without.\n\n"
        f"usage: maskedclip VERB ...\n\n{listed}\n\n"
        "`maskedclip VERB --help` shows a verb's arguments and an example.  Begin with `maskedclip demo --out demo`."
    )


_READ_RUNS = ("evaluate", "probe")
"""Verbs that build the objective of a finished run, to draw what it predicts."""


def _parser(name: str) -> VerbParser:
    verb = VERBS[name]
    parser = VerbParser(
        prog=f"maskedclip {name}",
        description=verb.about,
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.arguments(parser)
    if verb.takes_recipe or name in _READ_RUNS:
        add_part(parser)
    return parser


def _recipe_help() -> str:
    from maskedclip.recipe import recipe_parser, shipped_recipes

    sections = recipe_parser().format_help().split("\n\n")
    kept = [section for section in sections if not section.startswith(("usage:", "options:"))]
    fields = re.sub(r"\n  --\w+ CONFIG +Path to a configuration file\.", "", "\n\n".join(kept))
    return f"\nshipped recipes: {', '.join(shipped_recipes())}\n\nfields of a recipe, each a flag:\n\n{fields}"


def run(arguments: Sequence[str]) -> None:
    """Run one command.

    Raises:
        UserError, CheckFailed: what `main` turns into exit statuses.
    """
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_overview())
        return
    if arguments[0] in {"--version", "-V"}:
        print(f"maskedclip {__version__}")
        return
    name, *rest = arguments
    if name not in VERBS:
        import difflib

        near = difflib.get_close_matches(name, VERBS, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"verbs: {', '.join(VERBS)}"
        raise UserError(f"{name}: no such verb; {hint}")
    verb, parser = VERBS[name], _parser(name)
    if verb.takes_recipe and {"-h", "--help"} & set(rest):
        print(parser.format_help() + _recipe_help())
        return
    args: Any
    if verb.takes_recipe:
        args, args.rest = parser.parse_known_args(rest)
    else:
        args = parser.parse_args(rest)
    register_parts(args)
    verb.run(args)


_AFTER_INTERRUPTION = {
    "pretrain": "; the same command with --resume true goes on",
    **dict.fromkeys(("curate", "demo", "embed", "study"), "; the same command goes on"),
    **dict.fromkeys(("segment", "explain"), "; what is finished stays, give another --out"),
}


def main() -> None:
    """Entry point: errors become one line and a status, 2 for what the user gave, 1 for a check that failed."""
    try:
        run(sys.argv[1:])
    except UserError as error:
        _fail(str(error), 2)
    except CheckFailed as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        verb = sys.argv[1] if len(sys.argv) > 1 else ""
        _fail(f"interrupted{_AFTER_INTERRUPTION.get(verb, '')}", 130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(f"{error.filename or 'the disk'}: no space left; free some and run the command again", 2)
        if isinstance(
            error, PermissionError | FileNotFoundError | NotADirectoryError | FileExistsError | IsADirectoryError
        ):
            _fail(f"{error.filename}: {error.strerror}; check the path and its permissions", 2)
        raise


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
