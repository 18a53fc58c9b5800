"""Appending to a store, and looking after one: check, export, migrate."""

import csv
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskedclip.cli import run
from maskedclip.data import curate_append, curate_work
from maskedclip.data.curate import curate
from maskedclip.data.curate_append import append
from maskedclip.data.masks import read_masks
from maskedclip.data.quality import quality
from maskedclip.data.shards import SCHEMA_VERSION
from maskedclip.data.store import Store, open_store
from maskedclip.data.store_check import check_store
from maskedclip.data.store_export import export_store
from maskedclip.data.store_migrate import migrate_store
from maskedclip.errors import CheckFailed, UserError

SIDE = 48


def picture(folder: Path, number: int) -> None:
    values = np.random.Generator(np.random.Philox(number)).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    Image.fromarray(values).resize((64, 64)).save(folder / f"{number}.png")
    Image.fromarray((values[:, :, 0] > 120).astype(np.uint8) * 255).resize((64, 64), 0).save(folder / f"m{number}.png")


def write_manifest(folder: Path, numbers: range | list[int], name: str = "manifest.csv", **other: str) -> Path:
    """Pictures with a text, two of a patient, a label, and a mask for every other one."""
    for number in numbers:
        if not (folder / f"{number}.png").exists():
            picture(folder, number)
    lines = ["image,text,patient,split,label.grade,mask.spot"]
    for number in numbers:
        split = other.get("split") or ("train", "val", "test")[number // 2 % 3]
        mask = f"m{number}.png" if number % 2 else ""
        lines.append(f"{number}.png,text {number % 3},p{number // 2},{split},{number % 2},{mask}")
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def make(manifest: Path, out: Path) -> Store:
    curate(manifest, out, size=SIDE, crop="none", progress=False)
    return open_store(out)


def content(store: Store) -> dict[str, list]:
    return {name: store.table.column(name).to_pylist() for name in store.table.column_names} | {
        "pictures": [bytes(store.image_bytes(row)) for row in range(len(store))]
    }


def test_append__gives_the_rows_of_one_curation_and_reads_new_files_only(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(write_manifest(source, range(11)), tmp_path / "whole")
    out = tmp_path / "store"
    make(write_manifest(source, range(5)), out)
    (source / "2.png").unlink()  # what is in the store already is not looked at again
    monkeypatch.setattr(curate_work, "SHARD_ROWS", 4)
    done = append(write_manifest_again(source, range(11)), out, progress=False)
    assert done.counts["stored"] == 11
    assert any("5 rows are in the store already" in note for note in done.notes)
    appended = open_store(out)
    assert content(appended) == content(whole)
    assert appended.fingerprint == whole.fingerprint
    masks = read_masks(appended, list(range(11)), "spot")
    assert [mask is not None for mask in masks] == [number % 2 == 1 for number in range(11)]
    assert check_store(out).counts == {}
    assert not (out / curate_append.PARTIAL).exists()
    assert "| images stored | 11 |" in (out / "README.md").read_text()


def write_manifest_again(folder: Path, numbers: range) -> Path:
    """The table alone: a picture that was removed stays removed."""
    gone = [number for number in numbers if not (folder / f"{number}.png").exists() and number < 5]
    path = write_manifest(folder, numbers)
    for number in gone:
        (folder / f"{number}.png").unlink()
    return path


def test_append__twice_changes_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    make(write_manifest(source, range(5)), out)
    append(write_manifest(source, range(8)), out, progress=False)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    done = append(write_manifest(source, range(8)), out, progress=False)
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert done.counts["stored"] == 8


@pytest.mark.parametrize("crash_at", [0, 1, 2, 3, 4])
def test_append__is_not_seen_until_it_is_whole_and_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    monkeypatch.setattr(curate_work, "SHARD_ROWS", 3)
    out = tmp_path / "store"
    make(write_manifest(source, range(5)), out)
    whole = make(write_manifest(source, range(11)), tmp_path / "whole")
    real, count = os.replace, 0

    def failing(first: Path, second: Path) -> None:
        nonlocal count
        if Path(second).parent == out:
            count += 1
            if count > crash_at:
                raise KeyboardInterrupt
        real(first, second)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", failing)
        with pytest.raises(KeyboardInterrupt):
            append(write_manifest(source, range(11)), out, progress=False)
    assert len(open_store(out)) == 5
    assert check_store(out).counts == {}
    append(write_manifest(source, range(11)), out, progress=False)
    assert content(open_store(out)) == content(whole)
    assert check_store(out).counts == {}


def test_append__says_what_it_does_not_change_and_refuses_what_does_not_fit(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    make(write_manifest(source, range(4)), out)
    other = write_manifest(source, range(4), "other.csv")
    other.write_text(other.read_text().replace("text 1", "another text"))
    notes = append(other, out, progress=False).notes
    assert any("1 of them have another text" in note for note in notes)
    make(write_manifest(source, [4]), tmp_path / "second")
    with pytest.raises(UserError, match=r"split: 1 patients are in another split of .*\(p2\)"):
        append(write_manifest(source, [5], split="train"), tmp_path / "second", progress=False)
    words = write_manifest(source, [6], "words.csv")
    words.write_text(words.read_text().replace(",0,", ",mild,"))
    with pytest.raises(UserError, match=r"label\.grade: is string in the manifest and float in"):
        append(words, out, progress=False)
    with pytest.raises(UserError, match="not a store"):
        append(other, tmp_path / "nothing", progress=False)


def test_append__quarantines_as_curation_does(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    make(write_manifest(source, range(4)), out)
    manifest = write_manifest(source, range(6))
    (source / "5.png").write_bytes(b"")
    done = append(manifest, out, progress=False)
    assert [(entry.image, entry.reason) for entry in done.quarantine] == [("5.png", "is empty (0 bytes)")]
    assert done.counts["quarantined"] == 1
    table = list(csv.DictReader((out / "quarantine.csv").open()))
    assert [line["image"] for line in table] == ["5.png"]


def test_cli_append__takes_no_setting_of_pictures(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    make(write_manifest(source, range(4)), out)
    manifest = write_manifest(source, range(6))
    with pytest.raises(UserError, match="--size: new rows are prepared as the store's own"):
        run(["curate", str(manifest), "--out", str(out), "--append", "--size", "64"])
    run(["curate", str(manifest), "--out", str(out), "--append"])
    assert len(open_store(out)) == 6


def test_check_store__finds_what_was_done_to_it(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    make(write_manifest(source, range(6)), out)
    assert check_store(out, sources=source).counts == {}
    (source / "1.png").write_bytes((source / "2.png").read_bytes())
    (source / "3.png").unlink()
    found = check_store(out, sources=source)
    assert found.counts == {"sources": 2}
    assert found.faults == [
        f"{source / '1.png'}: has changed since the curation",
        f"{source / '3.png'}: No such file or directory",
    ]
    shard = out / "shard-00000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.slice(1), shard)
    found = check_store(out)
    assert "shard-00000.parquet: its bytes are not those that curation wrote" in found.faults
    assert "holds 5 rows where curation.json says 6" in found.faults
    data = bytearray(shard.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    shard.write_bytes(data)
    with pytest.raises(CheckFailed, match="faults in shard"):
        run(["store", "check", str(out)])


@pytest.mark.parametrize("label", [None, "grade"])
def test_export_store__image_folder_opens_with_datasets(source: Path, tmp_path: Path, label: str | None) -> None:
    datasets = pytest.importorskip("datasets")
    store = make(write_manifest(source, range(12)), tmp_path / "store")
    counts = export_store(tmp_path / "store", tmp_path / "folder", "imagefolder", label=label)
    assert counts == {"train": 4, "val": 4, "test": 4}
    read = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "folder" / "test"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(read) == 4
    texts = dict(zip(read["id"], read["text"], strict=True))
    assert texts == {store.ids[row]: store.texts[row] for row in store.rows("test")}
    if label:
        folders = {path.name for path in (tmp_path / "folder" / "test").iterdir() if path.is_dir()}
        assert folders == {"0", "1"}
    row = int(store.rows("train")[0])
    place = next((tmp_path / "folder" / "train").rglob(f"{store.ids[row]}.*"))
    assert place.read_bytes() == bytes(store.image_bytes(row))


def test_export_store__webdataset_holds_every_row_once(source: Path, tmp_path: Path) -> None:
    store = make(write_manifest(source, range(12)), tmp_path / "store")
    export_store(tmp_path / "store", tmp_path / "tars", "webdataset", label="grade")
    with tarfile.open(tmp_path / "tars" / "train-000000.tar") as tar:
        members = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    rows = store.rows("train").tolist()
    for row in rows:
        key = store.ids[row]
        assert members[f"{key}.jpg"] == bytes(store.image_bytes(row))
        assert members[f"{key}.txt"].decode() == store.texts[row]
        assert members[f"{key}.cls"].decode() == f"{store.labels['grade'][row]:g}"
        about = json.loads(members[f"{key}.json"])
        assert about["patient"] == store.patients[row]
        assert (f"{key}.mask.spot.png" in members) == (about["source"] in ("1.png", "7.png"))
    assert len({name.split(".")[0] for name in members}) == len(rows)
    with pytest.raises(UserError, match="exists; choose another folder"):
        export_store(tmp_path / "store", tmp_path / "tars", "webdataset")
    with pytest.raises(UserError, match="--label glaucoma: the store has no such label; it has grade"):
        export_store(tmp_path / "store", tmp_path / "x", "webdataset", label="glaucoma")


def test_migrate_store__brings_version_one_up_to_date(source: Path, tmp_path: Path) -> None:
    present = make(write_manifest(source, range(6)), tmp_path / "store")
    old = tmp_path / "old"
    old.mkdir()
    for shard in sorted((tmp_path / "store").glob("shard-*.parquet")):
        table = pq.read_table(shard)
        pq.write_table(
            table.drop_columns([n for n in table.column_names if n.startswith("quality.")]), old / shard.name
        )
    about = json.loads((tmp_path / "store" / "curation.json").read_text())
    del about["checksums"]
    (old / "curation.json").write_text(json.dumps(about | {"schema_version": 1}))
    assert len(open_store(old)) == 6
    with pytest.raises(UserError, match="maskedclip store migrate"):
        append(write_manifest(source, range(8)), old, progress=False)
    assert migrate_store(old, tmp_path / "new") == 6
    new = open_store(tmp_path / "new")
    assert new.fingerprint == present.fingerprint
    assert new.curation[0]["schema_version"] == SCHEMA_VERSION
    expected = quality(new.image(3).permute(1, 2, 0).numpy())
    for name, value in expected.items():
        assert new.table.column(f"quality.{name}")[3].as_py() == pytest.approx(value, rel=1e-5)
    assert check_store(tmp_path / "new").counts == {}
    with pytest.raises(UserError, match="there is nothing to do"):
        migrate_store(tmp_path / "new", tmp_path / "newer")


def test_store__is_read_by_duckdb_and_polars(source: Path, tmp_path: Path) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    store = make(write_manifest(source, range(12)), tmp_path / "store")
    shards = str(tmp_path / "store" / "shard-*.parquet")
    counted = duckdb.sql(
        f"select split, count(*), avg(\"quality.brightness\") from '{shards}' group by split"
    ).fetchall()
    assert {split: count for split, count, _ in counted} == {"train": 4, "val": 4, "test": 4}
    table = polars.scan_parquet(shards).select("id", "text", "label.grade").collect()
    assert table["id"].to_list() == store.ids
    assert table["text"].to_list() == store.texts


def test_curate__card_shows_pictures_and_what_the_owner_says(source: Path, tmp_path: Path) -> None:
    about = tmp_path / "about.yaml"
    about.write_text("source: Clinic of Somewhere, 2015 to 2025\nlicence: CC BY 4.0\n")
    manifest = write_manifest(source, range(8))
    run(["curate", str(manifest), "--out", str(tmp_path / "store"), "--crop", "none", "--about", str(about)])
    card = (tmp_path / "store" / "README.md").read_text()
    assert "- Source of the images: Clinic of Somewhere, 2015 to 2025" in card
    assert "- Consent and ethics approval: not given" in card
    assert "![Some of the pictures](examples.jpg)" in card
    sheet = np.asarray(Image.open(tmp_path / "store" / "examples.jpg"))
    assert sheet.shape == (256, 768, 3)
    first = np.asarray(Image.open(source / "0.png").resize((128, 128)), dtype=float)
    assert np.abs(sheet[:128, :128] - first).mean() < 12
    append(write_manifest(source, range(10)), tmp_path / "store", progress=False)
    assert "- Licence and terms of use: CC BY 4.0" in (tmp_path / "store" / "README.md").read_text()
    about.write_text("license: CC\n")
    with pytest.raises(UserError, match="unknown key 'license'; known: source, licence"):
        run(["curate", str(manifest), "--out", str(tmp_path / "other"), "--about", str(about)])
