"""Which loss trains which module, bit by bit, for every option; masks and views shared as SPEC.md says."""

from pathlib import Path

import pytest
import torch

from maskedclip.data.label_columns import resolve_labels
from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.distillation import TeacherDecay
from maskedclip.objectives.pretraining import PretrainingObjective, Weight, build_objective
from maskedclip.recipe import Recipe, load_recipe, shipped_recipes
from tests.stores import SENTENCES, TINY, make_store

METHODS = ["bridge", "clip", "clip_mae_init", "clip_mim", "mae", "maskedclip", "maskedclip_paired"]
FAMILY = [
    *("clipit_style", "dae", "ehm_style", "ge2ae_style", "intelligent_masking_style", "lcl", "maskclip_style"),
    *("mmclip_style", "nclip_style", "siglip", "xclip_style"),
]
SIZES = ["tiny", "vitb16", "vits14_dinov2", "volume_tiny", "volume_swin_unetr"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("objective") / "s")


def _parts(folder: Path, recipe: Recipe, step: int = 0) -> tuple[PretrainingObjective, Batch]:
    store = open_store(folder)
    recipe = resolve_labels(recipe, store)
    model, tokenizer = build_model(recipe, SENTENCES if recipe.reads_text else [])
    host = StepDataset(store, make_pools(store, recipe), recipe, tokenizer)[step]
    batch = Batch.from_host(host)
    return build_objective(recipe, model), batch


def _trained(objective: PretrainingObjective, batch: Batch, precision: torch.dtype) -> set[str]:
    """The modules whose parameters receive any gradient."""
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        total, _, _ = objective(batch, 1.0)
    total.backward()
    places = {
        "model.encoder": "f",
        "model.bridge": "g",
        "model.text_encoder": "t",
        "model.image_projection": "projection",
        "model.logit_scale": "s",
        "terms.mim": "h_x",
        "terms.mkd": "h_z",
        "teacher": "teacher",
    }
    found = set()
    for name, parameter in objective.named_parameters():
        if parameter.grad is not None and bool((parameter.grad != 0).any()):
            found.add(next(label for place, label in places.items() if name.startswith(place)))
    return found


ONLY = {"clip": {"f", "g", "projection", "t", "s"}, "mim": {"f", "h_x"}, "mkd": {"f", "h_z"}}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", sorted(ONLY))
def test_objective__each_loss_trains_its_modules_only(folder: Path, loss: str, precision: torch.dtype) -> None:
    objective, batch = _parts(folder, load_recipe(["maskedclip", "tiny"], TINY))
    objective.weights = {name: Weight(float(name == loss)) for name in objective.weights}
    assert _trained(objective, batch, precision) == ONLY[loss]


@pytest.mark.parametrize(
    "options",
    [
        ["--objective.mkd_loss", form, "--objective.mkd_target", target, "--objective.mkd_teacher", teacher]
        for form in ("cosine", "smooth_l1", "mse", "prototype_kl")
        for target in ("bridge", "projected")
        for teacher in ("online", "ema")
    ]
    + [["--objective.mkd_patches", "all"]],
)
def test_objective__every_distillation_option_trains_f_and_h_z_only(folder: Path, options: list[str]) -> None:
    objective, batch = _parts(
        folder, load_recipe(["maskedclip", "tiny"], [*TINY, "--model.projection_norm", "none", *options])
    )
    objective.weights = {name: Weight(float(name == "mkd")) for name in objective.weights}
    assert _trained(objective, batch, torch.float32) == {"f", "h_z"}


def test_objective__total_is_the_weighted_sum_with_its_ramp(folder: Path) -> None:
    recipe = load_recipe(
        ["maskedclip", "tiny"], [*TINY, "--objective.mim_weight", "0.5", "--objective.mkd_weight", "2"]
    )
    objective, batch = _parts(folder, recipe)
    for progress, share in ((0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.7, 1.0)):
        total, losses, report = objective(batch, progress)
        expected = losses["clip"] + 0.5 * losses["mim"] + 2 * share * losses["mkd"]
        assert total.item() == pytest.approx(expected.item(), rel=1e-6)
        assert not any(value.requires_grad for value in (losses | report).values())


def test_objective__masked_patches_only_and_the_same_mask_for_both_losses(folder: Path) -> None:
    objective, batch = _parts(folder, load_recipe(["maskedclip", "tiny"], TINY))
    seen = []
    encoder = objective.model.encoder
    encoder.register_forward_hook(lambda _module, inputs, output: seen.append((inputs, output.shape)))
    objective(batch, 1.0)
    shapes = sorted(tuple(shape[:2]) for _, shape in seen)
    assert shapes == [
        (4, 17),
        (6, 17),
        (10, 5),
    ]  # unpaired in full, paired in full once, all of them with 4 of 16 visible


