import csv
import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskedclip.data import phantom
from maskedclip.data.phantom import LABELS, MASKS, Phantom, draw_phantom, write_phantoms
from maskedclip.data.phantom_lesions import LESIONS
from maskedclip.data.phantom_patient import SIDES, Side
from maskedclip.errors import UserError

SIZE = 96


@pytest.fixture(scope="module")
def some() -> list[Phantom]:
    """Both eyes of fifty patients."""
    return [draw_phantom(11, patient, side, SIZE) for patient in range(50) for side in SIDES]


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 21 small phantoms, written in this process; the manifest's path."""
    out = tmp_path_factory.mktemp("phantoms") / "set"
    return write_phantoms(out, images=21, seed=3, size=SIZE, processes=1, progress=False)


def _rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_draw_phantom__same_bits_on_each_call() -> None:
    first, second = (draw_phantom(5, 2, "left", SIZE) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert {k: v.tobytes() for k, v in first.masks.items()} == {k: v.tobytes() for k, v in second.masks.items()}
    assert (first.text, first.labels, first.findings) == (second.text, second.labels, second.findings)


@pytest.mark.parametrize("other", [(6, 2, "left"), (5, 3, "left"), (5, 2, "right")])
def test_draw_phantom__each_argument_changes_the_picture(other: tuple[int, int, Side]) -> None:
    assert not np.array_equal(draw_phantom(5, 2, "left", SIZE).image, draw_phantom(*other, size=SIZE).image)


@pytest.mark.parametrize("size", [32, 97, 256, 512])
def test_draw_phantom__shapes_and_types(size: int) -> None:
    drawn = draw_phantom(5, 2, "left", size)
    assert drawn.image.shape == (size, size, 3)
    assert drawn.image.dtype == np.uint8
    assert all(mask.shape == (size, size) and mask.dtype == np.bool_ for mask in drawn.masks.values())


def test_draw_phantom__same_scene_at_each_size() -> None:
    small, large = draw_phantom(5, 2, "left", 128), draw_phantom(5, 2, "left", 256)
    assert (small.findings, small.text) == (large.findings, large.text)
    shrunk = np.asarray(Image.fromarray(large.image).resize((128, 128), Image.Resampling.BOX), np.float32)
    assert np.corrcoef(shrunk.ravel(), small.image.ravel())[0, 1] > 0.98


def test_draw_phantom__masks_lie_inside_the_field(some: list[Phantom]) -> None:
    for drawn in some:
        lit = drawn.image.max(axis=2) > 12
        field = np.logical_or.accumulate(lit, 1) & np.logical_or.accumulate(lit[:, ::-1], 1)[:, ::-1]  # row-wise hull
        for name, mask in drawn.masks.items():
            assert (mask & ~field).sum() <= 0.05 * mask.sum() + 2, name  # the field's edge is soft
        assert not any(mask[0, 0] or mask[-1, -1] for mask in drawn.masks.values())


def test_draw_phantom__black_around_a_bright_field(some: list[Phantom]) -> None:
    for drawn in some:
        corner = SIZE // 16
        assert drawn.image[:corner, :corner].mean() < 10
        assert drawn.image[SIZE // 2 - 9 : SIZE // 2 + 9, SIZE // 2 - 9 : SIZE // 2 + 9].mean() > 25


def test_draw_phantom__vessels_are_arteries_and_veins_and_the_disc_holds_the_cup(some: list[Phantom]) -> None:
    for drawn in some:
        masks = drawn.masks
        assert np.array_equal(masks["vessel"], masks["artery"] | masks["vein"])
        assert masks["vein"].sum() > masks["artery"].sum() > 0  # veins are the wider ones
        assert not (masks["cup"] & ~masks["disc"]).any()
        assert 0 < masks["cup"].sum() < masks["disc"].sum()
        height = [np.ptp(np.flatnonzero(masks[name].any(axis=1))) + 1 for name in ("cup", "disc")]
        assert height[0] / height[1] == pytest.approx(drawn.eye.cup_ratio, abs=0.2)


def test_draw_phantom__disc_lies_towards_the_nose(some: list[Phantom]) -> None:
    for drawn in some:
        column = np.flatnonzero(drawn.masks["disc"].any(axis=0)).mean() / SIZE
        assert column > 0.6 if drawn.eye.side == "right" else column < 0.4


def test_draw_phantom__a_mask_for_each_lesion_and_for_no_other(some: list[Phantom]) -> None:
    for drawn in some:
        present = {kind for kind in LESIONS if drawn.findings[kind]}
        assert present == set(drawn.masks) & set(LESIONS)
        assert all(drawn.masks[kind].any() for kind in present)
    assert {kind for drawn in some for kind in LESIONS if kind in drawn.masks} == set(LESIONS)


def test_draw_phantom__both_eyes_share_patient_and_colour(some: list[Phantom]) -> None:
    colour = np.array([drawn.image[drawn.image.max(axis=2) > 30].mean(axis=0) for drawn in some]).reshape(-1, 2, 3)
    within = np.abs(colour[:, 0] - colour[:, 1]).mean()
    between = np.abs(colour[1:, 0] - colour[:-1, 1]).mean()
    assert within < 0.5 * between
    assert all(
        left.age == right.age and left.sex == right.sex for left, right in zip(some[::2], some[1::2], strict=True)
    )


def test_labels__follow_from_diseases_and_findings(some: list[Phantom]) -> None:
    for drawn in some:
        labels = drawn.labels
        assert tuple(labels) == LABELS
        assert labels["diabetic_retinopathy"] == (labels["dr_grade"] > 0)
        assert labels["normal"] == (not any(drawn.findings.values()))
        assert all(labels[kind] == (drawn.findings[kind] > 0) for kind in ("haemorrhage", "drusen", "laser_scar"))
        assert labels["glaucoma"] == (drawn.findings["wide_cup"] > 0)


def test_write_phantoms__manifest_names_files_that_exist(small_set: Path) -> None:
    rows, root = _rows(small_set), small_set.parent
    assert len(rows) == 21
    assert [row["eye"] for row in rows[:3]] == ["left", "right", "left"]
    columns = ["image", "text", "patient", "split", "eye", "age", "sex"]
    columns += [f"label.{name}" for name in LABELS] + [f"mask.{name}" for name in MASKS]
    assert list(rows[0]) == columns
    listed = {"manifest.csv"}
    for row in rows:
        with Image.open(root / row["image"]) as image:
            assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")
        for name in MASKS:
            if path := row[f"mask.{name}"]:
                with Image.open(root / path) as mask:
                    assert (mask.size, mask.mode) == ((SIZE, SIZE), "L")
                    assert set(np.unique(np.asarray(mask))) <= {0, 255}
                listed.add(path)
        listed.add(row["image"])
        assert row["text"].strip()
        assert row["split"] in ("train", "val", "test")
    assert set(_digests(root)) == listed  # and no file that the manifest does not name


def test_write_phantoms__rows_are_what_draw_phantom_returns(small_set: Path) -> None:
    row = _rows(small_set)[7]
    drawn = draw_phantom(3, 3, "right", SIZE)
    assert (row["patient"], row["text"], row["split"]) == ("phantom-3-3", drawn.text, drawn.split)
    assert {name: int(row[f"label.{name}"]) for name in LABELS} == drawn.labels
    for name, mask in drawn.masks.items():
        with Image.open(small_set.parent / row[f"mask.{name}"]) as stored:
            assert np.array_equal(np.asarray(stored) > 0, mask)
    with Image.open(small_set.parent / row["image"]) as stored:
        error = np.abs(np.asarray(stored).astype(int) - drawn.image)
    assert error.mean() < 3  # JPEG of quality 95


def test_write_phantoms__same_bits_for_any_processes_and_set_size(small_set: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "set", images=34, seed=3, size=SIZE, processes=2, progress=False)
    expected, larger = _digests(small_set.parent), _digests(tmp_path / "set")
    del expected["manifest.csv"]
    assert expected.items() <= larger.items()
    assert _rows(tmp_path / "set" / "manifest.csv")[:21] == _rows(small_set)


def test_write_phantoms__splits_by_patient(small_set: Path) -> None:
    splits: dict[str, set[str]] = {}
    for row in _rows(small_set):
        splits.setdefault(row["patient"], set()).add(row["split"])
    assert len(splits) == 11
    assert all(len(names) == 1 for names in splits.values())


def test_write_phantoms__accepts_an_empty_folder(tmp_path: Path) -> None:
    assert write_phantoms(tmp_path, images=1, seed=0, size=32, progress=False) == tmp_path / "manifest.csv"
    assert len(_rows(tmp_path / "manifest.csv")) == 1


def test_write_phantoms__refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not an empty folder"):
        write_phantoms(tmp_path, images=2, seed=0, size=32)
    with pytest.raises(UserError, match="not an empty folder"):
        write_phantoms(tmp_path / "mine.txt", images=2, seed=0, size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"images": 0}, "images"), ({"seed": -1}, "seed"), ({"size": 16}, "size"), ({"size": 9999}, "size")],
)
def test_write_phantoms__refuses_numbers_out_of_range(tmp_path: Path, wrong: dict[str, int], word: str) -> None:
    numbers = {"images": 2, "seed": 0, "size": 32} | wrong
    with pytest.raises(UserError, match=f"^{word}: "):
        write_phantoms(tmp_path / "set", images=numbers["images"], seed=numbers["seed"], size=numbers["size"])
    assert not (tmp_path / "set").exists()


def test_write_phantoms__full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(phantom, "_write_manifest", fail)
    with pytest.raises(UserError, match="No space left on device"):
        write_phantoms(tmp_path / "set", images=2, seed=0, size=32)
    assert list(tmp_path.iterdir()) == []
