import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedclip.data.curate import curate
from maskedclip.data.manifest import read_manifest
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.evaluation.subgroups import group_rows, subgroup_columns
from maskedclip.evaluation.task_file import load_task
from maskedclip.evaluation.task_layouts import task_manifest, task_store
from maskedclip.evaluation.task_rows import Row, split_rows
from maskedclip.evaluation.task_spec import LabelSpec, Split, TaskError, TaskFile
from maskedclip.evaluation.tasks import read_tasks
from tests.evaluation.task_folders import (
    RETINOPATHY,
    SETS,
    aptos,
    class_folders,
    messidor2,
    odir_kaggle,
    odir_sheet,
    papila,
    picture,
    table,
)
from tests.stores import make_store

Draw = Callable[[Path], None]


def _manifest(name: str, draw: Draw, folder: Path) -> list[dict[str, str]]:
    draw(folder / "root")
    with task_manifest(load_task(name), folder / "root", folder / "out").open() as file:
        return list(csv.DictReader(file))


def _faults(name: str, root: Path, out: Path) -> list[str]:
    with pytest.raises(TaskError) as fault:
        task_manifest(load_task(name), root, out)
    assert not out.exists()
    assert all("\n" not in entry for entry in fault.value.faults)
    return fault.value.faults


@pytest.mark.parametrize(("name", "layout", "draw", "classes"), SETS, ids=[f"{s[0]}-{s[1]}" for s in SETS])
def test_task_manifest__every_shipped_layout_becomes_a_manifest(
    name: str, layout: str, draw: Draw, classes: int, tmp_path: Path
) -> None:
    rows = _manifest(name, draw, tmp_path)
    images = {path.name for path in (tmp_path / "root").rglob("*") if path.suffix.lower() in (".jpg", ".png")}
    assert {Path(row["image"]).name for row in rows} == images
    assert len(rows) == len({row["image"] for row in rows})
    assert all((tmp_path / "out" / row["image"]).is_file() for row in rows)
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    manifest = read_manifest(tmp_path / "out" / "manifest.csv", allow_outside=True)
    labels = {column.removeprefix("label."): manifest.table.column(column) for column in manifest.names("label")}
    task = load_task(name)
    if task.labels[next(iter(labels))].kind == "binary":
        assert len(labels) == classes
    else:
        first = labels[next(iter(labels))]
        assert len(set(first.to_pylist()) - {None}) == classes
    for label, column in labels.items():
        known = [value for value in column.to_pylist() if value is not None]
        assert set(known) <= set(task.labels[label].classes)


# One layout of each set; JSIEC's 39 classes are many images, and its folders are read as Retina's are.
CURATED = {name: draw for name, layout, draw, _ in SETS if layout != "retfound" and name != "jsiec1000"}


@pytest.mark.parametrize(("name", "draw"), CURATED.items(), ids=list(CURATED))
def test_task_manifest__through_curate_to_labels(name: str, draw: Draw, tmp_path: Path) -> None:
    rows = _manifest(name, draw, tmp_path)
    task = load_task(name)
    manifest = tmp_path / "out" / "manifest.csv"
    done = curate(manifest, tmp_path / "store", size=16, crop="none", allow_outside=True, progress=False)
    assert done.counts["stored"] == len(rows)
    store = open_store(tmp_path / "store")
    assert store.splits.tolist() == [row["split"] for row in rows]
    tasks, refused = read_tasks(store.labels)
    assert not refused
    for label, spec in task.labels.items():
        found, given = tasks[label], [row[f"label.{label}"] for row in rows]
        assert found.kind == spec.kind
        assert set(found.classes) == set(spec.classes)
        values = ["" if code < 0 else str(found.classes[code]) for code in found.truth]
        assert values == given


def test_task_manifest__ids_do_not_depend_on_where_the_set_lies(tmp_path: Path) -> None:
    aptos(tmp_path / "here")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "away" / "set").symlink_to(tmp_path / "here")
    task = load_task("aptos2019")
    fingerprints = set()
    for number, root in enumerate((tmp_path / "here", tmp_path / "far" / "away" / "set")):
        manifest = task_manifest(task, root, tmp_path / f"out{number}" / "deep" / "er"[:number])
        done = curate(manifest, tmp_path / f"store{number}", size=16, crop="none", allow_outside=True, progress=False)
        fingerprints.add(done.fingerprint)
    assert len(fingerprints) == 1


