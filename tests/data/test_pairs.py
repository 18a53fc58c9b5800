"""Retrieved texts in the loader: whose they are, which one is drawn, and what is refused."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from maskedclip.data.loader import HostBatch, StepDataset
from maskedclip.data.pairs import RetrievedTexts, pairs_fingerprint, pairs_table, read_pairs
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.text import TextTokenizer, train_tokenizer
from maskedclip.recipe import load_recipe
from tests.stores import SENTENCES, TINY, make_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("pairs") / "s")


def _write(folder: Path, path: Path, *, top: int = 1) -> Path:
    """Texts (row, row + 1, ...) mod 4 for the rows that 4 does not divide."""
    store = open_store(folder)
    rows = np.arange(len(store))
    index = np.stack([(rows + k) % 4 for k in range(top)], axis=1)
    index[rows % 4 == 0] = -1
    score = np.tile(np.linspace(0.9, 0.1, top, dtype=np.float32), (len(rows), 1))
    pq.write_table(pairs_table(store, rows, SENTENCES, index, score, {}), path)
    return path


def _dataset(folder: Path, path: Path, *options: str, rank: int = 0, world: int = 1) -> StepDataset:
    masked = ["--objective.masking", "text_guided", "--objective.masking_options", "{unpaired: retrieved}"]
    given = [*TINY, *masked, "--data.pairs", str(path), *options]
    recipe, store = load_recipe(["maskedclip", "tiny"], given), open_store(folder)
    tokenizer = TextTokenizer(train_tokenizer(SENTENCES, 300), 16)
    return StepDataset(store, make_pools(store, recipe), recipe, tokenizer, rank, world)


def _drawn(batch: HostBatch, tokenizer: TextTokenizer) -> list[str | None]:
    """The retrieved text of each sample, lower case."""
    assert batch.retrieved_index is not None
    assert batch.retrieved_ids is not None
    lines = tokenizer.tokenizer.decode_batch(batch.retrieved_ids.tolist())
    return [None if place < 0 else lines[place] for place in batch.retrieved_index.tolist()]


def _plain(text: str) -> str:
    return "".join(text.lower().split())


def test_loader__gives_unpaired_images_their_retrieved_text(folder: Path, tmp_path: Path) -> None:
    dataset = _dataset(folder, _write(folder, tmp_path / "p.parquet"), "--data.sentences", "all")
    assert dataset.tokenizer is not None
    found = 0
    for step in range(6):
        batch = dataset[step]
        assert batch.retrieved_score is not None
        for place, text in enumerate(_drawn(batch, dataset.tokenizer)):
            row = int(batch.rows[place])
            if place < batch.num_paired or row % 4 == 0:
                assert text is None
                assert batch.retrieved_score[place] == 0
            else:
                assert text is not None
                assert _plain(text) == _plain(SENTENCES[row % 4])
                assert batch.retrieved_score[place] == pytest.approx(0.9)
                found += 1
    assert found > 10


def test_loader__draws_one_of_several_texts_by_the_sample_s_key(folder: Path, tmp_path: Path) -> None:
    path = _write(folder, tmp_path / "p.parquet", top=3)
    one, two = _dataset(folder, path), _dataset(folder, path)
    retrieved = one.retrieved
    assert retrieved is not None
    texts = [retrieved.draw(5, key) for key in range(300)]
    shares = [
        sum(text == (SENTENCES[(5 + k) % 4], score) for text in texts) / 300
        for k, score in enumerate(np.linspace(0.9, 0.1, 3, dtype=np.float32).tolist())
    ]
    assert sum(shares) == 1
    assert min(shares) > 0.2
    for step in (0, 4):
        first, second = one[step], two[step]
        assert torch.equal(first.retrieved_ids, second.retrieved_ids)  # type: ignore[arg-type]
        assert torch.equal(first.retrieved_index, second.retrieved_index)  # type: ignore[arg-type]


def test_loader__ranks_draw_the_texts_of_the_one_batch(folder: Path, tmp_path: Path) -> None:
    path = _write(folder, tmp_path / "p.parquet", top=3)
    whole = _dataset(folder, path)
    assert whole.tokenizer is not None
    expected = dict(zip(whole[2].rows.tolist(), _drawn(whole[2], whole.tokenizer), strict=True))
    for rank in range(2):
        part = _dataset(folder, path, rank=rank, world=2)[2]
        found = dict(zip(part.rows.tolist(), _drawn(part, whole.tokenizer), strict=True))
        assert found == {row: expected[row] for row in part.rows.tolist()}


def test_loader__a_step_without_any_retrieved_text_has_the_same_parts(folder: Path, tmp_path: Path) -> None:
    store = open_store(folder)
    pq.write_table(
        pairs_table(
            store,
            np.asarray([store.rows("test")[0]]),
            SENTENCES,
            np.asarray([[0]]),
            np.asarray([[0.5]], np.float32),
            {},
        ),
        tmp_path / "p.parquet",
    )
    batch = _dataset(folder, tmp_path / "p.parquet")[0]
    assert batch.retrieved_ids is not None
    assert batch.retrieved_index is not None
    assert len(batch.retrieved_ids) == 1
    assert (batch.retrieved_index == -1).all()


def test_read__refuses_pairs_of_other_images(folder: Path, tmp_path: Path) -> None:
    path = _write(folder, tmp_path / "p.parquet")
    other = open_store(make_store(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="36 of its 36 images are not in --data") as refused:
        RetrievedTexts.read(path, other)
    assert "\n" not in str(refused.value)
    table = read_pairs(path)
    strange = table.set_column(1, "sha256", [["0" * 64] * len(table)])
    pq.write_table(strange, tmp_path / "q.parquet")
    RetrievedTexts.read(tmp_path / "q.parquet", open_store(folder))  # the store does not know its files' hashes
    both = RetrievedTexts.read(path, open_store([folder, tmp_path / "other"]))
    assert both.has(np.arange(96)).sum() == 36


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), (b"text", "is no file of pairs"), ("other", "is no file of pairs"), ("empty", "no pair")],
)
def test_read__refuses_what_is_no_file_of_pairs(
    folder: Path, tmp_path: Path, content: bytes | str | None, told: str
) -> None:
    path = tmp_path / "p.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "other":
        pq.write_table(open_store(folder).table, path)
    elif content == "empty":
        pq.write_table(read_pairs(_write(folder, tmp_path / "full.parquet")).slice(0, 0), path)
    with pytest.raises(UserError, match=told) as refused:
        RetrievedTexts.read(path, open_store(folder))
    assert "\n" not in str(refused.value)


def test_recipe__refuses_pairs_that_nothing_would_read() -> None:
    with pytest.raises(UserError, match=r"data\.pairs: retrieved texts belong to unpaired images"):
        load_recipe(["maskedclip_paired"], ["--data.pairs", "p.parquet"])
    for name in ("maskedclip", "mmclip_style"):
        with pytest.raises(UserError, match=r"data\.pairs: no loss of this recipe reads retrieved texts") as refused:
            load_recipe([name], ["--data.pairs", "p.parquet"])
        assert "\n" not in str(refused.value)
    assert load_recipe(["clipit_style"], ["--data.pairs", "p.parquet"]).data.pairs == "p.parquet"


def test_fingerprint__is_of_the_pairs_and_not_of_the_file(folder: Path, tmp_path: Path) -> None:
    path = _write(folder, tmp_path / "p.parquet")
    again = tmp_path / "again.parquet"
    pq.write_table(read_pairs(path), again, compression="none")
    assert pairs_fingerprint(str(path)) == pairs_fingerprint(str(again))
    pq.write_table(read_pairs(path).slice(1), again)
    assert pairs_fingerprint(str(path)) != pairs_fingerprint(str(again))
    assert pairs_fingerprint(None) is None
