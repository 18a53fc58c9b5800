"""`maskedclip pair`, as a user runs it."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from maskedclip.cli_pair import PAIR_VERBS
from maskedclip.cli_verb import VerbParser
from maskedclip.data.pairs import SCHEMA, about_pairs
from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.errors import UserError
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from tests.stores import SENTENCES, TINY, make_store


def _run(*arguments: object) -> None:
    verb = PAIR_VERBS["pair"]
    parser = VerbParser(prog="maskedclip pair", allow_abbrev=False)
    verb.arguments(parser)
    verb.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("pair") / "s")


@pytest.fixture(scope="module")
def run(store: Path) -> Path:
    path = store.parent / "run"
    pretrain(load_recipe(["maskedclip", "tiny"], TINY), store, path)
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text(
        'text,other\n"Normal fundus.",a\n"A red lesion. No drusen.",b\n"normal fundus",c\n,d\n"Odd <b>",e\n'
    )
    return path


def test_pair__writes_the_nearest_text_of_each_unpaired_image(
    store: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs.parquet"
    _run(run, "--data", store, "--out", out)
    table = pq.read_table(out)
    assert table.schema.names == SCHEMA.names
    opened, model = open_store(store), load(run, device="cpu")
    seen = pq.read_table(run / "seen.parquet").to_pylist()
    unpaired = [entry["id"] for entry in seen if not entry["with_text"]]
    kept = {entry["id"] for entry in seen if entry["with_text"]}
    assert sorted(table.column("id").to_pylist()) == sorted(unpaired)
    rows = [opened.ids.index(name) for name in table.column("id").to_pylist()]
    known = list(dict.fromkeys(opened.texts[row] or "" for row in range(len(opened)) if opened.ids[row] in kept))
    cosines = model.features(opened, np.asarray(rows))["projected"] @ model.encode_text(known).T
    assert table.column("text").to_pylist() == [known[place] for place in cosines.argmax(axis=1)]
    np.testing.assert_allclose(table.column("score").to_numpy(), cosines.max(axis=1), atol=1e-5)
    assert set(table.column("rank").to_pylist()) == {1}
    about = about_pairs(out)
    assert about["model"] == model.fingerprint
    assert 0 < about["hubness"]["used_share"] <= 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("unpaired images of split train (by the run")
    assert any(line.startswith("hubness: ") for line in said)
    assert said[said.index("likeliest mistakes:") + 1].strip().split()[0] in unpaired
    assert said[-1].startswith(f"next: look at {tmp_path}/pairs.html")


def test_pair__a_run_on_paired_images_alone_has_not_read_the_other_texts(store: Path, tmp_path: Path) -> None:
    """Its seen.parquet lists those images only; the texts of the other training images are not to be given away."""
    alone, out = tmp_path / "run", tmp_path / "pairs.parquet"
    pretrain(load_recipe(["clip", "tiny"], [*TINY, "--data.text_fraction", "0.3"]), store, alone)
    _run(alone, "--data", store, "--out", out)
    opened, seen = open_store(store), pq.read_table(alone / "seen.parquet")
    assert all(seen.column("with_text").to_pylist())
    read = set(seen.column("id").to_pylist())
    others = [row for row in opened.rows("train").tolist() if opened.ids[row] not in read]
    assert any(opened.texts[row] for row in others)
    pairs = pq.read_table(out)
    assert sorted(pairs.column("id").to_pylist()) == sorted(opened.ids[row] for row in others)
    known = {opened.texts[opened.ids.index(name)] for name in read}
    assert set(pairs.column("text").to_pylist()) <= known
    assert about_pairs(out)["hubness"]["texts"] == len(known)


def test_pair__draws_a_page_that_holds_its_pictures_and_escapes_texts(
    store: Path, run: Path, texts: Path, tmp_path: Path
) -> None:
    out, page = tmp_path / "p.parquet", tmp_path / "deep" / "look.html"
    _run(run, "--data", store, "--texts", texts, "--out", out, "--page", page, "--top", 3)
    table = pq.read_table(out)
    assert table.num_rows == 3 * 16
    assert table.column("rank").to_pylist()[:3] == [1, 2, 3]
    assert set(table.column("text").to_pylist()) == {"Normal fundus.", "A red lesion. No drusen.", "Odd <b>"}
    html = page.read_text()
    for anchor in ("best", "median", "worst", "mistakes", "texts"):
        assert f'<section id="{anchor}">' in html
    assert html.count("data:image/jpeg") == 4 * 12
    assert "<script" not in html
    assert "Odd <b>" not in html


def test_pair__threshold_and_mutual_keep_fewer(store: Path, run: Path, texts: Path, tmp_path: Path) -> None:
    base = [run, "--data", store, "--texts", texts, "--images", "all", "--split", "all"]
    _run(*base, "--out", tmp_path / "all.parquet")
    scores = pq.read_table(tmp_path / "all.parquet").column("score").to_numpy()
    assert len(scores) == 48
    least = float(np.median(scores))
    _run(*base, "--threshold", least, "--out", tmp_path / "some.parquet")
    assert pq.read_table(tmp_path / "some.parquet").num_rows == (scores >= np.float32(least)).sum()
    _run(*base, "--mutual", "--out", tmp_path / "mutual.parquet")
    assert 1 <= pq.read_table(tmp_path / "mutual.parquet").num_rows <= 3  # a text has one nearest image


def test_pair__bad_input_is_one_line(store: Path, run: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.parquet"
    empty = tmp_path / "empty.csv"
    empty.write_text("text,other\n,a\n")
    taken = tmp_path / "taken.parquet"
    taken.write_bytes(b"mine")
    mae = tmp_path / "mae"
    pretrain(load_recipe(["mae", "tiny"], [*TINY, "--training.steps", "0"]), store, mae)
    for arguments, told in (
        (["--out", tmp_path / "p.csv"], "--out .*p.csv: name it .parquet"),
        (["--out", taken], "--out .*taken.parquet: exists"),
        (["--out", out, "--top", "0"], "--top: 0; give 1 or more"),
        (["--out", out, "--threshold", "2"], r"--threshold: 2 is no cosine"),
        (["--out", out, "--threshold", "0.9999"], r"no pair is left of 16 images; the best score is"),
        (["--out", out, "--texts", tmp_path / "none.csv"], "--texts .*none.csv: no such file"),
        (["--out", out, "--texts", texts, "--column", "words"], "has no column words; name one of text, other"),
        (["--out", out, "--texts", empty], "column text holds no text"),
        (["--out", out, "--split", "nowhere"], "--split nowhere: the store has no such rows; it has test, train, val"),
        (["--out", out, "--split", "test"], "all of its 8 images have a text; --images all"),
    ):
        with pytest.raises(UserError, match=told) as refused:
            _run(run, "--data", store, *arguments)
        assert "\n" not in str(refused.value)
        assert not out.exists()
    for model, told in ((mae, "was trained without texts"), (tmp_path / "nothing", "no such model")):
        with pytest.raises(UserError, match=told):
            _run(model, "--data", store, "--images", "all", "--out", out)
    assert taken.read_bytes() == b"mine"
    assert not re.findall("partial", " ".join(path.name for path in tmp_path.iterdir()))


def test_pair__the_recipe_s_labels_that_contradict_come_first(
    store: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(run, "--data", store, "--images", "all", "--out", tmp_path / "p.parquet")
    table = pq.read_table(tmp_path / "p.parquet").to_pylist()
    opened = open_store(store)
    wrong = 0
    for entry in table:
        row, kind = opened.ids.index(entry["id"]), SENTENCES.index(entry["text"])
        wrong += (opened.labels["red"][row], opened.labels["green"][row]) != (kind & 1 > 0, kind & 2 > 0)
    said = capsys.readouterr().out
    assert f"labels contradict the text of {wrong} of {len(table)} images" in said
    first = said.splitlines()[said.splitlines().index("likeliest mistakes:") + 1]
    assert ("labels say otherwise: red, green" in first) or wrong == 0
