"""Low-rank additions in pre-training: they begin as nothing, alone are trained, resume, and end as plain weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.models.lora import add_lora, lora_scaling, merged
from maskedclip.models.maskedclip import build_model, model_from_config
from maskedclip.objectives.pretraining import build_objective
from maskedclip.recipe import Recipe, load_recipe
from maskedclip.training.checkpoint import list_checkpoints
from maskedclip.training.optimizer import parameter_groups
from maskedclip.training.pretrain import pretrain
from maskedclip.training.weights import WeightAverage, plain_model
from tests.stores import SENTENCES, TINY, make_store

LORA = ["--model.lora_rank", "4", "--model.lora_alpha", "8", "--training.lr", "0.05"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("lora") / "s")


def _recipe(*options: str, method: str = "maskedclip") -> Recipe:
    return load_recipe([method, "tiny"], [*TINY, *LORA, *options])


def test_lora__begins_as_nothing_and_changes_no_other_weight() -> None:
    recipe = _recipe()
    plain, _ = build_model(recipe, SENTENCES)
    model, _ = build_model(recipe, SENTENCES)
    add_lora(model, recipe)
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        difference = (model.encoder(image) - plain.encoder(image)).abs().max()
    assert difference < 1e-6
    assert lora_scaling(model) == 2
    assert lora_scaling(plain) is None
    same = merged(model.state_dict(), lora_scaling(model))
    assert same.keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(same[name], value, atol=0, rtol=0)
    again, _ = build_model(recipe, SENTENCES)
    torch.manual_seed(99)
    add_lora(again, recipe)
    for name, value in model.state_dict().items():  # of the seed alone
        assert torch.equal(again.state_dict()[name], value)


def test_lora__trains_under_a_tenth_of_a_vit_s() -> None:
    """FAMILY.md, A: CLIP-IT's rank 16 on a ViT-S/14."""
    options = [*TINY[:2], "--data.size", "28", "--model.image_weights", "null", "--model.small_text_depth", "1"]
    recipe = load_recipe(["clipit_style", "vits14_dinov2"], options)
    model, _ = build_model(recipe, SENTENCES)
    add_lora(model, recipe)
    towers = list(model.encoder.parameters())
    share = sum(p.numel() for p in towers if p.requires_grad) / sum(p.numel() for p in towers)
    assert 0.01 < share < 0.1


def test_lora__merged_equals_adapted() -> None:
    recipe = _recipe()
    model, _ = build_model(recipe, SENTENCES)
    add_lora(model, recipe)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.05)
    plain = model_from_config(model.config)
    plain.load_state_dict(merged(model.state_dict(), lora_scaling(model)))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain.encoder(image), model.encoder(image), atol=1e-4, rtol=1e-4)
        untouched = build_model(recipe, SENTENCES)[0].encoder(image)
    assert (plain.encoder(image) - untouched).abs().max() > 0.01
    average = WeightAverage(model, 0.5)
    torch.testing.assert_close(plain_model(model, average).encoder(image), plain.encoder(image))


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    path = folder.parent / "run"
    pretrain(_recipe("--training.keep_checkpoints", "9", "--training.validate_every", "6"), folder, path)
    return path


def test_lora__only_additions_and_new_layers_change(folder: Path, run: Path) -> None:
    recipe = _recipe()
    model, _ = build_model(recipe, SENTENCES)
    add_lora(model, recipe)
    objective = build_objective(recipe, model)
    before = {f"objective/{name}": value for name, value in objective.state_dict().items()}
    after = load_file(list_checkpoints(run / "checkpoints")[-1] / "state.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    of_encoder = {name for name in changed if "model.encoder." in name}
    assert of_encoder
    assert all(".lora_" in name for name in of_encoder)
    assert any("bridge" in name for name in changed)
    assert any("terms.mim" in name for name in changed)
    names = {name for group in parameter_groups(objective, recipe) for name in group.parameters}
    assert all(".lora_" in name for name in names if name.startswith("model.encoder."))
    assert any(name.startswith("optimizer/model.encoder") and ".lora_B." in name for name in after)


def test_lora__the_written_model_is_plain_and_answers_as_the_trained_one(folder: Path, run: Path) -> None:
    saved = load_file(run / "model" / "weights.safetensors")
    assert not [name for name in saved if "lora" in name or "base_layer" in name]
    recipe = _recipe()
    model, _ = build_model(recipe, SENTENCES)
    add_lora(model, recipe)
    state = load_file(list_checkpoints(run / "checkpoints")[-1] / "state.safetensors")
    prefix = "objective/model."
    model.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
    loaded = load(run, device="cpu")
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module.encoder(image), model.eval().encoder(image), atol=1e-4, rtol=1e-4)
    assert np.isfinite(loaded.features(open_store(folder), np.arange(3))["encoder"]).all()


