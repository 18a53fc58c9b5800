"""Copies are found whatever was done to them; other pictures, and the other eye, are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskedclip.data.audit import duplicates
from maskedclip.data.audit.descriptors import Descriptors, describe
from maskedclip.data.audit.duplicates import Pairs, find_duplicates
from maskedclip.data.audit.likeness import likeness, may_be_alike, residual, rough_structure
from maskedclip.data.field import resize
from maskedclip.data.imaging import decode, encode_jpeg
from maskedclip.data.store import open_store
from tests.data.audit.eyes import SIZE, eye, stored, write_store

COUNT = 12
_CUT = round(0.05 * 2 * SIZE)

CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "encoded": lambda image: decode(encode_jpeg(image, quality=50)),
    "smaller": lambda image: resize(image, SIZE, SIZE),
    "larger": lambda image: resize(image, 3 * SIZE, 3 * SIZE),
    "cropped": lambda image: image[_CUT:-_CUT, _CUT:-_CUT],
    "cut at the left": lambda image: image[:, _CUT:],
    "flipped": lambda image: image[:, ::-1],
    "brighter": lambda image: (image * 1.25).clip(0, 255).astype(np.uint8),
    "lifted": lambda image: (image.astype(int) + 30).clip(0, 255).astype(np.uint8),
}


def _pairs(folder: Path, pictures: list[np.ndarray], audited: int | None = None) -> Pairs:
    store = open_store(write_store(folder, pictures))
    return find_duplicates(describe(store, shown=False), len(store) if audited is None else audited, shown=False)


@pytest.mark.parametrize("change", CHANGES)
def test_find_duplicates__finds_every_copy_and_nothing_else(tmp_path: Path, change: str) -> None:  # P24
    originals = [eye(seed, 2 * SIZE) for seed in range(COUNT)]
    pictures = [stored(image) for image in originals] + [stored(CHANGES[change](image)) for image in originals[:4]]
    pairs = _pairs(tmp_path / "s", pictures)
    assert list(zip(sorted(pairs.first), sorted(pairs.second), strict=True)) == [(k, COUNT + k) for k in range(4)]
    if change == "flipped":
        assert set(pairs.how) == {"mirrored"}


def test_find_duplicates__equal_files_are_pairs_with_the_first(tmp_path: Path) -> None:
    pictures = [stored(eye(seed)) for seed in (0, 1, 0, 2, 0)]
    pairs = _pairs(tmp_path / "s", pictures)
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 2), (0, 4)]
    assert pairs.likeness.tolist() == [1, 1]
    assert pairs.same.all()
    assert set(pairs.how) == {"the same file"}


def test_find_duplicates__only_with_an_audited_row(tmp_path: Path) -> None:
    pictures = [stored(eye(seed)) for seed in (0, 1, 2, 2)]
    again = decode(encode_jpeg(pictures[0], quality=60))
    known = describe(open_store(write_store(tmp_path / "s", [*pictures, again])), shown=False)
    assert len(find_duplicates(known, 5, shown=False)) == 2
    pairs = find_duplicates(known, 2, shown=False)
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([0], [4])


def test_find_duplicates__black_pictures_make_no_million_pairs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(duplicates, "CROWD", 3)
    faint = [np.full((SIZE, SIZE, 3), level, np.uint8) for level in range(30)]
    pairs = _pairs(tmp_path / "s", faint)
    assert len(pairs) <= 3 * 30


def test_find_duplicates__no_rows() -> None:
    empty = Descriptors(
        small=np.empty((0, 64, 64), np.uint8),
        rough=np.empty((0, 32, 32), np.int8),
        hashes=np.empty(0, np.uint64),
        details=np.empty((0, 3), np.uint64),
        files=np.empty(0, object),
        statistics=np.empty((0, 7), np.float32),
        letters=np.empty(0, np.int32),
    )
    assert len(find_duplicates(empty, 0, shown=False)) == 0


def test_likeness__ignores_light_and_tells_eyes_apart() -> None:
    eyes = np.stack([eye(seed, 64).mean(axis=2) for seed in range(8)]).astype(np.float32)
    assert (likeness(eyes, 0.6 * eyes + 20) > 0.95).all()
    assert (likeness(eyes, np.roll(eyes, 1, axis=2)) > 0.8).all()
    assert (likeness(eyes, np.roll(eyes, 1, axis=0)) < 0.4).all()
    assert (likeness(eyes, eyes[:, :, ::-1]) < 0.4).all()


def test_may_be_alike__keeps_what_is_alike_or_too_even_to_tell() -> None:
    eyes = np.stack([eye(seed, 64).mean(axis=2) for seed in range(8)]).astype(np.float32)
    rough = rough_structure(eyes).astype(np.float32)
    assert may_be_alike(rough, rough_structure(0.7 * eyes).astype(np.float32)).all()
    assert not may_be_alike(rough, np.roll(rough, 1, axis=0)).any()
    assert may_be_alike(rough, np.zeros_like(rough)).all()


def test_residual__is_what_gain_and_offset_leave() -> None:
    eyes = np.stack([eye(seed, 64).mean(axis=2) for seed in range(3)]).astype(np.float32)
    assert (residual(eyes, eyes * 0.7) < 0.1).all()
    noise = np.random.Generator(np.random.Philox(0)).normal(0, 5, eyes.shape).astype(np.float32)
    # gain and offset are the same for both, so the noise is what is left
    assert residual(eyes, np.where(eyes > 30, eyes + noise, eyes)) == pytest.approx(np.full(3, 5), abs=1)
    assert np.isinf(residual(np.zeros((1, 64, 64), np.float32), eyes[:1])).all()


@pytest.mark.shared
def test_find_duplicates__real_ones_of_odir(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "odir" / "images"
    names = ["352_right.jpg", "973_right.jpg", "2487_left.jpg", "3185_left.jpg", "1_left.jpg", "1_right.jpg"]
    pairs = _pairs(tmp_path / "s", [stored(decode((folder / name).read_bytes())) for name in names])
    assert sorted(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == [(0, 1), (2, 3)]
