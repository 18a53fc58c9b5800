"""The whole audit of a small store: what fails it, what it tells, and a manifest that passes."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskedclip.data.audit.audit import Audit, audit
from maskedclip.data.audit.fix import dropped_file, plan_fix, write_fix
from maskedclip.data.audit.page import write_page
from maskedclip.data.curate import curate
from maskedclip.data.imaging import decode, encode_jpeg
from maskedclip.errors import UserError
from tests.data.audit.eyes import eye, stored, write_store

SPLITS = ["train"] * 8 + ["val"] * 2 + ["test"] * 4
TEXTS = ["Normal fundus."] * 12 + ["Seen by Dr. Smith.", "Drusen."]


def _pictures() -> list[np.ndarray]:
    pictures = [stored(eye(seed)) for seed in range(14)]
    pictures[10] = decode(encode_jpeg(pictures[0][:, ::-1], quality=80))  # test shows train's first, mirrored
    pictures[9] = pictures[8]
    return pictures


def _store(folder: Path, patients: list[str] | None = None, **columns: Any) -> Path:
    given = patients or [f"p{row}" for row in range(14)]
    labels = {"dr": [0.0] * 10 + [1.0] * 4}
    return write_store(folder, _pictures(), text=TEXTS, patient=given, split=SPLITS, labels=labels, **columns)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return audit(_store(tmp_path_factory.mktemp("audit") / "store"), shown=False)


def test_audit__duplicates_across_splits(found: Audit) -> None:  # P24
    pairs = list(zip(found.pairs.first.tolist(), found.pairs.second.tolist(), strict=True))
    assert pairs == [(8, 9), (0, 10)]
    assert found.crossing.tolist() == [False, True]
    assert found.two_patients.tolist() == [True, True]
    assert [(entry.label, entry.values) for entry in found.contradictions] == [("dr", ("0", "1"))]
    assert len(found.failures) == 1
    assert "0.jpg (train) and 10.jpg (test)" in found.failures[0]


def test_audit__patients_across_splits(tmp_path: Path) -> None:  # P24
    patients = [f"p{row}" for row in range(13)] + ["p1"]
    told = audit(_store(tmp_path / "s", patients), shown=False)
    assert [(entry.name, entry.splits) for entry in told.crossing_patients] == [("p1", {"train": 1, "test": 1})]
    assert "1 patient is in several splits, such as 'p1'" in told.failures[0]


def test_audit__against_another_store(tmp_path: Path) -> None:
    clean = [stored(eye(100 + seed)) for seed in range(4)]
    own = write_store(tmp_path / "a", clean, patient=["1", "2", "3", "4"], split=["test"] * 4)
    copies = [decode(encode_jpeg(clean[2], quality=70)), stored(eye(200)), stored(eye(200))]
    other = write_store(tmp_path / "b", copies, patient=["9", "1", "8"])
    told = audit(own, [other], shown=False)
    assert (told.pairs.first.tolist(), told.pairs.second.tolist()) == ([2], [4])  # not the pair within the other store
    assert told.crossing.all()  # rows without a split count as train
    assert [entry.name for entry in told.crossing_patients] == ["1"]
    assert told.drift == []  # too few rows of each
    assert audit(own, [other], patients_differ=True, shown=False).crossing_patients == []
    plan = plan_fix(told)
    assert plan.done == ["moved from test to train", "kept", "dropped", "kept"]
    assert plan.why[2] == "is in train of another store: 0.jpg"


def test_audit__json_tells_no_identifier(found: Audit) -> None:
    told = json.dumps(found.to_json(), allow_nan=False)
    assert "Smith" not in told
    assert json.loads(told)["identifiers"] == [{"image": "12.jpg", "kind": "name", "start": 8, "end": 17}]
    assert json.loads(told)["passed"] is False
    assert found.repetition.frequent == [("Normal fundus.", 12)]


def test_audit__says_what_is_wrong(tmp_path: Path) -> None:
    store = _store(tmp_path / "s", camera=["x", "y"] * 7)
    with pytest.raises(UserError, match="its columns of few words: camera"):
        audit(store, source="site", shown=False)
    with pytest.raises(UserError, match="--likeness 0"):
        audit(store, likeness=0, shown=False)
    damaged = write_store(tmp_path / "damaged", [stored(eye(0))], png=True)
    shard = damaged / "shard-00000.parquet"
    table = pq.read_table(shard)
    broken = pa.array([{"bytes": b"\x89PNG\r\n\x1a\n", "path": "0.jpg"}])
    pq.write_table(table.set_column(1, "image", broken), shard)
    with pytest.raises(UserError, match="the store is damaged, curate again"):
        audit(damaged, shown=False)


def test_write_page__pictures_of_every_suspicion_and_nothing_else(found: Audit, tmp_path: Path) -> None:
    page = write_page(found, tmp_path / "out" / "audit.html").read_text()
    assert page.count("<img ") == 4  # two pairs
    assert "crosses splits" in page
    assert "mirrored" in page
    assert "Smith" not in page
    assert not re.search(r"<script|https?://", page)
    with pytest.raises(UserError, match="nothing is overwritten"):
        write_page(found, tmp_path / "out" / "audit.html")


def test_write_page__escapes_what_a_store_holds(tmp_path: Path) -> None:
    text = "<script>alert(1)</script>"
    pictures = [stored(eye(0)), stored(eye(0))]
    store = write_store(tmp_path / "s", pictures, text=[text] * 2, patient=[text, "b"], split=["train", "test"])
    page = write_page(audit(store, shown=False), tmp_path / "audit.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_plan_fix__drops_copies_and_joins_people(tmp_path: Path) -> None:
    patients = [f"p{row}" for row in range(14)]
    patients[11] = "p10"  # another picture of the person who is p0 too
    told = audit(_store(tmp_path / "s", patients), shown=False)
    plan = plan_fix(told)
    assert np.flatnonzero(~plan.kept).tolist() == [9, 10]
    assert plan.done[9] == plan.done[10] == "dropped"
    assert plan.splits[0] == plan.splits[11] == "train"
    assert plan.done[11] == "moved from test to train"
    assert [row for row, done in enumerate(plan.done) if done == "kept"] == [*range(9), 12, 13]


def test_plan_fix__a_row_that_stays_without_a_split_is_given_none(tmp_path: Path) -> None:
    pictures = [stored(eye(row)) for row in range(4)]
    split = [None, "train", "test", None]
    store = write_store(tmp_path / "s", pictures, text=[None] * 4, patient=["a", "b", "c", "d"], split=split)
    plan = plan_fix(audit(store, shown=False))
    assert plan.splits.tolist() == ["", "train", "test", ""]
    assert plan.done == ["kept"] * 4


def test_write_fix__the_new_manifest_passes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    lines = ["image,text,patient,split,label.dr,camera"]
    for row, picture in enumerate(_pictures()):
        Image.fromarray(picture).save(tmp_path / "images" / f"{row}.png")
        lines.append(f"images/{row}.png,{TEXTS[row]},p{row},{SPLITS[row]},{int(row > 9)},{'ab'[row % 2]}")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    before = manifest.read_bytes()
    curate(manifest, tmp_path / "store", size=128)
    told = audit(tmp_path / "store", shown=False)
    assert told.failures
    fixed = tmp_path / "fixed.csv"
    write_fix(told, fixed)
    assert manifest.read_bytes() == before
    with fixed.open() as file:
        rows = list(csv.DictReader(file))
    with dropped_file(fixed).open() as file:
        dropped = list(csv.DictReader(file))
    assert len(rows) + len(dropped) == 14
    assert {row["audit_done"] for row in dropped} == {"dropped"}
    assert all(row["audit_why"] for row in dropped)
    assert rows[0]["camera"] == "a"
    curate(fixed, tmp_path / "again", size=128)
    passed = audit(tmp_path / "again", shown=False)
    assert passed.failures == []
    assert len(passed.pairs) == 0
    with pytest.raises(UserError, match="nothing is overwritten"):
        write_fix(told, fixed)
