"""Parts by name: found by their files, typed, imported only when they are named."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskedclip import parts
from maskedclip.errors import UserError
from maskedclip.models.maskedclip import build_model
from maskedclip.objectives.masking import MaskContext
from maskedclip.objectives.pretraining import build_objective
from maskedclip.recipe import load_recipe, shipped_recipes

TINY = [
    "--data.size=32",
    '--model.image_encoder_options={"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}',
    "--model.text_encoder=small",
]
CORNER = '''
from dataclasses import dataclass
import torch
from maskedclip.parts import MaskingOptions

@dataclass(frozen=True, kw_only=True)
class Options(MaskingOptions):
    """Where it begins."""
    reverse: bool = False

class Corner:
    def __init__(self, sign): self.sign = sign
    def score(self, context):
        return self.sign * torch.arange(context.num_patches).float().expand(len(context.keys), -1)

def build(options, context):
    return Corner(-1.0 if options.reverse else 1.0)
'''
SIZE = '''
from dataclasses import dataclass
from typing import ClassVar
from torch import nn
from maskedclip.parts import TermOptions

@dataclass(frozen=True, kw_only=True)
class Options(TermOptions):
    """Its target."""
    target: float = 1.0

class Size(nn.Module):
    spans_batch = False
    def __init__(self, target):
        super().__init__()
        self.head, self.target = nn.Linear(48, 1), target
    def forward(self, views):
        tokens = views.model.encoder(views.image)
        return {"size": (self.head(tokens.mean(dim=1)) - self.target).square().mean()}, {}

def build(options, context):
    return Size(options.target)
'''


@pytest.fixture
def own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(parts, "_registered", {"masking": {}, "terms": {}})
    (tmp_path / "corner.py").write_text(CORNER)
    (tmp_path / "size_of_features.py").write_text(SIZE)
    return tmp_path


def test_import__brings_no_part_but_the_default() -> None:
    code = (
        "import sys, maskedclip.objectives.pretraining; from maskedclip.recipe import load_recipe;"
        "load_recipe(['maskedclip', 'tiny']); from maskedclip import parts;"
        "names = {m.rsplit('.', 1)[1] for m in sys.modules if m.startswith(('maskedclip.objectives.masking.',"
        "'maskedclip.objectives.targets.', 'maskedclip.objectives.image_text.', 'maskedclip.objectives.texts.'))};"
        "print(sorted(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['random']"


def test_unknown_part__lists_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"objective.masking: rndom: no such part; did you mean random\? known: .*random"
    ):
        load_recipe(["maskedclip", "tiny"], ["--objective.masking", "rndom"])
    with pytest.raises(UserError, match=r"objective.terms: nothing_like_it: no such part; .*known: "):
        load_recipe(["maskedclip", "tiny"], ["--objective.terms", "{nothing_like_it: {}}"])
    for slot in ("masking", "terms"):
        assert all(hasattr(parts.find(slot, name), "build") for name in parts.known(slot))


def test_options__are_typed_and_their_faults_named(own_parts: Path) -> None:
    assert parts.register_file(own_parts / "size_of_features.py") == "terms size_of_features"
    read = lambda **values: parts.read_options("terms", "size_of_features", values)  # noqa: E731
    assert (read(weight=2, target=3).weight, read(target=3).target) == (2.0, 3.0)
    with pytest.raises(
        UserError, match=r"objective.terms.size_of_features.targt: no such option; did you mean target\?"
    ):
        read(targt=1)
    with pytest.raises(UserError, match=r"objective.terms.size_of_features.target: .*float"):
        read(target="big")
    with pytest.raises(UserError, match=r"weight -1.0 is no number from 0 on"):
        read(weight=-1.0)
    with pytest.raises(UserError, match=r"ramp 2.0 is outside"):
        read(ramp=2.0)
    with pytest.raises(UserError, match="is no mapping"):
        parts.read_options("terms", "size_of_features", 3)  # type: ignore[arg-type]


def test_own_parts__are_built_from_the_recipe(own_parts: Path) -> None:
    for name in ("corner", "size_of_features"):
        parts.register_file(own_parts / f"{name}.py")
    recipe = load_recipe(
        ["maskedclip", "tiny"],
        [
            *TINY,
            "--objective.masking=corner",
            "--objective.masking_options={reverse: true}",
            "--objective.terms={size_of_features: {weight: 0.5, ramp: 0.2, target: 2.0}}",
        ],
    )
    objective = build_objective(recipe, build_model(recipe, ["a text"])[0])
    assert list(objective.terms) == ["clip", "mim", "mkd", "size_of_features"]
    assert objective.weights["size_of_features"].at(0.1) == 0.25
    assert objective.terms["size_of_features"].target == 2.0
    scores = objective.masker.score(MaskContext(torch.arange(2), 4, 0.0))
    assert torch.equal(scores, -torch.arange(4).float().expand(2, -1))


def test_part__changes_no_other_parts_first_weights(own_parts: Path) -> None:
    parts.register_file(own_parts / "size_of_features.py")
    plain = load_recipe(["maskedclip", "tiny"], TINY)
    more = load_recipe(["maskedclip", "tiny"], [*TINY, "--objective.terms={size_of_features: {}}"])
    first, second = (build_objective(r, build_model(r, ["a text"])[0]).state_dict() for r in (plain, more))
    assert {name for name in second if name not in first} == {
        "terms.size_of_features.head.weight",
        "terms.size_of_features.head.bias",
    }
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_part_of_weight_0__is_left_out(own_parts: Path) -> None:
    parts.register_file(own_parts / "size_of_features.py")
    recipe = load_recipe(["maskedclip", "tiny"], [*TINY, "--objective.terms={size_of_features: {weight: 0}}"])
    assert "size_of_features" not in build_objective(recipe, build_model(recipe, ["a text"])[0]).terms


def test_register__refuses_what_is_no_part_or_a_taken_name(own_parts: Path) -> None:
    (own_parts / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"terms: empty is no part; its module needs a dataclass Options"):
        parts.register_file(own_parts / "empty.py")
    (own_parts / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"broken.py: cannot be imported .ModuleNotFoundError"):
        parts.register_file(own_parts / "broken.py")
    with pytest.raises(UserError, match="no such Python file"):
        parts.register_file(own_parts / "missing.py")
    (own_parts / "random.py").write_text(CORNER)
    with pytest.raises(UserError, match="masking: a part is named random already"):
        parts.register_file(own_parts / "random.py")


def test_shipped_recipes__can_be_read_and_stacked_on_a_size() -> None:
    for name in shipped_recipes():
        below = ["mae"] if name.startswith("volume") else []  # volumes have no texts, so such a size needs a method
        assert load_recipe([*below, name]).training.steps >= 1


def test_stacked_recipes__add_their_losses_up(tmp_path: Path) -> None:
    more = "objective: {terms: {xclip: {weight: 0.5}, mlm: {weight: 0}, codeword: {codewords: 9}}}"
    (tmp_path / "more.yaml").write_text(more)
    objective = load_recipe(["maskclip_style", "tiny", str(tmp_path / "more.yaml")]).objective
    assert list(objective.term_options) == ["codeword", "xclip"]
    assert objective.term_options["codeword"].codewords == 9
    assert objective.term_options["codeword"].weight == 0.05
    given = load_recipe(["maskclip_style", "tiny"], ["--objective.terms={siglip: {}}"]).objective
    assert list(given.term_options) == ["codeword", "mlm", "siglip"]
    assert given.summary() == "clip 1, codeword 0.05, mlm 0.05, siglip 1; 75% hidden, masking random"
