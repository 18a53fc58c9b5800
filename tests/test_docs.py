"""Every code block of the README and the docs runs, page by page, in a small world of files with the names they use.

A block that needs another machine (a cluster, a model hub, root) is preceded by `<!-- not run: why -->`; its commands
are still parsed by test_readme.py.  A block may be preceded by `<!-- exit status 1 -->` where that is what it shows,
and by `<!-- file: NAME -->` where it is a file that later blocks use.
Trainings run at the size of the tests.
"""

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from maskedclip import cli
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.cli_case import status
from tests.data.volumes_given import write_nifti
from tests.evaluation.task_folders import RETINOPATHY, class_folders
from tests.stores import SENTENCES, TINY, draw

ROOT = Path(__file__).resolve().parents[1]
ROWS = 48
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]
_BLOCK = re.compile(
    r"(?:<!-- *(?P<mark>[^>]*?) *-->\s*\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<body>.*?)^(?P=indent)```", re.M | re.S
)
MADE = {"README.md": ["stores/fundus", "runs/first/evaluation", "heads"], "docs/classify.md": ["heads"]}
"""What a page makes itself."""
SHOWN = {"text", "json", "csv", "html", "toml", "ini", "nginx", "dockerfile"}
"""Kinds of blocks that show a file or an answer."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its kind, its lines without indentation, and the mark before it."""

    kind: str
    body: str
    mark: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer((ROOT / page).read_text()):
        indent = len(match["indent"])
        body = "\n".join(line[indent:] for line in match["body"].splitlines())
        found.append(Block(match["kind"], body, match["mark"] or ""))
    return found


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: stores/*, runs/* with their evaluations, photographs, tables."""
    base = tmp_path_factory.mktemp("world")
    for number, name in enumerate(("fundus", "unlabelled", "test", "pretraining")):
        _curated(base, name, number)
    shutil.copy(base / "photographs.csv", base / "manifest.csv")
    for name in ("grown.csv", "export_2026.csv"):
        shutil.copy(base / "photographs.csv", base / name)
    reports = [f"{row:04d},Normal fundus.,p{row // 2},{row // 2 % 2},{row // 4 % 2},60" for row in range(ROWS)]
    (base / "reports.csv").write_text(
        "\n".join(["image_id,report,patient,label.glaucoma,label.drusen,age", *reports]) + "\n"
    )
    class_folders(base / "APTOS", RETINOPATHY, each=4)
    (base / "scans").mkdir()
    write_nifti(base / "scans" / "head.nii.gz")
    for name in ("eye.jpg", "other.jpg"):
        Image.open(base / "photographs" / "0001.png").save(base / name)
    run = base / "runs" / "first"
    pretrain(load_recipe(["maskedclip", "tiny"], TINY), base / "stores" / "fundus", run)
    assert status("evaluate", run, "--data", base / "stores" / "fundus", "--out", run / "evaluation") == 0
    assert status("probe", run, "--data", base / "stores" / "fundus", "--out", base / "heads" / "first") == 0
    for name in ("second", "third", "clip-0", "clip-1", "masked-0", "masked-1"):
        shutil.copytree(run, base / "runs" / name)
    return base


def _curated(base: Path, name: str, seed: int) -> None:
    """photographs of the store `fundus` stay where they are; each store has a manifest NAME.csv of its own."""
    folder = "photographs" if name == "fundus" else f"pictures-{name}"
    (base / folder).mkdir()
    lines = ["image,text,patient,split,label.glaucoma,label.drusen,age,sex"]
    for row in range(ROWS):
        kind = (row // 2 * 7 + seed) % 4
        (base / folder / f"{row:04d}.png").write_bytes(draw(row + 1000 * seed, 32, kind))
        split = "test" if row // 2 % 6 == 5 else "val" if row // 2 % 6 == 4 else "train"
        text = "" if name == "unlabelled" else f'"{SENTENCES[kind]}"'
        columns = (f"{name}{row // 2}", split, kind & 1, kind >> 1, 50 + row % 30, "fm"[row % 2])
        lines.append(",".join([f"{folder}/{row:04d}.png", text, *map(str, columns)]))
    table = base / ("photographs.csv" if name == "fundus" else f"{name}.csv")
    table.write_text("\n".join(lines) + "\n")
    assert status("curate", table, "--out", base / "stores" / name, "--crop", "none", "--size", "32") == 0


@pytest.mark.parametrize("page", PAGES)
def test_page__its_blocks_run(page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for made in MADE.get(page, ()):
        shutil.rmtree(made)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.mark.startswith("file: "):
            (tmp_path / "here" / block.mark.removeprefix("file: ")).write_text(block.body + "\n")
            continue
        if block.mark.startswith("not run") or block.kind in SHOWN or block.kind == "yaml":
            continue
        if block.kind == "python":
            exec(compile(block.body, page, "exec"), names)
            continue
        for command in _commands(block.body):
            expected = 1 if block.mark == "exit status 1" else 0
            assert _run(command) == expected, " ".join(command)


def _commands(body: str) -> list[list[str]]:
    joined = body.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if shlex.split(line, comments=True)]


def _run(command: list[str]) -> int:
    program, *arguments = command
    assert program == "maskedclip", f"{program}: mark the block with <!-- not run: why -->"
    verb = arguments[0]
    if verb == "pretrain" and "--resume" not in arguments:
        arguments += TINY
    if verb == "--help" or "--help" in arguments:
        cli.run(arguments)
        return 0
    return status(*arguments)


def test_blocks__are_found() -> None:
    kinds = [block.kind for page in PAGES for block in blocks(page)]
    assert kinds.count("python") >= 3
    assert kinds.count("") >= 20
    for page in PAGES:
        assert (ROOT / page).read_text().count("```") == 2 * len(blocks(page)), page
