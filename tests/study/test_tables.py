"""The tables of a study beside its means: other protocols, what is wide, and how it was done."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from maskedclip.evaluation.dense_table import DENSE_SCHEMA
from maskedclip.evaluation.draws_table import DrawnMeans, draws_table
from maskedclip.evaluation.statistics import Distribution
from maskedclip.study.cells import cell_folder
from maskedclip.study.definition import Cell
from maskedclip.study.page import write_page
from maskedclip.study.protocols_sheet import protocols_sheet
from maskedclip.study.provenance import command, how_it_was_done
from maskedclip.study.results import chain_sheet, means_sheet, read_budgets
from tests.evaluation.compare_case import STORE
from tests.study.fake_cells import cells_of, finish, read_study

STUDY = """
config: [tiny]
methods: {clip: clip, mae: mae}
grid: [{methods: [clip, mae], text_fractions: [0.5], seeds: [0, 1]}]
chain: [clip, mae]
steps: 6
replicates: 20
"""
FEW = "Few-shot on f (encoder), k = 5"
LABELS = ["glaucoma", "drusen", "normal", "dr_grade", "camera"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of finished cells with the protocols of the default; to be read, or copied."""
    folder = tmp_path_factory.mktemp("done")
    for cell in cells_of(read_study(folder, STUDY)):
        finish(folder, cell, noise=0.5 if cell.method == "clip" else 1.0)
    return folder


@pytest.fixture
def place(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "study")


def keep(place: Path, cells: Sequence[Cell], wanted: Callable[[str, str], bool]) -> None:
    """Leave of the evaluations what was scored by the wanted protocols and labels, and no ranks."""
    for cell in cells:
        folder = cell_folder(place, cell) / "evaluation"
        (folder / "retrieval.parquet").unlink(missing_ok=True)
        table = pq.read_table(folder / "predictions.parquet")
        columns = (table.column(name).to_pylist() for name in ("protocol", "label"))
        mask = [wanted(*pair) for pair in zip(*columns, strict=True)]
        pq.write_table(table.filter(pa.array(mask)), folder / "predictions.parquet")


def test_protocols_sheet__what_is_not_in_the_first_table_has_one_of_its_own(done: Path) -> None:
    study = read_study(done, STUDY)
    cells = cells_of(study)
    (budget,) = read_budgets(study, done, cells)
    sheet = protocols_sheet(study, budget)
    assert sheet is not None
    assert [heading for heading, _ in sheet.sections] == [
        f"{name}; 50 % of the texts" for name in ("k-NN on f (encoder)", "k-NN on g(f) (bridge)")
    ]
    assert list(sheet.columns) == ["method", "AUROC", "AUROC minus clip"]
    clip, mae = budget.groups
    (first, reference), (second, lead) = (row for _, row in sheet.sections[0][1])
    key = ("knn", "encoder", "macro")
    assert [first.estimate, second.estimate] == [budget.value(clip, key), budget.value(mae, key)]
    assert reference.text == "reference"
    assert lead.signed
    assert lead.estimate is not None
    assert lead.estimate == budget.difference(mae, clip, key)
    html = write_page(study, done, cells)[0].read_text()
    for text in (html, (done / "study.md").read_text(), (done / "study.tex").read_text()):
        assert "k-NN on f" in text
    told = json.loads((done / "results.json").read_text())["steps"][1]
    assert told["minus_reference"]["knn/encoder"]["value"] == lead.estimate.value
    assert told["auroc"]["knn/bridge"].keys() >= {"value", "low", "high"}
    assert list(told["per_label"]["knn/encoder"]) == list(told["per_label_minus_reference"]["linear/encoder"]) == LABELS
    assert set(told["recall"]) == set(told["recall_minus_reference"])


def test_chain__says_over_how_many_images_and_what_is_left_out(place: Path) -> None:
    study = read_study(
        place,
        STUDY.replace("chain: [clip, mae]", "chain: [clip, mae, bridge]").replace(
            "mae: mae}", "mae: mae, bridge: bridge}"
        ),
    )
    (budget,) = read_budgets(study, place, cells_of(study))
    chain = chain_sheet(study, budget)
    assert chain is not None
    assert chain.notes[0].startswith("82 test images of 41 patients")
    assert chain.notes[-1] == "Left out: bridge minus mae; no cell of bridge is finished here."


