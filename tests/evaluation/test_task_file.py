import pickle
import re
from pathlib import Path

import pytest

from maskedclip.data.prompts import humanise, prompts_for, prompts_for_class
from maskedclip.errors import UserError
from maskedclip.evaluation.task_file import load_task, shipped_tasks
from maskedclip.evaluation.task_spec import TaskError

GOOD = """
name: mine
about: some eyes
labels:
  grade: {kind: ordinal, classes: {0: none, 1: some}}
data:
  - layout: folders
    label: grade
    folders: {0: [none], 1: [some]}
protocols: [linear]
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_load_task__a_file_and_its_defaults(tmp_path: Path) -> None:
    task = load_task(_write(tmp_path, GOOD))
    assert (task.name, task.crop, task.split.shares, task.on_store) == ("mine", "fundus", None, False)
    assert task.labels["grade"].classes == {0: "none", 1: "some"}
    assert task.layouts[0].patterns == ("{split}/{class}",)
    assert task.layouts[0].folders == {0: ("none",), 1: ("some",)}


@pytest.mark.parametrize("name", shipped_tasks())
def test_load_task__shipped_tasks_are_whole(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert len(task.about) > 80
    assert task.path.read_text().startswith(f"# maskedclip evaluate RUN --task {name} ")
    assert not re.search(r"https?:|www\.", task.path.read_text())  # links die
    assert task.on_store or task.citation
    assert "linear" in task.protocols


def test_shipped_tasks__are_the_public_sets_of_the_field() -> None:
    wanted = {"aptos2019", "idrid", "messidor2", "papila", "glaucoma_fundus", "jsiec1000", "retina", "octid"}
    assert wanted | {"odir5k", "rfmid", "phantom"} <= set(shipped_tasks())


@pytest.mark.parametrize("name", shipped_tasks())
def test_shipped_tasks__every_class_has_prompts_that_no_other_class_has(name: str) -> None:
    findings: dict[str, object] = {}
    for label in load_task(name).labels.values():
        if label.kind == "binary":
            classes, owners = {label.name: prompts_for(label.name)}, findings
        else:
            classes, owners = {value: prompts_for_class(label.name, value) for value in label.classes}, {}
        for value, prompts in classes.items():
            assert len(prompts) >= 3
            assert prompts[0] != f"{humanise(label.name)} {value}"  # a grade in words of its own
            if not isinstance(value, int):
                assert len(prompts) > 5, value  # more than the templates of a name nobody described
            for prompt in prompts:
                assert owners.setdefault(prompt, (label.name, value)) == (label.name, value), prompt


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("protocols:", "protokols:", "unknown key 'protokols'; known: name, about"),
        ("about: some eyes", "", "about: is missing"),
        ("kind: ordinal", "kind: grades", "labels.grade.kind: 'grades' is none of binary, ordinal, nominal"),
        ("{0: none, 1: some}", "[none, some]", "labels.grade.classes: needs two or more whole numbers"),
        ("kind: ordinal, classes: {0: none, 1: some}", "kind: nominal, classes: [a]", "needs a list of two or more"),
        ("{0: none, 1: some}", "{0: no, 1: some}", "labels.grade.classes.0: False is not text; put it in quotes"),
        ("{0: none, 1: some}", "{0: , 1: some}", "labels.grade.classes.0: is missing"),
        ("{0: none, 1: some}", "{0: none, 1: None }", "labels.grade.classes.1: 'none' is the meaning of 0 too"),
        ("ordinal, classes: {0: none, 1: some}", "nominal, classes: [a, A]", "two or more different words"),
        ("kind: ordinal,", "kind: binary,", "labels.grade.classes: a binary label has none"),
        ("layout: folders", "layout: zip", "data[0].layout: 'zip' is none of folders, table, store"),
        ("label: grade", "label: stage", "data[0].label: 'stage' is none of grade"),
        ("0: [none]", "7: [none]", "data[0].folders: 7 is no class of grade; it has 0, 1"),
        ("label: grade", 'label: grade\n    pattern: "{split}"', "data[0].pattern: '{split}' needs {class}"),
        ("label: grade", "label: grade\n    patient: 'p'", "data[0].patient: 'p' needs one group in brackets"),
        ("label: grade", "label: grade\n    patient: '('", "data[0].patient: '(' is no regular expression"),
        ("[linear]", "[linear, guess]", "protocols: 'guess' is none of linear"),
        ("protocols", "split: {shares: {train: 0.5, test: 0.2}}\nprotocols", "split.shares: train, val and test must"),
        ("protocols", "split: {seed: x}\nprotocols", "split.seed: 'x' is not a number"),
        ("0: [none]", "0: [no]", "data[0].folders.0: [False] is not a text, or a list of texts"),
        ("name: mine", "name: [mine]", "name: ['mine'] is not text"),
    ],
)
def test_load_task__fault_is_one_line_with_its_place(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    path = _write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(TaskError) as fault:
        load_task(path)
    assert says in str(fault.value)
    assert str(fault.value).startswith(f"{path}: ")
    assert all("\n" not in entry for entry in fault.value.faults)
    assert str(pickle.loads(pickle.dumps(fault.value))) == str(fault.value)


TABLE = """
name: mine
about: some eyes
labels:
  grade: {kind: ordinal, classes: {0: none, 1: some}}
  drusen: {kind: binary}
