"""The verb that lists what recipes are put together from; and the flag that adds a part of a user's own."""

import argparse
import dataclasses
import difflib
import json
import textwrap
from typing import Any, get_args

from maskedclip.cli_verb import Verb, path, say_next
from maskedclip.errors import UserError

_TITLES = {"masking": "maskings (objective.masking: NAME)", "terms": "losses (objective.terms: {NAME: {weight: 1.0}})"}


def add_part(parser: argparse.ArgumentParser) -> None:
    """--part, of the verbs that build what a recipe says."""
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        type=path,
        metavar="FILE.py",
        help="a masking or a loss of your own, named by its file, which is run as code; may be repeated",
    )


def register_parts(args: argparse.Namespace) -> None:
    """Make the files of --part known."""
    from maskedclip.parts import register_file

    for file in getattr(args, "part", []):
        register_file(file)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default=None, help="one part: show all its options")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    add_part(parser)


def _parts(args: argparse.Namespace) -> None:
    from maskedclip import parts

    slots: tuple[parts.Slot, ...] = get_args(parts.Slot)
    found = {slot: {name: _described(slot, name) for name in parts.known(slot)} for slot in slots}
    if args.name is not None:
        found = {slot: {args.name: names[args.name]} for slot, names in found.items() if args.name in names}
        if not any(found.values()):
            names = [name for slot in slots for name in parts.known(slot)]
            near = difflib.get_close_matches(args.name, names, 1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{args.name}: no such part; {meant}`maskedclip parts` lists them, --part adds yours")
    if args.json:
        print(json.dumps(found, indent=1, default=str))
        return
    for slot, names in found.items():
        if names:
            print(_TITLES[slot])
        for name, told in names.items():
            print(f"  {name:<20} {told['about']}")
            for option, value in told["options"].items():
                if args.name is not None or option not in ("weight", "ramp"):
                    print(f"      {option}: {json.dumps(value, default=str)}")
    say_next(
        "next: maskedclip pretrain --config maskedclip --config tiny --objective.masking NAME --data STORE --out RUN"
    )


def _described(slot: Any, name: str) -> dict[str, Any]:
    from maskedclip import parts

    try:
        module = parts.find(slot, name)
    except UserError as error:  # of a package that is broken: the others are still told
        return {"about": str(error), "options": {}}
    first = " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())
    values = {entry.name: _default(entry) for entry in dataclasses.fields(module.Options)}
    return {"about": textwrap.shorten(first, 110, placeholder=" ..."), "options": values}


def _default(entry: dataclasses.Field) -> Any:
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return None if entry.default_factory is dataclasses.MISSING else entry.default_factory()


PARTS_VERBS: dict[str, Verb] = {
    "parts": Verb(
        "the maskings and losses that recipes are put together from, with their options",
        "maskedclip parts xclip",
        _arguments,
        _parts,
    ),
}
