"""The verb `evaluate` where it does more than score a run on its store."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.cli import run
from maskedclip.cli_evaluate import fine_tune_settings
from maskedclip.errors import UserError
from maskedclip.evaluation.finetune_settings import FineTuneSettings
from tests.evaluation.task_folders import class_folders
from tests.stores import TINY, make_store

TASK = """
name: own
about: squares of one colour
labels:
  colour: {kind: nominal, classes: [red, green]}
data:
  - {layout: folders, label: colour}
protocols: [linear, fewshot]
crop: none
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    make_store(folder / "store", rows=96)
    for shard in sorted((folder / "store").glob("shard-*.parquet")):
        table = pq.read_table(shard)
        ages = [30 + 7 * (int(name[1:]) % 9) for name in table.column("patient").to_pylist()]
        pq.write_table(table.append_column("age", pa.array(ages)), shard)
    command = ["pretrain", "--config", "maskedclip", "--config", "tiny", "--data", str(folder / "store")]
    run([*command, "--out", str(folder / "run"), *TINY])
    return folder


def command(place: Path, out: Path, *more: str) -> list[str]:
    return ["evaluate", str(place / "run"), "--out", str(out), "--replicates", "50", *more]


def test_evaluate__subgroups_fine_tuning_and_leakage(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    store = str(place / "store")
    settings = ["--finetune", "epochs=1", "batch=8", "head_start=probe"]
    run(command(place, out, "--data", store, "--protocols", "linear,finetune", "--subgroups", "age", *settings))
    results = json.loads((out / "results.json").read_text())
    assert set(results["subgroups"]) == {"linear", "finetune"}
    assert "40-49" in results["subgroups"]["linear"]["age"]
    assert results["finetune"]["encoder"]["training"][0]["epochs"] == 1
    assert results["about"]["seen_in_pretraining"]["images"]["n"] == 0
    told = capsys.readouterr()
    assert "fine-tuning, encoder: macro AUROC" in told.out
    assert "None of the" in told.err
    assert "None of the" in (out / "report.html").read_text()


def test_evaluate__a_training_that_diverges_loses_nothing_else(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(place / "store"), "--finetune", "epochs=1", "batch=8", "lr=1e30", "max_bad_steps=0"]
    run(command(place, tmp_path / "out", "--protocols", "linear,finetune", *given))
    told = capsys.readouterr()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "diverged" in results["finetune"]["skipped"]
    assert results["linear"]["encoder"]["macro"]["auroc"]["value"] is not None
    assert "fine-tuning: left out, finetune.lr" in told.out
    assert "diverged" in told.err
    with pytest.raises(UserError, match="diverged"):
        run(command(place, tmp_path / "alone", "--protocols", "finetune", *given))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--protocols", "linear,finetune", "--finetune", "size=30"], "finetune.size: 30 px is no multiple"),
        (["--protocols", "linear,dense", "--dense-size", "30"], "--dense-size: 30 px is no multiple"),
        (["--seed", "-1"], "seed: -1 is negative"),
        (["--against", "nowhere"], "--against: nowhere: has no results.json; give a folder that"),
    ],
)
def test_evaluate__what_cannot_be_is_said_before_anything_is_computed(
    place: Path, tmp_path: Path, more: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(*_: object) -> None:
        raise AssertionError("features were computed")

    monkeypatch.setattr("maskedclip.evaluation.feature_cache.CachedFeatures.features", computed)
    with pytest.raises(UserError, match=said):
        run(command(place, tmp_path / "out", "--data", str(place / "store"), *more))


def test_evaluate__against_needs_an_evaluation_of_the_same_rows(place: Path, tmp_path: Path) -> None:
    other = ["--data", str(make_store(tmp_path / "store", rows=48, seed=1)), "--protocols", "linear"]
    run(command(place, tmp_path / "other", *other))
    given = ["--data", str(place / "store"), "--protocols", "linear", "--against", str(tmp_path / "other")]
    with pytest.raises(UserError, match=r"--against: .*other: 24 test rows are in it or in the store alone"):
        run(command(place, tmp_path / "out", *given))
    (tmp_path / "other" / "predictions.parquet").unlink()
    with pytest.raises(UserError, match=r"--against: .*other: has no predictions\.parquet"):
        run(command(place, tmp_path / "out", *given))
    assert not (tmp_path / "out").exists()


def test_evaluate__a_task_into_the_working_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "set", ["red", "green"], each=8)
    (tmp_path / "own.yaml").write_text(TASK)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    given = ["--task", str(tmp_path / "own.yaml"), "--root", str(tmp_path / "set"), "--protocols", "linear"]
    run(command(place, Path(), *given))
    assert (tmp_path / "here" / "results.json").is_file()
    assert (tmp_path / "here.store" / "store" / "curation.json").is_file()

    def curated(*_: object, **__: object) -> None:
        raise AssertionError("the set was curated for a folder that is not empty")

    monkeypatch.setattr("maskedclip.data.curate.curate", curated)
    with pytest.raises(UserError, match=r"\.: exists already"):
        run(command(place, Path(), *given))


