"""A test set of copies of the training images, saved again, is told as leakage."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from maskedclip.data.imaging import decode, standardise
from maskedclip.data.sampler import Pools
from maskedclip.data.store import open_store
from maskedclip.evaluation.leakage import is_warning, seen_in_pretraining
from maskedclip.evaluation.report_headline import headline
from maskedclip.evaluation.report_subject import Evaluation, Subject
from maskedclip.recipe import load_recipe
from maskedclip.training.rundir import RunDirectory
from maskedclip.training.seen import SEEN, write_seen
from tests.data.audit.eyes import SIZE, eye, stored, write_store

COUNT = 60  # training images


def _photograph(seed: int) -> NDArray[np.uint8]:
    """An eye as a camera gives it: wider than high, on black."""
    return np.pad(eye(seed, 300), ((10, 10), (60, 60), (0, 0)))


def _saved_again(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At 90 % of its size, as JPEG of quality 85."""
    height, width = (round(0.9 * side) for side in picture.shape[:2])
    buffer = io.BytesIO()
    Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return decode(buffer.getvalue())


def _write_run(folder: Path, *data: Path) -> Path:
    """A run's folder with what a training on all rows of the stores leaves for the check."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(load_recipe(["maskedclip", "tiny"]).to_dict()))
    store = open_store(list(data))
    write_seen(folder, store, Pools(paired=np.array([], int), unpaired=store.rows("train"), patients_with_text=(0, 0)))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on COUNT eyes, and stores of test images: 30 of its own that were saved again; as many with another crop;
    30 strangers with two copies among them."""
    folder = tmp_path_factory.mktemp("copies")
    patients = [f"p{row // 2}" for row in range(COUNT)]
    own = [stored(_photograph(seed)) for seed in range(COUNT)]
    _write_run(folder / "run", write_store(folder / "store", own, patient=patients, split=["train"] * COUNT))
    again = [_saved_again(_photograph(seed)) for seed in range(30)]
    test: dict[str, Any] = {"split": ["test"] * 30, "patient": [f"q{row}" for row in range(30)]}
    write_store(folder / "copies", [stored(picture) for picture in again], **test)
    uncropped = [standardise(picture, size=SIZE, crop="none").image for picture in again]
    write_store(folder / "uncropped", uncropped, **test)
    about = json.loads((folder / "uncropped" / "curation.json").read_text())
    about["settings"]["crop"] = "none"
    (folder / "uncropped" / "curation.json").write_text(json.dumps(about))
    strangers = [stored(_photograph(seed)) for seed in range(1000, 1028)]
    write_store(folder / "strangers", [*strangers, *(stored(picture) for picture in again[:2])], **test)
    return folder


def test_seen_in_pretraining__copies_lead(world: Path) -> None:
    store = open_store(world / "copies")
    found = seen_in_pretraining(world / "run", store, store.rows("test"))
    near = found["near_duplicates"]["n"]
    assert near > 20
    assert found["images"]["n"] == 0
    assert found["near_duplicates"]["bits"] == 2
    assert found["sentence"] == (
        f"Leakage: {near} of 30 test images look like training images, though none is the same file (by a perceptual "
        "hash; by chance fewer than 0.1 % of fundus photographs would); where they are copies, figures on them are too "
        "good. Patients could not be compared, as the store is none of those that were trained on."
    )
    assert is_warning(found)


def test_seen_in_pretraining__a_few_look_alikes_are_a_note(world: Path) -> None:
    store = open_store(world / "strangers")
    found = seen_in_pretraining(world / "run", store, store.rows("test"))
    near = found["near_duplicates"]["n"]
    assert 1 <= near <= 2
    assert found["sentence"].startswith(f"None of the 30 test images was trained on; {near} look")
    assert not is_warning(found)


def test_seen_in_pretraining__look_alikes_are_named_beside_files_and_without_hashes_of_files(world: Path) -> None:
    store = open_store(world / "copies")
    table = store.table
    place = table.column_names.index("sha256")
    hashes = table.column("sha256").to_pylist()
    trained = pq.read_table(world / "run" / SEEN).column("sha256").to_pylist()
    store.table = table.set_column(place, "sha256", [[*trained[50:54], *hashes[4:]]])
    found = seen_in_pretraining(world / "run", store, store.rows("test"))
    near = found["near_duplicates"]["n"]
    assert near > 16
    assert f"Leakage: of 30 test images, 4 were trained on, {near} more look like a training image" in found["sentence"]
    assert "and 4 are of patients that were trained on" in found["sentence"]

    store.table = table.drop_columns("sha256")
    found = seen_in_pretraining(world / "run", store, store.rows("test"))
    assert f"{found['near_duplicates']['n']} of 30 test images look like training images (by" in found["sentence"]


