"""How long a step of each method takes: what is measured, and when anew."""

import json
from pathlib import Path
from typing import Any

import pytest

from maskedclip.errors import UserError
from maskedclip.study import rates
from maskedclip.study.rates import step_rates, unmeasured
from maskedclip.training.trainer import Finished
from tests.study.fake_cells import read_study

STUDY = """
config: [tiny]
methods: {clip: clip, maskedclip: maskedclip}
grid: [{methods: [clip, maskedclip], text_fractions: [0.5], seeds: [3, 0]}]
steps: 4
protocols: [linear]
replicates: 20
"""


def test_unmeasured__a_method_that_means_something_else_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = STUDY + "equal_time: maskedclip\n"
    changed = timed.replace("clip: clip,", "clip: {config: clip, set: {data.batch_paired: 99}},")
    monkeypatch.setattr(rates, "_seconds", lambda *_: 2.0)
    study = read_study(tmp_path, timed)
    assert step_rates(study, tmp_path) == {"clip default": 2.0, "maskedclip default": 2.0}
    assert unmeasured(read_study(tmp_path, timed.replace("steps: 4", "steps: 9")), tmp_path) == []
    assert unmeasured(read_study(tmp_path, changed), tmp_path) == [("clip", "default")]
    everything = read_study(tmp_path, timed, overrides={"training.lr": 0.1})
    assert set(unmeasured(everything, tmp_path)) == {("maskedclip", "default"), ("clip", "default")}

    folder = tmp_path / "cells" / "clip-default-text0.5-seed0-steps4"
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text("{}")
    assert unmeasured(read_study(tmp_path, changed), tmp_path) == []  # a finished cell's steps follow from it
    assert unmeasured(everything, tmp_path) == []  # and from the rate of the method that gives the time
    (folder / "cell.json").unlink()
    (tmp_path / "rates.json").write_text(json.dumps({"clip default": 1.0, "maskedclip default": 3.0}))
    assert unmeasured(read_study(tmp_path, changed), tmp_path) == []  # an earlier version kept no hash
    assert step_rates(study, tmp_path) == {"clip default": 1.0, "maskedclip default": 3.0}


def test_step_rates__are_measured_with_a_seed_of_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def pretrained(recipe: Any, *_: Any, **__: Any) -> Finished:
        seeds.append(recipe.seed)
        return Finished(tmp_path, 8, True, "")

    monkeypatch.setattr(rates, "pretrain", pretrained)
    monkeypatch.setattr(rates, "_median", lambda _: 1.0)
    study = read_study(tmp_path, STUDY.replace("seeds: [3, 0]", "seeds: [5, 7]") + "equal_time: clip\n")
    step_rates(study, tmp_path)
    assert set(seeds) == {5}


def test_unmeasured__weights_that_are_spelled_otherwise_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = STUDY + "equal_time: clip\n"
    for name in ("weights", "others"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rates, "_seconds", lambda *_: 2.0)
    step_rates(read_study(tmp_path, timed, overrides={"model.image_weights": "weights.safetensors"}), tmp_path)
    monkeypatch.chdir("/")
    there = {"model.image_weights": str(tmp_path / "weights.safetensors")}
    assert unmeasured(read_study(tmp_path, timed, overrides=there), tmp_path) == []
    there = {"model.image_weights": str(tmp_path / "others.safetensors")}
    assert len(unmeasured(read_study(tmp_path, timed, overrides=there), tmp_path)) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{broken", "is no JSON"),
        ("[1]", "is no object of seconds"),
        ('{"clip default": {"seconds": 1}}', "clip default: give the seconds of a step"),
        ('{"clip default": 0}', "clip default: give the seconds of a step, above 0"),
        ('{"clip default": "x"}', "clip default: give the seconds of a step"),
        ('{"clip default": NaN}', "clip default: give the seconds of a step"),
    ],
)
def test_rates__that_a_user_wrote_wrongly_are_one_line(tmp_path: Path, content: str, said: str) -> None:
    study = read_study(tmp_path, STUDY + "equal_time: maskedclip\n")
    (tmp_path / "rates.json").write_text(content)
    with pytest.raises(UserError, match=f"rates.json: {said}.*remove it to measure anew"):
        step_rates(study, tmp_path)


def test_rates__that_a_user_wrote_as_seconds_are_taken(tmp_path: Path) -> None:
    study = read_study(tmp_path, STUDY + "equal_time: maskedclip\n")
    (tmp_path / "rates.json").write_text('{"clip default": 1, "maskedclip default": 2.5}')
    assert step_rates(study, tmp_path) == {"clip default": 1.0, "maskedclip default": 2.5}
