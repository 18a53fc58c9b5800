"""Fields of a recipe that mean nothing are refused in one line that names the mend."""

from pathlib import Path

import pytest

from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.pretraining import PretrainingObjective, build_objective
from maskedclip.recipe import SHIPPED, load_recipe, recipe_from_dict, recipe_path
from tests.stores import SENTENCES, TINY


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("training", "precision", "16-mixed", "16-mixed is not known; give bf16-mixed, or 32-true"),
        ("training", "text_lr_factor", -0.2, "-0.2 is no number from 0 on"),
        ("training", "image_lr_factor", float("nan"), "nan is no number from 0 on"),
        ("training", "weight_decay", -0.05, "-0.05 is no number from 0 on"),
        ("training", "weight_decay", float("inf"), "inf is no number from 0 on"),
        ("objective", "mkd_ramp", -0.1, "-0.1 is no share of the steps"),
        ("objective", "mkd_ramp", 100.0, "100.0 is no share of the steps"),
        ("model", "image_decoder_depth", -1, "-1 is negative"),
        ("model", "feature_decoder_depth", -1, "-1 is negative"),
        ("model", "small_text_depth", -2, "-2 is negative"),
        ("model", "image_decoder_width", 0, "0 and 6 heads"),
        ("model", "small_text_width", -32, "-32 and 4 heads"),
        ("model", "small_text_vocabulary", 0, "0; e.g. 8192"),
        ("model", "bridge_heads", 0, "0; give 1 or more"),
        ("model", "image_encoder_options", {"drop_path_rate": 0.1}, "0.1 draws noise that no seed decides"),
        ("model", "image_encoder_options", {"proj_drop_rate": 0.1}, "leave it out"),
        ("model", "image_encoder_options", {"patch_drop_rate": 0.5}, "leave it out"),
        ("model", "image_encoder_options", {"in_chans": 1}, "in_chans: the store has the channels"),
        ("model", "image_encoder_options", {"dynamic_img_size": True}, "dynamic_img_size: the store has"),
    ],
)
def test_recipe__refuses_values_that_mean_nothing(section: str, field: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=rf"^{section}\.{field}") as caught:
        recipe_from_dict({section: {field: value}})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipe__drop_rates_of_zero_are_none() -> None:
    assert recipe_from_dict({"model": {"image_encoder_options": {"drop_path_rate": 0.0, "depth": 6}}})


def test_recipe__float16_is_no_precision_on_the_command_line() -> None:
    with pytest.raises(UserError, match=r"training\.precision.*bf16-mixed.*32-true") as caught:
        load_recipe(["tiny"], ["--training.precision", "16-mixed"])
    assert "\n" not in str(caught.value)


def test_recipe_path__a_file_of_the_name_does_not_replace_a_shipped_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip", "own"):
        (tmp_path / name).write_text("data: {size: 64}\n")
    assert recipe_path("clip").parent == SHIPPED
    assert [recipe_path(name).parent for name in ("./clip", "own")] == [Path()] * 2


def test_recipe__a_best_figure_needs_validations() -> None:
    options = ["--training.best_metric", "probe_auroc", "--training.validate_every"]
    assert load_recipe(["tiny"], [*options, "10"]).training.best_metric == "probe_auroc"
    with pytest.raises(UserError, match=r"training\.best_metric: probe_auroc .*give training.validate_every 1"):
        load_recipe(["tiny"], [*options, "0"])


def test_recipe__a_masking_that_reads_texts_needs_a_shared_space() -> None:
    options = ["--objective.clip_weight", "0", "--objective.mkd_weight", "0", "--objective.masking", "text_guided"]
    with pytest.raises(UserError, match=r"objective\.masking: text_guided compares .* raise objective\.clip_weight"):
        load_recipe(["maskedclip", "tiny"], options)
    with pytest.raises(UserError, match=r"objective\.masking: text_guided compares"):
        load_recipe(["maskedclip", "tiny"], [*options, "--objective.terms", "{mlm: {}}"])
    assert load_recipe(["maskedclip", "tiny"], [*options, "--objective.terms", "{siglip: {}}"]).masks


@pytest.mark.parametrize("ratio", ["0", "0.01"])
def test_mask_ratio__that_hides_no_patch_is_one_line(ratio: str) -> None:
    def built(*options: str) -> PretrainingObjective:
        recipe = load_recipe(["maskedclip", "tiny"], [*TINY, "--objective.mask_ratio", ratio, *options])
        return build_objective(recipe, build_model(recipe, SENTENCES)[0])  # 16 patches

    everywhere = ["--objective.mkd_patches", "all"]
    for options in ([], everywhere):  # pixels are always of hidden patches
        with pytest.raises(UserError, match=r"objective\.mask_ratio: 0.* give 0\.75") as caught:
            built(*options)
        assert "\n" not in str(caught.value)
    assert built(*everywhere, "--objective.mim_weight", "0").mask_ratio == float(ratio)
