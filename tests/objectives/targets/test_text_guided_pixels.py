"""Hidden patches painted with a report's help, and prompts that play the report of images without one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.models.standardise import running_statistics
from maskedclip.objectives._disease_prompts import DiseasePrompts, sentences
from maskedclip.objectives.base import Batch, Views
from maskedclip.objectives.image_text.disease_prompts import prompt_loss
from maskedclip.objectives.masking import MaskContext
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.targets.text_guided_pixels import TextGuidedPixels
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.pretrain import pretrain
from tests.stores import TINY, make_store

PROMPTS = '{"red": "a fundus image of a red lesion", "green": "a fundus image of a green lesion"}'
TEXTS = ["a red lesion", "a green lesion; a longer text of this kind", "normal fundus", "red and green"]
NAN = float("nan")


def recipe_of(options: str = f'{{"prompts": {PROMPTS}}}', *more: str) -> Recipe:
    terms = f'{{"text_guided_pixels": {options}}}'
    chosen = ["--data.pool", "paired_and_unpaired", "--objective.mask_ratio", "0.5", "--objective.terms", terms]
    return load_recipe(["clip", "tiny"], [*TINY, *chosen, *more])


def parts_of(recipe: Recipe, texts: list[str] = TEXTS) -> tuple[PretrainingObjective, TextGuidedPixels]:
    objective = build_objective(recipe, build_model(recipe, [*texts, "a fundus image of a disease"])[0])
    term = objective.terms["text_guided_pixels"]
    assert isinstance(term, TextGuidedPixels)
    return objective, term


def noise(count: int) -> Tensor:
    return torch.randint(0, 255, (count, 3, 32, 32), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def batch_of(objective: PretrainingObjective, images: Tensor, texts: list[str]) -> Batch:
    """The first images have texts."""
    keys = torch.arange(len(images)) * 7919 + 11
    if not texts:
        return Batch(images, keys, 0)
    assert objective.model.tokenizer is not None
    ids, mask = objective.model.tokenizer(texts)
    places = torch.arange(len(texts))
    return Batch(images, keys, len(texts), None, ids, mask, places, places)


def loss(term: TextGuidedPixels, objective: PretrainingObjective, batch: Batch) -> Tensor:
    return term(objective._views(batch, 1.0))[0]["text_guided_pixels"]


@pytest.mark.parametrize("reencode", [True, False])
def test_forward__hidden_content_leaks_in_the_literal_form_only(reencode: bool) -> None:
    objective, term = parts_of(recipe_of(f'{{"reencode": {str(reencode).lower()}, "prompts": {PROMPTS}}}'))
    painted: list[Tensor] = []
    term.decoder.register_forward_hook(lambda _module, _inputs, output: painted.append(output.detach()))
    images = noise(4)
    batch = batch_of(objective, images, TEXTS[:2])
    batch.labels = None
    views = objective._views(batch, 1.0)
    with torch.no_grad():
        term(views)
        hidden = views.mask.is_hidden().reshape(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        other = torch.where(hidden, 255 - images, images)
        term(objective._views(batch_of(objective, other, TEXTS[:2]), 1.0))
    before, after = painted[0], painted[2]  # the paired images; prompts of the others are weighted by the whole image
    assert before.shape == (2, 8, 192)
    assert torch.equal(before, after) == reencode


def test_forward__padding_says_nothing_and_another_report_does() -> None:
    objective, term = parts_of(recipe_of())
    images = noise(2)
    batch = batch_of(objective, images, TEXTS[:2])
    with torch.no_grad():
        value = loss(term, objective, batch)
        assert batch.text_mask is not None
        assert batch.text_ids is not None
        wide = batch_of(objective, images, TEXTS[:2])
        keep = int(batch.text_mask.sum(dim=1).max())
        wide.text_ids, wide.text_mask = batch.text_ids[:, :keep], batch.text_mask[:, :keep]
        assert loss(term, objective, wide) == pytest.approx(value.item(), rel=1e-6)
        wide.text_index = torch.tensor([1, 0])
        assert loss(term, objective, wide) != value


def test_forward__the_order_of_the_batch_does_not_matter() -> None:
    objective, term = parts_of(recipe_of())
    batch = batch_of(objective, noise(6), TEXTS)
    order = torch.tensor([2, 0, 3, 1, 5, 4])
    turned = Batch(batch.image[order], batch.keys[order], 4)
    turned.text_ids, turned.text_mask, turned.text_index = batch.text_ids, batch.text_mask, order[:4]
    with torch.no_grad():
        assert loss(term, objective, turned).item() == pytest.approx(loss(term, objective, batch).item(), rel=1e-6)


@pytest.mark.parametrize("reencode", ["true", "false"])
@pytest.mark.parametrize("masking", ["random", "text_guided"])
def test_forward__a_batch_without_reports_trains_the_image_encoder_through_prompts(masking: str, reencode: str) -> None:
    more = ["--objective.masking", masking]
    if masking == "text_guided":
        more += ["--objective.masking_options", f'{{"unpaired": "prompts", "prompts": {PROMPTS}}}']
    objective, term = parts_of(recipe_of(f'{{"reencode": {reencode}, "prompts": {PROMPTS}}}', *more))
    value = loss(term, objective, batch_of(objective, noise(4), []))
    value.backward()
    assert torch.isfinite(value)
    assert value > 0
    for module in (objective.model.encoder, objective.model.text_encoder):
        assert any(p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters())  # type: ignore[union-attr]


def test_forward__images_without_texts_may_be_left_out() -> None:
    objective, term = parts_of(recipe_of('{"unpaired": "none"}'))
    assert term.prompts is None
    both, alone = batch_of(objective, noise(6), TEXTS), batch_of(objective, noise(6)[:4], TEXTS)
    with torch.no_grad():
        assert loss(term, objective, both).item() == pytest.approx(loss(term, objective, alone).item(), rel=1e-6)
        assert loss(term, objective, batch_of(objective, noise(2), [])) == 0


def prompts_of(objective: PretrainingObjective, kinds: tuple[str, ...], labels: tuple[str, ...]) -> DiseasePrompts:
    said = {kind: f"a fundus image of {kind}" for kind in kinds}
    return DiseasePrompts(said, labels, objective.model, 0.07)


def test_weights__labels_decide_and_the_rest_is_guessed() -> None:
    objective, _ = parts_of(recipe_of())
    prompts = prompts_of(objective, ("amd", "drusen", "coats disease"), ("label_x", "drusen", "armd"))
    assert prompts.columns.tolist() == [2, 1, -1]  # `amd` and `armd` are one entry of the project's prompts
    model, images = objective.model, noise(5)
    batch = Batch(images, torch.arange(5), 0)
    rows = [[0, NAN, NAN], [0, 1, 1], [0, 1, 0], [0, 0, NAN], [0, NAN, NAN]]
    batch.labels = torch.tensor(rows)
    views = objective._views(batch, 1.0)
    hidden = prompts.hidden(model)
    weights = prompts.weights(model, model.encoder.patches(views.unpaired_tokens), hidden, batch)
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(5))
    torch.testing.assert_close(weights[1], torch.tensor([0.5, 0.5, 0]))
    torch.testing.assert_close(weights[2], torch.tensor([0.0, 1, 0]))
    assert weights[3, 1] == 0  # known to be without: the others share by likeness
    assert (weights[3, [0, 2]] > 0).all()
    with torch.no_grad(), running_statistics(model):
        image, text = model.project(views.unpaired_tokens), prompts.embed(model, hidden)
    torch.testing.assert_close(weights[0], (image[0] @ text.T / 0.07).softmax(dim=0))


def test_as_text__a_prompt_of_weight_one_is_as_if_it_were_the_only_one() -> None:
    objective, term = parts_of(recipe_of())
    kinds = ("drusen", "a much longer name of a disease", "cataract")
    prompts = prompts_of(objective, kinds, ())
    one = prompts_of(objective, kinds[1:2], ())
    views = objective._views(Batch(noise(2), torch.arange(2), 0), 1.0)
    with torch.no_grad():
        painted = [
            term.decoder(views.masked_tokens, views.mask, *chosen.as_text(chosen.hidden(objective.model), weights))
            for chosen, weights in ((prompts, torch.tensor([[0.0, 1, 0]] * 2)), (one, torch.ones(2, 1)))
        ]
    torch.testing.assert_close(painted[0], painted[1], atol=1e-5, rtol=0)


def test_sentences__are_made_of_labels_in_the_field_s_words() -> None:
    made = sentences({}, ("amd", "normal", "dr_grade=4", "some_finding"), "fundus", "f")
    assert made == {
        "amd": "a fundus image of age-related macular degeneration",
        "normal": "a fundus image of no disease",
        "dr_grade=4": "a fundus image of proliferative diabetic retinopathy",
        "some_finding": "a fundus image of some finding",
    }
    with pytest.raises(UserError, match=r"f\.prompts: empty, and data\.labels names no labels"):
        sentences({}, (), "fundus", "f")


class HidesTheSquare:
    """Hides the half of the picture that the square is in."""

    def score(self, context: MaskContext) -> Tensor:
        """(B, 16), high in the left half."""
        assert isinstance(context.views, Views)
        return torch.tensor([1.0, 1, 0, 0] * 4).expand(len(context.keys), -1)


def test_trained__the_right_report_paints_better_than_another() -> None:
    """What is hidden is told by the report alone: stripes along or across."""
    torch.manual_seed(0)
    images = noise(24) // 4
    stripes = (torch.arange(32) // 4 % 2 * 200).to(torch.uint8)
    kinds = torch.arange(24) % 2
    for row, kind in enumerate(kinds.tolist()):
        images[row, :, :, :16] += stripes[None, None, :16] if kind else stripes[None, :, None]
    texts = [("vertical stripes are seen", "horizontal stripes are seen")[1 - kind] for kind in kinds.tolist()]
    objective, term = parts_of(recipe_of(), texts)
    objective.masker = HidesTheSquare()
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    batch = batch_of(objective, images, texts)
    for _ in range(80):
        optimizer.zero_grad()
        loss(term, objective, batch).backward()
        optimizer.step()
    with torch.no_grad():
        right = loss(term, objective, batch)
        batch.text_index = torch.arange(24).roll(1)
        shuffled = loss(term, objective, batch)
    assert right < 0.5 * shuffled, (right, shuffled)


def test_options__are_refused_with_their_mend() -> None:
    for options, message in (
        ('{"depth": 0}', r"text_guided_pixels\.depth: the text enters in a block; give 1 or more"),
        ('{"prompt_temperature": 0}', r"text_guided_pixels\.prompt_temperature: must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            recipe_of(options)
    with pytest.raises(UserError, match=r"text_guided_pixels\.prompts: empty, and data\.labels names no labels"):
        parts_of(recipe_of("{}"))
    with pytest.raises(UserError, match=r"text_guided_pixels\.width: 26 must be a multiple of 4 and of 2 heads"):
        parts_of(recipe_of(f'{{"width": 26, "prompts": {PROMPTS}}}'))
    with pytest.raises(UserError, match=r"micro_batches: 2, but objective\.terms\.text_guided_pixels needs the whole"):
        parts_of(recipe_of(f'{{"prompts": {PROMPTS}}}', "--training.micro_batches", "2"))
    terms = ["--data.pool", "paired_and_unpaired", "--objective.terms", '{"disease_prompts": {}}']
    recipe = load_recipe(["clip", "tiny"], [*TINY, *terms])
    model = build_model(recipe, TEXTS)[0]
    with pytest.raises(UserError, match=r"disease_prompts: its positives are labels; name them in data\.labels"):
        build_objective(recipe, model)


def test_prompt_loss__positives_share_and_unknown_images_are_left_out() -> None:
    image = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(3)), dim=1)
    kinds = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(4)), dim=1)
    truth = torch.tensor([[1, 0, 0], [1, 1, 0], [NAN, NAN, NAN], [0, 0, 0]])
    logs = (10 * image.double() @ kinds.double().T).log_softmax(dim=1)
    expected = -(logs[0, 0] + (logs[1, 0] + logs[1, 1]) / 2) / 2
    assert prompt_loss(image, kinds, truth, torch.tensor(10.0)).item() == pytest.approx(expected.item(), rel=1e-5)
    order = torch.tensor([3, 1, 0, 2])
    turned = prompt_loss(image[order], kinds, truth[order], torch.tensor(10.0))
    assert turned.item() == pytest.approx(expected.item(), rel=1e-5)
    assert prompt_loss(image[2:], kinds, truth[2:], torch.tensor(10.0)) == 0


def test_run__the_recipe_trains_and_resumes_with_the_same_bits(tmp_path: Path) -> None:
    folder = make_store(tmp_path / "s")
    options = [*TINY, "--training.steps", "4", "--training.checkpoint_every", "1", "--data.labels", '["red", "green"]']
    clip = '{"disease_prompts": {"weight": 0.5}, "text_guided_pixels": {}, "entity_mlm": {}}'
    recipe = load_recipe(["mmclip_style", "tiny"], [*options, "--objective.terms", clip])
    whole = pretrain(recipe, folder, tmp_path / "whole")
    stopped = recipe.replace(training={"max_minutes": 1e-9})
    assert not pretrain(stopped, folder, tmp_path / "part").complete
    resumed = pretrain(recipe, folder, tmp_path / "part", resume=True)
    assert resumed.complete
    for name in ("weights", "decoders"):
        weights = [(run / "model" / f"{name}.safetensors").read_bytes() for run in (whole.run, resumed.run)]
        assert weights[0] == weights[1]