def test_task_manifest__cells_say_what_the_set_says(tmp_path: Path) -> None:
    rows = {row["image"].split("/")[-1]: row for row in _manifest("papila", papila, tmp_path / "a")}
    assert [rows[f"RET{n:03d}OD.jpg"]["label.diagnosis"] for n in (3, 4, 5)] == [
        "normal",
        "established glaucoma",
        "suspected glaucoma",
    ]
    assert rows["RET003OD.jpg"]["patient"] == rows["RET003OS.jpg"]["patient"] == "003"
    rows = {row["image"].split("/")[-1]: row for row in _manifest("messidor2", messidor2, tmp_path / "b")}
    assert rows["IM000006.JPG"]["patient"] == rows["2005_0007_PP.png"]["patient"] != ""
    assert rows["2005_0007_PP.png"]["label.dr_grade"] == ""
    rows = {row["image"].split("/")[-1]: row for row in _manifest("odir5k", odir_kaggle, tmp_path / "c")}
    assert (rows["1_right.jpg"]["label.diabetic_retinopathy"], rows["1_left.jpg"]["label.diabetic_retinopathy"]) == (
        "1",
        "0",
    )
    assert rows["1_left.jpg"]["label.glaucoma"] == "1"


@pytest.mark.parametrize("draw", [odir_kaggle, odir_sheet])
def test_task_manifest__age_and_sex_become_columns_of_the_store(tmp_path: Path, draw: Draw) -> None:
    _manifest("odir5k", draw, tmp_path)
    curate(
        tmp_path / "out" / "manifest.csv", tmp_path / "store", size=16, crop="none", allow_outside=True, progress=False
    )
    store = open_store(tmp_path / "store")
    columns = subgroup_columns(store.table, ["age", "sex"], np.arange(len(store)))
    assert set(columns["sex"]) <= {"Female", "Male"}
    assert set(group_rows("age", columns["age"])) <= {"40-49", "50-59", "60-69", "70-79"}


def test_task_manifest__columns_of_papila_and_those_that_are_missing(tmp_path: Path) -> None:
    rows = {row["image"].split("/")[-1]: row for row in _manifest("papila", papila, tmp_path)}
    assert (rows["RET003OS.jpg"]["age"], rows["RET003OS.jpg"]["sex"]) == ("53", "1")
    path = tmp_path / "root" / "ClinicalData" / "patient_data_os.csv"
    path.write_text(path.read_text().replace("Gender", "G", 1))
    assert _faults("papila", tmp_path / "root", tmp_path / "other") == [
        "ClinicalData/patient_data_os.csv: no column 'Gender'; it has ID, Age, G, Diagnosis"
    ]


def test_task_manifest__each_eye_has_its_own_keywords(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "retrieval" in load_task("odir5k").protocols
    rows = {row["image"].split("/")[-1]: row for row in _manifest("odir5k", odir_kaggle, tmp_path)}
    assert len(rows) == 80
    assert (rows["3_left.jpg"]["text"], rows["3_right.jpg"]["text"]) == ("left 3", "right 3")
    assert capsys.readouterr().err == ""
    path = tmp_path / "root" / "full_df.csv"
    path.write_text(path.read_text().replace(",3_right.jpg\n", ",third.jpg\n"))  # a row of neither eye
    task_manifest(load_task("odir5k"), tmp_path / "root", tmp_path / "other")
    assert "full_df.csv: left out, since no 'where' of the task takes them: 1 of its rows" in capsys.readouterr().err
    path.write_text(path.read_text().replace("Right-Fundus", "Right Fundus", 1))
    assert _faults("odir5k", tmp_path / "root", tmp_path / "third")[0].startswith(
        "full_df.csv: no column 'Right-Fundus'; it has ID, Patient Age"
    )
    path.write_text(path.read_text().replace("Right Fundus", "Right-Fundus", 1).replace("_right.jpg\n", "_r.jpg\n"))
    assert _faults("odir5k", tmp_path / "root", tmp_path / "fourth") == [
        "full_df.csv: has no row where filename = {Right-Fundus}"
    ]


def test_task_manifest__words_for_unknown_are_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    papila(tmp_path / "root")
    path = tmp_path / "root" / "ClinicalData" / "patient_data_od.csv"
    path.write_text(re.sub(r"(?m)^(#00[5-7],.*,)\d$", r"\1NA", path.read_text()))
    with task_manifest(load_task("papila"), tmp_path / "root", tmp_path / "out").open() as file:
        rows = {row["image"].split("/")[-1]: row["label.diagnosis"] for row in csv.DictReader(file)}
    assert [rows[f"RET00{n}OD.jpg"] for n in (4, 5, 6, 7)] == ["established glaucoma", "", "", ""]
    assert "label diagnosis: 'NA' (3 rows) taken as unknown" in capsys.readouterr().err


def test_task_manifest__is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aptos(tmp_path / "root")
    task = load_task("aptos2019")

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            task_manifest(task, tmp_path / "root", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.csv").exists()
    (tmp_path / "out" / ".partial-manifest.csv-1").write_text("image,text")
    manifest = task_manifest(task, tmp_path / "root", tmp_path / "out")  # goes on where it was cut off
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images", "manifest.csv"]
    assert len(manifest.read_text().splitlines()) == 31
    (tmp_path / "mine" / "images").mkdir(parents=True)  # a folder of the user's is nobody's leavings
    with pytest.raises(UserError, match="exists already"):
        task_manifest(task, tmp_path / "root", tmp_path / "mine")


def test_task_manifest__missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    aptos(tmp_path)
    text = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(text.replace("diagnosis", "grade", 1))
    faults = _faults("aptos2019", tmp_path, tmp_path / "out")
    assert faults == ["train.csv: no column 'diagnosis'; it has id_code, grade"]


def test_task_manifest__missing_tables_and_images_are_told_at_once(tmp_path: Path) -> None:
    papila(tmp_path)
    (tmp_path / "ClinicalData" / "patient_data_os.csv").unlink()
    (tmp_path / "FundusImages" / "RET005OD.jpg").unlink()
    assert _faults("papila", tmp_path, tmp_path / "out") == [
        "ClinicalData/patient_data_od.csv: 1 of 24 images are not there, such as FundusImages/RET005OD",
        "ClinicalData/patient_data_os.csv: no such file",
    ]


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("moderate", "label dr_grade: 'moderate' (1 row) is free text where grades are expected (0, 1, 2, 3, 4)"),
        ("7", "label dr_grade: '7' (1 row) is a class that is not listed; the task has 0, 1, 2, 3, 4"),
        ("1.5", "label dr_grade: '1.5' (1 row) is free text where grades are expected (0, 1, 2, 3, 4)"),
    ],
)
def test_task_manifest__what_is_no_grade(tmp_path: Path, cell: str, says: str) -> None:
    table(tmp_path / "train.csv", ["id_code", "diagnosis"], [(n, cell if n == 9 else n % 5) for n in range(10)])
    for n in range(10):
        picture(tmp_path / "train_images" / f"{n}.png")
    assert _faults("aptos2019", tmp_path, tmp_path / "out") == [says]


