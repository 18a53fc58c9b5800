"""Commands that the README and the docs show are commands that exist."""

import re
import shlex
from pathlib import Path

import pytest

from maskedclip import cli, parts
from maskedclip.cli_parts import register_parts
from maskedclip.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]


def _commands(page: str) -> list[str]:
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return [line.split("#")[0].strip() for line in re.findall(r"^\s*(maskedclip .+)$", text, re.MULTILINE)]


def _write_files(page: str, folder: Path) -> None:
    """The files that a page shows, where its commands look for them."""
    shown = re.finditer(r"<!-- file: (\S+) -->\n```\w+\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    for match in shown:
        (folder / match[1]).write_text(match[2])


@pytest.mark.parametrize("page", PAGES)
def test_page__its_commands_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "_registered", {"masking": {}, "terms": {}})
    _write_files(page, tmp_path)
    for command in _commands(page):
        verb, *arguments = shlex.split(command)[1:]
        if verb.startswith("-") or verb == "VERB":
            continue
        args, rest = cli._parser(verb).parse_known_args(arguments)
        if not parts.sources():
            register_parts(args)
        if cli.VERBS[verb].takes_recipe:
            assert load_recipe(getattr(args, "config", []), rest)
        else:
            assert not rest


@pytest.mark.parametrize("page", PAGES)
def test_page__its_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target
        inside = ((ROOT / page).parent / target).resolve().is_relative_to(ROOT / "docs")
        assert page == "README.md" or inside, f"{target} is no part of the site"


def test_readme__shows_commands() -> None:
    assert len(_commands("README.md")) >= 6
    assert {"demo", "test", "check", "docs"} <= set(
        re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
