"""Commands that the README and the docs show are commands that exist."""

import re
import shlex
from pathlib import Path

import pytest

from maskedclip import cli
from maskedclip.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]


def _commands(page: str) -> list[str]:
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in re.findall(r"^\s*(maskedclip .+)$", text, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES)
def test_page__its_commands_parse(page: str) -> None:
    for command in _commands(page):
        verb, *arguments = shlex.split(command)[1:]
        if verb.startswith("-") or verb == "VERB":
            continue
        args, rest = cli._parser(verb).parse_known_args(arguments)
        if cli.VERBS[verb].takes_recipe:
            assert load_recipe(getattr(args, "config", []), rest)
        else:
            assert not rest


@pytest.mark.parametrize("page", PAGES)
def test_page__its_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target
        assert page == "README.md" or not target.startswith(".."), f"{target} is no part of the site"


def test_readme__shows_commands() -> None:
    assert len(_commands("README.md")) >= 6
    assert {"demo", "test", "check", "docs"} <= set(
        re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
