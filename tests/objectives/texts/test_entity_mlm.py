"""Entities masked as whole spans, filled up at random, filled in with the image's help."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from maskedclip.data.entities import load_entities
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.texts.entity_mlm import EntityMLM, choose_spans, fill_up
from maskedclip.recipe import Recipe, load_recipe
from tests.stores import TINY

REPORTS = [
    "The photograph of the right eye is sharp and well lit; scattered cotton-wool spots are seen beside the arcade.",
    "In this left eye there is no sign of glaucoma in any part of the picture that was sent to us on the same day.",
    "Compared with the last visit a few months ago nothing else has changed but a small number of dot haemorrhages.",
    "Both pictures were taken without drops by a nurse at the clinic; non-proliferative retinopathy is likely.",
]
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "white": (230, 230, 230)}


def recipe_of(options: str, *more: str) -> Recipe:
    return load_recipe(["clip", "tiny"], [*TINY, "--objective.terms", f'{{"entity_mlm": {options}}}', *more])


def parts_of(recipe: Recipe, texts: list[str]) -> tuple[PretrainingObjective, EntityMLM]:
    model, _ = build_model(recipe, texts)
    objective = build_objective(recipe, model)
    term = objective.terms["entity_mlm"]
    assert isinstance(term, EntityMLM)
    return objective, term


def batch_of(objective: PretrainingObjective, images: Tensor, texts: list[str], first_key: int = 0) -> Batch:
    assert objective.model.tokenizer is not None
    ids, mask = objective.model.tokenizer(texts)
    places = torch.arange(len(texts))
    return Batch(images, places * 7919 + 11 + first_key, len(texts), None, ids, mask, places, places)


def entities_of(tokenizer: Tokenizer, texts: list[str]) -> list[set[int]]:
    """Token places of each text's entities, by the word recogniser."""
    dictionary, found = load_entities(), []
    for text in texts:
        offsets = tokenizer.encode(text).offsets
        spans = [(entity.start, entity.end) for entity in dictionary.find(text)]
        found.append(
            {place for place, (a, b) in enumerate(offsets) for start, end in spans if b > a and start <= a and b <= end}
        )
    return found


def choices(options: str, draws: int = 64) -> tuple[Tensor, Tensor, Tensor, list[set[int]]]:
    """Many draws over REPORTS: chosen and spans (draws x 4, T), mask, and the entities' places by words."""
    objective, term = parts_of(recipe_of(options, "--data.context_length", "48"), REPORTS)
    tokenizer = objective.model.tokenizer
    assert tokenizer is not None
    ids, mask = tokenizer(REPORTS * draws)
    keys = torch.arange(len(ids)) * 104729 + 3
    chosen, spans = term.choose(ids, mask, keys)
    return chosen, spans, mask, entities_of(tokenizer.tokenizer, REPORTS)


def test_choose__without_filling_up_only_whole_entities_are_masked() -> None:
    chosen, spans, _, places = choices('{"fill_to": 0}')
    assert chosen.any()
    for row in range(len(chosen)):
        expected = places[row % len(REPORTS)]
        assert {place for place, own in enumerate(spans[row].tolist()) if own >= 0} == expected
        assert set(chosen[row].nonzero().flatten().tolist()) <= expected  # 100 % in entities
        for start in set(spans[row].tolist()) - {-1}:
            assert len(set(chosen[row][spans[row] == start].tolist())) == 1  # whole
    share = torch.stack([chosen[row][spans[row] >= 0].float().mean() for row in range(len(chosen))]).mean()
    assert share.item() == pytest.approx(0.5, abs=0.07)  # 256 entities; sd 0.031


def test_choose__filled_up_the_entity_share_is_three_times_the_base_rate() -> None:
    chosen, spans, mask, _ = choices("{}")
    base = (spans >= 0).sum() / mask.sum()
    share = (chosen & (spans >= 0)).sum() / chosen.sum()
    assert share >= 3 * base  # measured 0.374 of the masked tokens, 0.100 of all
    count = chosen.sum(dim=1)
    assert (count >= (0.15 * (mask.sum(dim=1) - 2)).round()).all()  # two tokens mark the ends
    assert not (chosen & (mask == 0)).any()


def test_choose__a_text_of_one_entity_always_has_something_to_learn() -> None:
    spans = torch.tensor([[-1, 1, 1, -1]])
    candidates = torch.tensor([[False, True, True, False]])
    keys = torch.arange(200)[:, None].expand(-1, 1).flatten()
    spans, candidates = spans.expand(200, -1), candidates.expand(200, -1)
    chosen = choose_spans(spans, candidates, keys, 0.5)
    filled = fill_up(chosen, candidates, spans, keys, 0.15)
    assert 0.3 < chosen.any(dim=1).float().mean() < 0.7
    assert filled.any(dim=1).all()
    assert not filled[:, [0, 3]].any()


