"""Runs with evaluations for the tests of reports, and a reader of pages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq

from maskedclip.data.store import Store, open_store
from maskedclip.deployment.model import load
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.report import write_report
from maskedclip.evaluation.report_subject import Subject, read_subject
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.stores import TINY, make_store

SECTIONS = ["summary", "training", "curves", "reconstructions", "maps", "retrieval", "labels", "errors", "roc"]
SECTIONS += ["calibration", "subgroups", "few", "dense", "tables", "guide"]
MALICE = '<script>alert("1")</script> <img src=x onerror=alert(2)> a & b'
LABEL = 'gre"en<b>'
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a page holds: its tags with attributes, its text, and whether every tag is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text_of: dict[str, str] = {}
        self.section = "head"
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = str(attributes["id"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text_of[self.section] = self.text_of.get(self.section, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for attributes in self.all("section")]


@dataclass
class World:
    """A store with a nasty text and label, and one trained run a method, each evaluated."""

    folder: Path
    store: Store
    runs: dict[str, Path] = field(default_factory=dict)
    evaluations: dict[str, Path] = field(default_factory=dict)

    def report(self, name: str, run: str = "maskedclip", **arguments: object) -> Page:
        given: dict = {"evaluations": {"trained": self.evaluations[run]}} | arguments
        return Page(write_report(self.folder / name, self.runs[run], self.store, **given))

    def subject(self, run: str = "maskedclip", evaluations: Mapping[str, Path] | None = None) -> Subject:
        return read_subject(self.runs[run], self.store, evaluations or {}, 0)


def _spoil(folder: Path) -> None:
    """Put a nasty text and a nasty label name into a store."""
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = pq.read_table(shard)
        names = [name.replace("green", LABEL) for name in table.column_names]
        texts = [MALICE if text and text.startswith("A red") else text for text in table.column("text").to_pylist()]
        table = table.set_column(table.column_names.index("text"), "text", [texts])
        pq.write_table(table.rename_columns(names), shard)


def make_world(folder: Path) -> World:
    """Train and evaluate three runs below a folder."""
    _spoil(make_store(folder / "store", rows=72))
    made = World(folder, open_store(folder / "store"))
    steps = {"maskedclip": "4", "mae": "2", "untrained": "0"}
    for name, count in steps.items():
        method = "maskedclip" if name == "untrained" else name
        recipe = load_recipe([method, "tiny"], [*TINY, "--training.steps", count, "--training.validate_every", count])
        made.runs[name], made.evaluations[name] = folder / name, folder / f"evaluation_{name}"
        pretrain(recipe, folder / "store", made.runs[name])
        protocols = ("linear", "knn", "fewshot", "label_efficiency", "zero_shot", "retrieval")
        evaluate(
            load(made.runs[name]),
            made.store,
            made.evaluations[name],
            protocols=protocols,
            replicates=50,
            subgroups=("label.red",),
        )
    return made
