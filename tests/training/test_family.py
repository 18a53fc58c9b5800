"""Every shipped recipe trains; parts of relatives are put together by YAML alone; what cannot be, says so in a line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskedclip.data.loader import StepDataset
from maskedclip.data.sampler import make_pools
from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.errors import UserError
from maskedclip.models.attention_maps import summed_attention
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.base import Batch
from maskedclip.objectives.pretraining import build_objective
from maskedclip.recipe import load_recipe, shipped_recipes
from maskedclip.training.pretrain import pretrain
from tests.stores import SENTENCES, TINY, make_store

SIZES = ("tiny", "vitb16", "vits14_dinov2", "volume_tiny", "volume_swin_unetr")
SMALLER = {
    "clip_mae_init": ["--training.steps=6"],  # half of them by `mae`
    "maskclip_style": ["--objective.ema_decay=0.9"],
    "dae": ["--objective.terms={disrupted: {contrast_weight: 0.0}}"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("family") / "store")


def _train(recipe: list[str], extra: list[str], store: Path, run: Path) -> list[dict]:
    flags = [*TINY, "--training.steps=3", "--training.log_every=1", "--training.validate_every=0", *extra]
    finished = pretrain(load_recipe([*recipe, "tiny"], flags), store, run)
    assert finished.complete
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["bad_steps"] == 0
    return lines


@pytest.mark.parametrize("name", sorted(set(shipped_recipes()) - set(SIZES)))
def test_recipe__trains_and_its_model_loads(name: str, store: Path, tmp_path: Path) -> None:
    _train([name], SMALLER.get(name, []), store, tmp_path / "run")
    model = load(tmp_path / "run")
    assert model.module.encoder.width == 48


COMBINATIONS = {
    "MaskedCLIP with EHM-style masks and xCLIP-style loss": """
objective:
  masking: ehm
  terms:
    xclip: {weight: 0.5, clusters: 8, hidden: 32}
""",
    "MaskedCLIP with an agent, codewords, spectrum and language": """
objective:
  masking: q_agent
  ema_decay: 0.9
  terms:
    codeword: {weight: 0.05, codewords: 16, hidden: 32, bottleneck: 16}
    frequency: {weight: 0.1, depth: 1}
    mlm: {weight: 0.05, depth: 1}
""",
    "SigLIP with text-guided masks, distillation and entities": """
objective:
  clip_weight: 0.0
  masking: text_guided
  terms:
    siglip: {}
    entity_mlm: {weight: 0.1, depth: 1}
