"""`maskedclip search` as it is run: words, pictures, both; tables, JSON, CSV, sheets; one line where it is wrong."""

import csv
import hashlib
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskedclip.data.store import open_store
from maskedclip.deployment.embed import embed
from maskedclip.deployment.model import Model
from maskedclip.deployment.search import compose, open_index
from maskedclip.deployment.search_pictures import Pictures
from maskedclip.deployment.search_show import findings, plain
from tests.cli_case import refused, status
from tests.stores import draw


@pytest.fixture(scope="module")
def file(trained_store: Path, trained_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("search") / "features.parquet"
    embed(trained_model, trained_store, out)
    return out


def _asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    assert status("search", *arguments, "--json") == 0
    return [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().out.splitlines()]


def test_search__words_pictures_and_both(
    file: Path, trained_run: Path, trained_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eye = tmp_path / "eye.png"
    eye.write_bytes(draw(3, 32, 1))
    vectors = np.asarray(pq.read_table(file).column("projected").to_pylist(), np.float64)
    ids = pq.read_table(file).column("id").to_pylist()
    texts = trained_model.encode_text(["red lesion", "green lesion"])
    image = trained_model.encode_image(eye, "projected")[0]

    def expected(query: np.ndarray, top: int) -> list[str]:
        return [ids[row] for row in np.argsort(-(vectors @ query), kind="stable")[:top]]

    both = _asked(capsys, file, "--model", trained_run, "--text", "red lesion", "--text", "green lesion", "--top", 4)
    for line, text in zip(both, texts, strict=True):
        assert [hit["id"] for hit in line["hits"]] == expected(text, 4)
        assert [hit["rank"] for hit in line["hits"]] == [1, 2, 3, 4]
    (mixed,) = _asked(
        capsys, file, "--model", trained_run, "--image", eye, "--text", "red lesion", "--weight", 0.3, "--without",
        "green lesion",
    )  # fmt: skip
    query = compose(image, texts[0], 0.3, without=texts[1])
    assert [hit["id"] for hit in mixed["hits"]] == expected(query, 10)
    assert mixed["query"] == {"text": "red lesion", "image": str(eye), "without": "green lesion", "weight": 0.3}
    (seen,) = _asked(capsys, file, "--model", trained_run, "--image", eye, "--output", "encoder", "--top", 3)
    assert seen["output"] == "encoder"
    (filtered,) = _asked(
        capsys, file, "--model", trained_run, "--text", "red", "--where", "label.red = 1 and split = 'train'"
    )
    assert all(hit["columns"]["label.red"] == 1 and hit["columns"]["split"] == "train" for hit in filtered["hits"])


def test_search__a_row_of_the_file_needs_no_model(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(file)
    id, patient = table.column("id")[4].as_py(), table.column("patient")[4].as_py()
    (own,) = _asked(capsys, file, "--id", id, "--top", 47)
    assert len(own["hits"]) == 47
    assert id not in [hit["id"] for hit in own["hits"]]
    (others,) = _asked(capsys, file, "--id", id, "--top", 48, "--other-patients")
    assert len(others["hits"]) == 46
    assert patient not in [hit["columns"]["patient"] for hit in others["hits"]]


def test_search__the_patient_of_a_photograph_is_left_out(
    file: Path, trained_run: Path, trained_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eye = tmp_path / "eye.png"
    eye.write_bytes(bytes(open_store(trained_store).image_bytes(6)))
    arguments = (file, "--model", trained_run, "--image", eye, "--top", 48, "--output", "encoder")
    (plainly,) = _asked(capsys, *arguments)
    assert plainly["hits"][0]["columns"]["patient"] == "p3"
    (others,) = _asked(capsys, *arguments, "--other-patients")
    assert "p3" not in [hit["columns"]["patient"] for hit in others["hits"]]
    assert len(others["hits"]) == 46
    assert "patient p3: 2 rows" in others["remark"]
    table = pq.read_table(file)
    digests = pa.array([hashlib.sha256(draw(999, 32, 3)).hexdigest() if row == 9 else None for row in range(48)])
    pq.write_table(table.append_column("sha256", digests), tmp_path / "hashed.parquet")
    eye.write_bytes(draw(999, 32, 3))  # not as it was stored, but the file that row 9 is said to be made of
    (hashed,) = _asked(capsys, tmp_path / "hashed.parquet", *arguments[1:], "--other-patients")
    assert "patient p4: 2 rows" in hashed["remark"]
    (stranger,) = _asked(capsys, *arguments, "--other-patients")
    assert "no row is this picture" in stranger["remark"]


def test_search__a_table_of_queries(
    file: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eye.png").write_bytes(draw(3, 32, 1))
    queries = tmp_path / "queries.csv"
    queries.write_text(
        "name,text,image,weight,without\nfirst,red lesion,,,\nsecond,,eye.png,,\nthird,a,eye.png,0.9,b\n"
    )
    out = tmp_path / "hits.csv"
    common = ("search", file, "--model", trained_run, "--queries", queries, "--top", 3)
    assert status(*common, "--out", out) == 0
    assert "9 hits of 3 queries" in capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 3
    assert rows[6]["query"] == 'third: eye.png + "a" (0.9) − "b" (0.9)'
    assert set(rows[0]) == {"query", "rank", "score", "id", "text", "patient", "split", "label.red", "label.green"}
    assert status(*common, "--out", tmp_path / "hits.jsonl") == 0
    lines = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert [hit["id"] for line in lines for hit in line["hits"]] == [row["id"] for row in rows]


def test_search__contact_sheets(
    file: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eye.png").write_bytes(draw(3, 32, 1))
    common = ("search", file, "--model", trained_run, "--image", tmp_path / "eye.png", "--text", "red", "--top", 7)
    assert status(*common, "--sheet", tmp_path / "deep" / "a.png") == 0
    assert "missing" not in capsys.readouterr().err
    with Image.open(tmp_path / "deep" / "a.png") as sheet:
        assert sheet.width == 2 * 24 + 5 * 220 + 4 * 16
        assert sheet.height > 24 + 3 * 220  # the query and two rows
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    discs = (pixels[..., 0] - pixels[..., 2] > 50) & (pixels.sum(axis=2) < 400)
    assert discs[24:244, 24:244].mean() > 0.4  # the query's own picture
    assert discs[300:500, 24:244].mean() > 0.4
    assert not discs[300:500, 1200:].any()
    assert status(*common, "--sheet", tmp_path / "a.html") == 0
    page = (tmp_path / "a.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert "http" not in page.replace("http-equiv", "")
    assert status(*common, "--sheet", tmp_path / "b.jpg", "--images", tmp_path) == 0
    assert "7 pictures are missing" in capsys.readouterr().err
    assert "exists" in refused(capsys, *common, "--sheet", tmp_path / "b.jpg")


def test_search__prints_a_table(file: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("search", file, "--model", trained_run, "--text", "red", "--top", 2, "--where", "label.red = 1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '"red"'
    assert lines[2].split()[0] == "1"
    assert "red" in lines[2]
    assert "24 of 48 rows" in lines[-1]
    assert "next: " in lines[-1]
    assert status("search", file, "--model", trained_run, "--text", "red", "--where", "label.red = 7") == 0
    assert "no row passes" in capsys.readouterr().err


def test_search__refuses_in_one_line(
    file: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    eye = tmp_path / "eye.png"
    eye.write_bytes(b"no picture")
    other, unnamed = tmp_path / "other.parquet", tmp_path / "unnamed.parquet"
    table = pq.read_table(file)
    pq.write_table(table.replace_schema_metadata({"maskedclip.model": "feedbeef"}), other)
    pq.write_table(table.replace_schema_metadata(None), unnamed)
    (tmp_path / "q.csv").write_text("words\nred\n")
    (tmp_path / "r.csv").write_text("text,weight\nred,2\n")
    model = ("--model", trained_run)
    for arguments, says in (
        ((file, *model), "--text"),
        ((file, "--text", "red"), "--model"),
        ((file, *model, "--text", "a", "--text", "b", "--id", "c", "--id", "d"), "one of either"),
        ((file, *model, "--image", eye), "eye.png"),
        ((file, *model, "--image", tmp_path / "none.png"), "no such image"),
        ((file, *model, "--text", "red", "--output", "encoder"), "projected"),
        ((file, *model, "--text", "red", "--output", "nothing"), "projected"),
        ((file, *model, "--text", "red", "--top", 0), "--top"),
        ((file, *model, "--text", "red", "--weight", 2), "--weight"),
        ((file, *model, "--text", "red", "--where", "label.rod = 1"), "did you mean `label.red`"),
        ((file, *model, "--text", "red", "--sheet", tmp_path / "a.gif"), "--sheet"),
        ((file, *model, "--text", "red", "--out", tmp_path / "a.txt"), "--out"),
        ((file, *model, "--text", "red", "--images", tmp_path / "none"), "--images"),
        ((file, *model, "--queries", tmp_path / "q.csv"), "column text, image or id"),
        ((file, *model, "--queries", tmp_path / "r.csv"), "row 2"),
        ((file, "--id", "nobody"), "no row with the id"),
        ((other, *model, "--text", "red"), "another model"),
        ((unnamed, *model, "--text", "red"), "--any-model"),
        ((tmp_path / "none.parquet", *model, "--text", "red"), "no such file"),
        ((eye, *model, "--text", "red"), "Parquet"),
    ):
        assert says in refused(capsys, "search", *arguments)
    assert status("search", other, *model, "--text", "red", "--any-model", "--json") == 0
    assert "on your word" in capsys.readouterr().err


def test_search__measures_a_new_index_with_the_file_s_reports(
    file: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "f.parquet"
    shutil.copy(file, mine)
    assert status("search", mine, "--model", trained_run, "--text", "red", "--index", "approximate") == 0
    recall = json.loads((tmp_path / "f.projected.usearch.json").read_text())["recall"]
    assert set(recall) == {"image", "text"}
    assert "(text)" in capsys.readouterr().out.splitlines()[-1]


def test_picture__of_a_store_a_folder_and_nothing_else(
    file: Path, trained_store: Path, trained_model: Model, tmp_path: Path
) -> None:
    index = open_index(file)
    thumbnail = index.picture(index.table.column("id")[5].as_py())
    assert thumbnail is not None
    with Image.open(io.BytesIO(thumbnail)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (32, 32))
    folder = tmp_path / "photographs"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "one.png").write_bytes(draw(1, 600, 1))
    (tmp_path / "secret.png").write_bytes(draw(1, 32, 1))
    embed(trained_model, folder, tmp_path / "folder.parquet")
    below = open_index(tmp_path / "folder.parquet")
    taken = below.picture("deep/one.png", 100)
    assert taken is not None
    with Image.open(io.BytesIO(taken)) as picture:
        assert picture.size == (100, 100)
    outside = [
        "../secret.png", str(tmp_path / "secret.png"), "deep/../../secret.png", "http://example.com/a.png",
        "none.png", "deep", "", "deep/one.png\0",
    ]  # fmt: skip
    pictures = Pictures(pa.table({"id": outside}), folder)
    assert [pictures.thumbnail(row) for row in range(len(outside))] == [None] * len(outside)
    moved = Pictures(pa.table({"id": ["deep/one.png"]}), tmp_path / "gone")
    assert moved.thumbnail(0) is None
    assert "--images" in moved.why_not
    (folder / "deep" / "one.png").write_bytes(b"broken")
    assert Pictures(below.table, folder).thumbnail(0) is None


def test_shown__labels_and_control_characters() -> None:
    columns = {"label.a_b": 1.0, "label.c": 0.0, "label.d": None, "label.e": math.nan, "label.f": 2.0, "label.g": "wet"}
    assert findings(columns) == "a b, f 2, g: wet"
    assert plain("a\x1b[31mb\n\u202ec") == "a [31mb c"