data:
  - layout: table
    tables:
      - file: a.csv
        image: "images/{id}"
        labels:
          grade: {column: g, values: {none: 0, some: 1}}
          drusen: {column: codes, contains: D}
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("some: 1", "some: 5", "data[0].tables[0].labels.grade.values: 5 is no class of grade; it has 0, 1"),
        ("some: 1", "some: [1]", "data[0].tables[0].labels.grade.values: [1] is no class of grade"),
        ("some: 1", "some: {1: 1}", "data[0].tables[0].labels.grade.values: {1: 1} is no class of grade"),
        ("some: 1", "some: yes", "data[0].tables[0].labels.grade.values: True is no class of grade"),
        ("some: 1", "some: ", "data[0].tables[0].labels.grade.values: None is no class of grade"),
        ("file: a.csv", "file: a.csv\n        columns: [age]", "tables[0].columns: is not a map of keys to values"),
        ("file: a.csv", "file: a.csv\n        columns: {age: 3}", "tables[0].columns.age: 3 is not text"),
        ("file: a.csv", "file: a.csv\n        columns: {Split: s}", "columns: 'Split' is a name of the store's own"),
        ("file: a.csv", "file: a.csv\n        columns: {label.x: s}", "columns: 'label.x' is a name of the store's"),
        ("file: a.csv", "file: a.csv\n        where: {eye: 1}", "tables[0].where.eye: 1 is not text"),
        (
            "column: g, values: {none: 0, some: 1}",
            "column: g, contains: x",
            "is for binary labels, and grade",
        ),
        ("column: codes, ", "", "data[0].tables[0].labels.drusen.column: is missing"),
        (
            "          drusen:",
            "          drusens:",
            "tables[0].labels: unknown key 'drusens'; known: grade",
        ),
        ('image: "images/{id}"', "image: 3", "data[0].tables[0].image: 3 is not a text, or a list of texts"),
        ("file: a.csv", "path: a.csv", "data[0].tables[0]: unknown key 'path'"),
    ],
)
def test_load_task__faults_of_tables(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in TABLE
    load_task(_write(tmp_path, TABLE))
    with pytest.raises(TaskError) as fault:
        load_task(_write(tmp_path, TABLE.replace(old, new, 1)))
    assert any(says in entry for entry in fault.value.faults)


def test_load_task__all_faults_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("about: some eyes", "abuot: some eyes").replace("[linear]", "[guess]")
    with pytest.raises(TaskError) as fault:
        load_task(_write(tmp_path, text))
    assert len(fault.value.faults) == 3
    assert str(fault.value).splitlines()[0].endswith("3 faults")
    assert len(str(fault.value).splitlines()) == 4


@pytest.mark.parametrize("content", ["", "[a, b]", "3"])
def test_load_task__something_else_than_a_map(tmp_path: Path, content: str) -> None:
    with pytest.raises(TaskError, match="is not a map of keys to values"):
        load_task(_write(tmp_path, content))


def test_load_task__unknown_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--task aptos: no such task; shipped: aptos2019, .* give a file"):
        load_task("aptos")
    with pytest.raises(UserError, match="no such task"):
        load_task(tmp_path / "none.yaml")


def test_load_task__no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 3 is not YAML"):
        load_task(_write(tmp_path, "name: a\nlabels: {\n}}"))