def test_evaluate__a_task_on_its_folders(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders(tmp_path / "set", ["red", "green"], each=8)
    (tmp_path / "own.yaml").write_text(TASK)
    given = ["--task", str(tmp_path / "own.yaml"), "--root", str(tmp_path / "set")]
    run(command(place, tmp_path / "out", *given))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["about"]["protocols"] == ["linear", "fewshot"]
    assert results["about"]["rows"] == {"train": 16, "val": 16, "test": 16}
    assert "with 1 of each class" in capsys.readouterr().out
    assert results["about"]["task"]["name"] == "own"

    # What was curated of another task file or folder is not taken for this one's.
    shutil.rmtree(tmp_path / "out")
    run(command(place, tmp_path / "out", *given))
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "own.yaml").write_text(TASK.replace("about: ", "about: Further words, which change no image. "))
    run(command(place, tmp_path / "out", *given))
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "own.yaml").write_text(TASK.replace("crop: none", "crop: fundus"))
    with pytest.raises(UserError, match=r"out\.store: was made from another task file or --root; remove it"):
        run(command(place, tmp_path / "out", *given))


def test_evaluate__a_set_that_has_changed_is_not_taken_for_what_was_curated(place: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "set", ["red", "green"], each=4)
    (tmp_path / "own.yaml").write_text(TASK)
    given = ["--task", str(tmp_path / "own.yaml"), "--root", str(tmp_path / "set"), "--protocols", "linear"]
    run(command(place, tmp_path / "out", *given))
    shutil.rmtree(tmp_path / "out")
    moved = next((tmp_path / "set" / "test" / "red").iterdir())
    moved.rename(tmp_path / "set" / "test" / "green" / moved.name)  # a label is corrected
    with pytest.raises(UserError, match=r"out\.store: its manifest is not what .*set gives now .* remove it, or give"):
        run(command(place, tmp_path / "out", *given))
    (tmp_path / "set" / "test" / "green" / moved.name).rename(moved)
    run(command(place, tmp_path / "out", *given))