def test_write_page__protocols_without_a_probe_or_words_fill_tables_of_their_own(place: Path) -> None:
    study = read_study(place, STUDY + "protocols: [knn, fewshot, label_efficiency]\n")
    cells = cells_of(study)
    keep(place, cells, lambda protocol, _: protocol == "knn")
    for number, cell in enumerate(cells):
        part = Distribution(value=0.6, replicates=np.linspace(0.5, 0.7, 20) + 0.01 * number, n=9)
        means = {("fewshot", "encoder, 5", label): part for label in LABELS}
        drawn = draws_table(DrawnMeans(means=means, bootstrap=(20, 0), rows=9, patients=5))
        pq.write_table(drawn, cell_folder(place, cell) / "evaluation" / "draws.parquet")
    (budget,) = read_budgets(study, place, cells)
    assert means_sheet(study, budget) is None
    chain = chain_sheet(study, budget)
    assert chain is not None
    assert list(chain.columns[1:]) == ["k-NN on f (encoder)", "k-NN on g(f) (bridge)", FEW]
    page, lines = write_page(study, place, cells)
    assert any("the tables have what there is" in line for line in lines)
    html, tex = page.read_text(), (place / "study.tex").read_text()
    for text in (html, tex):
        assert "k-NN on g(f) (bridge); 50" in text
        assert f"{FEW}; 50" in text
        assert "Linear probe on f" not in text
    assert "Label efficiency: in no table: the evaluations kept no scores that can be paired" in html
    told = json.loads((place / "results.json").read_text())["steps"][0]
    assert list(told["auroc"]) == ["knn/encoder", "knn/bridge", "fewshot/encoder, 5"]


def test_write_page__a_protocol_that_was_left_out_is_told_with_its_reason(place: Path) -> None:
    study = read_study(place, STUDY + "protocols: [linear, zero_shot]\n")
    cells = cells_of(study)
    keep(place, cells, lambda protocol, _: protocol == "linear")
    for cell in cells:
        path = cell_folder(place, cell) / "evaluation" / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"zero_shot": {"skipped": "no words"}}))
    html = write_page(study, place, cells)[0].read_text()
    assert "Zero-shot: in no table: no words." in html
    assert "Zero-shot, text prompts" not in html  # nor an empty column
    assert "zero-shot minus clip" not in html


def test_protocols_sheet__the_dense_probe_says_what_its_figures_are_over(place: Path) -> None:
    study = read_study(place, STUDY)
    cells = cells_of(study)
    keep(place, cells, lambda protocol, _: protocol == "linear")
    rows = np.flatnonzero(STORE.splits == "test").tolist()
    for number, cell in enumerate(cells):
        columns = {"id": [STORE.ids[row] for row in rows], "patient": STORE.patients[rows].tolist()}
        columns |= {"label": ["lesion"] * len(rows), "feature": ["encoder"] * len(rows)}
        columns |= dict.fromkeys(("auroc", "auprc", "dice"), np.linspace(0.5, 0.9, len(rows)) + 0.01 * number)
        table = pa.Table.from_pydict(columns, schema=DENSE_SCHEMA)
        pq.write_table(table, cell_folder(place, cell) / "evaluation" / "dense.parquet")
    (budget,) = read_budgets(study, place, cells)
    sheet = protocols_sheet(study, budget)
    assert sheet is not None
    assert [heading for heading, _ in sheet.sections] == ["Dense probe on f (encoder); 50 % of the texts"]
    assert any("the AUROC over the pixels of each" in note for note in sheet.notes)
    keep(place, cells, lambda *_: False)  # and with nothing but it
    (budget,) = read_budgets(study, place, cells)
    assert means_sheet(study, budget) is None
    assert protocols_sheet(study, budget) is not None


def test_write_page__says_of_how_many_labels_a_macro_is_the_mean(place: Path) -> None:
    study = read_study(place, STUDY)
    cells = cells_of(study)
    keep(place, cells[:1], lambda protocol, label: (protocol, label) != ("zero_shot", "camera"))
    (budget,) = read_budgets(study, place, cells)
    assert budget.labels(("linear", "encoder")) == LABELS
    assert budget.labels(("zero_shot", "projected")) == LABELS[:-1]  # those that all evaluations have
    html = write_page(study, place, cells)[0].read_text()
    assert (
        "Macro AUROC of Linear probe on f (encoder); Linear probe on g(f) (bridge): mean of 5 labels (glaucoma, "
        "drusen, normal, dr grade, camera)." in html
    )
    assert "Macro AUROC of Zero-shot, text prompts: mean of 4 labels (glaucoma, drusen, normal, dr grade)." in html
    told = json.loads((place / "results.json").read_text())
    assert told["labels"]["steps"]["linear/encoder"] == {"n": 5, "names": LABELS}
    assert told["labels"]["steps"]["zero_shot/projected"]["n"] == 4
    assert told["steps"][0]["auroc"]["linear/encoder"]["note"].startswith("mean of 5 labels")


