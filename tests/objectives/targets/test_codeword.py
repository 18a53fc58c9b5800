"""Soft codewords: what the teacher sees, what the loss is taken over, how both averages and the centre follow."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from maskedclip import randomness
from maskedclip.data.phantom import draw_phantom
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.distillation import TeacherDecay
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.objectives.targets import codeword
from maskedclip.objectives.targets.codeword import Codeword, Options, Quantizer, codeword_loss, codeword_use
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.checkpoint import list_checkpoints
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory
from tests.objectives.image_text.steps import EXACT, assert_same_gradients, first_step, gradients, of_two_ranks
from tests.stores import TINY, make_store

SMALL = {"codewords": 32, "hidden": 64, "bottleneck": 16}


def _recipe(decay: float = 0.9, **options: object) -> Recipe:
    """The codeword term alone, so that no text is read; `mim` would be the standard pixel target."""
    terms = json.dumps({"codeword": {"weight": 1.0} | SMALL | options})
    more = ["--objective.terms", terms, "--objective.mim_weight", "0", "--objective.ema_decay", str(decay)]
    return load_recipe(["mae", "tiny"], [*TINY, *more])


def _objective(decay: float = 0.9, **options: object) -> PretrainingObjective:
    recipe = _recipe(decay, **options)
    return build_objective(recipe, build_model(recipe, [])[0])


def _term(objective: PretrainingObjective) -> Codeword:
    term = objective.terms["codeword"]
    assert isinstance(term, Codeword)
    return term


def _batch(image: Tensor, step: int = 0, rows: np.ndarray | None = None) -> Batch:
    rows = np.arange(len(image)) if rows is None else rows
    return Batch(image, torch.from_numpy(randomness.sample_keys(5, step, rows)), 0)


def _noise(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)


def test_codeword_loss__is_the_cross_entropy_of_a_plain_loop() -> None:
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5).softmax(-1)
    expected = 0.0
    for row in range(2):
        for patch in range(3):
            raised = (student[row, patch].double() / 0.1).exp()
            expected -= float((teacher[row, patch].double() * (raised / raised.sum()).log()).sum()) / 6
    assert codeword_loss(student, teacher, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_codeword_use__tells_both_kinds_of_collapse() -> None:
    one, alike = torch.eye(8)[:1].expand(20, 8), torch.full((20, 8), 1 / 8)
    spread = torch.eye(8).repeat(3, 1)
    for patches, expected in ((one, (0.0, 0.0)), (alike, (1.0, 0.0)), (spread, (1.0, 1.0))):
        assert [value.item() for value in codeword_use(patches[None])] == pytest.approx(expected, abs=1e-6)


def test_quantizer__is_the_cosine_with_codewords_in_float32() -> None:
    quantizer, features = Quantizer(6, 8, 4, 5), torch.randn(2, 3, 6)
    unit = quantizer.mlp(features)
    expected = torch.nn.functional.cosine_similarity(unit[..., None, :], quantizer.codewords, dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantizer(features.bfloat16().float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(quantizer(features), expected)


def test_codeword__is_the_cross_entropy_over_hidden_patches_alone() -> None:
    objective, batch = _objective(), _batch(_noise(3))
    term = _term(objective)
    with torch.no_grad():
        term.centre.normal_()
        term.quantizer.codewords.normal_()  # no longer those of its average
        views = objective._views(batch, 1.0)
        _, losses, report = objective(batch, 1.0)
        decoded = term.decoder(views.masked_tokens, views.mask.restore)  # of all patches
        assert views.teacher is not None
        seen = views.teacher.encoder(views.image)[:, 1:]  # the whole image: no patch is left out
        expected, hidden = 0.0, views.mask.is_hidden()
        assert hidden.sum() == 3 * 12
        for row, place in hidden.nonzero().tolist():
            teacher = ((term.teacher_quantizer(seen[row, place]) - term.centre).double() / 0.04).softmax(0)
            student = (term.quantizer(decoded[row, place]).double() / 0.1).log_softmax(0)
            expected -= float((teacher * student).sum()) / 36
    assert losses["codeword"].item() == pytest.approx(expected, rel=1e-4)
    assert 0 <= report["codeword_information"] <= report["codeword_entropy"] <= 1


def test_codeword__compares_what_the_decoder_says_of_hidden_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batch = _objective(), _batch(_noise(3))
    term = _term(objective)
    before = objective(batch, 1.0)[1]["codeword"].item()
    original = term.decoder.forward

    def disturbed(at: str) -> float:
        def forward(tokens: Tensor, restore: Tensor, decoded: Tensor | None = None) -> Tensor:
            assert decoded is not None
            everything = original(tokens, restore)
            hidden = torch.zeros(everything.shape[:2], dtype=torch.bool).scatter(1, decoded, True)
            everything = everything + (hidden if at == "hidden" else ~hidden)[:, :, None] * torch.randn(48) * 9
            return everything.gather(1, decoded[:, :, None].expand(-1, -1, 48))

        monkeypatch.setattr(term.decoder, "forward", forward)
        return objective(batch, 1.0)[1]["codeword"].item()

    assert disturbed("visible") == pytest.approx(before, rel=1e-6)
    assert abs(disturbed("hidden") - before) > 0.05
    # A decoder that says the same of every patch hides the encoder from the loss.
    monkeypatch.setattr(term.decoder, "forward", lambda _tokens, _restore, decoded: torch.ones(*decoded.shape, 48))
    objective.zero_grad()
    objective(batch, 1.0)[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in objective.model.parameters())


def test_codeword__the_teacher_sees_whole_images_and_no_gradient() -> None:
    objective, batch = _objective(), _batch(_noise(3))
    assert objective.teacher is not None
    seen: list[tuple[torch.Size, bool, bool]] = []
    objective.teacher.encoder.register_forward_hook(
        lambda _module, inputs, output: seen.append((output.shape, len(inputs) > 1, output.requires_grad))
    )
    objective(batch, 1.0)[0].backward()
    assert seen == [((3, 17, 48), False, False)]  # a class token and all 16 patches, once
    frozen = [*objective.teacher.parameters(), *_term(objective).teacher_quantizer.parameters()]
    assert not any(parameter.requires_grad for parameter in frozen)
    trained = dict(objective.named_parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.values() if p.requires_grad)
    assert _term(objective).centre.grad is None


def test_codeword__with_a_bridge_the_teacher_s_encoder_is_asked_not_its_bridge() -> None:
    recipe = load_recipe(
        ["maskedclip", "tiny"], [*TINY, "--objective.terms", json.dumps({"codeword": SMALL}), "--data.workers", "0"]
    )
    objective = build_objective(recipe, build_model(recipe, ["a red lesion"])[0])
    views = objective._views(_batch(_noise(2)), 1.0)
    assert views.teacher is not None
    assert views.model.bridge.depth == 1
    features, _ = _term(objective).teacher_logits(views)
    whole = views.teacher.encoder(views.image)[:, 1:]
    torch.testing.assert_close(features, whole.gather(1, views.mask.hidden[:, :, None].expand(-1, -1, 48)))


@pytest.mark.parametrize("skipped", [None, 0.0, 1.0])
def test_after_step__both_averages_and_the_centre_follow_unless_skipped(skipped: float | None) -> None:
    objective = _objective(decay=0.9, centre_momentum=0.75)
    term = _term(objective)
    assert objective.teacher is not None
    pairs = [
        *zip(objective.teacher.encoder.parameters(), objective.model.encoder.parameters(), strict=True),
        *zip(term.teacher_quantizer.parameters(), term.quantizer.parameters(), strict=True),
    ]
    batch = _batch(_noise(4))
    objective(batch, 0.5)
    logits = term.teacher_logits(objective._views(batch, 0.5))[1].mean(dim=(0, 1))
    with torch.no_grad():
        for _, student in pairs:
            student.add_(torch.randn_like(student))
    before, centre = [teacher.clone() for teacher, _ in pairs], term.centre.clone()
    objective.after_step(None if skipped is None else torch.tensor(skipped))
    share = 0.0 if skipped == 1.0 else 0.1
    for (teacher, student), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(teacher, (1 - share) * old + share * student.detach(), atol=1e-7, rtol=1e-6)
    expected = centre if skipped == 1.0 else 0.75 * centre + 0.25 * logits
    torch.testing.assert_close(term.centre, expected, atol=1e-7, rtol=1e-6)


def test_after_step__the_quantizers_average_follows_the_decay_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = _objective(decay=0.9)
    term, batch = _term(objective), _batch(_noise(4))
    monkeypatch.setattr(term, "decay", TeacherDecay(0.9, 1.0))
    objective(batch, 0.5)
    teacher, student = next(term.teacher_quantizer.parameters()), next(term.quantizer.parameters())
    with torch.no_grad():
        student.add_(1.0)
    before = teacher.clone()
    term.after_step(objective.model, None)
    torch.testing.assert_close(teacher, 0.95 * before + 0.05 * student.detach(), atol=1e-7, rtol=1e-6)


def test_after_step__a_skipped_step_with_broken_features_leaves_the_centre_whole() -> None:
    objective = _objective()
    term = _term(objective)
    term._remember(torch.full((1, 2, 32), float("nan")), 0.1)
    term.after_step(objective.model, torch.tensor(1.0))
    assert not term.centre.any()
    term._remember(torch.full((1, 2, 32), float("nan")), 0.2)  # on a processor no hook is called after such a step
    term._remember(torch.ones(1, 2, 32), 0.3)
    term.after_step(objective.model, None)
    torch.testing.assert_close(term.centre, torch.full((32,), 0.1))


def test_codeword__the_centre_is_that_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codeword, "gather_rows", lambda rows: torch.cat([rows, rows + 1]))  # another rank's mean
    objective = _objective()
    term, logits = _term(objective), torch.randn(2, 3, 32)
    term._remember(logits, 0.1)
    term.after_step(objective.model, None)
    torch.testing.assert_close(term.centre, 0.1 * (logits.mean(dim=(0, 1)) + 0.5))


def test_codeword__gradients_of_two_ranks_are_those_of_one(store: Path, tmp_path: Path) -> None:
    recipe = load_recipe(["maskclip_style", "tiny"], [*TINY, *EXACT])
    whole = gradients(*first_step(store, recipe))
    assert_same_gradients(of_two_ranks(store, recipe, tmp_path), whole)


def test_codeword__parts_of_a_batch_equal_the_whole_in_any_order() -> None:
    objective, batch = _objective(), _batch(_noise(6))
    term = _term(objective)
    whole = objective(batch, 0.1)[0].item()
    objective.after_step()
    centre = term.centre.clone()
    objective = _objective()
    order = torch.randperm(6)
    image, keys = batch.image[order], batch.keys[order]
    parts = [objective(Batch(image[part], keys[part], 0), 0.1)[0].item() for part in (slice(3), slice(3, 6))]
    objective.after_step()
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(_term(objective).centre, centre, atol=1e-7, rtol=1e-5)


def test_options__refuse_what_cannot_be() -> None:
    wrong = {"codewords": 1, "hidden": 0, "bottleneck": 0, "depth": 0, "teacher_temperature": 0.0}
    for name, value in (wrong | {"student_temperature": -1.0, "centre_momentum": 1.0}).items():
        with pytest.raises(UserError, match=f"^objective.terms.codeword.{name}: "):
            Options(**{name: value})


def test_codeword__trained_on_phantoms_does_not_collapse_and_predicts() -> None:
    eyes = [(patient, side) for patient in range(24) for side in ("left", "right")]
    images = [draw_phantom(3, patient, side, size=32).image for patient, side in eyes]  # type: ignore[arg-type]
    image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    objective = _objective(decay=0.98)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, betas=(0.9, 0.95))
    held_out = _batch(image[32:], step=10**6)
    with torch.no_grad():
        first = objective(held_out, 0.0)[2]
    for step in range(120):
        rows = randomness.generator(0, step).permutation(32)[:16]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 20)
        optimizer.zero_grad()
        objective(_batch(image[rows], step, rows), (step + 1) / 120)[0].backward()
        optimizer.step()
        objective.after_step()
    with torch.no_grad():
        last = objective(held_out, 0.0)[2]
    # Measured: deviation 0.68 -> 0.40, entropy 0.73 -> 0.85, information 0.43 -> 0.27, cosine -0.03 -> 0.65.
    assert last["teacher_deviation"] > 0.1 * first["teacher_deviation"]
    assert last["codeword_entropy"] > 0.5  # in log K; there are more patches than codewords
    assert last["codeword_information"] > 0.25 * first["codeword_information"]
    assert last["codeword_cosine"] > first["codeword_cosine"] + 0.3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("codeword") / "s")


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the shipped recipe."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert pretrain(_shipped(), store, out).complete
    return out


def _shipped(**training: float) -> Recipe:
    recipe = load_recipe(["maskclip_style", "tiny"], [*TINY, "--objective.ema_decay", "0.9"])
    return recipe.replace(training=training)


def _final(run: Path) -> dict[str, Tensor]:
    return load_file(list_checkpoints(run / "checkpoints")[-1] / "state.safetensors")


def test_recipe__resumes_with_the_bits_of_averages_and_centre(store: Path, finished: Path, tmp_path: Path) -> None:
    assert pretrain(_shipped(max_minutes=1e-6), store, tmp_path / "run").step == 1
    assert pretrain(_shipped(), store, tmp_path / "run", resume=True).complete
    whole, parts = _final(finished), _final(tmp_path / "run")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    for name in (
        "terms.codeword.centre",
        "terms.codeword.teacher_quantizer.codewords",
        "teacher.encoder.vit.cls_token",
    ):
        assert whole[f"objective/{name}"].any()
    one = RunDirectory(finished).read_metrics()[0]
    assert one["loss"] == pytest.approx(one["clip"] + 0.05 * one["codeword"] + 0.05 * one["mlm"], rel=1e-5)


def test_resume__of_a_run_without_a_moving_average_is_one_line(store: Path, tmp_path: Path) -> None:
    plain = load_recipe(["clip", "tiny"], [*TINY, "--objective.ema_decay", "0.9", "--data.pool", "paired_and_unpaired"])
    pretrain(plain.replace(training={"max_minutes": 1e-6}), store, tmp_path / "run")
    with pytest.raises(UserError, match=r"began with another recipe: .*objective\.terms") as caught:
        pretrain(_shipped(), store, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    # Even with a recipe that was changed by hand to match, the checkpoint lacks the averages.
    RunDirectory(tmp_path / "run").recipe_file.unlink()
    RunDirectory(tmp_path / "run").recipe_file.write_text(json.dumps(_shipped().to_dict()))
    with pytest.raises(UserError, match=r"the newest checkpoint does not fit .*use another --out") as caught:
        pretrain(_shipped(), store, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
