"""LCL's interleaved documents: symbols written by hand, what each state has read, and which rows come together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from maskedclip import randomness
from maskedclip.data.loader import documents
from maskedclip.data.sampler import DocumentShuffle, StepSampler, check_ranks, make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.objectives.base import Views
from maskedclip.objectives.image_text._documents import Documents, lay_out_documents
from maskedclip.objectives.image_text._masked_contrast import masked_contrast
from maskedclip.objectives.image_text.lcl import _STREAM
from maskedclip.objectives.pretraining import PretrainingObjective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.pretrain import pretrain
from tests.objectives.image_text.steps import (
    EXACT,
    assert_same_gradients,
    first_step,
    gradients,
    of_two_ranks,
    recipe_with,
    term_of,
)
from tests.stores import TINY, make_store

CAUSAL = ["--model.text_causal", "true", "--model.image_pooling", "attention", "--model.projection_norm", "none"]
PAD, CLS, SEP, MASK = 0, 2, 3, 4
IMAGES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("documents") / "s", rows=96)


def _recipe(images: int = IMAGES) -> Recipe:
    return recipe_with("lcl", {}, *CAUSAL, "--data.images_per_document", str(images))


def _by_hand(texts: list[list[int]], text_first: list[bool], pictures: list[str]) -> list[int | str]:
    """The symbols of one document."""
    symbols: list[int | str] = []
    had: list[list[int]] = []
    for place, (text, first, picture) in enumerate(zip(texts, text_first, pictures, strict=True)):
        repeated, image = text in had, [MASK, picture, "eoi"]
        had.append(text)
        begins, ends = not symbols, place == len(texts) - 1
        if repeated:
            symbols += image
        elif first:
            symbols += [*([CLS] if begins else []), *text, *image]
        else:
            symbols += [*image, *text, *([SEP] if ends else [])]
    return symbols


ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 1)), min_size=IMAGES * 2, max_size=IMAGES * 2
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_documents__equal_the_sequences_written_by_hand(rows: list[tuple[int, bool, int]]) -> None:
    """Each row: which of three texts, its order, its patient; one image token each."""
    told = [[10, 11, 12], [20], [30, 31]]
    words = nn.Embedding(100, 4)
    ids = torch.full((len(rows), 7), PAD)
    for row, (text, _, _) in enumerate(rows):
        ids[row, : len(told[text]) + 2] = torch.tensor([CLS, *told[text], SEP])
    image, eoi = torch.randn(len(rows), 1, 4), torch.randn(4)
    order = torch.tensor([first for _, first, _ in rows])
    document = torch.from_numpy(documents(np.asarray([patient for _, _, patient in rows]), IMAGES))
    key = torch.tensor([text for text, _, _ in rows])
    laid = lay_out_documents(words, ids, (ids != PAD).long(), image, eoi, order, MASK, document, key, IMAGES)
    vectors = {f"picture {row}": image[row, 0] for row in range(len(rows))} | {"eoi": eoi}
    for line in range(len(rows) // IMAGES):
        held = range(line * IMAGES, (line + 1) * IMAGES)
        symbols, labels, soi = [], set(), {}
        for one in dict.fromkeys(document[list(held)].tolist()):
            pairs = [row for row in held if document[row] == one]
            found = _by_hand(
                [told[rows[row][0]] for row in pairs],
                [rows[row][1] for row in pairs],
                [f"picture {row}" for row in pairs],
            )
            labels |= {(len(symbols) + at, after) for at, after in enumerate(found[1:]) if not isinstance(after, str)}
            soi |= {row: len(symbols) + found.index(f"picture {row}") - 1 for row in pairs}
            begin = len(symbols)
            symbols += found
            for row in pairs:
                assert bool(laid.in_context[row]) == (soi[row] > begin)
        count = int(laid.real[line].sum())
        assert laid.real[line, :count].all()
        expected = torch.stack([vectors[s] if isinstance(s, str) else words.weight[s] for s in symbols])
        torch.testing.assert_close(laid.embeddings[line, :count], expected)
        chosen = laid.labelled[line]
        places, tokens = laid.predicting[line][chosen].tolist(), laid.following[line][chosen].tolist()
        assert set(zip(places, tokens, strict=True)) == labels
        assert len(places) == len(labels)
        assert {row: int(laid.soi[row]) for row in held} == soi


def _laid(objective: PretrainingObjective, views: Views) -> Documents:
    batch = views.batch
    text_first = randomness.uniform(batch.keys[: batch.num_paired] ^ _STREAM, 1)[:, 0] < 0.5
    return term_of(objective, "lcl").sequences(views, text_first)


def test_read__a_document_knows_only_what_is_before_in_it(folder: Path) -> None:
    objective, batch = first_step(folder, _recipe())
    views = objective._views(batch, 0.5)
    tower = objective.model.text_encoder
    assert tower is not None
    assert batch.document is not None
    with torch.no_grad():
        laid = _laid(objective, views)
        states = tower.read(laid.embeddings, laid.real, laid.document)
        alone: list[Tensor] = []
        for line in range(len(states)):
            for one in laid.document[line].unique():
                held = (laid.document[line] == one) & (laid.real[line] > 0)
                row = laid.embeddings[line, held][None]
                alone.append((states[line, held] - tower.read(row, row.new_ones(row.shape[:2]).long())[0]).abs().max())
    assert len(alone) > len(states) / 2
    assert max(alone) < 1e-5
    several = [int((batch.document == one).sum()) for one in batch.document.unique()]
    assert max(several) == IMAGES  # else nothing was shown


def test_documents__of_single_images_cost_and_contrast_as_pairs_do(folder: Path) -> None:
    """Rows of two places whose patients all differ: the same loss as without documents."""
    objective, batch = first_step(folder, _recipe())
    assert batch.document is not None
    batch.document = torch.arange(batch.num_paired)
    with torch.no_grad():
        apart = objective(batch, 0.5)[2]
        term_of(objective, "lcl").images_per_document = 1
        plain = objective(batch, 0.5)[2]
    for name in ("lcl_generation", "lcl_contrast", "lcl_accuracy"):
        assert apart[name].item() == pytest.approx(plain[name].item(), rel=1e-5)


def test_documents__two_ranks_equal_one(folder: Path, tmp_path: Path) -> None:
    recipe = _recipe()
    assert_same_gradients(of_two_ranks(folder, recipe, tmp_path), gradients(*first_step(folder, recipe)))


@settings(max_examples=30, deadline=None)
@given(
    document=st.lists(st.integers(0, 2), min_size=6, max_size=6).map(sorted),
    seed=st.integers(0, 99),
    soft=st.booleans(),
)
def test_contrast__an_image_that_was_read_is_no_candidate(document: list[int], seed: int, soft: bool) -> None:
    """Against loops in float64; texts 0, 2, 4 are equal."""
    random = torch.Generator().manual_seed(seed)
    image, text = (functional.normalize(torch.randn(6, 5, generator=random), dim=1) for _ in range(2))
    key, part = torch.tensor([0, 1, 0, 2, 0, 3]), torch.rand(6, generator=random) < 0.8
    read = torch.tensor([[document[t] == document[i] and i < t for i in range(6)] for t in range(6)])
    found = masked_contrast(image, text, key, part, torch.tensor(7.0), soft_targets=soft, has_read=read)
    cosine, terms = 7 * image.double() @ text.double().T, []
    for own in np.flatnonzero(part.numpy()).tolist():
        for of_image in (True, False):
            others = [
                o for o in np.flatnonzero(part.numpy()).tolist() if not (read[o, own] if of_image else read[own, o])
            ]
            values = {o: float(cosine[own, o] if of_image else cosine[o, own]) for o in others}
            total = np.log(sum(np.exp(value) for value in values.values()))
            right = [o for o in others if (key[o] == key[own] if soft else o == own)]
            terms.append(np.mean([total - values[o] for o in right]) / 2)
    expected = sum(terms) / max(1, int(part.sum()))
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("counts", "images"), [([2] * 20 + [1], 2), ([1, 2, 3] * 10, 2), ([5, 1, 1, 7, 3], 3), ([1], 2), ([1], 3)]
)
def test_sampler__a_document_is_one_patients_wherever_its_rows_allow(counts: list[int], images: int) -> None:
    patients = np.repeat(np.arange(len(counts)), counts)
    rows = np.random.default_rng(0).permutation(len(patients)) + 100
    line = DocumentShuffle(rows, 3, 1, patients, images)
    whole = sum(count // images for count in counts)
    of = dict(zip(rows.tolist(), patients.tolist(), strict=True))
    passes = []
    for start in range(3):
        taken = line.take(start * line.length, line.length)
        assert set(taken.tolist()) == set(rows.tolist())
        assert len(taken) == -(-len(rows) // images) * images  # at most a document's rows come twice
        slots = np.asarray([of[row] for row in taken.tolist()]).reshape(-1, images)
        assert sum(len(set(slot)) == 1 for slot in slots.tolist()) >= whole
        passes.append(taken.tolist())
    assert len(rows) < 9 or passes[0] != passes[1]


def test_sampler__two_ranks_share_a_step_of_documents(folder: Path) -> None:
    store, recipe = open_store(folder), _recipe()
    pools = make_pools(store, recipe)
    assert pools.patients is not None
    sampler = StepSampler(pools, recipe)
    whole = sampler.rows(3)[0]
    assert np.array_equal(whole, np.concatenate([sampler.rows(3, rank, 2)[0] for rank in range(2)]))


def test_documents__go_with_a_first_stage(folder: Path, tmp_path: Path) -> None:
    more = ["--data.images_per_document", "2", "--training.first_stage", "mae", "--training.steps", "2"]
    recipe = load_recipe(["lcl", "tiny"], [*TINY, *EXACT, *CAUSAL, *more, "--training.validate_every", "0"])
    assert pretrain(recipe, [folder], tmp_path / "run").complete


@pytest.mark.parametrize(
    ("patients", "images", "expected"),
    [
        ([5, 5, 5, 7], 2, [0, 0, 1, 2]),
        ([5, 7, 7, 7], 2, [0, 1, 2, 2]),
        ([5, 5, 5, 7, 7, 1], 3, [0, 0, 0, 1, 1, 2]),
        ([1], 1, [0]),
    ],
)
def test_documents__end_with_the_patient_or_their_places(patients: list[int], images: int, expected: list[int]) -> None:
    assert documents(np.asarray(patients), images).tolist() == expected


def test_documents__what_cannot_be_is_told_in_a_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data.images_per_document: no loss of this recipe reads several images"):
        load_recipe(["clip", "tiny"], [*TINY, "--data.images_per_document", "2"])
    with pytest.raises(UserError, match=r"data.images_per_document: 0 is below 1"):
        load_recipe(["lcl", "tiny"], [*TINY, "--data.images_per_document", "0"])
    with pytest.raises(UserError, match=r"data.batch_paired: 8 does not divide over 1 ranks of documents of 3"):
        check_ranks(_recipe(3), 1)
    standardised = [*TINY, *EXACT, "--data.images_per_document", "2", "--model.projection_norm", "batch"]
    recipe = load_recipe(["lcl", "tiny"], standardised)
    with pytest.raises(UserError, match=r"set model.projection_norm none"):
        first_step(folder, recipe)
