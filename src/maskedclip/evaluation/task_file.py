"""A task: what is to be told from which images, as a YAML file.

```yaml
name: aptos2019
about: what the images are, where they come from, under which licence, and what is not certain
citation: how its authors want to be cited
labels:
  dr_grade: {kind: ordinal, classes: {0: no diabetic retinopathy, 1: mild, 2: moderate, 3: severe, 4: proliferative}}
data:                        # the layouts in which the set is found; the first that fits a folder is read
  - layout: folders          # RETFound's: train, val, test, and in each a folder for each class
    pattern: "{split}/{class}"
    label: dr_grade
    folders: {0: [anodr], 1: [bmilddr], 2: [cmoderatedr], 3: [dseveredr], 4: [eproliferativedr]}
  - layout: table            # CSV files with a column for each label
    tables:
      - file: train.csv
        image: "train_images/{id_code}"
        labels: {dr_grade: diagnosis}
        columns: {age: Patient Age}   # name in the store: column of the table, for --subgroups
        where: {eye: left}            # the rows to read, where these are not all of them
split: {shares: {train: 0.6, val: 0.1, test: 0.3}, seed: 0}   # of the patients, where the data come without one
protocols: [linear, knn, fewshot, zero_shot]
```

`kind` is `binary` (0 or 1, one of many findings; no classes), `ordinal` (whole numbers with their meaning) or `nominal`
(a list of words).  A third layout, `store`, names the label columns of a store that was curated already.

The labels are evaluated as what `kind` says.  A meaning is what zero-shot calls its grade, where the grade has no
sentences of its own in the package and the user gives none.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from maskedclip.data.manifest_checks import STORE_COLUMNS, TEXT_COLUMNS
from maskedclip.errors import UserError
from maskedclip.evaluation.task_spec import (
    KINDS,
    LAYOUTS,
    PLACEHOLDER,
    PROTOCOLS,
    SPLITS,
    Cell,
    LabelSpec,
    Layout,
    PairSpec,
    Split,
    TableSpec,
    TaskError,
    TaskFile,
)

SHIPPED = Path(__file__).parent / "tasks_shipped"


def shipped_tasks() -> list[str]:
    """Names of the tasks that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_task(name_or_path: str | Path) -> TaskFile:
    """A task, given its file or the name of a shipped one.

    Raises:
        TaskError: all faults of the file.
        UserError: no such file or name, or it is no YAML.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        path = SHIPPED / f"{name_or_path}.yaml"
    if not path.is_file():
        raise UserError(f"--task {name_or_path}: no such task; shipped: {', '.join(shipped_tasks())}, or give a file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give a YAML file in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1} " if mark else ""
        raise UserError(f"{path}: {where}is not YAML ({getattr(error, 'problem', error)})") from error
    node = Node(content, "", [])
    task = _task(node, path)
    if node.faults:
        raise TaskError(str(path), node.faults)
    return task


class Node:
    """A part of the file that is read key by key, noting every fault with its place."""

    def __init__(self, content: Any, place: str, faults: list[str]) -> None:
        self.place, self.faults = place, faults
        self.content: dict = content if isinstance(content, dict) else {}
        if not isinstance(content, dict):
            self.fault("", "is not a map of keys to values")

    def fault(self, key: str, problem: str) -> None:
        """Note what is wrong at a key, or with the whole part."""
        place = ".".join(str(part) for part in (self.place, key) if str(part))
        self.faults.append(f"{place}: {problem}" if place else problem)

    def only(self, *keys: str) -> None:
        """Note keys that mean nothing here, and why."""
        for key in self.content:
            if key not in keys:
                self.fault("", f"unknown key {key!r}; known: {', '.join(keys)}")

    def text(self, key: str, default: str | None = "", among: tuple[str, ...] = ()) -> str:
        """A text; a default of None makes it required."""
        value = self.content.get(key, default)
        if value is None:
            self.fault(key, "is missing")
        elif not isinstance(value, str) or (key in self.content and not value.strip()):
            self.fault(key, f"{value!r} is not text; put it in quotes")
        elif among and value not in among and key in self.content:
            self.fault(key, f"{value!r} is none of {', '.join(among)}")
        else:
            return value
        return ""

    def texts(self, key: str, default: tuple[str, ...] | None = ()) -> tuple[str, ...]:
        """A list of texts, or one text."""
        value = self.content.get(key, default)
        values = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
        if (not values and default is None) or any(not isinstance(entry, str) for entry in values):
            what = "is missing" if value is None else f"{value!r} is not a text, or a list of texts"
            self.fault(key, f"{what}; put words such as yes and no in quotes")
            return ()
        return tuple(values)

    def text_map(self, key: str) -> dict[str, str]:
        """A map of texts to texts; none where the key is missing."""
        own = self.node(key) if key in self.content else Node({}, "", self.faults)
        return {str(name): own.text(name, None) for name in own.content}

    def nodes(self, key: str) -> "list[Node]":
        """A list of maps, one at least."""
        value = self.content.get(key)
        if not isinstance(value, list) or not value:
            self.fault(key, "needs a list of one or more entries")
            return []
        return [Node(entry, self._below(f"{key}[{place}]"), self.faults) for place, entry in enumerate(value)]

    def node(self, key: str) -> "Node":
        """A map below a key."""
        return Node(self.content.get(key), self._below(key), self.faults)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """A number in a range."""
        value = self.content.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fault(key, f"{value!r} is not a number from {low:g} to {high:g}")
            return default
        return value

    def _below(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key


def _task(node: Node, path: Path) -> TaskFile:
    node.only("name", "about", "citation", "labels", "data", "split", "protocols", "crop")
    labels = {}
    for name in node.node("labels").content:
        spec = _label(node.node("labels").node(name), str(name))
        labels[spec.name] = spec
    if not labels and "labels" in node.content:
        node.fault("labels", "names no label")
    protocols = node.texts("protocols", PROTOCOLS[:2])
    for name in protocols:
        if name not in PROTOCOLS:
            node.fault("protocols", f"{name!r} is none of {', '.join(PROTOCOLS)}")
    return TaskFile(
        name=node.text("name", None),
        about=node.text("about", None),
        citation=node.text("citation"),
        labels=labels,
        layouts=tuple(_layout(part, labels) for part in node.nodes("data")),
        split=_split(node),
        protocols=protocols,
        crop=node.text("crop", "fundus", ("fundus", "none")),
        path=path,
    )


def _label(node: Node, name: str) -> LabelSpec:
    node.only("kind", "classes")
    kind = node.text("kind", None, KINDS)
    given = node.content.get("classes")
    classes: dict[int | str, str] = {0: "no", 1: "yes"}
    if kind == "binary" and given is not None:
        node.fault("classes", "a binary label has none: it is 0 or 1")
    elif kind == "ordinal":
        fits = isinstance(given, dict) and len(given) > 1 and all(type(key) is int for key in given)
        classes = {key: str(value) for key, value in given.items()} if fits and isinstance(given, dict) else {}
        if not fits:
            node.fault("classes", "needs two or more whole numbers with their meaning, such as {0: none, 1: mild}")
        else:
            _check_meanings(node.node("classes"))
    elif kind == "nominal":
        words = [word for word in given if isinstance(word, str)] if isinstance(given, list) else []
        # Cells are read in any case, so words that differ in it alone are one.
        fits = len(words) > 1 and words == given and len({word.strip().lower() for word in words}) == len(words)
        classes = {word: word for word in words} if fits else {}
        if not fits:
            node.fault("classes", "needs a list of two or more different words, such as [normal, glaucoma]")
    return LabelSpec(name=name, kind=kind, classes=classes)


def _check_meanings(node: Node) -> None:
    """They are what zero-shot calls the grades: text, and another one for each."""
    first: dict[str, int] = {}
    for value in node.content:
        meaning = node.text(value, None).strip().lower()
        if meaning and first.setdefault(meaning, value) != value:
            node.fault(value, f"{meaning!r} is the meaning of {first[meaning]} too; tell the two apart")


def _split(node: Node) -> Split:
    if "split" not in node.content:
        return Split()
    part = node.node("split")
    part.only("shares", "validation", "seed")
    shares = None
    if "shares" in part.content:
        own = part.node("shares")
        own.only(*SPLITS)
        shares = {name: own.number(name, 0.0, 0, 1) for name in SPLITS}
        if abs(sum(shares.values()) - 1) > 1e-6 or not shares["train"] or not shares["test"]:
            part.fault("shares", "train, val and test must add up to 1, with some of train and of test")
    return Split(
        shares=shares,
        validation=part.number("validation", 0.0, 0, 0.9),
        seed=int(part.number("seed", 0, 0, 2**31)),
    )


def _layout(node: Node, labels: Mapping[str, LabelSpec]) -> Layout:
    kind = node.text("layout", None, LAYOUTS)
    roots = node.texts("roots", (".",))
    if kind == "folders":
        return _folders(node, labels, roots)
    if kind == "table":
        node.only("layout", "roots", "tables", "pairs")
        tables = tuple(_table(part, labels) for part in node.nodes("tables"))
        pairs = None
        if "pairs" in node.content:
            own = node.node("pairs")
            own.only("file", "columns")
            pairs = PairSpec(file=own.text("file", None), columns=own.texts("columns", None))
        return Layout(kind=kind, roots=roots, tables=tables, pairs=pairs)
    if kind == "store":
        node.only("layout", "columns")
        own = node.node("columns") if "columns" in node.content else Node({}, "", node.faults)
        own.only(*labels)
        return Layout(kind=kind, columns={name: own.text(name, name) for name in labels})
    return Layout(kind=kind)


def _folders(node: Node, labels: Mapping[str, LabelSpec], roots: tuple[str, ...]) -> Layout:
    node.only("layout", "roots", "pattern", "label", "folders", "patient")
    label = node.text("label", None, tuple(labels))
    patterns = node.texts("pattern", ("{split}/{class}",))
    for pattern in patterns:
        if "{class}" not in pattern or set(PLACEHOLDER.findall(pattern)) - {("split", ""), ("class", "")}:
            node.fault("pattern", f"{pattern!r} needs {{class}}, and may have {{split}}")
    patient = node.text("patient")
    try:
        if patient and re.compile(patient).groups != 1:
            node.fault("patient", f"{patient!r} needs one group in brackets, which is the patient")
    except re.error as error:
        node.fault("patient", f"{patient!r} is no regular expression ({error})")
    classes = labels[label].classes if label in labels else {}
    own = node.node("folders") if "folders" in node.content else Node({}, "", node.faults)
    for key in own.content:
        if classes and key not in classes:
            own.fault("", f"{key!r} is no class of {label}; it has {', '.join(map(str, classes))}")
    folders = {value: own.texts(value, (str(value),)) for value in classes}  # type: ignore[arg-type]
    return Layout(kind="folders", roots=roots, patterns=patterns, label=label, folders=folders, patient=patient)


def _table(node: Node, labels: Mapping[str, LabelSpec]) -> TableSpec:
    node.only("file", "image", "split", "patient", "text", "labels", "columns", "where")
    own = node.node("labels")
    own.only(*labels)
    cells = {name: _cell(own, name, labels[name]) for name in own.content if name in labels}
    columns = node.text_map("columns")
    for name in columns:
        if name.lower() in (*TEXT_COLUMNS, *STORE_COLUMNS) or name.startswith(("label.", "mask.")) or not name.strip():
            node.fault("columns", f"{name!r} is a name of the store's own; call the column otherwise, such as age")
    return TableSpec(
        file=node.text("file", None),
        image=node.texts("image", None),
        split=node.text("split", "", SPLITS),
        patient=node.text("patient"),
        text=node.text("text"),
        labels=cells,
        columns=columns,
        where=node.text_map("where"),
    )


def _cell(node: Node, name: str, label: LabelSpec) -> Cell:
    if isinstance(node.content[name], str):
        return Cell(column=node.content[name])
    part = node.node(name)
    part.only("column", "values", "contains")
    contains = part.text("contains") or None
    if contains and label.kind != "binary":
        part.fault("contains", f"is for binary labels, and {name} is {label.kind}")
    values = part.content.get("values")
    if values is not None and not isinstance(values, dict):
        part.fault("values", "needs a map of cells to classes")
        values = None
    for value in (values or {}).values():
        # A list or map cannot be looked up, and true and false would pass for 1 and 0, which are no grades.
        plain = isinstance(value, str | int | float) and (label.kind == "binary" or not isinstance(value, bool))
        if not plain or value not in label.classes:
            part.fault("values", f"{value!r} is no class of {name}; it has {', '.join(map(str, label.classes))}")
    translated = None if values is None else {str(cell): value for cell, value in values.items()}
    return Cell(column=part.text("column", None), values=translated, contains=contains)
