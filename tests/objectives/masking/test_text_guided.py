"""Text-guided masks: what answers to the text is hidden, and images without a text have a mask too."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.attention_maps import text_response
from maskedclip.models.maskedclip import build_model
from maskedclip.models.standardise import running_statistics
from maskedclip.objectives.base import Batch, Views
from maskedclip.objectives.masking import MaskContext, RandomMasker, mask_from_scores
from maskedclip.objectives.masking.text_guided import Options, TextGuidedMasker, response_scores
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.parts import read_options
from maskedclip.recipe import load_recipe
from tests.stores import SENTENCES, TINY, make_store

PROMPTS = {"red": "A red lesion.", "green": "A green lesion.", "drusen": "Drusen."}
GUIDED = ["--objective.masking", "text_guided", "--objective.mask_ratio", "0.5"]


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainingObjective, Batch]:
    """An objective with text-guided masks, and a batch of 6 images with texts and 4 without."""
    store = open_store(make_store(tmp_path_factory.mktemp("guided") / "s"))
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, *GUIDED])
    model, tokenizer = build_model(recipe, SENTENCES)
    batch = Batch.from_host(StepDataset(store, make_pools(store, recipe), recipe, tokenizer)[0])
    return build_objective(recipe, model), batch


def _views(step: tuple[PretrainingObjective, Batch], batch: Batch | None = None, **options: Any) -> Views:
    objective = step[0]
    masker = TextGuidedMasker(Options(**options), objective.model, ("label.red", "green"))
    return replace(objective._views(batch or step[1], 0.5), masker=masker)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_text_guided__hides_what_responds_most(step: tuple[PretrainingObjective, Batch], noise: float) -> None:
    views = _views(step, noise=noise)
    hidden, response = views.mask.is_hidden()[:6], views.text_response
    assert hidden.sum(dim=1).tolist() == [8] * 6
    assert views.mask.is_hidden().sum(dim=1).tolist() == [8] * 10
    for image in range(6):
        there, elsewhere = response[image][hidden[image]], response[image][~hidden[image]]
        assert there.mean() > elsewhere.mean()
        if noise == 0:
            assert there.min() >= elsewhere.max()
    assert not views.text_response.requires_grad


def test_text_guided__another_report_another_mask_and_the_same_one_the_same(
    step: tuple[PretrainingObjective, Batch],
) -> None:
    batch = step[1]
    ids, mask = step[0].model.tokenizer(["Hard exudates near the macula.", "Green."])  # type: ignore[misc]
    base = replace(batch, text_ids=ids, text_mask=mask, text_index=torch.zeros(6, dtype=torch.int64))
    other = replace(base, text_index=torch.ones(6, dtype=torch.int64))
    first, again, second = (_views(step, part, noise=0.0).mask.is_hidden()[:6] for part in (base, base, other))
    assert torch.equal(first, again)
    overlap = (first & second).sum(dim=1) / (first | second).sum(dim=1)
    assert overlap.mean() < 1
    noisy = [_views(step, replace(base, keys=base.keys + shift), noise=0.1).mask.is_hidden() for shift in (0, 1)]
    assert not torch.equal(*noisy)


def test_text_guided__images_without_texts_are_masked_at_random(step: tuple[PretrainingObjective, Batch]) -> None:
    views = _views(step)
    plain = mask_from_scores(RandomMasker().score(MaskContext(step[1].keys, 16, 0.5)), 0.5).is_hidden()
    assert torch.equal(views.mask.is_hidden()[6:], plain[6:])
    assert not torch.equal(views.mask.is_hidden()[:6], plain[:6])


def _by_prompt(views: Views, weights: Tensor) -> Tensor:
    """Responses of the unpaired images to PROMPTS, weighted (b, 3), one by one."""
    model = views.model
    assert model.tokenizer is not None
    assert model.text_encoder is not None
    ids, mask = model.tokenizer(list(PROMPTS.values()))
    with torch.no_grad(), running_statistics(model):
        patches = model.encoder.patches(model.bridge(model.encoder(views.image[6:])))
        hidden = model.text_encoder.hidden(ids, mask)
        each = [text_response(model, patches, hidden[[p] * 4], mask[[p] * 4]) for p in range(3)]
    return sum(weights[:, p, None] * each[p] for p in range(3))  # type: ignore[return-value]


def test_text_guided__prompts_of_positive_labels_play_the_text(step: tuple[PretrainingObjective, Batch]) -> None:
    labels = torch.full((10, 2), torch.nan)
    labels[6:] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [torch.nan, 1.0]])
    views = _views(step, replace(step[1], labels=labels), noise=0.0, unpaired="prompts", prompts=PROMPTS)
    weights = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.5, 0.5, 0], [0, 1, 0]])
    expected = mask_from_scores(response_scores(_by_prompt(views, weights)), 0.5)
    assert torch.equal(views.mask.is_hidden()[6:], expected.is_hidden())


def test_text_guided__prompts_without_labels_are_weighted_by_likeness(
    step: tuple[PretrainingObjective, Batch],
) -> None:
    views = _views(step, noise=0.0, unpaired="prompts", prompts=PROMPTS)
    model = views.model
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    found = views.mask.is_hidden()[6:]
    _ = views.text_response  # the step's own passes, which move the statistics of no layer either
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
    assert model.tokenizer is not None
    with torch.no_grad(), running_statistics(model):
        images = model.project(model.bridge(model.encoder(views.image[6:])))
        prompts = model.embed_text(*model.tokenizer(list(PROMPTS.values())))
    weights = (images @ prompts.T / 0.07).softmax(dim=1)
    assert torch.equal(found, mask_from_scores(response_scores(_by_prompt(views, weights)), 0.5).is_hidden())


def test_text_guided__retrieved_texts_play_the_text(step: tuple[PretrainingObjective, Batch]) -> None:
    batch = step[1]
    with pytest.raises(UserError, match=r"give data\.pairs"):
        _ = _views(step, unpaired="retrieved").mask
    index = torch.full((10,), -1)
    index[7], index[9] = 1, 0
    assert batch.text_ids is not None
    given = replace(batch, retrieved_ids=batch.text_ids, retrieved_mask=batch.text_mask, retrieved_index=index)
    views, plain = _views(step, given, noise=0.0, unpaired="retrieved"), _views(step, noise=0.0)
    changed = (views.mask.is_hidden() != plain.mask.is_hidden()).any(dim=1).nonzero().flatten().tolist()
    assert changed == [7, 9]


def test_text_guided__a_batch_without_reports_learns_through_prompts(
    step: tuple[PretrainingObjective, Batch],
) -> None:
    objective, batch = step
    bare = Batch(batch.image[6:], batch.keys[6:], 0)
    views = _views(step, bare, unpaired="prompts", prompts=PROMPTS)
    loss = objective.terms["mim"](views)[0]["mim"]
    objective.zero_grad()
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad.abs().max() for p in objective.model.encoder.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient > 0 for gradient in gradients)


def test_text_guided__a_batch_without_texts_is_refused(step: tuple[PretrainingObjective, Batch]) -> None:
    bare = Batch(step[1].image[6:], step[1].keys[6:], 0)
    with pytest.raises(UserError, match="text_guided needs texts, and no image of this batch has one"):
        _ = _views(step, bare).mask
    with pytest.raises(UserError, match=r"data\.pool: `all` reads no texts"):
        load_recipe(["mae", "tiny"], [*TINY, *GUIDED])


def test_text_guided__each_sample_for_itself(step: tuple[PretrainingObjective, Batch]) -> None:
    """With batch statistics paused or not, a part of the batch has the masks of the whole."""
    batch = step[1]
    assert batch.text_index is not None
    rows = torch.tensor([4, 1, 8, 6])
    part = replace(batch, image=batch.image[rows], keys=batch.keys[rows], num_paired=2)
    part = replace(part, text_index=batch.text_index[rows[:2]], text_key=None)
    options = {"unpaired": "prompts", "prompts": PROMPTS}
    whole = _views(step, **options).mask.is_hidden()
    assert torch.equal(_views(step, part, **options).mask.is_hidden(), whole[rows])


def test_response_scores__flat_or_empty_responses_are_finite() -> None:
    flat = response_scores(torch.full((2, 16), 1 / 16))
    assert torch.equal(flat, torch.zeros(2, 16))
    assert torch.isfinite(response_scores(torch.zeros(2, 16))).all()
    sharp = response_scores(torch.tensor([[0.9, 0.05, 0.03, 0.02]]))
    assert sharp.square().mean().item() == pytest.approx(1.0)
    assert sharp.argsort(descending=True).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": -0.1}, "noise: -0.1 is negative"),
        ({"unpaired": "prompts"}, "prompts: give a sentence for each finding"),
        ({"prompts": {"red": "A red lesion."}}, "prompts: give a sentence for each finding"),
        ({"unpaired": "labels"}, "unpaired"),
        ({"tau": 0.1}, "tau: no such option"),
    ],
)
def test_text_guided__refuses_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_options("masking", "text_guided", values)