def test_evaluate__a_task_that_did_not_fit_its_set_is_mended(place: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "set", ["red", "green"], each=4)
    given = ["--task", str(tmp_path / "own.yaml"), "--root", str(tmp_path / "set"), "--protocols", "linear"]
    (tmp_path / "own.yaml").write_text(TASK.replace("green", "blue"))
    with pytest.raises(UserError, match="a class that is not listed"):
        run(command(place, tmp_path / "out", *given))
    (tmp_path / "own.yaml").write_text(TASK)
    run(command(place, tmp_path / "out", *given))
    assert (tmp_path / "out" / "results.json").is_file()
    (tmp_path / "mine.store").mkdir()  # a folder of the user's own is not written into
    (tmp_path / "mine.store" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.store: was made from another task file"):
        run(command(place, tmp_path / "mine", *given))


def test_evaluate__a_missing_argument_of_a_task_is_named(place: Path, tmp_path: Path) -> None:
    for more, said in (
        (["--task", "aptos2019"], "--root: give the folder"),
        (["--task", "phantom"], "--data: the task phantom is about a store"),
        (["--root", "x"], "--root: belongs to --task"),
        (
            ["--task", "phantom", "--data", "s", "--root", "x"],
            "--root: the task phantom is about a store; give it with",
        ),
        (["--task", "aptos2019", "--data", "s", "--root", "x"], "--data: the task aptos2019 is about a set on files"),
        ([], "--data: give a store"),
        (["--data", str(place / "store"), "--subgroups", "device"], "no column 'device'"),
    ):
        with pytest.raises(UserError) as caught:
            run(command(place, tmp_path / "out", *more))
        assert said in str(caught.value)


@pytest.mark.parametrize("other", ["train", "", None])
def test_evaluate__a_patient_in_two_splits_is_refused(place: Path, tmp_path: Path, other: str | None) -> None:
    make_store(tmp_path / "store", rows=48)
    shard = sorted((tmp_path / "store").glob("shard-*.parquet"))[0]
    table = pq.read_table(shard)
    splits = table.column("split").to_pylist()
    splits[:2] = ["test", other]  # the other eye stays in train
    pq.write_table(table.set_column(table.column_names.index("split"), "split", pa.array(splits)), shard)
    with pytest.raises(UserError, match=r"1 patients are in the test split and in another one \(p0\)"):
        run(command(place, tmp_path / "out", "--data", str(tmp_path / "store")))


def test_fine_tune_settings__types_follow_the_fields() -> None:
    given = ["epochs=3", "lr=1e-3", "crop_scale=[0.5, 1.0]", "lora_mlp=true", "layer_decay=0.9", "size=64"]
    assert fine_tune_settings(given) == FineTuneSettings(
        epochs=3, lr=1e-3, crop_scale=(0.5, 1.0), lora_mlp=True, layer_decay=0.9, size=64
    )
    assert fine_tune_settings([]) is None
    for pair, said in (("epoch=3", "did you mean epochs"), ("epochs=few", "like 50")):
        with pytest.raises(UserError, match=said):
            fine_tune_settings([pair])
    with pytest.raises(UserError, match="give a number"):
        fine_tune_settings(["lr=fast"])
    assert fine_tune_settings(["decoded_cache=off", "size=null"]) == FineTuneSettings(decoded_cache="off")


@pytest.mark.parametrize("example", ["lr=0.005", "betas=[0.9,0.999]", "lora_mlp=false", "size=224", "head_start=zero"])
def test_fine_tune_settings__a_name_without_value_is_shown_with_one(example: str) -> None:
    name = example.partition("=")[0]
    with pytest.raises(UserError) as caught:
        fine_tune_settings([name])
    assert str(caught.value) == f"--finetune {name}: give NAME=VALUE, such as {example}"
    assert fine_tune_settings([example]) is not None


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("head_start=Probe", "head_start: 'Probe'; choose from zero, probe"),
        ("class_weighting=balance", "choose from none, balanced, sampler"),
        ("precision=bf16", "choose from bf16-mixed, 32-true"),
        ("betas=0.9", "betas: 0.9; give two numbers"),
        ("crop_scale=[a, b]", "crop_scale.*give two numbers"),
        ("crop_scale=0.5", "crop_scale: 0.5; give two numbers"),
        ("size=224.0", "give a whole number"),
        ("epochs=[", "give a value like 50"),
    ],
)
def test_fine_tune_settings__what_no_one_meant_is_refused(pair: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        fine_tune_settings([pair])


def test_evaluate__dense_probe_is_kept_told_drawn_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["phantom", "--out", str(tmp_path / "phantoms"), "--images", "40", "--size", "64"])
    store = tmp_path / "store"
    run(["curate", str(tmp_path / "phantoms" / "manifest.csv"), "--out", str(store), "--size", "64"])
    first = ["pretrain", "--config", "mae", "--config", "tiny", "--data", str(store)]
    run([*first, "--out", str(tmp_path / "run"), *TINY, "--training.steps", "2"])
    for name in ("one", "two"):
        size = "64" if name == "one" else "32"
        own = ["--data", str(store), "--out", str(tmp_path / name), "--protocols", "dense", "--dense-size", size]
        run(["evaluate", str(tmp_path / "run"), *own, "--replicates", "50"])
    told = capsys.readouterr().out
    assert "dense probe at 64 px, encoder: AUROC 0." in told
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert results["dense"]["encoder"]["per_label"]["vessel"]["auroc"]["value"] > 0.5
    assert (tmp_path / "one" / "dense.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "one" / "report.html").read_text()
    assert "Pixels from patch tokens, read at 64 px" in page
    run(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json", str(tmp_path / "compared.json")])
    compared = json.loads((tmp_path / "compared.json").read_text())
    difference = compared["differences"]["two"]["dense"]["encoder"]["per_label"]["vessel"]["auroc"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    values = [compared["values"][name]["dense"]["encoder"]["per_label"]["vessel"] for name in ("two", "one")]
    assert difference["value"] == pytest.approx(values[0]["auroc"]["value"] - values[1]["auroc"]["value"])
    assert values[1]["auroc"]["value"] == pytest.approx(
        results["dense"]["encoder"]["per_label"]["vessel"]["auroc"]["value"]
    )
    assert "dice" in values[0]


def test_evaluate__dense_probe_without_masks_says_so(place: Path, tmp_path: Path) -> None:
    run(command(place, tmp_path / "out", "--data", str(place / "store"), "--protocols", "dense"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["dense"] == {"skipped": "the store has no mask.* column"}
