"""Texts without images: the reader, what a step draws, and what a resumed run refuses."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from maskedclip.data.loader import HostBatch, StepDataset
from maskedclip.data.loose_texts import read_loose_texts
from maskedclip.data.sampler import check_ranks, make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.describe import training_texts
from maskedclip.training.pretrain import pretrain
from tests.stores import TINY, make_store

ROWS = ["Large drusen.", "", "papilloedema", "large  drusen", None, "Optic atrophy, both eyes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("loose") / "s")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    path.write_text("text\n" + "\n".join(f"choroidal finding number {row}" for row in range(10)) + "\n")
    return path


def recipe_of(file: Path, *more: str) -> Recipe:
    return load_recipe(
        ["clip", "tiny"],
        [*TINY, "--data.texts", str(file), "--data.batch_texts", "4", "--objective.terms", '{"mlm": {}}', *more],
    )


def loose(batch: HostBatch) -> tuple[Tensor, Tensor]:
    assert batch.loose_ids is not None
    assert batch.loose_mask is not None
    return batch.loose_ids, batch.loose_mask


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_read__each_kind_of_file_gives_the_same_texts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"text": ROWS, "n": list(range(6))}), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": row, "n": n}) + "\n" for n, row in enumerate(ROWS)))
    else:
        mark = "," if suffix == "csv" else "\t"
        path.write_text("".join(f'{n}{mark}"{row or ""}"\n' for n, row in [("n", "text"), *enumerate(ROWS)]))
    read = read_loose_texts(path)
    assert read.texts == ("Large drusen.", "papilloedema", "Optic atrophy, both eyes")
    assert (read.rows, read.empty, read.repeated) == (6, 2, 1)
    assert read.summary() == f"3 distinct of 6 rows in t.{suffix} (1 repeated, 2 empty)"
    assert read.fingerprint == read_loose_texts(path).fingerprint


def test_read__joins_columns_as_sentences(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("findings,impression\nclear lungs,No disease.\n,normal\nA mass.,\n,\n")
    read = read_loose_texts(path, ("findings", "impression"))
    assert read.texts == ("clear lungs. No disease.", "normal", "A mass.")


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("text\n\n", ("text",), "none of its"),
        ("note\nx\n", ("text",), "has no column text; it has note; name those to join in data.texts_columns"),
        ("a,text\n1,x,y\n2\n", ("text",), "row 2: has 3 fields where the header has 2 and 1 faults more; mend"),
    ],
)
def test_read__faults_are_one_line(tmp_path: Path, content: str, columns: tuple[str, ...], message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"data\.texts: ") as error:
        read_loose_texts(path, columns)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_read__a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match=r"^data\.texts: [^\n]*$"):
            read_loose_texts(path)


def test_recipe__refuses_contradictions(file: Path) -> None:
    with pytest.raises(UserError, match=r"data\.batch_texts: 0, so data\.texts is not read"):
        recipe_of(file, "--data.batch_texts", "0")
    with pytest.raises(UserError, match=r"data\.batch_texts: 4, but data\.texts"):
        load_recipe(["clip", "tiny"], ["--data.batch_texts", "4"])
    with pytest.raises(UserError, match=r"data\.texts: no loss of this recipe reads texts without images"):
        recipe_of(file, "--objective.terms", "{}")


def test_step__draws_each_text_once_a_pass_and_ranks_share_them(folder: Path, file: Path) -> None:
    recipe = recipe_of(file, "--data.batch_texts", "6", "--data.batch_paired", "6", "--training.steps", "10")
    store = open_store(folder)
    pools = make_pools(store, recipe)
    _, tokenizer = build_model(recipe, training_texts(store, pools, recipe))
    assert tokenizer is not None
    whole = StepDataset(store, pools, recipe, tokenizer)
    halves = [StepDataset(store, pools, recipe, tokenizer, rank, 2) for rank in range(2)]
    seen = []
    for step in range(5):
        batch, parts = whole[step], [half[step] for half in halves]
        ids, mask = loose(batch)
        assert ids.shape == mask.shape
        assert ids.shape[0] == 6
        assert ids.shape[1] % 8 == 0
        decoded = tokenizer.tokenizer.decode_batch(ids.tolist())
        assert decoded == [text for part in parts for text in tokenizer.tokenizer.decode_batch(loose(part)[0].tolist())]
        seen += decoded
        assert torch.equal(loose(whole[step])[0], ids)
    assert len(set(seen[:10])) == len(set(seen)) == 10  # without replacement: 30 draws are three passes
    assert all(seen.count(text) == 3 for text in seen)


def test_step__images_and_texts_of_a_recipe_do_not_depend_on_loose_texts(folder: Path, file: Path) -> None:
    with_texts, without = recipe_of(file), load_recipe(["clip", "tiny"], TINY)
    store = open_store(folder)
    _, tokenizer = build_model(without, training_texts(store, make_pools(store, without), without))
    batches = [StepDataset(store, make_pools(store, recipe), recipe, tokenizer)[1] for recipe in (with_texts, without)]
    assert torch.equal(batches[0].image, batches[1].image)
    assert torch.equal(batches[0].keys, batches[1].keys)
    first, second = batches[0].text_ids, batches[1].text_ids
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    assert batches[1].loose_ids is None


def test_vocabulary__is_trained_on_them_too(folder: Path, file: Path) -> None:
    recipe = recipe_of(file)
    store = open_store(folder)
    texts = training_texts(store, make_pools(store, recipe), recipe)
    assert "choroidal finding number 3" in texts
    _, tokenizer = build_model(recipe, texts)
    assert tokenizer is not None
    assert tokenizer.tokenizer.token_to_id("choroidal") is not None


def test_check_ranks__refuses_what_cannot_be_shared(file: Path) -> None:
    recipe = recipe_of(file)
    check_ranks(recipe, 2)
    with pytest.raises(UserError, match=r"data\.batch_texts: 4 does not divide over 3 ranks; give 3 or 6"):
        check_ranks(recipe.replace(data={"batch_paired": 6, "batch_unpaired": 6}), 3)


def test_run__trains_records_resumes_and_refuses_other_texts(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("text\n" + "\n".join(f"finding {row}" for row in range(9)) + "\n")
    whole = pretrain(recipe_of(file, "--training.steps", "4"), folder, tmp_path / "whole")
    often = ["--training.steps", "4", "--training.checkpoint_every", "1"]
    part = recipe_of(file, *often, "--training.max_minutes", "1e-9")
    run = tmp_path / "run"
    assert not pretrain(part, folder, run).complete
    environment = json.loads((run / "environment.json").read_text())
    assert environment["loose_texts"]["distinct"] == 9
    kept = file.read_text()
    file.write_text(kept + "one more\n")
    go_on = recipe_of(file, *often)
    with pytest.raises(UserError, match=r"data\.texts: the texts in t\.csv have changed since .* began"):
        pretrain(go_on, folder, run, resume=True)
    file.write_text(kept)
    assert pretrain(go_on, folder, run, resume=True).complete
    weights = [(path / "model" / "weights.safetensors").read_bytes() for path in (whole.run, run)]
    assert weights[0] == weights[1]
