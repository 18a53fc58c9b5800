"""Curation: what is stored, what is quarantined and why, and that nothing is lost on the way (P8, P25)."""

import csv
import errno
import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskedclip.data import curate_work as curate_module
from maskedclip.data.curate_row import RowSettings, Source, curate_row
from maskedclip.data.imaging import decode, decode_mask, encode_jpeg, encode_png, perceptual_hash, standardise
from maskedclip.errors import UserError
from tests.data.curate_case import SIZE, content_of, curate_small, eye, rows_of


def test_curate__stores_what_the_schema_says(manifest: Path, tmp_path: Path) -> None:
    made = curate_small(manifest, tmp_path / "store")
    assert sorted(path.name for path in made.out.iterdir()) == [
        "README.md", "curation.json", "examples.jpg", "quarantine.csv", "shard-00000.parquet",
    ]  # fmt: skip
    schema = pq.read_schema(made.out / "shard-00000.parquet")
    assert schema.names == [
        "id", "image", "text", "patient", "split", "label.dr", "label.kind", "mask.disc", "eye",
        "sha256", "perceptual_hash", "width", "height", "source_width", "source_height", "field_found",
        "quality.sharpness", "quality.brightness", "quality.contrast", "quality.saturated", "quality.coverage",
    ]  # fmt: skip
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert [str(schema.field(name).type) for name in ("label.dr", "label.kind", "width")] == [
        "float",
        "string",
        "int32",
    ]
    rows = rows_of(made.out)
    assert [row["image"]["path"] for row in rows] == [f"images/{index}.png" for index in range(12)]
    assert [row["text"] for row in rows[:3]] == ["normal fundus", "drusen", None]
    assert len({row["id"] for row in rows}) == 12
    assert [rows[3]["label.dr"], rows[3]["label.kind"], rows[3]["mask.disc"]] == [3.0, None, None]
    source = (manifest.parent / "images" / "0.png").read_bytes()
    expected = standardise(decode(source), size=SIZE)
    first = rows[0]
    assert first["sha256"] == hashlib.sha256(source).hexdigest()
    assert first["image"]["bytes"] == encode_jpeg(expected.image)
    assert first["perceptual_hash"] == perceptual_hash(expected.image)
    assert (first["width"], first["source_width"], first["source_height"]) == (SIZE, 120, 90)
    assert first["field_found"]
    mask = decode_mask(first["mask.disc"]["bytes"])
    assert np.array_equal(
        mask, expected.transform.apply_to_mask(decode_mask((manifest.parent / "disc0.png").read_bytes()))
    )
    assert (mask > 0).sum() > 40


def test_curate__counts_card_and_curation_json(manifest: Path, tmp_path: Path) -> None:
    made = curate_small(manifest, tmp_path / "store")
    assert made.counts == {
        "rows": 12, "stored": 12, "quarantined": 0, "paired": 8, "unpaired": 4, "patients": 6, "fields_found": 12,
        "splits": {"train": 4, "val": 4, "test": 4},
    }  # fmt: skip
    about = json.loads((made.out / "curation.json").read_text())
    ids = [row["id"] for row in rows_of(made.out)]
    assert about["schema_version"] == 2
    assert about["checksums"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made.out.glob("shard-*.parquet")
    }
    assert about["counts"] == made.counts
    assert about["settings"] == {"size": SIZE, "crop": "fundus", "encoding": "jpeg"}
    assert about["manifest"] == "manifest.csv"
    assert about["fingerprint"] == made.fingerprint == hashlib.sha256("\n".join(ids).encode()).hexdigest()
    assert (made.out / "quarantine.csv").read_text() == "row,image,reason\n"
    card = (made.out / "README.md").read_text()
    for part in (
        "| with text (paired) | 8 |",
        "| drusen | 4 | 50.0% |",
        "8 texts, 2 distinct",
        "| `label.kind` | 11 | 1 | a: 11 |",
        "0: 3, 1: 3, 2: 2, 3: 2, 4: 2",
        "| `mask.disc` | 2 |",
        "No row was rejected",
        "Licence and terms of use: not given",
    ):
        assert part in card