def test_task_manifest__one_class_only_and_missing_classes(tmp_path: Path) -> None:
    class_folders(tmp_path / "one", ["anodr"])
    assert _faults("aptos2019", tmp_path / "one", tmp_path / "out") == [
        "label dr_grade: one class only, 0; the task has 5"
    ]
    class_folders(tmp_path / "four", RETINOPATHY[:4])
    assert _faults("aptos2019", tmp_path / "four", tmp_path / "out") == [
        "label dr_grade: no image of 4; complete the data, or take the class out of a copy of the task file"
    ]


def test_task_manifest__a_folder_that_is_not_listed(tmp_path: Path) -> None:
    class_folders(tmp_path, [*RETINOPATHY, "ungradable"])
    faults = _faults("aptos2019", tmp_path, tmp_path / "out")
    assert faults[0] == "train/ungradable: a class that is not listed; the task has 0, 1, 2, 3, 4"
    assert len(faults) == 3


def test_task_manifest__a_code_that_is_not_translated(tmp_path: Path) -> None:
    papila(tmp_path)
    path = tmp_path / "ClinicalData" / "patient_data_od.csv"
    path.write_text(path.read_text() + "#003,50,1,9\n")
    assert "label diagnosis: '9' is a class that is not listed; known: 0, 1, 2" in " ".join(
        _faults("papila", tmp_path, tmp_path / "out")
    )


def test_task_manifest__no_images(tmp_path: Path) -> None:
    (tmp_path / "train" / "x").mkdir(parents=True)
    assert _faults("aptos2019", tmp_path, tmp_path / "out") == [
        "no images found; looked for train/anodr, train.csv",
    ]
    for name in RETINOPATHY:
        (tmp_path / "train" / name).mkdir()
    (tmp_path / "train" / "x").rmdir()
    assert _faults("aptos2019", tmp_path, tmp_path / "out") == ["no images found"]
    table(tmp_path / "b" / "train.csv", ["id_code", "diagnosis"], [("q", 0)])
    assert _faults("aptos2019", tmp_path / "b", tmp_path / "out") == [
        "train.csv: no images found; the first would be train_images/q"
    ]


def test_task_manifest__patients_in_two_splits_leak(tmp_path: Path) -> None:  # P24
    for part in ("train", "val", "test"):
        for number, name in enumerate(("anormal", "bsuspectglaucoma", "cglaucoma")):
            picture(tmp_path / part / name / f"RET{number:03d}{'OD' if part == 'train' else 'OS'}.jpg")
    faults = _faults("papila", tmp_path, tmp_path / "out")
    assert faults[0].startswith("3 patients are in two splits, such as 000 in test and train and val: their images")
    picture(tmp_path / "train" / "anormal" / "other.jpg")
    assert "is not found in 1 file names, such as other.jpg" in " ".join(_faults("papila", tmp_path, tmp_path / "out"))