def test_write_page__tables_of_a_paper_are_no_wider_than_four_figures_and_have_short_heads(done: Path) -> None:
    study = read_study(done, STUDY)
    write_page(study, done, cells_of(study))
    tex = (done / "study.tex").read_text()
    assert tex.startswith("% \\usepackage{booktabs}\n% \\usepackage{graphicx}\n")
    tables = re.findall(r"\\begin\{tabular\}\{l(r*)\}\n\\toprule\n(.*) \\\\\n", tex)
    assert [len(columns) for columns, _ in tables] == [4, 2, 3, 2, 6]  # figures, leads, chain, other protocols, costs
    assert len(set(re.findall(r"\\label\{(.*)\}", tex))) == len(tables)
    lines = [line for _, names in tables for line in names.replace(r"\shortstack[r]", "").split(r"\\")]
    assert all(len(line) <= 40 for name in lines for line in name.split(" & "))


def test_write_page__figures_and_costs_are_two_tables(done: Path) -> None:
    study = read_study(done, STUDY)
    heads = re.findall(r"<thead><tr>(.*?)</tr>", write_page(study, done, cells_of(study))[0].read_text())
    columns = [re.findall(r'<th scope="col">(.*?)</th>', head) for head in heads]
    assert columns[0][-2:] == ["encoder minus clip", "zero-shot minus clip"]
    assert ["method", "steps", "step evaluated", "minutes"] in [names[:4] for names in columns]
    assert max(map(len, columns)) == 7


def environment(folder: Path, cell: Cell, **given: object) -> None:
    path = cell_folder(folder, cell) / "run" / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | given))


def test_write_page__tells_grid_command_version_and_commit(place: Path) -> None:
    study = read_study(place, STUDY.replace("grid: [", "grid: [{methods: [clip], seeds: [0]}, "))
    cells = [cell for cell in cells_of(study) if cell.text_fraction == 0.5]
    for cell in cells:
        versions = {"maskedclip": "0.9", "torch": "2.1" if cell.method == "mae" else "2.0"}
        environment(place, cell, versions=versions, code="abc123", python="3.11.7", device="cpu")
    environment(place, cells[0], code=None)
    html = write_page(study, place, cells_of(study))[0].read_text().partition("How it was done")[2]
    how = json.loads((place / "results.json").read_text())["how"]
    expected = {
        "grid 1": "clip × 100 % of the texts × seed 0",
        "grid 2": "clip, mae × 50 % of the texts × seeds 0, 1",
        "each": "6 steps",
        "cells": "5, of which 4 are finished",
        "version of maskedclip": "0.9",
        "commit of maskedclip": "abc123 (3 cells); not recorded (1 cell)",
        "Python": "3.11.7",
        "libraries": "torch 2.0 (2 cells); torch 2.1 (2 cells)",
        "device": "cpu",
        "command": f"maskedclip study fake.yaml --data {place / 'nowhere'} --evaluate {place / 'nowhere'} "
        f"--out {place}",
    }
    assert {name: how[name] for name in expected} == expected
    for name, value in expected.items():
        assert f'<th scope="row">{name}</th><td>{value}</td>' in html


def test_command__has_the_fields_of_the_command_line_and_a_shipped_study_by_its_name(tmp_path: Path) -> None:
    store, overrides = tmp_path / "a store", {"training.lr": 1e-5, "training.best_metric": None}
    study = replace(read_study(tmp_path, STUDY, data=[store], overrides=overrides), name="semi_supervised")
    said = command(study, tmp_path)
    assert said.startswith(f"maskedclip study semi_supervised --data '{store}' ")
    assert said.endswith(f" --out {tmp_path} --training.lr 1.0e-05 --training.best_metric null")


def test_how_it_was_done__a_grid_names_its_sizes_where_there_are_several(tmp_path: Path) -> None:
    sized = STUDY.replace("config: [tiny]", "sizes: {small: tiny, tall: tiny}").replace("[0, 1]", "[0]")
    for text, words in ((STUDY, "seeds 0, 1"), (sized, "seed 0 × sizes small, tall")):
        study = read_study(tmp_path, text)
        how = how_it_was_done(study, tmp_path, cells_of(study))
        assert how["grid"] == f"clip, mae × 50 % of the texts × {words}"
        assert how["cells"] == "4, of which 0 are finished"
        assert how["commit of maskedclip"] == "not recorded"