def test_curate__opens_with_datasets(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(curate_module, "SHARD_ROWS", 5)
    made = curate_small(manifest, tmp_path / "store")
    assert len(list(made.out.glob("shard-*.parquet"))) == 3
    table = datasets.load_dataset(str(made.out), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(table) == 12
    assert table[0]["image"].size == (SIZE, SIZE)
    assert table[0]["mask.disc"].mode == "L"
    assert table[5]["mask.disc"] is None
    assert table[2]["text"] is None
    assert table.features["label.dr"].dtype == "float32"


def test_curate__exotic_carried_columns_open_with_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    import datetime
    import decimal

    day = datetime.date(2020, 1, 2)
    table = pa.table(
        {
            "image": ["a.png"],
            "when": [datetime.datetime(2020, 1, 2)],
            "day": [day],
            "price": [decimal.Decimal("1.50")],
            "count": pa.array([3], pa.uint16()),
            "weight": [0.5],
            "flag": [True],
            "list": [[1]],
            "long": pa.array(["x"], pa.large_string()),
        }
    )
    (tmp_path / "a.png").write_bytes(encode_png(eye(0)))
    pq.write_table(table, tmp_path / "m.parquet")
    made = curate_small(tmp_path / "m.parquet", tmp_path / "store")
    row = datasets.load_dataset(str(made.out), split="train", cache_dir=str(tmp_path / "cache"))[0]
    assert (row["day"], row["price"], row["count"], row["list"]) == (day, decimal.Decimal("1.50"), 3, "[1]")


def test_curate__fitting_sources_keep_their_bytes(tmp_path: Path) -> None:
    square = np.asarray(Image.fromarray(eye(1, 400, 400)[20:380, 20:380]).resize((SIZE, SIZE)))
    jpeg = io.BytesIO()
    Image.fromarray(square).save(jpeg, "JPEG", quality=71)
    sources = {"a.jpg": jpeg.getvalue(), "b.png": encode_png(square), "c.png": encode_png(eye(2))}
    for name, data in sources.items():
        (tmp_path / name).write_bytes(data)
    stored = {row["image"]["path"]: row for row in rows_of(curate_small(tmp_path, tmp_path.parent / "store").out)}
    assert stored["a.jpg"]["image"]["bytes"] == sources["a.jpg"]
    assert stored["b.png"]["image"]["bytes"] == sources["b.png"]
    assert stored["c.png"]["image"]["bytes"].startswith(b"\xff\xd8")
    lossless = {
        row["image"]["path"]: row
        for row in rows_of(curate_small(tmp_path, tmp_path.parent / "png", encoding="png").out)
    }
    expected = standardise(decode(sources["c.png"]), size=SIZE).image
    assert np.array_equal(decode(lossless["c.png"]["image"]["bytes"]), expected)


def test_curate_row__fitting_masks_keep_their_bytes() -> None:
    square = np.asarray(Image.fromarray(eye(1, 400, 400)[20:380, 20:380]).resize((SIZE, SIZE)))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[20:40, 20:40] = 255
    bilevel = io.BytesIO()
    Image.fromarray(mask > 0).save(bilevel, "PNG")
    settings = RowSettings(size=SIZE, crop="fundus", encoding="jpeg")
    image = Source(name="a.png", path=None, fetched=encode_png(square))
    given = {"mask.a": encode_png(mask), "mask.b": bilevel.getvalue()}
    row = curate_row(
        image, {name: Source(name=name, path=None, fetched=data) for name, data in given.items()}, settings
    )
    assert row["mask.a"] == given["mask.a"]
    assert Image.open(io.BytesIO(row["mask.b"])).mode == "L"
    assert np.array_equal(decode_mask(row["mask.b"]), mask)


def test_curate__crop_none_keeps_the_frame(manifest: Path, tmp_path: Path) -> None:
    row = rows_of(curate_small(manifest, tmp_path / "store", crop="none", encoding="png").out)[0]
    picture = decode(row["image"]["bytes"])
    assert not row["field_found"]
    assert not picture[:8].any()
    assert np.array_equal(picture, standardise(eye(0), size=SIZE, crop="none").image)


def _spoil(manifest: Path) -> dict[str, str]:
    """Break files in every way; returns image -> reason."""
    images = manifest.parent / "images"
    (images / "0.png").unlink()
    (images / "1.png").write_bytes(b"")
    (images / "2.png").write_text("image,text\n")
    jpeg = encode_jpeg(eye(3))
    (images / "3.png").write_bytes(jpeg[: len(jpeg) // 2])
    (images / "4.png").unlink()
    (images / "4.png").mkdir()
    lines = manifest.read_text().splitlines()
    lines[6] = lines[6].replace(",,left", ",nowhere.png,left")
    lines[7] = lines[7].replace(",,left", ",disc0.png,left")
    (images / "6.png").write_bytes(encode_png(eye(6, 100, 100)))
    (manifest.parent / "broken.png").write_bytes(encode_png(np.zeros((90, 120), np.uint8))[:60])
    lines[8] = lines[8].replace(",,left", ",broken.png,left")
    manifest.write_text("\n".join(lines) + "\n")
    return {
        "images/0.png": "is missing",
        "images/1.png": "is empty (0 bytes)",
        "images/2.png": "is a text file, not an image",
        "images/3.png": "is a truncated JPEG",
        "images/4.png": "is a folder, not an image",
        "images/5.png": "mask.disc is missing",
        "images/6.png": "mask.disc is 120 x 90 px where its image is 100 x 100 px",
        "images/7.png": "mask.disc is a truncated PNG",
    }


def test_curate__broken_files_are_quarantined_with_their_reasons(manifest: Path, tmp_path: Path) -> None:
    expected = _spoil(manifest)
    made = curate_small(manifest, tmp_path / "store")
    assert {entry.image: entry.reason for entry in made.quarantine} == expected
    assert [row["image"]["path"] for row in rows_of(made.out)] == [f"images/{index}.png" for index in range(8, 12)]
    with open(made.out / "quarantine.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [(int(row["row"]), row["image"], row["reason"]) for row in listed] == [
        (2 + index, image, reason) for index, (image, reason) in enumerate(expected.items())
    ]
    assert made.reasons == dict.fromkeys(expected.values(), 1)
    assert (made.counts["stored"], made.counts["quarantined"]) == (4, 8)
    assert "is a truncated JPEG" in (made.out / "README.md").read_text()


def test_curate__nothing_storable_is_one_error_and_leaves_nothing(manifest: Path, tmp_path: Path) -> None:
    shutil.rmtree(manifest.parent / "images")
    with pytest.raises(UserError, match=r"none of its 12 images can be stored \(is missing: 12\).*row 2, images/0.png"):
        curate_small(manifest, tmp_path / "store")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize("crash_at", [0, 1, 2])
def test_curate__goes_on_after_a_crash(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    monkeypatch.setattr(curate_module, "SHARD_ROWS", 3)
    (manifest.parent / "images" / "1.png").write_bytes(b"")
    (manifest.parent / "images" / "7.png").write_bytes(b"")
    whole = curate_small(manifest, tmp_path / "whole" / "store")
    assert len(list(whole.out.glob("shard-*"))) == 4
    writes = 0
    original = curate_module.write_shard

    def failing(rows: pa.Table, path: Path) -> int:
        nonlocal writes
        writes += 1
        if writes > crash_at:
            raise KeyboardInterrupt
        return original(rows, path)

    monkeypatch.setattr(curate_module, "write_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        curate_small(manifest, tmp_path / "crashed" / "store")
    out = tmp_path / "crashed" / "store"
    assert not out.exists()
    monkeypatch.setattr(curate_module, "write_shard", original)
    starts = []
    run_engine = curate_module.run_engine
    monkeypatch.setattr(curate_module, "run_engine", lambda *given: starts.append(given[3]) or run_engine(*given))
    again = curate_small(manifest, out)
    assert starts == [[0, 4, 7][crash_at]]  # row 1 is quarantined: three good rows end at 4, six at 7
    assert content_of(again.out) == content_of(whole.out)
    assert again.quarantine == whole.quarantine
    assert not out.with_name("store.partial").exists()


def test_curate__an_unfinished_store_of_another_kind_is_not_touched(manifest: Path, tmp_path: Path) -> None:
    partial_store = tmp_path / "store.partial"
    partial_store.mkdir()
    (partial_store / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an unfinished store"):
        curate_small(manifest, tmp_path / "store")
    assert (partial_store / "mine.txt").read_text() == "mine"
    (partial_store / "mine.txt").unlink()
    (partial_store / "progress.json").write_text(json.dumps({"guard": "another"}))
    with pytest.raises(UserError, match="another manifest, settings or version; delete it"):
        curate_small(manifest, tmp_path / "store")


def test_curate__an_existing_store_is_never_overwritten(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        curate_small(manifest, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("when", ["while writing", "foreseen"])
def test_curate__a_full_disk_is_told_and_nothing_is_lost(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(curate_module, "SHARD_ROWS", 4)
    whole = curate_small(manifest, tmp_path / "whole" / "store")
    out = tmp_path / "full" / "store"
    with monkeypatch.context() as patch:
        if when == "foreseen":
            usage = shutil._ntuple_diskusage(10**9, 10**9 - 100, 100)  # type: ignore[attr-defined]
            patch.setattr(shutil, "disk_usage", lambda path: usage)
        else:
            original = curate_module.write_shard

            def full(rows: pa.Table, path: Path) -> int:
                if path.name == "shard-00001.parquet":
                    path.with_name(f".{path.name}.tmp").touch()
                    path.with_name(f".{path.name}.tmp").unlink()
                    raise OSError(errno.ENOSPC, "No space left on device")
                return original(rows, path)

            patch.setattr(curate_module, "write_shard", full)
        with pytest.raises(UserError, match=r"full: not enough disk space: about .* MB are needed.*goes on"):
            curate_small(manifest, out)
    assert not out.exists()
    assert sorted(path.name for path in out.with_name("store.partial").iterdir()) == [
        "progress.json",
        "shard-00000.parquet",
    ]
    assert content_of(curate_small(manifest, out).out) == content_of(whole.out)


def test_curate__a_place_that_cannot_be_written_is_told(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        curate_small(manifest, tmp_path / "file" / "store")


def test_curate__faults_of_the_manifest_leave_nothing(manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(manifest.read_text().replace(",val,", ",holdout,"))
    with pytest.raises(UserError, match="'holdout'"):
        curate_small(manifest, tmp_path / "store")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"size": 8}, "size is 8: give at least 16 px"),
        ({"crop": "face"}, "crop is 'face': give fundus or none"),
        ({"encoding": "gif"}, "encoding is 'gif': give jpeg or png"),
        ({"engine": "spark"}, "engine is 'spark': give local or ray"),
    ],
)
def test_curate__wrong_settings_are_told(manifest: Path, tmp_path: Path, options: dict, part: str) -> None:
    with pytest.raises(UserError, match=part):
        curate_small(manifest, tmp_path / "store", **options)


def test_curate__a_folder_of_images(manifest: Path, tmp_path: Path) -> None:
    made = curate_small(manifest.parent / "images", tmp_path / "store")
    assert made.counts["unpaired"] == 12
    assert made.notes == ["made from the 12 image files of the folder, no texts"]


def test_curate__shows_its_progress_on_stderr(
    manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    curate_small(manifest, tmp_path / "store", progress=True)
    captured = capfd.readouterr()
    assert "12/12" in captured.err
    assert "images/s" in captured.err
    assert captured.out == ""


@pytest.mark.shared
def test_curate__real_photographs_with_masks(shared: Path, tmp_path: Path) -> None:
    made = curate_small(shared / "data" / "drive" / "manifest.csv", tmp_path / "store", size=256)
    assert made.counts["stored"] == made.counts["fields_found"] == 40
    for row in rows_of(made.out)[:5]:
        vessel, field = (decode_mask(row[name]["bytes"]) > 0 for name in ("mask.vessel", "mask.field"))
        assert (vessel & field).sum() / vessel.sum() > 0.99
        assert field.mean() == pytest.approx(np.pi / 4, abs=0.05)