def test_lora__of_a_pretrained_text_encoder_alone_changes_and_ends_as_plain_weights(
    folder: Path, tmp_path: Path
) -> None:
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from maskedclip.models.text import train_tokenizer

    given = tmp_path / "bert"
    tokenizer = train_tokenizer(SENTENCES, 60)
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(given)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(given)
    recipe = _recipe("--model.text_encoder", str(given))
    before, _ = build_model(recipe, SENTENCES)
    model, words = build_model(recipe, SENTENCES)
    add_lora(model, recipe)
    assert before.text_encoder is not None
    assert model.text_encoder is not None
    assert words is not None
    ids, mask = words(SENTENCES)
    with torch.no_grad():
        difference = (model.text_encoder(ids, mask) - before.text_encoder(ids, mask)).abs().max()
    assert difference < 1e-6
    trained = {name for name, p in model.text_encoder.bert.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert any("attention" in name for name in trained)
    assert any("output.dense" in name for name in trained)

    pretrain(recipe, folder, tmp_path / "run")
    state = load_file(list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.safetensors")
    prefix = "objective/model."
    of_text = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(f"{prefix}text_encoder.bert.")}
    begun = model.state_dict()
    changed = {name for name, value in of_text.items() if not torch.equal(value, begun[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    model.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
    loaded = load(tmp_path / "run", device="cpu")
    assert loaded.module.text_encoder is not None
    assert not [name for name in loaded.module.state_dict() if "lora" in name]
    model.eval()
    before.eval()
    with torch.no_grad():
        adapted = model.text_encoder(ids, mask)
        torch.testing.assert_close(loaded.module.text_encoder(ids, mask), adapted, atol=1e-4, rtol=1e-4)
        assert (adapted - before.text_encoder(ids, mask)).abs().max() > 0.01


def test_lora__resumed_is_uninterrupted_bit_by_bit(folder: Path, run: Path, tmp_path: Path) -> None:
    short = _recipe("--training.keep_checkpoints", "9", "--training.validate_every", "6")
    import shutil

    shutil.copytree(run, tmp_path / "run")
    for path in list_checkpoints(tmp_path / "run" / "checkpoints")[1:]:
        shutil.rmtree(path)
    shutil.rmtree(tmp_path / "run" / "model")
    done = pretrain(short, folder, tmp_path / "run", resume=True)
    assert done.complete
    for name in ("weights.safetensors", "decoders.safetensors"):
        one, two = (load_file(path / "model" / name) for path in (run, tmp_path / "run"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_lora__first_stage_trains_every_weight_before(folder: Path, tmp_path: Path) -> None:
    recipe = _recipe(method="clip_mae_init")
    pretrain(recipe, folder, tmp_path / "run")
    first = load_file(tmp_path / "run" / "first_stage" / "model" / "weights.safetensors")
    last = load_file(list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.safetensors")
    name = "encoder.vit.blocks.0.attn.qkv"
    assert torch.equal(last[f"objective/model.{name}.base_layer.weight"], first[f"{name}.weight"])


def test_lora__without_peft_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from maskedclip.errors import UserError

    monkeypatch.setitem(sys.modules, "peft", None)
    recipe = _recipe()
    model, _ = build_model(recipe, SENTENCES)
    with pytest.raises(UserError, match=r"model.lora_rank: peft is not installed; pip install"):
        add_lora(model, recipe)
