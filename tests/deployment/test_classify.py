"""The verbs `classify` and `probe`, as a person runs them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from maskedclip.data.store import Store
from maskedclip.deployment.classifier import zero_shot_classifier
from maskedclip.deployment.classifier_batch import Tally, classify_inputs
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from tests.cli_case import refused, status
from tests.deployment.classifier_case import labelled_store, open_labelled
from tests.stores import draw

LABELS = "red lesion,normal fundus"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_labelled(labelled_store(tmp_path_factory.mktemp("classify") / "store"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "deep").mkdir()
    for number in range(70):  # more than a batch
        (folder / "deep" / f"{number:02d}.png").write_bytes(draw(number, 32, number % 4))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def head(trained_run: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "linear"
    assert status("probe", trained_run, "--data", store.folders[0], "--out", folder) == 0
    return folder


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_classify__a_folder_to_csv(
    trained_run: Path, trained_model: Model, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "answers.csv"
    assert status("classify", trained_run, photographs, "--labels", LABELS, "--out", out) == 0
    said = capsys.readouterr()
    assert "left out: broken.png: " in said.err
    assert "70 photographs in" in said.out
    assert "1 photographs left out" in said.out
    assert "not calibrated, no diagnosis" in said.out
    rows = _rows(out)
    assert [row["id"] for row in rows] == [f"deep/{number:02d}.png" for number in range(70)]
    wanted = trained_model.classify(photographs / "deep" / "69.png", LABELS.split(","))[0]
    assert {name: float(rows[69][name]) for name in wanted} == pytest.approx(wanted, abs=1e-5)
    assert rows[69]["label"] == max(wanted, key=lambda name: wanted[name])
    assert {row["calibrated"] for row in rows} == {"false"}
    assert {row["abstained"] for row in rows} == {"false"}
    before = out.read_bytes()
    assert "exists" in refused(capsys, "classify", trained_run, photographs, "--labels", LABELS, "--out", out)
    assert out.read_bytes() == before
    assert not list(out.parent.glob("*.partial"))


def test_classify__images_a_store_and_a_list_side_by_side(
    trained_run: Path, store: Store, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photographs}/deep/01.png\n{photographs}/deep/02.png\n")
    image = photographs / "deep" / "00.png"
    assert status("classify", trained_run, image, store.folders[0], listed, "--labels", LABELS, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 1 + 160 + 2
    assert lines[0]["image"] == str(image)
    assert lines[1]["image"] == f"{store.folders[0]}/{store.ids[0]}"
    assert lines[161]["image"] == f"{listed}/{photographs}/deep/01.png"
    assert set(lines[0]) == {"image", "label", "probabilities", "abstained", "undecided", "calibrated"}
    assert sum(lines[0]["probabilities"].values()) == pytest.approx(1)


def test_classify__nothing_to_read(trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"a text file")
    out = tmp_path / "out.csv"
    line = refused(capsys, "classify", trained_run, folder, "--labels", LABELS, "--out", out)
    assert "none of 2 photographs can be read" in line
    assert list(tmp_path.iterdir()) == [folder]
    assert "nothing.png: no such" in refused(
        capsys, "classify", trained_run, tmp_path / "nothing.png", "--labels", "a,b"
    )


def test_classify__refuses_what_does_not_fit(
    trained_run: Path, head: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        ((), "give some, e.g."),
        (("--labels", "a,b", "--head", head), "give one of them"),
        (("--head", head, "--findings"), "belong to --labels"),
        (("--labels", "a,b", "--abstain", "1.2"), "outside [0, 1)"),
        (("--labels", "a,b", "--abstain", "0.2"), "add --calibrate STORE"),
        (("--labels", "a,b", "--out", tmp_path / "x.parquet"), "ends in .csv"),
        (("--labels", "a,b", "--save", head), "exists"),
        (("--head", tmp_path), "no saved head"),
        (("--labels", "a"), "at least two"),
    ):
        assert words in refused(capsys, "classify", trained_run, photographs, *arguments)
    assert "IMAGE: give" in refused(capsys, "classify", trained_run, "--labels", "a,b")
    assert "no such run" in refused(capsys, "classify", tmp_path / "none", photographs, "--labels", "a,b")


def test_probe_and_classify__a_head_with_abstention(
    trained_run: Path, head: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    out = tmp_path / "answers.csv"
    assert status("classify", trained_run, photographs, "--head", head, "--abstain", "0.3", "--out", out) == 0
    said = capsys.readouterr()
    assert "abstention 30%: on the validation rows" in said.err
    assert "no answer is a diagnosis" in said.out
    rows = _rows(out)
    assert set(rows[0]) == {"id", "label", "red", "green", "abstained", "undecided", "calibrated"}
    assert {row["calibrated"] for row in rows} == {"true"}
    undecided = [row for row in rows if row["abstained"] == "true"]
    assert 0 < len(undecided) < len(rows)
    for row in rows:
        named = set(filter(None, row["label"].split("; "))), set(filter(None, row["undecided"].split("; ")))
        assert not named[0] & named[1]
        assert (row["abstained"] == "true") == bool(named[1])
    assert status("classify", trained_run, photographs / "deep" / "01.png", "--head", head) == 0
    assert "01.png: " in capsys.readouterr().out


def test_probe__tells_what_it_made(
    trained_run: Path, head: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("probe", trained_run, "--data", store.folders[0], "--out")
    assert "exists" in refused(capsys, *arguments, head)
    assert "belongs to --method finetune" in refused(capsys, *arguments, tmp_path / "a", "--finetune", "epochs=1")
    assert "did you mean" in refused(capsys, *arguments, tmp_path / "a", "--method", "lora", "--finetune", "epoch=1")
    assert "red, green" in refused(capsys, *arguments, tmp_path / "a", "--labels", "drusen")
    tuned = tmp_path / "tuned"
    settings = ("--method", "finetune", "--finetune", "epochs=1", "max_train=16")
    assert status(*arguments, tuned, "--labels", "red", *settings) == 0
    said = capsys.readouterr().out
    assert "red: n 64 (32 with it), AUROC" in said
    assert f"next: maskedclip classify {trained_run} FOLDER --head {tuned}" in said
    # A fine-tuned head is a model of its own: it needs the run no more.
    image = tmp_path / "a.png"
    image.write_bytes(draw(1, 32, 1))
    capsys.readouterr()
    assert status("classify", tuned, image, "--json") == 0
    alone = json.loads(capsys.readouterr().out)
    assert status("classify", trained_run, image, "--head", tuned, "--json") == 0
    assert json.loads(capsys.readouterr().out) == alone
    assert "is a head" in refused(capsys, "classify", tuned, image, "--labels", "a,b")


def test_classify__calibrate_save_and_use_again(
    trained_run: Path, head: Path, store: Store, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    calibrated = ("--calibrate", store.folders[0], "--abstain", "0.2", "--save", again)
    capsys.readouterr()
    assert status("classify", trained_run, "--head", head, *calibrated) == 0
    said = capsys.readouterr()
    assert "calibrated on 64 validation rows (platt)" in said.err
    assert "calibration error" in said.err
    assert f"--head {again}" in said.out
    assert status("classify", trained_run, photographs, "--head", again, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(line["abstained"] for line in lines)  # the share was saved


def test_classify__memory_does_not_grow_with_the_photographs(
    trained_model: Model, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = zero_shot_classifier(trained_model, LABELS.split(","))
    sizes: list[int] = []
    original = classifier.classify

    def watched(images: Any) -> Any:
        sizes.append(len(images))
        return original(images)

    monkeypatch.setattr(classifier, "classify", watched)
    tally = Tally()
    rows = classify_inputs(classifier, [photographs], tally)
    next(rows)
    assert sizes == [63]  # the broken one was in the first batch, and nothing has been read for good beyond it
    assert len(list(rows)) == 69
    assert sizes == [63, 7]
    assert [entry.id for entry in tally.rejected] == ["broken.png"]


def test_classify__prompts_of_a_file(trained_run: Path, photographs: Path, tmp_path: Path, capsys: Any) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("x: [a red dot]\nelsewhere: [something]\n")
    image = photographs / "deep" / "01.png"
    assert status("classify", trained_run, image, "--labels", "x,y", "--prompts", prompts) == 0
    assert "not among the labels: elsewhere" in capsys.readouterr().err


def test_inputs__a_name_that_is_nothing(trained_model: Model, tmp_path: Path) -> None:
    classifier = zero_shot_classifier(trained_model, LABELS.split(","))
    with pytest.raises(UserError, match="no such"):
        next(classify_inputs(classifier, [tmp_path / "absent"], Tally()))
