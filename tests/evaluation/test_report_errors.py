"""The part of a report with a model's worst errors, on stand-ins."""

import base64
import io
import re
from collections.abc import Mapping
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


def _errors(areas: Mapping[str, float | None], side: int = 200) -> str:
    """The part of a report on findings with these AUROC, of a model that reads 64 px."""
    score = [0.9, 0.6, 0.2, 0.4, 0.1]
    rows = [(label, f"row-{row}", score[row], float(row > 2)) for label in areas for row in range(5)]
    columns = dict(zip(("label", "id", "score", "truth"), map(list, zip(*rows, strict=True)), strict=True))
    count = len(rows)
    fixed = {"protocol": ["linear"] * count, "feature": ["encoder"] * count, "patient": ["p"] * count}
    table = pa.table(fixed | columns | {"class": pa.nulls(count, pa.string())})
    part = {"per_label": {label: {"auroc": {"value": area}} for label, area in areas.items()}}
    main = SimpleNamespace(section=lambda *key: part if key == ("linear", "encoder") else None, predictions=table)
    model = SimpleNamespace(preprocessing=SimpleNamespace(size=64))
    subject: Any = SimpleNamespace(main=main, images=_stored(side, 5), model=model)
    return worst_errors(subject)


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


def test_photograph__of_a_volume_is_left_out() -> None:
    store = _stored(8, 1)
    store.kind = "volumes"
    with pytest.raises(LeftOut, match="volumes"):
        photograph(store, 0)