""",
}


@pytest.mark.parametrize("what", COMBINATIONS)
def test_combination__by_yaml_alone_trains_and_resumes_bitwise(what: str, store: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "combined.yaml"
    recipe.write_text(COMBINATIONS[what])
    every = ["--training.checkpoint_every=1", "--training.keep_checkpoints=3"]
    lines = _train(["maskedclip", str(recipe)], every, store, tmp_path / "run")
    named = load_recipe(["maskedclip", str(recipe)]).objective
    assert all(any(key.startswith(name[:3]) for key in lines[-1]) for name in named.terms)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-{step:08d}")
    flags = [*TINY, "--training.steps=3", "--training.log_every=1", "--training.validate_every=0", *every]
    pretrain(load_recipe(["maskedclip", str(recipe), "tiny"], flags), store, tmp_path / "again", resume=True)
    first, second = (
        load_file(tmp_path / run / "checkpoints" / "step-00000003" / "state.safetensors") for run in ("run", "again")
    )
    different = [name for name, value in first.items() if not np.array_equal(value.numpy(), second[name].numpy())]
    assert first.keys() == second.keys()
    assert not different


def test_ratio_of_0_or_1__is_refused_for_every_masked_term() -> None:
    for ratio in ("0", "1"):
        with pytest.raises(UserError, match=r"objective.mask_ratio: .*0.75"):
            load_recipe(["maskclip_style", "tiny"], ["--objective.mask_ratio", ratio])


def test_text_part__on_a_pool_without_texts_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.pool: `all` reads no texts, which objective.terms.mlm needs"):
        load_recipe(["mae", "tiny"], ["--objective.terms={mlm: {}}"])
    with pytest.raises(UserError, match=r"data.pool: `all` reads no texts, which objective.masking text_guided needs"):
        load_recipe(["mae", "tiny"], ["--objective.masking=text_guided"])


def test_moving_average__asked_of_a_run_that_had_none_is_refused(store: Path, tmp_path: Path) -> None:
    _train(["maskedclip"], [], store, tmp_path / "run")
    flags = [*TINY, "--training.steps=3", "--training.log_every=1", "--training.validate_every=0"]
    changed = load_recipe(["maskedclip", "tiny"], [*flags, "--objective.mkd_teacher=ema"])
    with pytest.raises(UserError, match=r"began with another recipe: objective.mkd_teacher .online -> ema"):
        pretrain(changed, store, tmp_path / "run", resume=True)


def _in_parts(recipe: list[str], extra: list[str], store: Path, run: Path) -> dict[int, dict]:
    """The losses of two steps, by the number of parts."""
    found = {}
    for parts in (1, 2):
        flags = ["--data.batch_paired=8", "--training.precision=32-true", f"--training.micro_batches={parts}", *extra]
        found[parts] = _train(recipe, flags, store, run / str(parts))[1]
    return found


@pytest.mark.parametrize(
    ("recipe", "extra"),
    [
        ("ge2ae_style", ["--data.batch_unpaired=8"]),
        ("intelligent_masking_style", ["--data.batch_unpaired=8"]),
        ("siglip", []),
        ("maskedclip", ["--objective.mkd_centre=true"]),
    ],
)
def test_batch_in_parts__gives_the_losses_of_the_whole(
    recipe: str, extra: list[str], store: Path, tmp_path: Path
) -> None:
    found = _in_parts([recipe], extra, store, tmp_path)
    losses = {
        name for name in found[1] if name in ("loss", "mim", "mkd", "clip", "siglip", "frequency_pixels", "q_agent")
    }
    assert len(losses) >= 2
    for name in losses:
        assert found[2][name] == pytest.approx(found[1][name], rel=2e-4), name


def test_text_guided_masking__in_parts_is_refused(store: Path, tmp_path: Path) -> None:
    flags = [*TINY, "--data.batch_paired=8", "--training.micro_batches=2", "--objective.masking=text_guided"]
    with pytest.raises(
        UserError, match=r"training.micro_batches: 2, but objective.masking text_guided needs the whole"
    ):
        pretrain(load_recipe(["maskedclip", "tiny"], flags), store, tmp_path / "run")


def test_masking__without_a_masked_loss_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective.masking: ehm, but no loss masks"):
        load_recipe(["clip", "tiny"], ["--objective.masking=ehm"])


@pytest.mark.parametrize("terms", ["{mlm: {depth: 1}}", "{entity_mlm: {depth: 1}}"])
def test_text_loss_alone__leaves_no_module_without_work(terms: str, store: Path) -> None:
    flags = [*TINY, "--data.pool=paired_and_unpaired", f"--objective.terms={terms}"]
    recipe = load_recipe(["mae", "tiny"], flags)
    opened = open_store(store)
    model, tokenizer = build_model(recipe, SENTENCES)
    objective = build_objective(recipe, model)
    batch = Batch.from_host(StepDataset(opened, make_pools(opened, recipe), recipe, tokenizer)[0])
    objective(batch, 0.5)[0].backward()
    assert not [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]


def test_attention_of_the_masking__is_the_models_own_beside_a_teacher(store: Path) -> None:
    flags = [*TINY, "--objective.masking=ehm", "--objective.mkd_teacher=ema"]
    recipe = load_recipe(["maskedclip", "tiny"], flags)
    opened = open_store(store)
    model, tokenizer = build_model(recipe, SENTENCES)
    objective = build_objective(recipe, model)
    with torch.no_grad():
        dict(model.encoder.named_parameters())["vit.blocks.0.attn.qkv.weight"].mul_(3.0)
    batch = Batch.from_host(StepDataset(opened, make_pools(opened, recipe), recipe, tokenizer)[0])
    views = objective._views(batch, 0.9)
    assert not torch.allclose(views.self_attention, views.teacher_attention)
    assert torch.equal(views.self_attention, summed_attention(model.encoder, views.image))


def test_contrast_of_modalities__without_any_is_refused_before_the_run_begins(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"disrupted.contrast_weight: the store knows fewer than two modalities"):
        pretrain(load_recipe(["dae", "tiny"], TINY), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()
