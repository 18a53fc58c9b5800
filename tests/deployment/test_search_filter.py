"""Filters: the compiled mask equals a naive evaluation in Python; whatever is wrong is one line with a place."""

import datetime
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedclip.deployment.search_filter import FilterError, parse_filter
from maskedclip.deployment.search_mask import rows_where

COLUMNS: dict[str, list[Any]] = {
    "sex": ["Male", "Female", None, "female", "", "Male", "it's", "Fe%ale"],
    "age": ["57", "4.5", None, "unknown", "", "-3", "1e2", "57"],
    "label.glaucoma": [1.0, 0.0, None, math.nan, 1.0, 0.1, 0.0, 1.0],
    "grade": [0, 1, 2, 3, None, 4, -1, 2**53 + 1],
    "found": [True, False, None, True, True, False, False, None],
}
KINDS = {"sex": pa.string(), "age": pa.string(), "label.glaucoma": pa.float32(), "grade": pa.int64()}
TABLE = pa.table({name: pa.array(values, KINDS.get(name)) for name, values in COLUMNS.items()})
SIGNS = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _known(name: str, value: Any, other: Any) -> Any:
    """A cell as it is compared with a value; None is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if name == "age" and not isinstance(other, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value


def _compared(name: str, sign: str, other: Any, row: int) -> bool | None:
    value = _known(name, COLUMNS[name][row], other)
    if name == "label.glaucoma":
        other, value = float(np.float32(other)), None if value is None else float(np.float32(value))
    return None if value is None else SIGNS[sign](value, other)


def _any(parts: list[bool | None]) -> bool | None:
    return True if True in parts else None if None in parts else False


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@st.composite
def _leaf(draw: st.DrawFn) -> tuple[str, Any]:
    """A comparison as text, and a function row -> True, False or None."""
    name = draw(st.sampled_from(list(COLUMNS)))
    if draw(st.integers(0, 9)) == 0:
        negated = draw(st.booleans())
        words = f"{name} IS {'NOT ' if negated else ''}null"
        return words, lambda row: (_known(name, COLUMNS[name][row], "") is None) != negated
    if name == "sex" and draw(st.booleans()):
        part = draw(st.sampled_from(["male", "FE", "e", "'", "%", "z"]))
        negated = draw(st.booleans())

        def contains(row: int) -> bool | None:
            value = COLUMNS["sex"][row]
            return None if value is None else (part.lower() in value.lower()) != negated

        return f"sex {'not ' if negated else ''}contains {_quoted(part)}", contains
    if name == "sex":
        values: Any = st.sampled_from(["Male", "Female", "", "it's", "z"])
    elif name == "found":
        values = st.booleans()
    elif name == "grade":
        values = st.sampled_from([0, 1, 2, -1, 2**53, 2**53 + 1, 1.5])
    else:
        values = st.sampled_from([0, 1, 57, 4.5, -3, 0.1, 100])

    def spell(value: Any) -> str:
        return _quoted(value) if isinstance(value, str) else str(value).lower()

    if draw(st.integers(0, 3)) == 0:
        several = draw(st.lists(values, min_size=1, max_size=3))
        negated = draw(st.booleans())

        def among(row: int) -> bool | None:
            found = _any([_compared(name, "=", value, row) for value in several])
            return found if found is None else found != negated

        return f"{name} {'not ' if negated else ''}in ({', '.join(map(spell, several))})", among
    sign, value = draw(st.sampled_from(list(SIGNS))), draw(values)
    return f"{name} {sign} {spell(value)}", lambda row: _compared(name, sign, value, row)


def _negated(inner: tuple[str, Any]) -> tuple[str, Any]:
    def holds(row: int) -> bool | None:
        value = inner[1](row)
        return None if value is None else not value

    return f"not ({inner[0]})", holds


def _joined(parts: tuple[tuple[str, Any], tuple[str, Any]], word: str) -> tuple[str, Any]:
    def holds(row: int) -> bool | None:
        values = [part[1](row) for part in parts]
        if word == "or":
            return _any(values)
        opposite = _any([None if value is None else not value for value in values])
        return None if opposite is None else not opposite

    return f"({parts[0][0]}) {word} ({parts[1][0]})", holds


EXPRESSIONS = st.recursive(
    _leaf(),
    lambda inner: st.one_of(
        inner.map(_negated),
        st.tuples(inner, inner).map(lambda parts: _joined(parts, "and")),
        st.tuples(inner, inner).map(lambda parts: _joined(parts, "or")),
    ),
    max_leaves=6,
)


@given(EXPRESSIONS)
@settings(max_examples=250)
def test_rows_where__equals_a_naive_evaluation(expression: tuple[str, Any]) -> None:
    text, holds = expression
    assert rows_where(TABLE, text).tolist() == [row for row in range(TABLE.num_rows) if holds(row) is True], text


def test_rows_where__precedence_case_and_quotes() -> None:
    def rows(text: str) -> list[int]:
        return rows_where(TABLE, text).tolist()

    assert rows("sex = 'Male' or sex = 'Female' and grade = 5") == [0, 5]
    assert rows("(sex = 'Male' or sex = 'Female') and grade = 1") == [1]
    assert rows("NOT sex = 'Male' And grade < 2") == [1, 6]
    assert rows("""sex == "it's" """) == rows("sex = 'it''s'") == [6]
    assert rows("`label.glaucoma` <> 0") == [0, 4, 5, 7]
    assert rows("label.glaucoma = 0.1") == [5]
    assert rows("grade = 9007199254740993") == [7]
    assert rows("sex like 'fe%e'") == [1, 3, 7]
    assert rows("sex like '_ale'") == [0, 5]
    assert rows("found = 1") == rows("found = true") == [0, 3, 4]
    assert rows("age > 56") == [0, 6, 7]
    assert rows("age = '57'") == [0, 7]


def test_rows_where__other_types() -> None:
    table = pa.table(
        {
            "day": pa.array([datetime.date(2024, 5, 1), datetime.date(2023, 1, 1), None]),
            "kind": pa.array(["wet", "dry", None]).dictionary_encode(),
            "half": pa.array(np.array([0.1, 2, np.nan], np.float16)),
            "none": pa.nulls(3),
            "eyes": pa.array([["left"], [], None]),
            "odd name": [1, 2, 3],
        }
    )
    assert rows_where(table, "day >= '2024-01-01'").tolist() == [0]
    assert rows_where(table, "kind = 'dry'").tolist() == [1]
    assert rows_where(table, "kind like 'W%'").tolist() == [0]
    assert rows_where(table, "half > 1").tolist() == [1]
    assert rows_where(table, "none = 1 or none is null").tolist() == [0, 1, 2]
    assert rows_where(table, "eyes is null").tolist() == [2]
    assert rows_where(table, "`odd name` = 3").tolist() == [2]
    for wrong in ("eyes = 'left'", "day = 3", "day = 'soon'", "half = 'x'", "day = true"):
        with pytest.raises(FilterError, match="position 1"):
            rows_where(table, wrong)


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("", 1, "expected a column"),
        ("agee > 1", 1, "did you mean `age`"),
        ("glaucoma = 1", 1, "did you mean `label.glaucoma`"),
        ("age > 1 and nothing = 2", 13, "columns: sex, age"),
        ("age >", 6, "the filter ends"),
        ("age > x", 7, "in quotes ('x')"),
        ("age = null", 7, "is null"),
        ("age ~ 1", 5, "no meaning"),
        ("sex = 'Male", 7, "not closed"),
        ("(age > 1", 9, "`)`"),
        ("age > 1)", 8, "found ')'"),
        ("age > 1 sex = 'x'", 9, "`and`, `or` or the end"),
        ("age in 1", 8, "`(`"),
        ("age in (1", 10, "`,` or `)`"),
        ("age not 1", 9, "expected =,"),
        ("sex contains 1", 14, "in quotes"),
        ("grade contains '1'", 1, "needs texts"),
        ("grade = '1'", 1, "without quotes"),
        ("found = 'yes'", 1, "true or false"),
        ("age = 1; import os", 8, "no meaning"),
        ("__import__('os').system('true')", 17, "no meaning"),
        ("__import__ = 1", 1, "no column"),
        ("age.__class__ = 1", 1, "no column"),
        ("1 = 1", 1, "expected a column"),
        ("age > 12abc", 7, "no meaning"),
        ("(" * 5000 + "age > 1" + ")" * 4000, 61, "deep"),
        ("not " * 2000 + "age > 1", 241, "deep"),
        ("age > 1 or " * 1000 + "age > 1", 10_000, "characters"),
        ("sex = '\ud800'", 1, "Unicode"),
    ],
)
def test_rows_where__errors_name_the_place(text: str, position: int, says: str) -> None:
    with pytest.raises(FilterError) as caught:
        rows_where(TABLE, text)
    assert caught.value.position == position
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.text(max_size=40)
    | st.lists(
        st.sampled_from(["age", ">", "1", "and", "(", ")", "not", "in", "'x'", ",", "is", "null", "1e999", "sex"])
    ).map(" ".join)
)
@settings(max_examples=300)
def test_rows_where__never_fails_otherwise(text: str) -> None:
    try:
        rows = rows_where(TABLE, text)
    except FilterError:
        return
    assert ((rows >= 0) & (rows < TABLE.num_rows)).all()


def test_parse_filter__long_chains_are_flat() -> None:
    parse_filter(" or ".join(["age > 1"] * 900), ["age"])
    assert len(rows_where(TABLE, " or ".join(["grade = 1"] * 700))) == 1
