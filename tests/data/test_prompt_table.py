"""Labels as texts: what is said, by whose table, and that the choice is the seed's and the image's alone."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedclip.data.prompt_table import prompt_table, texts_from_labels, write_prompt_table
from maskedclip.data.prompts import load_prompts, prompts_for, prompts_for_class
from maskedclip.errors import UserError


def _table(**columns: list) -> pa.Table:
    count = len(next(iter(columns.values())))
    names = {name.replace("label_", "label."): pa.array(cells, pa.string()) for name, cells in columns.items()}
    return pa.table({"image": [f"{place}.png" for place in range(count)]} | names)


def _texts(table: pa.Table, prompts: dict[str, list[str]] | None = None, seed: int = 0) -> list[str | None]:
    return texts_from_labels(table, prompts, seed=seed)[0].to_pylist()


def test_prompt_table__of_each_kind_of_label() -> None:
    table = _table(
        label_class=["glaucoma", "normal", None],
        label_cataract=["0", "1", "1"],
        label_dr_grade=["0", "4", None],
        label_stage=["2", "7", None],
        label_age=["57.5", "61", None],
    )
    entries = prompt_table(table)
    assert entries == {
        "glaucoma": prompts_for("glaucoma"),
        "normal": prompts_for("normal"),
        "cataract": prompts_for("cataract"),
        "dr_grade=0": prompts_for_class("dr_grade", 0),
        "dr_grade=4": prompts_for_class("dr_grade", 4),
        "stage=2": prompts_for_class("stage", 2),
        "stage=7": prompts_for_class("stage", 7),
    }


def test_prompt_table__a_grade_that_is_only_0_and_1_here_is_a_grade() -> None:
    assert list(prompt_table(_table(label_dr_grade=["0", "1"]))) == ["dr_grade=0", "dr_grade=1"]


def test_texts_from_labels__a_sentence_for_each_label() -> None:
    table = _table(label_class=["amd", None, "x"], label_cataract=["1", "1", "0"], label_dr_grade=["2", None, None])
    prompts = {"amd": ["A"], "cataract": ["C"], "dr_grade=2": ["D"]}
    text, notes = texts_from_labels(table, prompts)
    assert text.to_pylist() == ["A; C; D", "C", None]
    assert "texts from labels: 2 made, 0 kept, 1 rows without" in notes
    assert "the prompt table has no entry for x: nothing is said of these" in notes


def test_texts_from_labels__the_narrower_key_is_taken_and_zero_speaks_only_when_asked() -> None:
    table = _table(label_a=["1", "0"], label_b=["no", "no"])
    assert _texts(table, {"a": ["has a"], "b=no": ["b is no"], "no": ["no"]}) == ["has a; b is no", "b is no"]
    assert _texts(table, {"a": ["has a"], "a=0": ["without a"]}) == ["has a", "without a"]
    assert _texts(table, {"a=1": ["surely a"], "a": ["has a"]}) == ["surely a", None]


def test_texts_from_labels__own_texts_are_kept() -> None:
    table = _table(text=["own", None], label_class=["amd", "amd"])
    assert _texts(table, {"amd": ["made"]}) == ["own", "made"]


def test_texts_from_labels__measurements_are_noted() -> None:
    text, notes = texts_from_labels(_table(label_age=[str(age) for age in range(40)]))
    assert text.null_count == 40
    assert "'label.age' is a measurement, not a class: nothing is said of it" in notes


@given(st.integers(0, 2**40), st.lists(st.integers(0, 200), unique=True, min_size=1, max_size=30))
def test_texts_from_labels__a_rows_sentence_ignores_the_other_rows(seed: int, rows: list[int]) -> None:
    whole = _table(label_class=["glaucoma"] * 201)
    everything = _texts(whole, seed=seed)
    assert _texts(whole.take(pa.array(rows)), seed=seed) == [everything[row] for row in rows]
    assert set(everything) <= set(prompts_for("glaucoma"))


def test_texts_from_labels__seeds_differ_and_all_sentences_occur() -> None:
    table = _table(label_class=["glaucoma"] * 400)
    assert _texts(table, seed=1) != _texts(table, seed=2)
    assert set(_texts(table)) == set(prompts_for("glaucoma"))


@pytest.mark.parametrize("name", ["p.yaml", "p.json"])
def test_write_prompt_table__is_what_load_prompts_reads(tmp_path: Path, name: str) -> None:
    table = _table(label_class=["yes", "null", "3: x", "ü # y", "- a"], label_dr=["1", "0", "1", None, "0"])
    assert write_prompt_table(table, tmp_path / name) == 6
    assert load_prompts(tmp_path / name) == prompt_table(table)
    assert _texts(table, load_prompts(tmp_path / name), seed=3) == _texts(table, seed=3)
    with pytest.raises(UserError, match="exists already"):
        write_prompt_table(table, tmp_path / name)