def test_seen_in_pretraining__another_crop_is_said_where_it_is_known(world: Path, tmp_path: Path) -> None:
    told = (
        "The test images are stored with crop none, the training images with crop fundus: copies are easily missed "
        "across different crops."
    )
    store = open_store(world / "uncropped")
    assert seen_in_pretraining(world / "run", store, store.rows("test"))["sentence"].endswith(told)
    (tmp_path / "recipe.yaml").write_text((world / "run" / "recipe.yaml").read_text())
    pq.write_table(pq.read_table(world / "run" / SEEN).drop_columns("crop"), tmp_path / SEEN)
    assert "crop" not in seen_in_pretraining(tmp_path, store, store.rows("test"))["sentence"]


def test_seen_in_pretraining__where_all_pictures_look_alike_the_chance_is_told_instead(tmp_path: Path) -> None:
    """Plates that differ in nothing that a perceptual hash sees: those of other patients look like copies too."""
    plain = stored(_photograph(0))
    made = [np.roll(plain, seed % 2, axis=0) for seed in range(150)]
    people = [f"p{row}" for row in range(150)]
    run = _write_run(tmp_path / "run", write_store(tmp_path / "store", made, patient=people, split=["train"] * 150))
    test = write_store(tmp_path / "test", made[:20], patient=people[:20], split=["test"] * 20)
    seen = pq.read_table(run / SEEN)
    hashes = [f"other {row}" for row in range(150)]
    pq.write_table(seen.set_column(seen.column_names.index("sha256"), "sha256", [hashes]), run / SEEN)
    store = open_store(test)
    found = seen_in_pretraining(run, store, store.rows("test"))
    assert found["near_duplicates"]["n"] == 20
    assert found["near_duplicates"]["by_chance"] == 1
    assert "20 look like a training image (by a perceptual hash; by chance about 100.0 % would)" in found["sentence"]
    assert not is_warning(found)


def test_seen_in_pretraining__the_chance_is_that_of_the_store_whose_images_look_most_alike(tmp_path: Path) -> None:
    """Varied images in the larger store, such that look alike in the other, without patients' names; tests of these."""
    draw = np.random.default_rng(0)

    def alike(count: int) -> list[str]:
        return [f"{value << 60:016x}" for value in draw.integers(16, size=count).tolist()]

    varied = [f"{value:016x}" for value in draw.integers(1 << 62, size=600).tolist()]
    pictures = [np.zeros((8, 8, 3), np.uint8)] * 600
    stores = {}
    for name, hashes, split in (("a", varied, "train"), ("b", alike(200), "train"), ("test", alike(40), "test")):
        people = [f"{name}{row}" if name == "a" else "" for row in range(len(hashes))]
        folder = write_store(tmp_path / name, pictures[: len(hashes)], patient=people, split=[split] * len(hashes))
        shard = next(folder.glob("*.parquet"))
        table = pq.read_table(shard)
        place = table.column_names.index("perceptual_hash")
        made = table.set_column(place, table.schema.field(place), [hashes])
        made = made.set_column(
            made.column_names.index("sha256"),
            made.schema.field("sha256"),
            [[f"{name}{row}" for row in range(len(made))]],
        )
        pq.write_table(made, shard)
        stores[name] = folder
    run = _write_run(tmp_path / "run", stores["a"], stores["b"])
    store = open_store(stores["test"])
    found = seen_in_pretraining(run, store, store.rows("test"))
    near = found["near_duplicates"]
    assert near["n"] > 30
    assert near["chance_measured"]
    assert near["by_chance"] > 0.9
    assert not is_warning(found)


@pytest.mark.parametrize(("alike", "warned"), [(8, False), (16, True)])
def test_is_warning__a_small_test_set_has_some_by_chance(alike: int, warned: bool) -> None:
    near = {"n": alike, "of": 60, "compared": 60, "by_chance": 0.049, "chance_measured": True}
    assert is_warning({"sentence": "None was trained on.", "near_duplicates": near}) is warned
    unmeasured = near | {"n": 29, "by_chance": 0.001, "chance_measured": False}
    assert not is_warning({"sentence": "None was trained on.", "near_duplicates": unmeasured})
    assert is_warning({"sentence": "None was trained on.", "near_duplicates": unmeasured | {"n": 31}})


def test_headline__copies_are_a_warning_and_so_are_those_that_an_earlier_version_found(world: Path) -> None:
    def shown(found: dict) -> str:
        main = Evaluation(name="mine", folder=world, results={"about": {"seen_in_pretraining": found}})
        run = RunDirectory(world / "run")
        subject = Subject(
            run=run, recipe=run.read_recipe(), store=None, given=("mine",), evaluations=(main,), faults={}, seed=0
        )
        return headline(subject)

    stores = {name: open_store(world / name) for name in ("copies", "strangers")}
    found = {name: seen_in_pretraining(world / "run", store, store.rows("test")) for name, store in stores.items()}
    assert '<p class="warning">Leakage: ' in shown(found["copies"])
    assert '<p class="note">None of the 30' in shown(found["strangers"])
    earlier = found["copies"] | {"sentence": "None of the 30 test images was trained on; 27 look like one that was."}
    earlier["near_duplicates"] = {"n": 27, "of": 30, "first": [], "compared": 30}
    assert '<p class="warning">None of the 30' in shown(earlier)
    assert '<p class="note">what this model' in shown(seen_in_pretraining(None, stores["copies"], np.arange(3)))
