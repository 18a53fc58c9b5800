"""Masked language modelling: which tokens are chosen, what becomes of them, and the loss by a plain loop."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from maskedclip import randomness
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.models.text import TextTokenizer, train_tokenizer
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.texts._masked_tokens import (
    TextDecoder,
    choose_share,
    chosen_places,
    corrupt,
    loose_keys,
    mask_token_id,
    maskable,
    special_ids,
    token_accuracy,
    token_losses,
)
from maskedclip.objectives.texts.mlm import MaskedLanguageModelling, Options, texts_of
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory
from tests.stores import SENTENCES, TINY, make_store

LONG = ["a red lesion and no drusen near the disc", "mild green lesions of the macula", "normal fundus", ""]


def _keys(count: int, step: int = 0) -> Tensor:
    rows = torch.arange(count).numpy()
    return torch.from_numpy(randomness.sample_keys(7, step, rows))


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(train_tokenizer([*SENTENCES, *LONG], 200), 24)


def test_special_ids__are_those_of_padding_ends_unknown_and_mask(tokenizer: TextTokenizer) -> None:
    assert special_ids(tokenizer) == {0, 1, 2, 3, 4}
    assert mask_token_id(tokenizer) == 4
    plain = Tokenizer(WordLevel({"[PAD]": 0, "a": 1}, unk_token="a"))
    with pytest.raises(UserError, match="its tokenizer has no mask token"):
        mask_token_id(TextTokenizer(plain, 8))


def test_choose_share__takes_a_fifth_of_each_text_s_words(tokenizer: TextTokenizer) -> None:
    ids, mask = tokenizer([*LONG, *SENTENCES, "drusen drusen drusen drusen drusen drusen drusen drusen [SEP] [MASK]"])
    candidates = maskable(ids, mask, special_ids(tokenizer))
    for step in range(50):
        for share in (0.2, 0.5, 1.0):
            chosen = choose_share(candidates, _keys(len(ids), step), share)
            assert not (chosen & ~candidates).any()  # neither padding nor a special token, wherever it stands
            for taken, count in zip(chosen.sum(1).tolist(), candidates.sum(1).tolist(), strict=True):
                assert taken == (max(1, round(share * count)) if count else 0)
    draws = torch.stack([choose_share(candidates, _keys(len(ids), step), 0.2) for step in range(400)])
    assert torch.equal(draws.any(dim=0), candidates)


def test_corrupt__replaces_as_bert_does(tokenizer: TextTokenizer) -> None:
    special = special_ids(tokenizer)
    ids, chosen, keys = torch.full((4000, 10), 17), torch.zeros(4000, 10, dtype=torch.bool), _keys(4000)
    chosen[:, :5] = True
    found = corrupt(ids, chosen, keys, 4, 60, special)
    assert torch.equal(found[:, 5:], ids[:, 5:])
    changed = found[:, :5]
    masked, kept = changed == 4, changed == 17
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.01)  # n 20,000: 3.5 deviations
    assert (~masked & ~kept).float().mean().item() == pytest.approx(0.1 * 54 / 55, abs=0.008)
    drawn = changed[~masked]
    assert set(drawn.tolist()) == set(range(60)) - special
    counts = torch.bincount(drawn[drawn != 17], minlength=60)[5:]
    counts = counts[torch.arange(55) != 12].double()
    assert ((counts - counts.mean()).square() / counts.mean()).sum() < 95  # chi-square, 53 degrees: p 0.0004


def test_corruption__is_a_function_of_the_keys_alone(tokenizer: TextTokenizer) -> None:
    special = special_ids(tokenizer)
    ids, mask = tokenizer([*LONG, *SENTENCES])
    keys = _keys(8)

    def of(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        taken, real = ids[rows, :width], mask[rows, :width]
        chosen = choose_share(maskable(taken, real, special), keys[rows], 0.3)
        return chosen, corrupt(taken, chosen, keys[rows], 4, 80, special)

    everything = torch.arange(8)
    chosen, corrupted = of(everything, 24)
    assert corrupted.ne(ids).any()
    order = torch.tensor([5, 2, 7, 0])
    for width in (24, 16):
        again = of(order, width)
        assert torch.equal(again[0], chosen[order, :width])
        assert torch.equal(again[1], corrupted[order, :width])
    other = choose_share(maskable(ids, mask, special), _keys(8, step=1), 0.3)
    assert not torch.equal(other, chosen)


def test_loose_keys__depend_on_words_and_step_not_on_order_or_padding(tokenizer: TextTokenizer) -> None:
    ids, mask = tokenizer(LONG)
    keys = _keys(5)
    found = loose_keys(ids, mask, keys)
    assert len(set(found.tolist())) == 4
    assert bool((found >= 0).all())
    order = torch.tensor([3, 1, 0, 2])
    assert torch.equal(loose_keys(ids[order, :16], mask[order, :16], keys.flip(0)), found[order])
    assert not (loose_keys(ids, mask, _keys(5, step=1)) == found).any()


def test_chosen_places__and_their_loss_by_a_plain_loop() -> None:
    chosen = torch.rand(6, 11) < 0.3
    chosen[2] = False
    ids, logits = torch.randint(0, 9, (6, 11)), torch.randn(6, 11, 9)
    places, real = chosen_places(chosen, 8)
    led = logits.gather(1, places[:, :, None].expand(-1, -1, 9))
    each = token_losses(led, ids.gather(1, places), real)
    right = 0
    for row in range(6):
        where = chosen[row].nonzero()[:, 0].tolist()
        assert places[row][real[row]].tolist() == where
        raised = logits[row].double().exp()
        losses = [-float((raised[at, ids[row, at]] / raised[at].sum()).log()) for at in where]
        assert each[row].item() == pytest.approx(sum(losses) / max(1, len(losses)), abs=1e-5)
        right += sum(int(logits[row, at].argmax() == ids[row, at]) for at in where)
    accuracy = token_accuracy(led, ids.gather(1, places), real)
    assert accuracy.item() == pytest.approx(right / int(chosen.sum()))


@pytest.mark.parametrize("cross", [None, 12])
@pytest.mark.parametrize("fused", [True, False])
def test_text_decoder__reads_real_tokens_and_the_image_if_it_is_made_for_it(cross: int | None, fused: bool) -> None:
    decoder = TextDecoder(16, 2, 4, 30, cross).double()
    for block in decoder.blocks:
        block.attn.fused_attn = fused  # type: ignore[union-attr]
    hidden, image = torch.randn(2, 7, 16, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    mask = (torch.arange(7) < torch.tensor([[4], [7]])).long()
    seen = image if cross else None
    found = decoder(hidden, mask, None, seen)
    assert found.shape == (2, 7, 30)
    places = torch.tensor([[3, 0], [6, 2]])
    torch.testing.assert_close(
        decoder(hidden, mask, places, seen), found.gather(1, places[:, :, None].expand(-1, -1, 30))
    )
    padded = hidden.clone()
    padded[0, 4:] = 9.0
    torch.testing.assert_close(decoder(padded, mask, None, seen)[0, :4], found[0, :4])
    changed = hidden.clone()
    changed[0, 3] = 9.0
    assert not torch.allclose(decoder(changed, mask, None, seen)[0, 0], found[0, 0])  # an earlier token looks ahead
    decoder.recompute = True
    torch.testing.assert_close(decoder(hidden, mask, None, seen), found)
    if cross:
        other = decoder(hidden, mask, None, image.flip(0))
        assert not torch.allclose(other, found)
        shuffled = decoder(hidden, mask, None, image[:, torch.randperm(5)])
        torch.testing.assert_close(shuffled, found)


def _recipe(**options: object) -> Recipe:
    terms = json.dumps({"mlm": {"weight": 0.05} | options})
    return load_recipe(["clip", "tiny"], [*TINY, "--objective.terms", terms])


def _objective(**options: object) -> PretrainingObjective:
    recipe = _recipe(**options)
    return build_objective(recipe, build_model(recipe, [*SENTENCES, *LONG])[0])


def _batch(objective: PretrainingObjective, *, paired: int = 5, loose: bool = False) -> Batch:
    tokenizer = objective.model.tokenizer
    assert tokenizer is not None
    batch = Batch(torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), _keys(6), paired)
    if paired:
        batch.text_ids, batch.text_mask = tokenizer(SENTENCES)
        batch.text_index = torch.tensor([2, 0, 2, 3, 1][:paired])
        batch.text_key = batch.text_index.clone()
    if loose:
        ids, mask = tokenizer(LONG[:2])
        batch.loose_ids, batch.loose_mask = ids[:, :12], mask[:, :12]
    return batch


def _term(objective: PretrainingObjective) -> MaskedLanguageModelling:
    term = objective.terms["mlm"]
    assert isinstance(term, MaskedLanguageModelling)
    return term


def _alone(objective: PretrainingObjective, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    losses, report = _term(objective)(objective._views(batch, 0.5))
    return losses["mlm"], report


@pytest.mark.parametrize("loose", [False, True])
def test_mlm__is_the_mean_over_images_texts_and_loose_texts_of_a_plain_loop(loose: bool) -> None:
    objective = _objective().eval()
    batch, term = _batch(objective, loose=loose), _term(objective)
    encoder = objective.model.text_encoder
    assert encoder is not None
    texts = texts_of(batch)
    assert texts is not None
    ids, mask, keys = texts
    assert torch.equal(ids[:5], batch.text_ids[batch.text_index])  # type: ignore[index]
    assert len(ids) == (7 if loose else 5)
    expected = []
    with torch.no_grad():
        for row in range(len(ids)):
            one, real, key = ids[row : row + 1], mask[row : row + 1], keys[row : row + 1]
            chosen = choose_share(maskable(one, real, term.special), key, 0.2)
            corrupted = corrupt(one, chosen, key, term.mask_id, term.vocabulary, term.special)
            length = int(real.sum())
            logits = term.text_decoder(encoder.hidden(corrupted[:, :length], real[:, :length]), real[:, :length])[0]
            places = chosen[0].nonzero()[:, 0]
            assert len(places) == max(1, round(0.2 * (length - 2)))
            expected.append(-logits.double().log_softmax(-1)[places, one[0, places]].mean())
        loss, report = _alone(objective, batch)
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert 0 <= report["mlm_accuracy"].item() <= 1


def test_mlm__learns_from_texts_without_images_alone() -> None:
    objective = _objective()
    batch = _batch(objective, paired=0, loose=True)
    loss, _ = _alone(objective, batch)
    loss.backward()
    encoder = objective.model.text_encoder
    assert encoder is not None
    assert all(p.grad is not None for p in _term(objective).parameters())
    assert sum(bool(p.grad.any()) for p in encoder.bert.parameters() if p.grad is not None) > 10
    assert objective.model.encoder.vit.patch_embed.proj.weight.grad is None  # no image is looked at
    batch.loose_ids = batch.loose_mask = None
    assert _term(objective)(objective._views(batch, 0.5)) == ({}, {})


def test_mlm__does_not_depend_on_the_order_or_on_how_texts_are_gathered() -> None:
    objective = _objective()
    batch = _batch(objective, loose=True)
    before = _alone(objective, batch)[0].item()
    assert batch.text_ids is not None
    assert batch.text_mask is not None
    assert batch.text_index is not None
    assert batch.loose_ids is not None
    assert batch.loose_mask is not None
    order, texts = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([1, 3, 0, 2])
    other = Batch(batch.image, batch.keys[[*order.tolist(), 5]], 5)
    other.text_ids, other.text_mask = batch.text_ids[texts], batch.text_mask[texts]
    other.text_index = texts.argsort()[batch.text_index][order]
    other.loose_ids, other.loose_mask = batch.loose_ids.flip(0), batch.loose_mask.flip(0)
    assert _alone(objective, other)[0].item() == pytest.approx(before, rel=1e-6)
    plain = Batch(batch.image, batch.keys, 5, loose_ids=batch.loose_ids, loose_mask=batch.loose_mask)
    plain.text_ids, plain.text_mask = batch.text_ids[batch.text_index], batch.text_mask[batch.text_index]
    assert _alone(objective, plain)[0].item() == pytest.approx(before, rel=1e-6)


def test_mlm__trained_fills_in_words_of_a_small_language() -> None:
    objective = _objective(depth=1)
    encoder, term = objective.model.text_encoder, _term(objective)
    assert encoder is not None
    trained = [*encoder.bert.parameters(), *term.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    first = last = 0.0
    for step in range(60):
        batch = _batch(objective, loose=True)
        batch.keys = _keys(6, step)
        optimizer.zero_grad()
        loss, report = _alone(objective, batch)
        loss.backward()
        optimizer.step()
        first += loss.item() / 10 * (step < 10)
        last += report["mlm_accuracy"].item() / 10 * (step >= 50)
    assert first > 2.0
    assert last > 0.6


def test_build__refuses_what_cannot_be(tmp_path: Path) -> None:
    for name, value in {"share": 0.0, "depth": -1, "heads": 0}.items():
        with pytest.raises(UserError, match=f"^objective.terms.mlm.{name}: "):
            Options(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"objective.terms.mlm.heads: 5 does not divide the text encoder's width 32"):
        _objective(heads=5)
    recipe = _recipe().replace(training={"micro_batches": 2})
    with pytest.raises(UserError, match=r"training.micro_batches: 2, but objective.terms.mlm needs the whole batch"):
        build_objective(recipe, build_model(recipe, SENTENCES)[0])
    with pytest.raises(UserError, match=r"data.pool: `all` reads no texts, which objective.terms.mlm needs"):
        load_recipe(["mae", "tiny"], [*TINY, "--objective.terms", '{"mlm": {}}'])


def test_mlm__reads_texts_without_images_of_a_run(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(f'"{text}"' for text in LONG[:3]) + "\n")
    loose = ["--data.texts", str(tmp_path / "texts.csv"), "--data.batch_texts", "3", "--training.steps", "2"]
    recipe = load_recipe(["maskclip_style", "tiny"], [*TINY, *loose])
    told = {}
    for name, changed in {"with": recipe, "without": recipe.replace(data={"texts": None, "batch_texts": 0})}.items():
        assert pretrain(changed, store, tmp_path / name).complete
        told[name] = [(line["codeword"], line["mlm"]) for line in RunDirectory(tmp_path / name).read_metrics()]
    with_them, without = told["with"][0], told["without"][0]
    assert with_them[1] != without[1]
    assert with_them[0] == without[0]  # images are masked alike
