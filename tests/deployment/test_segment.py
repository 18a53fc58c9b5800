"""`segment` and `explain`: what is written, where it lies in the photograph, and what is refused."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskedclip import cli_segment
from maskedclip.deployment import segment_files
from maskedclip.deployment.heads import Head
from maskedclip.deployment.heads_saving import save_head
from maskedclip.deployment.model import Model
from maskedclip.deployment.segment import METHODS, Segmenter, Settings, otsu
from maskedclip.errors import UserError
from tests.cli_case import refused, status
from tests.stores import draw, make_store


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Three of them, of other shapes than the model's square, one file that is none, and two of one name."""
    folder = tmp_path / "photographs"
    (folder / "deep").mkdir(parents=True)
    tall = Image.new("RGB", (60, 90))
    tall.paste(Image.open(_file(tmp_path, draw(1, 60, 1))), (0, 15))
    tall.save(folder / "eye.png")
    Image.open(_file(tmp_path, draw(2, 48, 3))).save(folder / "deep" / "eye.jpg")
    Image.open(_file(tmp_path, draw(3, 40, 2))).save(folder / "eye.jpg")
    (folder / "broken.png").write_bytes(b"no picture at all")
    return folder


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "drawn.png"
    path.write_bytes(data)
    return path


def test_segment__writes_pictures_masks_maps_and_numbers(
    trained_run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    labels = "A red lesion.,green lesion,normal/..?"
    assert (
        status("segment", trained_run, photographs, "--labels", labels, "--out", out, "--masks", "--maps", "png") == 0
    )
    said = capsys.readouterr()
    assert "broken.png is" in said.err
    assert "1 of 4 files left out" in said.err
    assert said.out.splitlines()[-1].startswith("next: open ")
    summary = json.loads((out / "segments.json").read_text())
    rows = list(csv.DictReader((out / "segments.csv").open()))
    assert len(summary["photographs"]) == 3
    assert len(rows) == 9
    assert len({entry["folder"] for entry in summary["photographs"]}) == 3
    assert [entry.split()[0] for entry in summary["left_out"]] == ["broken.png"]
    for record in summary["photographs"]:
        with Image.open(photographs / record["id"]) as picture:
            size = picture.size
        assert (record["width"], record["height"]) == size
        assert (out / record["folder"] / "panel.png").is_file()
        for entry in record["labels"]:
            overlay, mask, raw = (Image.open(out / entry[name]) for name in ("overlay", "mask", "map"))
            assert mask.size == raw.size == size
            assert overlay.width >= size[0]
            assert overlay.height > size[1]
            assert set(np.unique(np.asarray(mask))) <= {0, 255}
            low, high = entry["map_range"]
            values = low + np.asarray(raw, np.float64) / 65535 * (high - low)
            share = (np.asarray(mask) > 0).mean()
            assert 0 <= entry["area"] <= 1
            assert (share == 0) == (entry["area"] == 0)
            peak = values[entry["peak_row"], entry["peak_column"]]
            assert peak == pytest.approx(entry["peak"], abs=2 * (high - low) / 65535 + 1e-6)
            inside = np.asarray(mask) > 0
            if inside.any():
                assert values[inside].min() > entry["threshold"] - (high - low) / 1000
    assert all((out / row["overlay"]).resolve().is_relative_to(out.resolve()) for row in rows)


def test_segment__scores_are_the_models_and_json_is_one_object_a_line(
    trained_run: Path, trained_model: Model, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"x": ["A red lesion."], "normal": ["Normal fundus."]}))
    options = ("--labels", "x", "--against-normal", "--prompts", prompts, "--json")
    assert status("segment", trained_run, photographs, "--out", tmp_path / "o", *options) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    directions = trained_model.encode_text(["A red lesion.", "Normal fundus."]).astype(np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for record in lines:
        image = trained_model.encode_image(photographs / record["id"], "projected")[0]
        assert record["labels"][0]["score"] == pytest.approx(float(image @ (directions[0] - directions[1])), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_segment__every_method_gives_a_map_of_the_patches(trained_model: Model, method: str) -> None:
    picture = np.asarray(Image.open(_bytes(draw(4, 64, 3))).convert("RGB"))
    found = Segmenter(trained_model, Settings(labels=["red lesion", "drusen"], method=method)).find(picture)  # type: ignore[arg-type]
    assert found.maps.shape == (2, 4, 4)
    assert np.isfinite(found.maps).all()
    assert found.map_on_photograph(0).shape == (64, 64)
    assert found.mask_on_photograph(1).dtype == bool
    assert (found.regions is not None) == (method == "regions")
    both = [found.mask_on_photograph(place) for place in range(2)]
    if method == "regions":
        assert not (both[0] & both[1]).any()
    again = Segmenter(trained_model, Settings(labels=["red lesion", "drusen"], method=method)).find(picture)  # type: ignore[arg-type]
    assert np.array_equal(found.maps, again.maps)


def _bytes(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


def test_segment__tiles_and_sizes_make_finer_maps(trained_model: Model) -> None:
    picture = np.asarray(Image.open(_bytes(draw(4, 96, 3))).convert("RGB"))
    for options, cells in (({"tiles": (1, 3)}, 12), ({"size": 64}, 8), ({"size": 48, "tiles": (2,)}, 12)):
        for method in ("similarity", "regions"):
            chosen = Settings(labels=["drusen"], method=method, **options)  # type: ignore[arg-type]
            assert Segmenter(trained_model, chosen).find(picture).maps.shape == (1, cells, cells)


def test_segment__a_threshold_is_kept_and_regions_are_drawn(
    trained_run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = photographs / "deep" / "eye.jpg"
    out = tmp_path / "high"
    base = ("segment", trained_run, one, "--labels", "red lesion", "--json")
    assert status(*base, "--out", out, "--threshold", "5", "--masks") == 0
    (entry,) = json.loads(capsys.readouterr().out)["labels"]
    assert entry["threshold"] == 5
    assert entry["area"] == 0
    assert entry["pieces"] == []
    assert status(*base, "--out", tmp_path / "r", "--method", "regions", "--threshold", "-2") == 0
    (entry,) = json.loads(capsys.readouterr().out)["labels"]
    assert entry["area"] > 0.7  # every region takes part, but those mostly outside the field
    assert (tmp_path / "r" / "eye" / "regions.png").is_file()


def test_explain__a_head(
    trained_run: Path, trained_model: Model, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = np.random.default_rng(0).normal(size=(2, 48))
    common = {"slopes": np.ones(2), "intercepts": np.zeros(2), "calibrated": np.zeros(2, bool), "cuts": np.zeros(2)}
    head = Head(
        labels=("a", "b"),
        kind="independent",
        method="linear",
        output="encoder",
        weight=weight,
        bias=np.ones(2),
        **common,
    )
    save_head(tmp_path / "head", head, trained_model, base=trained_model.fingerprint)
    image, out = photographs / "eye.png", tmp_path / "out"
    options = ("--head", tmp_path / "head", "--method", "contribution", "--maps", "npy", "--json")
    assert status("explain", trained_run, image, *options, "--out", out) == 0
    record = json.loads(capsys.readouterr().out)
    assert [entry["label"] for entry in record["labels"]] == ["a", "b"]
    for place, entry in enumerate(record["labels"]):
        values = np.load(out / entry["map"])
        expected = float(trained_model.encode_image(image)[0] @ weight[place].astype(np.float32))
        assert values.sum() == pytest.approx(expected, abs=1e-3)
        assert entry["score"] == pytest.approx(expected, abs=1e-3)
    assert (
        status("explain", trained_run, image, "--head", tmp_path / "head", "--labels", "b", "--out", tmp_path / "g")
        == 0
    )
    capsys.readouterr()
    line = refused(
        capsys, "explain", trained_run, image, "--head", tmp_path / "head", "--labels", "c", "--out", tmp_path / "h"
    )
    assert "none of the head's labels" in line
    line = refused(capsys, "segment", trained_run, image, "--head", tmp_path / "head", "--out", tmp_path / "h")
    assert "--method removal" in line


def test_segment__a_store_and_a_reference(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean map over the photographs themselves leaves maps whose mean is 0."""
    store = make_store(tmp_path / "store", rows=3)
    base = ("segment", trained_run, store, "--labels", "drusen", "--maps", "npy")
    assert status(*base, "--out", tmp_path / "a") == 0
    assert status(*base, "--out", tmp_path / "b", "--reference", store) == 0

    def maps(out: Path) -> np.ndarray:
        return np.stack([np.load(out / row["map"]) for row in csv.DictReader((out / "segments.csv").open())])

    plain, less = maps(tmp_path / "a"), maps(tmp_path / "b")
    assert len(plain) == 3
    assert np.allclose(less, plain - plain.mean(axis=0), atol=1e-6)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"x")
    capsys.readouterr()
    line = refused(capsys, *base, "--out", tmp_path / "c", "--reference", tmp_path / "none")
    assert "none of its photographs" in line


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--labels", " , "), "--labels: name at least one"),
        (("--labels", "a,a"), "named twice"),
        (("--labels", "a", "--tiles", "two"), "--tiles: 'two'"),
        (("--labels", "a", "--tiles", "0"), "--tiles"),
        (("--labels", "a", "--tiles", "2", "--method", "relevance"), "--tiles: relevance"),
        (("--labels", "a", "--size", "33"), "--size: 33 px is no multiple"),
        (("--labels", "a", "--range", "1,0"), "--range"),
        (("--labels", "a", "--opacity", "2"), "--opacity"),
        (("--labels", "a", "--threshold", "nan"), "--threshold"),
        (("--labels", "a", "--method", "magic"), "--method"),
    ],
)
def test_segment__refuses_in_one_line(
    trained_run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple, told: str
) -> None:
    assert told in refused(capsys, "segment", trained_run, photographs, "--out", tmp_path / "o", *options)
    assert not (tmp_path / "o").exists()


def test_segment__never_overwrites_and_names_what_is_missing(
    trained_run: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("--labels", "a", "--out")
    assert "is not an empty folder" in refused(capsys, "segment", trained_run, photographs, *base, photographs)
    assert "no such" in refused(capsys, "segment", trained_run, tmp_path / "none.png", *base, tmp_path / "o")
    assert "none of the 1 files" in refused(
        capsys, "segment", trained_run, photographs / "broken.png", *base, tmp_path / "p"
    )
    assert "no such run" in refused(capsys, "segment", tmp_path / "run", photographs, *base, tmp_path / "o")


def test_segmenter__says_what_goes_without_texts(trained_model: Model) -> None:
    class Mute:
        has_text = False

    with pytest.raises(UserError, match="--head"):
        Segmenter(Mute(), Settings(labels=["a"]))  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_otsu__parts_as_the_search_over_all_thresholds(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    values = np.where(random.random(400) < share, random.normal(0, 1, 400), random.normal(4, 1.5, 400)).astype(
        np.float32
    )

    def within(threshold: float) -> float:
        groups = [values[values <= threshold], values[values > threshold]]
        return sum(float(((group - group.mean()) ** 2).sum()) for group in groups if len(group))

    best = min(within(float(value)) for value in np.sort(values)[:-1])
    assert within(otsu(values)) <= best * 1.01  # 256 bins


def test_otsu__without_spread_finds_nothing() -> None:
    flat = np.full(9, 0.3, np.float32)
    assert not (flat > otsu(flat)).any()
    assert otsu(np.array([0.0, 0.0, 1.0, 1.0])) == pytest.approx(0.5, abs=0.01)
    assert otsu(np.zeros(0)) == 0


def test_names__are_safe_and_distinct() -> None:
    names = segment_files._folder_names(["a/../x.png", "a/x.jpg", "/etc/pass wd", "b\\x.png", "...", "tar.zip!x.png"])
    assert len({name.lower() for name in names}) == 6
    assert not any(part in ("", "..", ".") for name in names for part in name.split("/"))
    assert segment_files._slugs(["a b", "a/b", "panel", "Ärger", "??"]) == [
        "a_b",
        "a_b_2",
        "panel_2",
        "Ärger",
        "unnamed",
    ]


def test_methods__are_the_same_on_the_command_line() -> None:
    assert cli_segment.METHODS == METHODS
