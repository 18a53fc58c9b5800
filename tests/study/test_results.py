"""What is told of finished cells, on cells that nobody trained."""

import json
from pathlib import Path

import pytest

from maskedclip.evaluation.compare_sheets import Sheet
from maskedclip.evaluation.report_figures import COLOURS
from maskedclip.recipe import load_recipe
from maskedclip.study.cells import cell_folder
from maskedclip.study.checks import changed_data, chosen_on_reported
from maskedclip.study.costs_sheet import costs_sheet
from maskedclip.study.definition import Cell, Study
from maskedclip.study.evaluated_step import at_the_start, best_trained, evaluated_step, training_shares
from maskedclip.study.figures import fraction_chart, validation_charts
from maskedclip.study.page import write_page
from maskedclip.study.results import (
    SECTIONS,
    Budget,
    means_sheet,
    read_budgets,
    verdicts,
    why_no_verdict,
)
from tests.stores import make_store
from tests.study.fake_cells import CURVE, cells_of, finish, read_study

STUDY = """
config: [tiny]
set: {training.validate_every: 3}
methods: {clip: clip, maskedclip: maskedclip, mae: mae}
grid: [{methods: [clip, maskedclip, mae], text_fractions: [0.5], seeds: [0]}]
steps: 6
replicates: 20
"""
CHOSEN = STUDY.replace("training.validate_every: 3", "training.validate_every: 3, training.best_metric: probe_auroc")


def finished(folder: Path, text: str, **result: object) -> tuple[Study, list[Cell]]:
    study = read_study(folder, text)
    cells = cells_of(study)
    for cell in cells:
        finish(folder, cell, **result)  # type: ignore[arg-type]
    return study, cells


def means(study: Study, budget: Budget) -> Sheet:
    sheet = means_sheet(study, budget)
    assert sheet is not None
    return sheet


def test_evaluated_step__is_the_first_best_after_the_start(tmp_path: Path) -> None:
    chosen = load_recipe(["clip", "tiny"], ["--training.steps", "6", "--training.best_metric", "probe_auroc"])
    chosen = chosen.replace(training={"validate_every": 3})
    assert (at_the_start(CURVE), best_trained(CURVE)) == (0.9, 0.6)
    assert evaluated_step(chosen, CURVE, tmp_path) == 3
    level = [*CURVE[:1], CURVE[1] | {"probe_auroc": 0.7}, CURVE[2] | {"probe_auroc": 0.7}]
    assert evaluated_step(chosen, level, tmp_path) == 3
    assert evaluated_step(chosen.replace(training={"best_metric": None}), CURVE, tmp_path) == 6
    assert evaluated_step(chosen, [], tmp_path) is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"step": 5}')
    assert evaluated_step(chosen, CURVE, tmp_path) == 5  # the run itself knows best
    assert (at_the_start([]), best_trained([])) == (None, None)


