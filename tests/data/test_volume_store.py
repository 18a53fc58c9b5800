"""Curation of volumes: what is stored, what is told, what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskedclip.data import volume_store
from maskedclip.data.store import open_store
from maskedclip.data.volume_intensity import map_intensity, resampled
from maskedclip.data.volume_sources import Item
from maskedclip.data.volume_store import VolumeSettings, curate_volumes
from maskedclip.errors import UserError
from tests.cli_case import refused, status
from tests.data.volumes_given import SHAPE, body, write_nifti, write_series
from tests.stores import make_store

HU = np.linspace(-1500, 1500, int(np.prod(SHAPE))).reshape(SHAPE).astype(np.int16)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_nifti(tmp_path / "head.nii.gz", HU)
    write_nifti(tmp_path / "brain.nii")
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b no")
    write_nifti(tmp_path / "flat.nii", np.full(SHAPE, 7, np.int16))
    table = [
        "image,patient,split,text,label.lesion,label.modality",
        "head.nii.gz,a,train,A head.,1,CT",
        "brain.nii,b,test,,0,t1",
        "broken.nii.gz,c,train,,0,t1",
        "flat.nii,d,train,,,t1",
    ]
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(table) + "\n")
    return path


def test_curate_volumes__keeps_columns_maps_intensities_and_quarantines(manifest: Path, tmp_path: Path) -> None:
    done = curate_volumes(manifest, tmp_path / "store", progress=False)
    assert done.stored == 2
    assert [(row, name) for row, name, _ in done.quarantine] == [(2, "broken"), (3, "flat")]
    assert "one value everywhere" in done.quarantine[1][2]
    store = open_store(tmp_path / "store")
    assert store.kind == "volumes"
    assert store.splits.tolist() == ["train", "test"]
    assert store.patients.tolist() == ["a", "b"]
    assert store.texts == ["A head.", None]
    assert store.labels["lesion"].tolist() == [1, 0]
    assert store.modalities[1] == ["ct", "t1"]
    assert store.modalities[0].tolist() == [0, 1]
    head, brain = store.image(0), store.image(1)
    assert head.shape == brain.shape == (1, *SHAPE)
    expected = np.clip((HU.astype(np.float64) + 1000) / 2000, 0, 1)
    assert np.abs(head[0].numpy() - expected).max() < 1e-3
    values = body().astype(np.float64)
    inside = values[values != 0]
    assert np.abs(brain[0].numpy()[values != 0] - (inside - inside.mean()) / inside.std()).max() < 2e-2
    assert not brain[0].numpy()[values == 0].any()
    told = (tmp_path / "store" / "quarantine.csv").read_text()
    assert "broken" in told
    assert "flat" in told


def test_curate_volumes__writes_the_same_shards_twice_with_checksums(manifest: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        curate_volumes(manifest, tmp_path / name, progress=False)
    about = json.loads((tmp_path / "one" / "curation.json").read_text())
    assert about["checksums"]
    for name, digest in about["checksums"].items():
        first, second = ((tmp_path / store / name).read_bytes() for store in ("one", "two"))
        assert first == second
        assert hashlib.sha256(first).hexdigest() == digest
    assert open_store(tmp_path / "one").fingerprint == open_store(tmp_path / "two").fingerprint


def _files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.iterdir())}


def test_curate_volumes__goes_on_after_a_crash_with_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_store, "SHARD_ITEMS", 2)
    source = _medmnist(tmp_path / "adrenal.npz")
    whole = curate_volumes(source, tmp_path / "whole", progress=False)
    assert len(list((tmp_path / "whole").glob("*.parquet"))) > 2
    read, reads = volume_store._row, []

    def crash(item: Item, *more: Any) -> dict[str, Any]:
        reads.append(item.name)
        if len(reads) == 6:
            raise KeyboardInterrupt
        return read(item, *more)

    monkeypatch.setattr(volume_store, "_row", crash)
    with pytest.raises(KeyboardInterrupt):
        curate_volumes(source, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()
    done = curate_volumes(source, tmp_path / "store", progress=False)
    assert reads[6] == reads[4]  # two shards of two are kept, so the fifth is read again
    assert len(reads) == 6 + whole.stored + len(whole.quarantine) - 4
    assert _files(tmp_path / "store") == _files(tmp_path / "whole")
    assert (done.stored, done.quarantine, done.splits) == (whole.stored, whole.quarantine, whole.splits)
    assert not (tmp_path / "store.partial").exists()


def test_curate_volumes__goes_on_with_nothing_but_the_same_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_store, "SHARD_ITEMS", 2)
    source, partial = _medmnist(tmp_path / "adrenal.npz"), tmp_path / "store.partial"
    read = volume_store._row

    def crash(item: Item, *more: Any) -> dict[str, Any]:
        if item.name == "train-000003":
            raise KeyboardInterrupt
        return read(item, *more)

    monkeypatch.setattr(volume_store, "_row", crash)
    with pytest.raises(KeyboardInterrupt):
        curate_volumes(source, tmp_path / "store", progress=False)
    monkeypatch.setattr(volume_store, "_row", read)
    with pytest.raises(UserError, match=r"store.partial: was begun with other volumes, settings"):
        curate_volumes(source, tmp_path / "store", VolumeSettings(cube=8), progress=False)
    shard = next(partial.glob("*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9])
    with pytest.raises(UserError, match=r"parquet: is damaged or gone; delete .*store.partial to start anew"):
        curate_volumes(source, tmp_path / "store", progress=False)
    shard.write_bytes(whole)
    _medmnist(source, train_images=np.zeros((4, 8, 8, 8), np.uint8))  # another file of the same name and rows
    with pytest.raises(UserError, match=r"store.partial: was begun with other volumes"):
        curate_volumes(source, tmp_path / "store", progress=False)
    assert shard.read_bytes() == whole
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "progress.json").write_text("{}")  # of `curate`
    with pytest.raises(UserError, match=r"other.partial: is in the way and no half-made store of volumes"):
        curate_volumes(source, tmp_path / "other", progress=False)


def test_curate_volumes__reads_a_dicom_series_with_its_modality(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", Modality="MR")
    done = curate_volumes(tmp_path / "scan", tmp_path / "store", progress=False)
    assert done.modalities == {"mr": 1}
    store = open_store(tmp_path / "store")
    assert store.patients.tolist() == ["p7"]
    nifti = write_nifti(tmp_path / "same.nii")
    curate_volumes(nifti, tmp_path / "other", VolumeSettings(modality="MR"), progress=False)
    assert np.array_equal(store.image(0).numpy(), open_store(tmp_path / "other").image(0).numpy())


def _medmnist(path: Path, **arrays: np.ndarray) -> Path:
    random = np.random.default_rng(0)
    given = {
        name: random.integers(0, 256, (count, 8, 8, 8), np.uint8)
        for name, count in (("train_images", 4), ("val_images", 2), ("test_images", 3))
    }
    labels = {name.replace("images", "labels"): np.arange(len(value))[:, None] % 2 for name, value in given.items()}
    everything: dict[str, Any] = given | labels | arrays
    np.savez(path, **everything)
    return path


def test_curate_volumes__keeps_the_bytes_of_a_medmnist_file(tmp_path: Path) -> None:
    source = _medmnist(tmp_path / "adrenal.npz")
    done = curate_volumes(source, tmp_path / "store", VolumeSettings(modality="ct"), progress=False)
    assert done.stored == 9
    store = open_store(tmp_path / "store")
    with np.load(source) as given:
        assert np.array_equal(store.image(0)[0].numpy(), given["train_images"][0])
        assert np.array_equal(store.image(8)[0].numpy(), given["test_images"][2])
        assert (
            store.labels["class"].tolist()
            == np.concatenate([given[f"{split}_labels"].ravel() for split in ("train", "val", "test")]).tolist()
        )
    assert [int((store.splits == split).sum()) for split in ("train", "val", "test")] == [4, 2, 3]


def test_curate_volumes__spacing_and_cube_change_the_voxels(tmp_path: Path) -> None:
    nifti = write_nifti(tmp_path / "a.nii")  # 10 x 12 x 14 voxels of 2 x 1 x 3 mm
    curate_volumes(nifti, tmp_path / "two", VolumeSettings(spacing=2.0), progress=False)
    assert open_store(tmp_path / "two").image(0).shape == (1, 10, 6, 21)
    curate_volumes(nifti, tmp_path / "cube", VolumeSettings(cube=16), progress=False)
    cube = open_store(tmp_path / "cube").image(0)[0].numpy()
    assert cube.shape == (16, 16, 16)
    assert not cube[:4].any()  # 20 mm of 42 fill 8 of 16 voxels
    assert cube[4:12].any()


def test_resampled__averages_where_it_shrinks_and_keeps_a_ramp() -> None:
    ramp = np.broadcast_to(np.arange(32.0)[:, None, None], (32, 6, 6))
    small = resampled(ramp, (8, 6, 6))
    assert np.allclose(small[1:-1, 0, 0], np.arange(8)[1:-1] * 4 + 1.5, atol=1e-4)
    noise = np.random.default_rng(0).normal(size=(32, 32, 32))
    assert resampled(noise, (8, 8, 8)).std() < 0.2
    assert np.array_equal(resampled(noise.astype(np.float32), (32, 32, 32)), noise.astype(np.float32))


def test_map_intensity__tells_a_ct_that_is_not_in_hounsfield_units() -> None:
    grey = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.float32)
    values, note = map_intensity(grey, "ct")
    assert "not Hounsfield" in note
    assert float(values.min()) == 0
    assert float(values.max()) == 1
    spoilt = HU.astype(np.float32)
    spoilt[0, 0, 0] = np.nan
    values, note = map_intensity(spoilt, "ct")
    assert np.isfinite(values).all()
    assert note == ""


def test_curate_volumes__refuses_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    given = [
        ((tmp_path / "none.nii",), "no such file"),
        ((_medmnist(tmp_path / "flat.npz", train_images=np.zeros((4, 8, 8), np.uint8)),), "not uint8 (n, X, Y, Z)"),
        ((_medmnist(tmp_path / "words.npz", train_labels=np.asarray(["ct"] * 4)),), "give whole numbers"),
        ((write_nifti(tmp_path / "a.nii"), "--cube", 2), "--cube"),
        ((tmp_path / "a.nii", "--spacing", 0), "--spacing"),
        ((tmp_path / "a.nii", "--spacing", 2, "--cube", 8), "one of them"),
    ]
    for arguments, told in given:
        assert told in refused(capsys, "curate-volumes", *arguments, "--out", out)
        assert not list(tmp_path.glob("store*"))


def test_curate_volumes__leaves_what_is_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial" / "thesis.txt").write_text("mine")
    told = refused(capsys, "curate-volumes", write_nifti(tmp_path / "a.nii"), "--out", tmp_path / "store")
    assert "is in the way" in told
    assert (tmp_path / "store.partial" / "thesis.txt").read_text() == "mine"


def test_curate_volumes__verb_says_what_is_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _medmnist(tmp_path / "adrenal.npz")
    assert status("curate-volumes", source, "--out", tmp_path / "store", "--modality", "ct") == 0
    said = capsys.readouterr().out
    assert "9 volumes" in said
    assert said.strip().splitlines()[-1].startswith("next: maskedclip pretrain --config dae --config volume_tiny")
    assert "exists already" in refused(capsys, "curate-volumes", source, "--out", tmp_path / "store")
    assert status("store", "check", tmp_path / "store") == 0


def test_open_store__refuses_pictures_and_volumes_together(tmp_path: Path) -> None:
    curate_volumes(_medmnist(tmp_path / "adrenal.npz"), tmp_path / "volumes", progress=False)
    make_store(tmp_path / "pictures", rows=6)
    with pytest.raises(UserError, match="stores of one kind"):
        open_store([tmp_path / "pictures", tmp_path / "volumes"])


def test_volume_verbs__files_outside_the_manifest_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("elsewhere", "in"):
        (tmp_path / folder).mkdir()
    write_nifti(tmp_path / "elsewhere" / "brain.nii")
    given = tmp_path / "in" / "m.csv"
    given.write_text("image,modality\n../elsewhere/brain.nii,t1\n")
    for number, verb in enumerate((["curate-volumes"], ["slices"], ["slices", "--cube", "8"])):
        command = [*verb[:1], str(given), *verb[1:], "--out", str(tmp_path / f"out{number}")]
        assert status(*command) == 2
        assert "or say --allow-outside" in " ".join(capsys.readouterr().err.split())
        assert status(*command, "--allow-outside") == 0
        assert (tmp_path / f"out{number}").is_dir()
