"""Classes as label columns: one nominal column, or a 0/1 column for each class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from maskedclip.data.sources.gathered import column_name
from maskedclip.errors import UserError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def class_cells(
    given: Iterable[str] | None, classes: list[str], labels: Literal["nominal", "one-hot"], name: str = "class"
) -> dict[str, str | None]:
    """Label cells of one row.

    Args:
        given: the row's classes; None or nothing where it is unknown (of `nominal`, only the first is used).
        classes: all classes of the source, in the order of their columns.
        labels: `nominal` gives `label.NAME`; `one-hot` gives `label.CLASS`, 0 or 1, for each class.
        name: NAME.
    """
    mine = [] if given is None else [column_name(value) for value in given]
    if labels == "nominal":
        return {f"label.{name}": mine[0] if mine else None}
    return {f"label.{value}": str(int(value in mine)) if mine else None for value in classes}


def check_classes(classes: list[str], labels: Literal["nominal", "one-hot"]) -> None:
    """A nominal column holds words or numbers, not both: UserError with the mend."""
    numbers = [value for value in classes if _NUMBER.fullmatch(value)]
    if labels == "nominal" and 0 < len(numbers) < len(classes):
        word = next(value for value in classes if value not in numbers)
        raise UserError(
            f"the classes mix numbers ('{numbers[0]}') and words ('{word}'), which one label column cannot hold: "
            "say --labels one-hot, or rename some"
        )
