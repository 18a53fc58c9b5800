"""Composed retrieval by its verbs: `compose` and `search --head`."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from maskedclip.data.store import open_store
from maskedclip.deployment.composed_features import image_directions, text_directions
from maskedclip.deployment.composed_report import verdict
from maskedclip.deployment.composed_saving import read_composed
from maskedclip.deployment.embed import embed
from maskedclip.deployment.model import Model, load
from maskedclip.errors import UserError
from tests.cli_case import refused, status


@pytest.fixture(scope="module")
def composed(trained_run: Path, trained_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composed") / "head"
    assert status("compose", trained_run, "--data", trained_store, "--out", out, "--steps", 5) == 0
    return out


@pytest.fixture(scope="module")
def features(trained_model: Model, trained_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("composed") / "features.parquet"
    embed(trained_model, trained_store, out)
    return out


def test_compose__trains_keeps_its_triplets_and_says_what_is_next(
    trained_run: Path, trained_store: Path, composed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((composed / "composed.json").read_text())
    assert about["about"]["test"]["gallery"] > 1
    rows = list(csv.DictReader((composed / "triplets.csv").open()))
    assert len(rows) == sum(about["about"]["counts"].values())
    again = ("compose", trained_run, "--data", trained_store, "--steps", 5, "--triplets", composed / "triplets.csv")
    assert status(*again, "--out", tmp_path / "again", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"] == about["about"]["counts"]
    assert status(*again, "--out", tmp_path / "sum", "--method", "sum") == 0
    said = capsys.readouterr().out
    assert "words alone" in said
    last = said.splitlines()[-1]
    assert last.startswith(f"next: maskedclip embed {trained_run} --data {trained_store} --out features.parquet && ")
    assert f"maskedclip search features.parquet --model {trained_run} " in last


def test_verdict__warns_where_a_simpler_way_is_not_shown_to_be_worse() -> None:
    def report(first: str, **lows: float) -> dict[str, Any]:
        differences = {
            f"{first} - {way}": {"R@1": {"value": low + 0.1, "low": low, "high": low + 0.2}}
            for way, low in lows.items()
        }
        return {"recall": dict.fromkeys([first, *lows]), "differences": differences}

    assert verdict(report("combiner", sum=0.01, image=0.1, text=0.3)) is None
    told = str(verdict(report("combiner", sum=-0.05, image=0.1, text=0.3)))
    assert told.startswith("the combiner is not shown to find more than sum at R@1: +0.050 (-0.050 to 0.150); tune the")
    assert "more triplets" in str(verdict(report("sum", image=0.1, text=-0.3), tuned=True))


def test_compose__tunes_a_copy_of_the_encoders(
    trained_run: Path, trained_store: Path, trained_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    asked = ("compose", trained_run, "--data", trained_store, "--steps", 3, "--finetune", 8, "--finetune-lr", "1e-3")
    assert status(*asked, "--out", out, "--json") == 0
    tuning = json.loads(capsys.readouterr().out)["encoders"]
    assert tuning["loss_last"] < tuning["loss_first"]
    assert tuning["base"] == trained_model.fingerprint == load(trained_run).fingerprint
    model = load(out / "model", device="cpu")
    assert model.fingerprint != trained_model.fingerprint
    read_composed(out, model)
    with pytest.raises(UserError, match="was made for the model"):
        read_composed(out, trained_model)
    assert not list(tmp_path.glob(".tuned-*"))
    assert "--finetune" in refused(capsys, *asked[:-4], "--finetune", "-1", "--out", tmp_path / "no")


def test_search__a_head_puts_picture_and_words_together(
    trained_run: Path,
    trained_store: Path,
    trained_model: Model,
    features: Path,
    composed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = open_store(trained_store)
    eye = tmp_path / "eye.png"
    eye.write_bytes(bytes(store.image_bytes(6)))
    asked = ("search", features, "--model", trained_run, "--text", "now with red", "--head", composed, "--top", 47)
    found = []
    for picture in (("--image", eye), ("--id", store.ids[6])):
        assert status(*asked, *picture, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["query"]["head"] == "head"
    for line in found:
        ids = [hit["id"] for hit in line["hits"]]
        assert len(ids) == 47
        assert store.ids[6] not in ids  # the photograph that was asked with
    head = read_composed(composed, trained_model)
    image = image_directions(trained_model, trained_model.encode_image(eye, "bridge"))
    words = text_directions(trained_model, ["now with red"])
    query = head.compose(torch.from_numpy(image), torch.from_numpy(words)).detach().double().numpy()[0]
    vectors = np.array(pq.read_table(features).column("projected").to_pylist())
    order = [store.ids[row] for row in np.argsort(-(vectors @ query), kind="stable") if row != 6]
    for line in found:
        assert [hit["id"] for hit in line["hits"]][:5] == order[:5]
    groups = tmp_path / "groups.parquet"
    pq.write_table(pq.read_table(features), groups, row_group_size=4)
    assert status(asked[0], groups, *asked[2:], "--id", store.ids[6], "--json") == 0
    assert json.loads(capsys.readouterr().out)["hits"] == found[1]["hits"]
    assert status(*asked, "--id", store.ids[6]) == 0
    assert '"now with red" (by head)' in capsys.readouterr().out


def test_search__refuses_what_a_head_cannot_do(
    trained_run: Path,
    trained_store: Path,
    features: Path,
    composed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("search", features, "--model", trained_run)
    both = (*asked, "--id", open_store(trained_store).ids[0], "--text", "red")
    assert "give --text with --image or --id" in refused(capsys, *asked, "--text", "red", "--head", composed)
    assert "leave it out" in refused(capsys, *both, "--head", composed, "--weight", "0.3")
    assert "--without" in refused(capsys, *both, "--head", composed, "--without", "green")
    assert "no composed-retrieval head" in refused(capsys, *both, "--head", tmp_path / "none")
    assert "--model" in refused(capsys, "search", features, *both[4:], "--head", composed)
    bare = tmp_path / "bare.parquet"
    table = pq.read_table(features)
    pq.write_table(table.drop_columns(["bridge"]), bare)
    assert "has no output bridge" in refused(capsys, "search", bare, *both[2:], "--head", composed)
    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "head.json").write_text("{}")
    assert "answers labels" in refused(capsys, *both, "--head", probe)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        ("reference,target\na,b\n", "has no column caption"),
        ("reference,caption,target\n", "has no rows"),
        ("reference,caption,target\nA,x,nobody\n", "row 2: the target 'nobody'"),
        ("reference,caption,target\nA,,B\n", "row 2: has no caption"),
        ("reference,caption,target\nA,x,A\n", "the same row"),
        (b"reference,caption,target\n\xff\xfe", "no CSV in UTF-8"),
    ],
)
def test_compose__bad_triplets_are_one_line(
    content: str | bytes | None,
    told: str,
    trained_run: Path,
    trained_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "t.csv"
    ids = open_store(trained_store).ids
    if isinstance(content, str):
        rows = content.splitlines()
        rows[1:] = [row.replace("A", ids[0]).replace("B", ids[1]) for row in rows[1:]]
        path.write_text("\n".join(rows) + "\n")
    elif content is not None:
        path.write_bytes(content)
    said = refused(capsys, "compose", trained_run, "--data", trained_store, "--out", tmp_path / "o", "--triplets", path)
    assert told in said
    assert not (tmp_path / "o").exists()


def test_compose__refuses_what_does_not_fit(
    trained_run: Path, trained_store: Path, composed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("compose", trained_run, "--data", trained_store, "--out")
    assert "exists" in refused(capsys, *asked, composed)
    assert "no label of the store" in refused(capsys, *asked, tmp_path / "o", "--labels", "blue")
    both = ("--triplets", composed / "triplets.csv", "--labels", "red")
    assert "leave --labels" in refused(capsys, *asked, tmp_path / "o", *both)
    assert "--lr" in refused(capsys, *asked, tmp_path / "o", "--lr", "-1")
    assert "--batch" in refused(capsys, *asked, tmp_path / "o", "--batch", "1")
