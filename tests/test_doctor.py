"""Advice is something that can be done."""

import re

from maskedclip.doctor import _advice
from maskedclip.recipe import load_recipe


def test_advice__names_precisions_that_a_recipe_takes() -> None:
    found = {"gpus": [{"bf16": False}], "threads": 1, "cores": 4, "free_disk_gib": 1.0, "missing_extras": {}}
    advice = _advice(found | {"matrix_gflops_on_processor": {"float32": 2.0, "bfloat16": 1.0}})
    named = [name for line in advice for name in re.findall(r"\b(?:bf)?\d+-\w+", line)]
    assert named == ["32-true"]
    assert load_recipe(["tiny"], ["--training.precision", named[0]])