def test_choose__depends_on_each_text_s_key_alone() -> None:
    objective, term = parts_of(recipe_of("{}"), REPORTS)
    assert objective.model.tokenizer is not None
    ids, mask = objective.model.tokenizer(REPORTS)
    keys = torch.tensor([5, 6, 7, 8])
    chosen, _ = term.choose(ids, mask, keys)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(term.choose(ids[order], mask[order], keys[order])[0], chosen[order])
    assert not torch.equal(term.choose(ids, mask, keys + 1)[0], chosen)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terms") / "colours.txt"
    path.write_text("\n".join(f"{colour} spot" for colour in COLOURS))
    return path


def coloured(count: int) -> tuple[Tensor, list[str]]:
    """Noise with a square of one of four colours, and reports that differ in its name alone."""
    image = torch.randint(0, 60, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    names = list(COLOURS)
    for row in range(count):
        x, y = 4 + 8 * (row % 3), 4 + 8 * (row // 3 % 3)
        image[row, :, y : y + 8, x : x + 8] = torch.tensor(COLOURS[names[row % 4]], dtype=torch.uint8)[:, None, None]
    return image, [f"there is a {names[row % 4]} spot in this picture" for row in range(count)]


def test_trained__the_image_lowers_the_cross_entropy_of_entities(colours: Path) -> None:
    torch.manual_seed(0)
    recipe = recipe_of(f'{{"dictionary": "{colours}", "fill_to": 0, "probability": 1.0, "depth": 1}}')
    images, texts = coloured(24)
    objective, term = parts_of(recipe, texts)
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    for step in range(50):
        views = objective._views(batch_of(objective, images, texts, 1000 * step), 1.0)
        optimizer.zero_grad()
        term(views)[0]["entity_mlm"].backward()
        optimizer.step()
    with torch.no_grad():
        seen = term(objective._views(batch_of(objective, images, texts, 10**6), 1.0))[0]["entity_mlm"]
        blank = term(objective._views(batch_of(objective, images * 0, texts, 10**6), 1.0))[0]["entity_mlm"]
        other = term(objective._views(batch_of(objective, images.roll(1, 0), texts, 10**6), 1.0))[0]["entity_mlm"]
    assert seen < 0.25 * blank, (seen, blank)  # measured, two seeds: 0.02 against 1.4 to 2.3
    assert seen < 0.25 * other, (seen, other)


def test_forward__trains_encoder_and_text_encoder_and_loose_texts_need_no_image(colours: Path) -> None:
    images, texts = coloured(6)
    objective, term = parts_of(recipe_of(f'{{"dictionary": "{colours}"}}'), texts)
    batch = batch_of(objective, images, texts)
    losses, report = term(objective._views(batch, 1.0))
    losses["entity_mlm"].backward()
    for module in (objective.model.encoder, objective.model.text_encoder, term.text_decoder):
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters())  # type: ignore[union-attr]
    assert 0 < report["entity_share"] <= 1

    assert objective.model.tokenizer is not None
    loose = Batch(images, batch.keys, 0)
    loose.loose_ids, loose.loose_mask = objective.model.tokenizer(texts[:4])
    with torch.no_grad():
        alone = term(objective._views(loose, 1.0))[0]["entity_mlm"]
        blank = term(objective._views(Batch(images * 0, batch.keys, 0, **_loose(loose)), 1.0))[0]["entity_mlm"]
    assert alone == blank
    assert torch.isfinite(alone)
    batch.loose_ids, batch.loose_mask = loose.loose_ids, loose.loose_mask
    with torch.no_grad():
        both = term(objective._views(batch, 1.0))[0]["entity_mlm"]
    assert both == pytest.approx((6 * losses["entity_mlm"].item() + 4 * alone.item()) / 10, rel=1e-5)


def _loose(batch: Batch) -> dict[str, Tensor | None]:
    return {"loose_ids": batch.loose_ids, "loose_mask": batch.loose_mask}


def test_forward__a_batch_without_entities_is_finite() -> None:
    objective, term = parts_of(recipe_of('{"fill_to": 0}'), ["a normal picture"] * 3)
    batch = batch_of(objective, torch.zeros(3, 3, 32, 32, dtype=torch.uint8), ["a normal picture"] * 3)
    losses, _ = term(objective._views(batch, 1.0))
    losses["entity_mlm"].backward()
    assert losses["entity_mlm"] == 0


def test_options__are_refused_with_their_mend(tmp_path: Path) -> None:
    for options, message in (
        ('{"probability": 0}', r"entity_mlm\.probability: 0.* is outside \(0, 1\]"),
        ('{"fill_to": 1}', r"entity_mlm\.fill_to: 1.* is outside \[0, 1\)"),
        ('{"depth": 0}', r"entity_mlm\.depth: 0; give 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            recipe_of(options)
    with pytest.raises(UserError, match=r"entity_mlm\.dictionary: .*none\.txt: No such file"):
        parts_of(recipe_of(f'{{"dictionary": "{tmp_path / "none.txt"}"}}'), REPORTS)
    with pytest.raises(UserError, match=r"entity_mlm\.heads: 3 does not divide the width 32"):
        parts_of(recipe_of('{"heads": 3}'), REPORTS)
    with pytest.raises(UserError, match=r"micro_batches: 2, but objective\.terms\.entity_mlm needs the whole batch"):
        parts_of(recipe_of("{}", "--training.micro_batches", "2"), REPORTS)