def test_task_manifest__refusals(tmp_path: Path) -> None:
    task = load_task("aptos2019")
    with pytest.raises(UserError, match="no such folder"):
        task_manifest(task, tmp_path / "none", tmp_path / "out")
    aptos(tmp_path / "root")
    task_manifest(task, tmp_path / "root", tmp_path / "out")
    with pytest.raises(UserError, match="exists already"):
        task_manifest(task, tmp_path / "root", tmp_path / "out")
    with pytest.raises(UserError, match="give it with --data STORE"):
        task_manifest(load_task("phantom"), tmp_path / "root", tmp_path / "other")


STORE_TASK = """
name: mine
about: a store
labels:
  scarlet: {kind: binary}
  green: {kind: KIND}
data:
  - layout: store
    columns: {scarlet: COLUMN}
"""


def _store_task(folder: Path, column: str = "red", kind: str = "binary") -> TaskFile:
    path = folder / "task.yaml"
    path.write_text(STORE_TASK.replace("COLUMN", column).replace("KIND", kind))
    return load_task(path)


def test_task_store__has_the_labels_of_the_task_alone(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store"))
    view = task_store(_store_task(tmp_path), store)
    assert list(view.labels) == ["scarlet", "green"]
    assert (view.labels["scarlet"] == store.labels["red"]).all()
    assert (view.ids, view.fingerprint) == (store.ids, store.fingerprint)
    assert list(store.labels) == ["red", "green"]


def test_task_store__faults(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store"))
    kind = "ordinal, classes: {2: some, 3: many}"
    with pytest.raises(TaskError) as fault:
        task_store(_store_task(tmp_path, column="crimson", kind=kind), store)
    assert fault.value.faults[0] == "label scarlet: the store has no column label.crimson; it has red, green"
    assert "is a class that is not listed; the task has 2, 3" in fault.value.faults[1]
    store.labels["red"] = store.labels["green"] = np.full(len(store), np.nan, np.float32)
    with pytest.raises(TaskError, match="label scarlet, green: no image has a value"):
        task_store(_store_task(tmp_path), store)
    with pytest.raises(UserError, match="give their folder with --root"):
        task_store(load_task("aptos2019"), store)


def _task(shares: dict[str, float] | None, *, validation: float = 0.0, seed: int = 0) -> TaskFile:
    label = LabelSpec(name="a", kind="ordinal", classes={0: "no", 1: "yes"})
    split = Split(shares=shares, validation=validation, seed=seed)
    common = {"about": "", "citation": "", "layouts": (), "protocols": (), "crop": "none", "path": Path("x")}
    return TaskFile(name="t", labels={"a": label}, split=split, **common)  # type: ignore[arg-type]


@given(st.integers(0, 1000), st.integers(20, 120))
def test_split_rows__by_patient_and_class_in_shares(seed: int, people: int) -> None:
    generator = np.random.Generator(np.random.Philox(seed))
    rows = [
        Row(image=f"{n}-{eye}", patient=f"p{n}", labels={"a": str(int(generator.random() < 0.2))})
        for n in range(people)
        for eye in "lr"
    ]
    shares = {"train": 0.6, "val": 0.1, "test": 0.3}
    result = split_rows(_task(shares, seed=seed), rows, [])
    own = {row.patient: set() for row in result}
    for row in result:
        own[row.patient].add(row.split)
    assert all(len(splits) == 1 for splits in own.values())
    for name, share in shares.items():
        assert abs(sum(splits == {name} for splits in own.values()) - share * people) <= 2
        rare = {row.patient for row in result if row.labels["a"] == "1"}
        assert abs(sum(own[patient] == {name} for patient in rare) - share * len(rare)) <= 1.5
    shuffled = split_rows(_task(shares, seed=seed), rows[::-1], [])
    assert {row.image: row.split for row in result} == {row.image: row.split for row in shuffled}


def test_split_rows__validation_from_training_patients_only() -> None:
    rows = [Row(image=f"{n}", split="train" if n < 80 else "test", labels={"a": str(n % 2)}) for n in range(100)]
    result = split_rows(_task(None, validation=0.25), rows, [])
    assert sum(row.split == "val" for row in result) == 20
    assert [row.split for row in result[80:]] == ["test"] * 20
    assert [row.split for row in split_rows(_task(None), rows, [])] == [row.split for row in rows]


def test_split_rows__faults() -> None:
    faults: list[str] = []
    split_rows(_task(None), [Row(image="a")], faults)
    split_rows(_task(None), [Row(image="a", split="train")], faults)
    assert "the task names no shares" in faults[0]
    assert "a split train only; train and test are needed" in faults[1]
