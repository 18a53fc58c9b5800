import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedclip.evaluation.label_efficiency import FRACTIONS, label_efficiency, training_subset
from maskedclip.evaluation.probe import linear_probe
from maskedclip.evaluation.scoring import score_labels
from maskedclip.evaluation.statistics import cluster_weights
from maskedclip.evaluation.tasks import Prediction, read_tasks
from tests.evaluation.stand_ins import make_case


def _case() -> tuple:
    store, model = make_case(patients=160)
    tasks, _ = read_tasks(store.labels)
    weights = cluster_weights(store.patients[store.splits == "test"], replicates=100)
    return model.tables["encoder"], tasks, store.splits, store.patients, weights


def test_label_efficiency__all_patients_are_the_linear_probe() -> None:
    x, tasks, splits, patients, weights = _case()
    result = label_efficiency(x, tasks, splits, patients, weights, fractions=[1.0]).section["1"]
    answers = linear_probe(x, tasks, splits, patients)
    tested = {name: task.on(splits == "test") for name, task in tasks.items()}
    probe = score_labels(tested, answers, weights)
    for part in ("value", "low", "high", "n"):
        assert result["macro"]["auroc"][part] == pytest.approx(probe["macro"]["auroc"][part], abs=1e-6)
    assert (result["macro"]["auroc"]["draws"], result["macro"]["auroc"]["spread"]) == (1, None)
    assert result["patients"] == len(set(patients[splits == "train"]))


def test_label_efficiency__a_curve_that_rises_and_repeats() -> None:
    x, tasks, splits, patients, weights = _case()
    result = label_efficiency(x, tasks, splits, patients, weights, fractions=[0.1, 0.4, 1.0], draws=4, seed=2).section
    assert list(result) == ["0.1", "0.4", "1"]
    values = [result[share]["macro"]["auroc"]["value"] for share in result]
    assert values == sorted(values)
    assert values[0] < values[-1] - 0.02
    assert result["0.1"]["macro"]["auroc"]["spread"] > result["0.4"]["macro"]["auroc"]["spread"]
    assert result["0.4"]["patients"] == round(0.4 * result["1"]["patients"])
    again = label_efficiency(x, tasks, splits, patients, weights, fractions=[0.1, 0.4, 1.0], draws=4, seed=2)
    assert result == again.section
    json.dumps(result, allow_nan=False)


def test_label_efficiency__equals_a_probe_on_the_subset() -> None:
    x, tasks, splits, patients, weights = _case()
    tasks = {"glaucoma": tasks["glaucoma"]}
    result = label_efficiency(x, tasks, splits, patients, weights, fractions=[0.3], draws=1, seed=5).section["0.3"]
    subset = training_subset(splits, patients, 0.3, seed=5, draw=0)
    answer = linear_probe(x, tasks, np.where((splits == "train") & ~subset, "", splits), patients, seed=5)["glaucoma"]
    assert isinstance(answer, Prediction)
    expected = score_labels({"glaucoma": tasks["glaucoma"].on(splits == "test")}, {"glaucoma": answer}, weights)
    assert result["per_label"]["glaucoma"]["auroc"]["value"] == expected["per_label"]["glaucoma"]["auroc"]["value"]
    assert result["rows"] == subset.sum()


def test_label_efficiency__draws_that_lack_a_class_are_told() -> None:
    x, tasks, splits, patients, weights = _case()
    column = np.where(tasks["glaucoma"].truth == 1, 1.0, 0.0).astype(np.float32)
    rare = np.flatnonzero((column == 1) & (splits == "train"))[4:]
    column[rare] = np.nan
    tasks = read_tasks({"rare": column})[0] | {"normal": tasks["normal"]}
    result = label_efficiency(x, tasks, splits, patients, weights, fractions=[0.01, 0.5], draws=6).section
    assert result["0.01"]["per_label"]["rare"]["auroc"]["value"] is None
    assert "one class only" in result["0.01"]["per_label"]["rare"]["auroc"]["note"]
    entry = result["0.5"]["per_label"]["rare"]["auroc"]
    assert 0 < entry["draws"] <= 6
    assert ("left out" in entry.get("note", "")) == (entry["draws"] < 6)


@given(st.integers(0, 1000), st.integers(0, 5), st.integers(1, 40))
def test_training_subset__nested_whole_patients_of_the_training_split(seed: int, draw: int, people: int) -> None:
    generator = np.random.Generator(np.random.Philox(seed))
    codes = generator.integers(0, people, 80)
    splits = np.array(["train", "val", "test", ""])[codes % 4]
    patients = np.array([f"p{code}" if code % 5 else "" for code in codes], dtype=object)
    before = np.zeros(80, dtype=bool)
    for share in FRACTIONS:
        subset = training_subset(splits, patients, share, seed=seed, draw=draw)
        assert (subset | ~before).all()
        assert (splits[subset] == "train").all()
        chosen = set(patients[subset]) - {""}
        rest = set(patients[(splits == "train") & ~subset]) - {""}
        assert not chosen & rest
        before = subset
    assert (before == (splits == "train")).all()