def test_objective__depends_on_each_sample_s_key_alone(folder: Path) -> None:
    objective, batch = _parts(folder, load_recipe(["mae", "tiny"], TINY))
    with torch.no_grad():
        whole = objective(batch, 1.0)[1]["mim"].item()
        halves = [
            objective(Batch(batch.image[part], batch.keys[part], 0), 1.0)[1]["mim"].item()
            for part in (slice(5), slice(5, 10))
        ]
    assert whole == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_teacher__follows_the_student(folder: Path) -> None:
    recipe = load_recipe(
        ["maskedclip", "tiny"], [*TINY, "--objective.mkd_teacher", "ema", "--objective.ema_decay", "0.9"]
    )
    objective, _ = _parts(folder, recipe)
    assert objective.teacher is not None
    teacher, student = objective.teacher.bridge.norm, objective.model.bridge.norm
    assert isinstance(teacher, torch.nn.LayerNorm)
    assert isinstance(student, torch.nn.LayerNorm)
    before = teacher.weight.clone()
    with torch.no_grad():
        student.weight.add_(1.0)
    objective.after_step()
    torch.testing.assert_close(teacher.weight, 0.9 * before + 0.1 * student.weight.detach(), atol=1e-7, rtol=0)


def test_teacher__decay_grows_along_a_cosine_to_its_end(folder: Path) -> None:
    fields = ["--objective.mkd_teacher", "ema", "--objective.ema_decay", "0.9", "--objective.ema_decay_end", "1.0"]
    objective, _ = _parts(folder, load_recipe(["maskedclip", "tiny"], [*TINY, *fields]))
    assert objective.teacher is not None
    decay = objective.teacher.decay
    assert [decay.at(place) for place in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.95, 1.0])
    assert TeacherDecay(0.9).at(0.7) == 0.9
    teacher, student = objective.teacher.bridge.norm, objective.model.bridge.norm
    assert isinstance(teacher, torch.nn.LayerNorm)
    assert isinstance(student, torch.nn.LayerNorm)
    before = teacher.weight.clone()
    with torch.no_grad():
        student.weight.add_(1.0)
    objective.after_step(progress=1.0)
    assert torch.equal(teacher.weight, before)
    objective.after_step(progress=0.5)
    torch.testing.assert_close(teacher.weight, 0.95 * before + 0.05 * student.weight.detach(), atol=1e-7, rtol=0)
    with pytest.raises(UserError, match=r"objective.ema_decay_end: 0.5 is outside \[ema_decay, 1\]"):
        load_recipe(["maskedclip", "tiny"], [*TINY, *fields[:-1], "0.5"])


def test_after_step__clamps_the_temperature(folder: Path) -> None:
    objective, _ = _parts(folder, load_recipe(["clip", "tiny"], TINY))
    with torch.no_grad():
        assert objective.model.logit_scale is not None
        objective.model.logit_scale.fill_(9.0)
    objective.after_step()
    assert objective.model.scale.item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_recipe__every_shipped_method_steps_at_tiny(folder: Path, method: str) -> None:
    """At the shipped `tiny` model and image size; only the batch is smaller."""
    small = ["--data.batch_paired", "3", "--data.batch_unpaired", "2", "--data.text_fraction", "0.5"]
    recipe = load_recipe([method, "tiny"], small)
    objective, batch = _parts(folder, recipe)
    total, losses, _ = objective(batch, 0.5)
    total.backward()
    assert torch.isfinite(total)
    expected = {
        "clip": recipe.objective.clip_weight,
        "mim": recipe.objective.mim_weight,
        "mkd": recipe.objective.mkd_weight,
    }
    assert set(losses) == {name for name, weight in expected.items() if weight > 0}
    assert bool(objective.model.bridge.depth) == (method in {"bridge", "maskedclip", "maskedclip_paired"})
    idle = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle  # a module without work would break data-parallel training


def test_recipe__methods_and_sizes_are_shipped() -> None:
    assert set(shipped_recipes()) == {*METHODS, *FAMILY, *SIZES}


@pytest.mark.parametrize("method", FAMILY)
def test_recipe__no_relative_has_a_module_without_work(folder: Path, method: str) -> None:
    """Such a one would break data-parallel training."""
    without_volumes = ["--objective.terms={disrupted: {contrast_weight: 0.0}}"] if method == "dae" else []
    objective, batch = _parts(folder, load_recipe([method, "tiny"], [*TINY, *without_volumes]))
    total, losses, _ = objective(batch, 0.5)
    total.backward()
    assert torch.isfinite(total)
    assert losses
    idle = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


@pytest.mark.parametrize("size", ["tiny", "vitb16", "vits14_dinov2"])
@pytest.mark.parametrize("method", METHODS)
def test_recipe__stacks_in_either_order(method: str, size: str) -> None:
    recipe = load_recipe([method, size])
    assert recipe == load_recipe([size, method])
    assert recipe.reads_text == (method != "mae")