def test_evaluated_step__another_metric_is_read_from_the_run(tmp_path: Path) -> None:
    chosen = load_recipe(["clip", "tiny"], ["--training.steps", "6", "--training.best_metric", "knn_auroc"])
    chosen = chosen.replace(training={"validate_every": 3})
    assert evaluated_step(chosen, CURVE, tmp_path) is None  # its lines are lost
    lines = [
        {"kind": "validation", "step": 0, "knn_auroc": 0.9},
        {"kind": "train", "step": 3, "loss": 1.0},
        {"kind": "validation", "step": 3, "knn_auroc": 0.5},
        {"kind": "validation", "step": 6, "knn_auroc": 0.6},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert evaluated_step(chosen, CURVE, tmp_path) == 6


def test_evaluated_step__of_two_stages_is_that_of_the_last(tmp_path: Path) -> None:
    chosen = load_recipe(["clip_mae_init", "tiny"], ["--training.steps", "12", "--training.best_metric", "probe_auroc"])
    chosen = chosen.replace(training={"validate_every": 3})
    first = [entry | {"probe_auroc": entry["probe_auroc"] + 0.09} for entry in CURVE]
    assert evaluated_step(chosen, [*first, *CURVE], tmp_path) == 9  # six steps of the first stage, three of the last
    assert best_trained([*first, *CURVE]) == 0.6
    assert at_the_start([*first, *CURVE]) == pytest.approx(0.99)


def test_costs_sheet__tells_start_best_and_step(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, CHOSEN.replace("seeds: [0]", "seeds: [0, 1]"))
    other = cell_folder(tmp_path, cells[3]) / "cell.json"
    assert cells[3].method == cells[0].method
    kept = study.recipe(cells[3].method, "default", 0.5, 1, 6).replace(training={"best_metric": None}).to_dict()
    other.write_text(json.dumps(json.loads(other.read_text()) | {"recipe": kept}))
    (budget,) = read_budgets(study, tmp_path, cells)
    sheet = costs_sheet(study, budget)
    row = dict(zip(sheet.columns[1:], sheet.sections[0][1][0][1], strict=True))
    assert row["step evaluated"].text == "3, 6"  # an earlier version's recipe is taken where it was kept
    assert row["validation, start and best"].text == "0.900, 0.600"
    for notes in (sheet.notes, means(study, budget).notes):
        assert any("step with the best online probe on validation rows" in note for note in notes)
    assert any("the best of so many validations: clip 2, maskedclip 2, mae 2." in note for note in sheet.notes)
    plain = read_study(tmp_path, STUDY)
    for notes in (costs_sheet(plain, budget).notes, means(plain, budget).notes):
        assert not any("weights that are evaluated" in note for note in notes)
        assert not any("at equal time" in note for note in notes)


def test_write_page__development_rows_that_chose_the_step_are_told(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, CHOSEN + "split: development\n")
    assert chosen_on_reported(study) is not None
    page, _ = write_page(study, tmp_path, cells)
    assert page.read_text().count("training.best_metric chose the step of the weights on them too") == 2
    assert "chose the step" in (tmp_path / "study.md").read_text()
    assert chosen_on_reported(read_study(tmp_path, CHOSEN)) is None
    assert chosen_on_reported(read_study(tmp_path, STUDY + "split: development\n")) is None


def test_changed_data__cells_of_other_data_are_told(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, STUDY)
    assert changed_data(study, tmp_path, cells) == []  # the stores are not here: only the cells are compared
    environment = cell_folder(tmp_path, cells[1]) / "run" / "environment.json"
    environment.write_text(json.dumps({"data": {"fingerprint": "b"}}))
    (said,) = changed_data(study, tmp_path, cells)
    assert "finished cells were trained on 2 different states of the data" in said
    page, lines = write_page(study, tmp_path, cells)
    assert f"Warning: {said}" in lines
    assert "2 different states of the data" in page.read_text()


def test_changed_data__the_stores_of_now_are_compared(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, STUDY)
    store = make_store(tmp_path / "nowhere")
    said = changed_data(study, tmp_path, cells)
    assert said[0].startswith("3 of 3 finished cells were trained on other data than the stores hold now (first: clip-")
    assert any("were evaluated on other data" in line for line in said)
    facts = json.loads((store / "curation.json").read_text())
    assert facts["fingerprint"]


def test_verdicts__without_a_question_of_its_own_every_method_is_compared(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, STUDY)
    (budget,) = read_budgets(study, tmp_path, cells)
    said = verdicts(study, budget)
    for method in ("maskedclip", "mae"):
        assert any(line.startswith(f"Equal steps: {method}, 50 % of the texts is ") for line in said)
    assert not any(": clip, 50 % of the texts is" in line for line in said)
    assert all("one seed each: the chance of training is not in the interval" in line for line in said)
    same = read_study(tmp_path, STUDY + "chain: [mae, clip]\nreference: clip\n")
    assert verdicts(same, budget) == said
    about = verdicts(read_study(tmp_path, STUDY + "chain: [clip, mae]\n"), budget)
    assert about
    assert all(": mae, " in line for line in about)


def test_verdicts__two_seeds_need_no_such_warning(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, STUDY.replace("seeds: [0]", "seeds: [0, 1]"))
    (budget,) = read_budgets(study, tmp_path, cells)
    assert not any("one seed each" in line for line in verdicts(study, budget))


def test_write_page__no_answer_is_told_by_its_cause(tmp_path: Path) -> None:
    alone = STUDY.replace("methods: [clip, maskedclip, mae]", "methods: [clip]")
    study, cells = finished(tmp_path, alone)
    assert "The study has one method, so there is nothing to compare it with." in write_page(study, tmp_path, cells)[1]
    study = read_study(tmp_path, STUDY)
    assert "Too few cells are finished for a comparison." in write_page(study, tmp_path, cells_of(study))[1]
    assert "none has a size, a share of the texts and scores in common" in why_no_verdict(study, 3, 3)
    silent = read_study(tmp_path, STUDY + "protocols: [retrieval]\n")
    assert "The protocols (retrieval) give no linear probe" in why_no_verdict(silent, 3, 3)


def test_fraction_chart__a_line_for_each_size_and_none_of_one_share(tmp_path: Path) -> None:
    sized = """
methods: {clip: clip, maskedclip: maskedclip}
sizes: {small: tiny, smaller: {config: tiny, set: {training.lr: 1.0e-4}}}
grid: [{methods: [clip, maskedclip], text_fractions: [0.5], seeds: [0]}]
steps: 6
replicates: 20
"""
    study, cells = finished(tmp_path, sized)
    (budget,) = read_budgets(study, tmp_path, cells)
    assert fraction_chart(study, budget, SECTIONS[0]) is None
    study = read_study(tmp_path, sized.replace("[0.5]", "[0.5, 1.0]"))
    for cell in cells_of(study):
        if cell.text_fraction == 1.0:
            finish(tmp_path, cell)
    (budget,) = read_budgets(study, tmp_path, cells_of(study))
    drawn = fraction_chart(study, budget, SECTIONS[0])
    assert drawn is not None
    assert [line.split(":")[0] for line in drawn[1].split("; ")] == [
        f"{method}, {size}" for size in ("small", "smaller") for method in ("clip", "maskedclip")
    ]
    assert all(line.count(" at ") == 2 for line in drawn[1].split("; "))


def test_read_budgets__one_method_is_no_comparison_beside_another(tmp_path: Path) -> None:
    study = read_study(tmp_path, STUDY + "equal_time: maskedclip\n")
    at_time = [
        Cell(method=cell.method, size=cell.size, text_fraction=0.5, seed=0, steps=steps)
        for cell, steps in zip(cells_of(study), (12, 6, 9), strict=True)
    ]
    cells = list(dict.fromkeys([*at_time, *cells_of(study)]))
    for cell in at_time:
        finish(tmp_path, cell)
    assert [budget.name for budget in read_budgets(study, tmp_path, cells)] == ["time"]
    finish(tmp_path, next(cell for cell in cells if cell.method == "clip" and cell.steps == 6))
    assert [budget.name for budget in read_budgets(study, tmp_path, cells)] == ["time", "steps"]


def test_write_page__tells_how_it_was_done(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, STUDY + "chain: [clip, maskedclip]\nprotocols: [linear, zero_shot]\n")
    html = write_page(study, tmp_path, cells)[0].read_text().partition("How it was done")[2]
    for name, value in {
        "size default": "tiny",
        "reference": "clip",
        "chain": "clip, maskedclip",
        "protocols": "linear, zero_shot",
        "method mae": "mae",
    }.items():
        assert f"{name}</td><td>{value}" in html.replace(' class="text"', "").replace("th>", "td>"), name


def test_means_sheet__leads_by_probe_and_by_words(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, STUDY)
    (budget,) = read_budgets(study, tmp_path, cells)
    sheet = means(study, budget)
    rows = {name.split()[0]: dict(zip(sheet.columns[1:], cells, strict=True)) for name, cells in sheet.sections[0][1]}
    groups = {group.method: group for group in budget.groups}
    for column, section in (("encoder minus clip", SECTIONS[0]), ("zero-shot minus clip", SECTIONS[2])):
        assert rows["clip"][column].text == "reference"
        lead = budget.difference(groups["mae"], groups["clip"], (*section, "macro"))
        assert lead is not None
        assert rows["mae"][column].estimate == lead


def test_verdicts__begin_with_what_most_trainings_tell(tmp_path: Path) -> None:
    few = "grid: [{methods: [clip, mae], text_fractions: [0.1], seeds: [0]}, "
    study, cells = finished(tmp_path, STUDY.replace("seeds: [0]", "seeds: [0, 1]").replace("grid: [", few))
    (budget,) = read_budgets(study, tmp_path, cells)
    shares = ["50 %" in line for line in verdicts(study, budget)]
    assert shares == sorted(shares, reverse=True)
    assert set(shares) == {True, False}


def test_write_page__an_early_stop_is_told_beside_the_answer(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, CHOSEN)
    page, _ = write_page(study, tmp_path, cells)
    assert "training.best_metric), which is partly chance" in page.read_text().partition('id="steps"')[0]
    page, _ = write_page(read_study(tmp_path, STUDY), tmp_path, cells)
    assert "which is partly chance" not in page.read_text()


def test_write_page__leakage_of_a_cell_is_a_warning_and_its_absence_a_note(tmp_path: Path) -> None:
    study, cells = finished(tmp_path, STUDY)
    for cell, sentence in zip(
        cells, ("Leakage: of 9 test images, 4 were trained on.", *["None of the 9 was."] * 2), strict=True
    ):
        path = cell_folder(tmp_path, cell) / "evaluation" / "results.json"
        results = json.loads(path.read_text())
        results["about"]["seen_in_pretraining"] = {"checked": True, "sentence": sentence}
        path.write_text(json.dumps(results))
    html = write_page(study, tmp_path, cells)[0].read_text()
    assert '<p class="warning">Leakage: of 9 test images, 4 were trained on. (1 cell)</p>' in html
    assert '<p class="note">None of the 9 was. (2 cells)</p>' in html


def test_training_shares__of_both_stages_reach_one() -> None:
    assert training_shares(6, CURVE) == [0.0, 0.5, 1.0]
    assert training_shares(12, [*CURVE, *CURVE]) == [0.0, 0.25, 0.5, 0.5, 0.75, 1.0]


def test_validation_charts__more_methods_than_colours_take_a_second_chart_with_the_reference(tmp_path: Path) -> None:
    names = [f"m{number}" for number in range(len(COLOURS))]
    text = STUDY.replace("mae: mae}", "mae: mae, " + ", ".join(f"{name}: clip" for name in names) + "}")
    text = text.replace("maskedclip, mae]", "maskedclip, " + ", ".join(names) + "]") + "reference: clip\n"
    study, cells = finished(tmp_path, text)
    (budget,) = read_budgets(study, tmp_path, cells)
    drawn = validation_charts(study, budget)
    assert [methods.split(", ")[0] for methods, _ in drawn] == ["clip", "clip"]
    shown = [method for methods, _ in drawn for method in methods.split(", ") if method != "clip"]
    assert shown == ["maskedclip", *names]
    bare = tmp_path / "bare"
    bare.mkdir()
    study, cells = finished(bare, STUDY, curve=CURVE[:1])
    assert validation_charts(study, read_budgets(study, bare, cells)[0]) == []


def test_means_sheet__fewer_seeds_by_the_grid_are_no_unfinished_study(tmp_path: Path) -> None:
    text = STUDY.replace("seeds: [0]}]", "seeds: [0]}, {methods: [clip], text_fractions: [0.5], seeds: [1]}]")
    study, cells = finished(tmp_path, text)
    notes = means(study, read_budgets(study, tmp_path, cells)[0]).notes
    assert not any("not finished" in note for note in notes)
    (cell_folder(tmp_path, cells[0]) / "cell.json").unlink()
    notes = means(study, read_budgets(study, tmp_path, cells)[0]).notes
    assert any("Some groups lack seeds: the study is not finished." in note for note in notes)
