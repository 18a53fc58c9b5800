"""What every verb of the command line is made of."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from maskedclip.errors import UserError


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: what it is for, an example, its arguments, and what it does."""

    about: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    takes_recipe: bool = False


class VerbParser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        raise UserError(f"{message}; see `{self.prog} --help`")


def path(text: str) -> Path:
    """A path, with ~ for the user's folder."""
    return Path(text).expanduser()


def boolean(text: str) -> bool:
    """True and false as people write them."""
    if text.lower() in {"true", "1", "yes"}:
        return True
    if text.lower() in {"false", "0", "no"}:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def say_next(*lines: str) -> None:
    """Every verb ends with what to do next."""
    for line in lines:
        print(line)


def add_manifest_reading(parser: argparse.ArgumentParser) -> None:
    """How a manifest is read, of the verbs that read one."""
    parser.add_argument("--encoding", default="utf-8", help="of a CSV's text, e.g. latin-1")
    parser.add_argument("--allow-outside", action="store_true", help="accept image paths outside the manifest's folder")


def add_config(parser: argparse.ArgumentParser) -> None:
    """--config, of the verbs that take a recipe."""
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="RECIPE",
        help="a file or a shipped name, a method (maskedclip, clip, mae, ...) and a size (vitb16, tiny, ...); "
        "may be repeated, later ones override",
    )
