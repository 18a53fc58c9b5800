"""Causal language modelling against loops in float64: which tokens are labels, how often a text counts, over ranks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskedclip.errors import UserError
from maskedclip.objectives.texts import _next_token
from maskedclip.objectives.texts._next_token import LanguageHead
from maskedclip.recipe import Recipe
from tests.objectives.image_text.steps import (
    assert_same_gradients,
    first_step,
    gradients,
    of_two_ranks,
    recipe_with,
    term_of,
)
from tests.stores import make_store

CAUSAL = ["--model.text_causal", "true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("causal") / "s", rows=96)


def _recipe(options: dict | None = None, *more: str) -> Recipe:
    return recipe_with("causal", options, *CAUSAL, *more, clip_weight=1.0)


def _nats(logits: Tensor, ids: list[int], length: int) -> list[float]:
    """Of each token after the first, up to the last real one."""
    return [-float(logits[place - 1].double().log_softmax(dim=0)[ids[place]]) for place in range(1, length)]


def test_causal__is_the_mean_over_the_tokens_of_all_texts(folder: Path) -> None:
    objective, batch = first_step(folder, _recipe())
    assert batch.text_ids is not None
    assert batch.text_mask is not None
    assert batch.text_index is not None
    loose_ids, loose_mask = batch.text_ids.flip(0), batch.text_mask.flip(0)
    given = replace(batch, loose_ids=loose_ids, loose_mask=loose_mask)
    tower, head = objective.model.text_encoder, term_of(objective, "causal").head
    assert tower is not None
    with torch.no_grad():
        each: list[float] = []
        lists = [(batch.text_ids[row], batch.text_mask[row]) for row in batch.text_index]  # once an image
        lists += list(zip(loose_ids, loose_mask, strict=True))
        for ids, mask in lists:
            logits = head(tower.hidden(ids[None], mask[None]))[0]
            each += _nats(logits, ids.tolist(), int(mask.sum()))
        found = objective(given, 0.5)
    assert found[1]["causal"].item() == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert found[2]["causal_perplexity"].item() == pytest.approx(found[1]["causal"].exp().item(), rel=1e-6)


@pytest.mark.parametrize(("paired", "loose"), [(True, False), (False, True)])
def test_causal__reads_what_it_is_told_to(folder: Path, paired: bool, loose: bool) -> None:
    objective, batch = first_step(folder, _recipe())
    term = term_of(objective, "causal")
    term.options = replace(term.options, paired=paired, loose=loose)
    assert batch.text_ids is not None
    assert batch.text_mask is not None
    others = {"loose_ids": batch.text_ids[:2], "loose_mask": batch.text_mask[:2]}
    found = []
    for ids in (batch.text_ids, batch.text_ids.clone()):
        if len(found):
            ids[2:, 1] = 9
        with torch.no_grad():
            found.append(term(objective._views(replace(batch, text_ids=ids, **others), 0.5))[0]["causal"])
    assert torch.equal(found[0], found[1]) == (not paired)
    without = replace(batch, loose_ids=others["loose_ids"] * 0 + 8, loose_mask=others["loose_mask"])
    with torch.no_grad():
        changed = term(objective._views(without, 0.5))[0]["causal"]
    assert torch.equal(found[0], changed) == (not loose)


def test_causal__padding_is_no_label_and_later_tokens_are_not_read(folder: Path) -> None:
    objective, batch = first_step(folder, _recipe())
    tower = objective.model.text_encoder
    assert tower is not None
    assert batch.text_ids is not None
    assert batch.text_mask is not None
    padded = torch.where(batch.text_mask > 0, batch.text_ids, 9)
    with torch.no_grad():
        plain, other = (objective(replace(batch, text_ids=ids), 0.5)[1]["causal"] for ids in (batch.text_ids, padded))
        assert plain.item() == pytest.approx(other.item(), rel=1e-6)
        changed = batch.text_ids.clone()
        changed[:, 3:] = 9
        states = [tower.hidden(ids, batch.text_mask) for ids in (batch.text_ids, changed)]
        # soi stands in the last token's place for the text's feature; what comes before does not read it
        first = int(batch.text_mask.sum(dim=1).min()) - 1
        assert first >= 3
        torch.testing.assert_close(states[0][:, :3], states[1][:, :3], rtol=0, atol=1e-6)


def test_causal__trains_the_text_tower_and_its_head_alone(folder: Path) -> None:
    objective, batch = first_step(folder, _recipe())
    views = objective._views(batch, 0.5)
    term_of(objective, "causal")(views)[0]["causal"].backward()
    trained = {
        name.split(".bert")[0].split(".head")[0] for name, p in objective.named_parameters() if p.grad is not None
    }
    assert trained == {"model.text_encoder", "terms.causal"}
    assert objective.model.text_encoder is not None
    assert objective.model.text_encoder.projection.weight.grad is None


def test_causal__two_ranks_equal_one(folder: Path, tmp_path: Path) -> None:
    recipe = _recipe()
    assert_same_gradients(of_two_ranks(folder, recipe, tmp_path), gradients(*first_step(folder, recipe)))


def test_surprise__in_blocks_is_the_same_and_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, states = LanguageHead(6, 11), torch.randn(7, 4, 6, requires_grad=True)
    following, weight = torch.randint(11, (7, 4)), torch.randint(0, 3, (7, 4))
    logits = (head(states).double()).log_softmax(dim=-1)
    naive = -(logits.gather(2, following[:, :, None])[:, :, 0] * weight).sum()
    wanted = torch.autograd.grad(naive, [states, head.words.weight])
    for elements in (2**24, 2 * 4 * 11, 1):
        monkeypatch.setattr(_next_token, "_BLOCK_ELEMENTS", elements)
        found = head.surprise(states, following, weight)
        assert found.item() == pytest.approx(naive.item(), rel=1e-6)
        for value, expected in zip(torch.autograd.grad(found, [states, head.words.weight]), wanted, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head.surprise(states, following, weight)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(naive.item(), rel=2e-2)  # the matrix runs in half precision, the sum does not


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({}, [], "model.text_causal true"),
        ({"paired": False, "loose": False}, CAUSAL, "both false"),
        ({"paired": False}, CAUSAL, "data.texts"),
        ({}, [*CAUSAL, "--training.micro_batches", "2"], "training.micro_batches: 2"),
    ],
)
def test_causal__what_cannot_be_is_told_in_a_line(folder: Path, options: dict, more: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        first_step(folder, recipe_with("causal", options, *more, clip_weight=1.0))
    assert "\n" not in str(caught.value)
