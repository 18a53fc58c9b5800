"""Why models have no paired difference: the reason that is told is the true one."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from maskedclip.evaluation.compare_models import Comparison, compare_models
from maskedclip.evaluation.compare_read import read_predictions
from maskedclip.evaluation.compare_sheets import NOTHING, interval_words, sheets
from maskedclip.evaluation.compare_unpaired import unpaired_reasons
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.statistics import Estimate
from tests.evaluation.compare_case import MODEL, STORE, blurred, rewritten
from tests.evaluation.stand_ins import changed

PROTOCOLS = ("linear", "fewshot", "retrieval")
FEW = ("fewshot", "encoder, 5")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("unpaired")
    made = {"a": (MODEL, 20, 0), "b": (blurred(1.0), 20, 0), "more": (blurred(1.0, 2), 30, 0), "s": (MODEL, 20, 1)}
    for name, (model, replicates, seed) in made.items():
        evaluate(model, STORE, root / name, protocols=PROTOCOLS, replicates=replicates, seed=seed)
    return {name: root / name for name in made}


def _compared(folders: dict[str, Path], *names: str, replicates: int = 20, seed: int = 0) -> Comparison:
    return compare_models({name: [folders[name]] for name in names}, names[0], replicates=replicates, seed=seed)


def _without(folder: Path, target: Path, table: str) -> Path:
    shutil.copytree(folder, target)
    (target / table).unlink()
    return target


def _dashes(comparison: Comparison, sheet: int) -> int:
    place = 1 if sheets(comparison)[sheet].name != "retrieval" else 3
    return sum(cells[place].words() == NOTHING for _, rows in sheets(comparison)[sheet].sections for _, cells in rows)


def test_unpaired__nothing_is_told_where_all_is_paired(folders: dict[str, Path]) -> None:
    compared = _compared(folders, "a", "b")
    assert compared.unpaired == {}
    assert compared.to_json()["unpaired"] == []
    assert not any(note.startswith(NOTHING) for sheet in sheets(compared) for note in sheet.notes)
    assert _dashes(compared, 0) == 0


def test_unpaired__draws_with_other_replicates_or_seed(folders: dict[str, Path]) -> None:
    drawn = _compared(folders, "a", "b", replicates=50).unpaired
    assert {section[0] for section in drawn} == {"fewshot"}
    assert drawn[FEW] == [
        "means over draws were kept with 20 replicates, this comparison has 50 replicates; give --replicates 20"
    ]
    assert _compared(folders, "a", "b", seed=7).unpaired[FEW] == [
        "means over draws were kept with 20 replicates and seed 0, this comparison has 20 replicates and seed 7; "
        "give --replicates 20 --seed 0"
    ]


def test_unpaired__draws_that_no_replicates_could_pair(folders: dict[str, Path]) -> None:
    compared = _compared(folders, "a", "b", "more")
    assert compared.unpaired[FEW] == [
        "means over draws were kept with other replicates (a, b: 20 replicates; more: 30 replicates); evaluate all "
        "with the same"
    ]
    assert _compared(folders, "a", "s").unpaired[FEW] == [
        "means over draws were kept with other replicates (a: 20 replicates and seed 0; s: 20 replicates and seed 1); "
        "evaluate all with the same"
    ]
    words = interval_words(compared, compared.sections, accuracy=True)
    assert "those of balanced accuracy, Few-shot from the evaluations' own (a 20, b 20, more 30)" in words


@pytest.mark.parametrize("table", ["draws.parquet", "retrieval.parquet"])
def test_unpaired__scores_that_one_did_not_keep(folders: dict[str, Path], tmp_path: Path, table: str) -> None:
    some = folders | {"old": _without(folders["b"], tmp_path / "old", table)}
    told = [why for reasons in _compared(some, "a", "old").unpaired.values() for why in reasons]
    assert set(told) == {f"old kept no scores for it ({table}); evaluate again"}
    turned = [why for reasons in _compared(some, "old", "a").unpaired.values() for why in reasons]
    assert set(turned) == set(told)
    compared = _compared(some, "a", "b", "old")
    sheet = 1 if table.startswith("retrieval") else 0
    assert _dashes(compared, sheet) > 0
    assert sum(note.startswith(NOTHING) for note in sheets(compared)[sheet].notes) == 1


def test_unpaired__what_the_reference_lacks_and_what_is_undefined(folders: dict[str, Path], tmp_path: Path) -> None:
    evaluate(MODEL, STORE, tmp_path / "few", protocols=["fewshot"], replicates=20)
    told = _compared(folders | {"few": tmp_path / "few"}, "few", "a").unpaired
    assert told["linear", "encoder"] == ["few, the reference, has none"]
    assert FEW not in told
    # A row that is not there needs no reason.
    assert _compared(folders | {"few": tmp_path / "few"}, "a", "few").unpaired == {}
    fewer = {name: column for name, column in STORE.labels.items() if name != "drusen"}
    rare = fewer | {"rare": np.where(STORE.splits == "test", 1, 0).astype(np.float32)}
    for name, labels in (("fewer", fewer), ("rare", rare), ("rarer", rare)):
        evaluate(MODEL, changed(STORE, labels=labels), tmp_path / name, protocols=["linear", "fewshot"], replicates=20)
    some = folders | {name: tmp_path / name for name in ("fewer", "rare", "rarer")}
    assert _compared(some, "fewer", "a").unpaired["linear", "encoder"] == ["fewer, the reference, has none for drusen"]
    assert _compared(some, "rare", "rarer").unpaired == {}


def test_unpaired__a_reference_whose_value_is_undefined_says_so_itself(folders: dict[str, Path]) -> None:
    compared, key = _compared(folders, "a", "b"), ("linear", "encoder", "drusen")
    read = {name: [read_predictions(folders[name])] for name in ("a", "b")}
    paired = {
        name: {other: part for other, part in parts.items() if name == "b" or other != key}
        for name, parts in compared.auroc.distributions.items()
    }
    auroc = replace(compared.auroc, distributions=paired)
    nothing = {key: {"auroc": Estimate(value=np.nan, low=np.nan, high=np.nan, n=9)}}
    for others, told in (({}, ["a, the reference, has none for drusen"]), (nothing, None)):
        found = unpaired_reasons(read, auroc, {"a": others, "b": {}}, (20, 0))
        assert found.get(key[:2]) == told


def test_interval_words__evaluations_that_do_not_say(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = rewritten(folders["b"], tmp_path / "plain")
    results = (plain / "results.json").read_text()
    (plain / "results.json").write_text(results.replace('"replicates": 20', '"replicate": 20'))
    compared = _compared(folders | {"plain": plain}, "a", "plain")
    assert compared.to_json()["models"]["plain"]["replicates"] == []
    assert "own (a 20, plain unknown)" in interval_words(compared, [("linear", "encoder")], accuracy=True)
    assert "own" not in interval_words(compared, [("linear", "encoder")])
