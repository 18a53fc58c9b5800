"""The part of a report with a model's worst errors, on stand-ins."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from maskedclip.evaluation.report_errors import worst_errors
from maskedclip.evaluation.report_pictures import photograph
from maskedclip.html import LeftOut


def _stored(side: int, rows: int) -> Any:
    """A store of grey squares, each of its own level, that holds pictures of a side."""
    return SimpleNamespace(
        kind="images",
        ids=[f"row-{row}" for row in range(rows)],
        image=lambda row: torch.full((3, side, side), 10 * row, dtype=torch.uint8),
        text=lambda row: f"text {row}",
    )


def _errors(
    areas: Mapping[str, float | None],
    side: int = 200,
    part: tuple[str, str] = ("linear", "encoder"),
    further: Mapping[str, Any] | None = None,
) -> str:
    """The part of a report on findings with these AUROC, of a model that reads 64 px; further: of their entries."""
    score = [0.9, 0.6, 0.2, 0.4, 0.1]
    rows = [(label, f"row-{row}", score[row], float(row > 2)) for label in areas for row in range(5)]
    columns = dict(zip(("label", "id", "score", "truth"), map(list, zip(*rows, strict=True)), strict=True))
    count = len(rows)
    fixed = {"protocol": [part[0]] * count, "feature": [part[1]] * count, "patient": ["p"] * count}
    table = pa.table(fixed | columns | {"class": pa.nulls(count, pa.string())})
    per_label = {label: {"auroc": {"value": area}} | dict(further or {}) for label, area in areas.items()}
    return _shown(table, part, per_label, {}, side)


def _shown(table: pa.Table, part: tuple[str, str], per_label: Mapping[str, Any], about: Any, side: int = 200) -> str:
    section = {"per_label": per_label}
    main = SimpleNamespace(section=lambda *key: section if key == part else None, predictions=table, about=about)
    model = SimpleNamespace(preprocessing=SimpleNamespace(size=64))
    subject: Any = SimpleNamespace(main=main, images=_stored(side, 5), model=model)
    return worst_errors(subject)


def _graded(truths: Sequence[int], learnt: Sequence[int], labels: Any) -> str:
    """The part on one label of the grades 0 to 4, the first of `learnt` the likeliest for each of its test images."""
    rows = [
        (str(grade), f"row-{row}", 0.9 if grade == learnt[0] else 0.1, float(truth == grade))
        for grade in learnt
        for row, truth in enumerate(truths)
    ]
    columns = dict(zip(("class", "id", "score", "truth"), map(list, zip(*rows, strict=True)), strict=True))
    fixed = {"protocol": "linear", "feature": "encoder", "label": "grade", "patient": "p"}
    table = pa.table(columns | {name: [value] * len(rows) for name, value in fixed.items()})
    return _shown(table, ("linear", "encoder"), {"grade": {}}, {"labels": labels})


def test_worst_errors__stand_from_the_worst_auroc_and_undefined_last() -> None:
    areas = {"c": 0.8, "none": None, "a": 0.3, "b": 0.5}
    found = _errors(areas)
    headings = ["a, AUROC 0.300", "b, AUROC 0.500", "c, AUROC 0.800", "none, AUROC undefined"]
    assert re.findall(r"<h3>([^<]*)</h3>", found) == headings
    assert "in the order of their AUROC, the lowest first, and those where it is undefined last." in found
    many = _errors({f"f{place}": 0.95 - 0.05 * place for place in range(9)} | areas)
    assert re.findall(r"<h3>(\w+)", many) == ["a", "b", "f8", "f7", "f6", "f5"]
    assert "Shown: the 6 of 13 findings with the lowest AUROC, the lowest first." in many


@pytest.mark.parametrize(("side", "shown"), [(200, 200), (512, 256), (32, 32)])
def test_worst_errors__are_shown_as_they_are_stored(side: int, shown: int) -> None:
    found = _errors({"a": 0.5}, side)
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"jpeg;base64,([^\"]*)", found)]
    assert [picture.size for picture in pictures] == [(shown, shown)] * 4
    levels = [round(float(np.asarray(picture).mean()), -1) for picture in pictures]
    assert levels == [0, 10, 40, 30]  # rows 0 and 1 are the surest false alarms, 4 and 3 the surest misses
    assert "the model reads them at 64" in found


def test_worst_errors__say_what_the_scores_are_and_where_they_are_cut() -> None:
    found = _errors({"a": 0.5}, further={"calibration_error": {"value": 0.1}})
    assert "Linear probe on f (encoder), test split" in found
    assert "highest probability" in found
    assert "probability 0.90" in found
    assert "one half they are false alarms and misses" in found
    assert "Balanced accuracy has another threshold" in found
    trained = _errors({"a": 0.5}, part=("lora", "encoder"))
    assert "LoRA fine-tuning on f (encoder), test split" in trained
    assert "highest score" in trained
    assert "probability" not in trained
    told = _errors({"a": 0.5}, part=("zero_shot", "projected"))
    assert "above and below zero they are false alarms and misses" in told
    assert re.findall(r'class="(?:wrong|note)">([^<]*)</span>', told) == ["false alarm"] * 2 + ["lowest with it"] * 2
    assert "Balanced accuracy has" not in told


LABELS = {"grade": {"classes": [0, 1, 2, 3, 4], "test": {"0": 3, "1": 0, "2": 0, "3": 0, "4": 2}}}


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (LABELS, "is 4 (no training image has it)"),
        (
            {"grade": {"classes": [0, 1, 2, 3, 4], "test": {"0": 3, "1": 0, "2": 0, "3": 1, "4": 1}}},
            "is another class (3 or 4; no training image has it)",
        ),
        ({}, "is another class (no training image has it)"),  # of an earlier version
    ],
)
def test_worst_errors__count_images_of_a_class_without_training_images(labels: Any, named: str) -> None:
    found = _graded([0, 0, 0, 4, 4], [0, 1, 2], labels)
    rows = [re.sub(r"<[^>]*>", "|", row).strip("|") for row in found.split("</table>")[0].split("<tr>")[2:]]
    assert [re.split(r"\|+", row) for row in rows] == [
        ["is 0", "3", "0", "0"],
        ["is 1", "0", "0", "0"],
        ["is 2", "0", "0", "0"],
        [named, "2", "0", "0"],
    ]
    assert "by the likeliest class, as accuracy and kappa do; balanced accuracy lets rare classes win more" in found


def test_worst_errors__every_test_image_is_of_an_unlearnt_class() -> None:
    found = _graded([4] * 5, [0, 1], LABELS)
    assert "is 4 (no training image has it)" in found
    assert "is 0" in found


def test_worst_errors__no_row_of_the_protocol() -> None:
    empty = pa.table({name: pa.array([], pa.string()) for name in ("protocol", "feature", "label", "class", "id")})
    empty = empty.append_column("patient", pa.array([], pa.string()))
    empty = empty.append_column("score", pa.array([], pa.float64())).append_column("truth", pa.array([], pa.float32()))
    with pytest.raises(LeftOut, match="no label has a score on a test image"):
        _shown(empty, ("knn", "encoder"), {"a": {}}, {})


def test_photograph__of_a_volume_is_left_out() -> None:
    store = _stored(8, 1)
    store.kind = "volumes"
    with pytest.raises(LeftOut, match="volumes"):
        photograph(store, 0)
