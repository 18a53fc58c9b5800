from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from maskedclip.errors import UserError
from maskedclip.evaluation.compare_many import paired_distributions
from maskedclip.evaluation.compare_read import Predictions, Ranks, read_predictions, read_results
from maskedclip.evaluation.statistics import cluster_weights
from tests.evaluation.compare_case import MODEL, STORE, blurred, evaluated
from tests.evaluation.stand_ins import ArrayStore, changed

MODELS = {"a": MODEL, "b": blurred(1.0)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("many")
    models = MODELS | {"c": blurred(2.0, text=False)}
    return [evaluated(model, root / name, replicates=100) for name, model in models.items()]


@pytest.fixture(scope="module")
def read(folders: list[Path]) -> list[Predictions]:
    return [read_predictions(folder) for folder in folders]


@pytest.mark.parametrize("metric", ["auroc", "auprc"])
def test_paired_distributions__are_those_of_the_results(
    folders: list[Path], read: list[Predictions], metric: str
) -> None:
    paired = paired_distributions(read, metric=metric, replicates=100)
    for folder, found in zip(folders, paired.distributions, strict=True):
        results = read_results(folder)
        for (protocol, feature, label), distribution in found.items():
            section = results[protocol] if protocol == "zero_shot" else results[protocol][feature]
            if protocol == "retrieval":
                expected = section[label]
            else:
                expected = (section["macro"] if label == "macro" else section["per_label"][label])[metric]
            estimate = distribution.estimate().to_json()
            for name in ("value", "low", "high"):
                assert estimate[name] == pytest.approx(expected[name], abs=1e-12), (protocol, feature, label)
    assert len(paired.distributions[0]) == 5 * 6 + 3 * 3
    assert len(paired.distributions[2]) == 2 * 6
    assert paired.notes["linear", "encoder", "macro"] == "mean of 5 labels"


def _with_gaps() -> ArrayStore:
    """The store with test rows of which no label, or no text, is known."""
    generator = np.random.Generator(np.random.Philox(4))
    gone = generator.random(len(STORE)) < 0.3
    labels = {}
    for name, values in STORE.labels.items():
        labels[name] = values.copy()
        labels[name][gone] = None if values.dtype == object else np.nan
    texts = [None if generator.random() < 0.2 else text for text in STORE.texts]
    return changed(STORE, labels=labels, texts=texts)


def test_paired_distributions__are_those_of_the_results_where_values_are_unknown(tmp_path: Path) -> None:
    store = _with_gaps()
    folders = [evaluated(model, tmp_path / name, store, replicates=60) for name, model in MODELS.items()]
    paired = paired_distributions([read_predictions(folder) for folder in folders], replicates=60)
    for folder, found in zip(folders, paired.distributions, strict=True):
        results = read_results(folder)
        for label in ("glaucoma", "camera"):
            said = found["linear", "encoder", label].estimate().to_json()
            assert said == results["linear"]["encoder"]["per_label"][label]["auroc"]
        recall = found["retrieval", "image_to_text", "recall_at_5"].estimate()
        expected = results["retrieval"]["image_to_text"]["recall_at_5"]
        assert (recall.low, recall.high) == (expected["low"], expected["high"])

    (folders[1] / "test.parquet").unlink()  # of an earlier version: on the rows that both have scored
    mixed = paired_distributions([read_predictions(folder) for folder in folders], replicates=60).distributions
    assert mixed[0].keys() == mixed[1].keys()
    other = evaluated(MODEL, tmp_path / "other", changed(STORE, ids=[f"x{key}" for key in STORE.ids]), replicates=60)
    with pytest.raises(UserError, match="test rows are in one only"):
        paired_distributions([read_predictions(folders[0]), read_predictions(other)], replicates=60)


@pytest.mark.parametrize(("metric", "peer"), [("auroc", roc_auc_score), ("auprc", average_precision_score)])
def test_paired_distributions__every_replicate_is_scikit_learns(
    read: list[Predictions], metric: str, peer: Callable
) -> None:
    paired = paired_distributions(read[:1], metric=metric, replicates=7, seed=5)
    weights = cluster_weights(read[0].patients, replicates=7, seed=5)
    key = ("linear", "encoder", "drusen")
    part = read[0].scores[key][None]
    expected = [peer(part.truth, part.score, sample_weight=row[part.rows]) for row in weights]
    np.testing.assert_allclose(paired.distributions[0][key].replicates, expected)


def test_paired_distributions__company_changes_nothing(read: list[Predictions]) -> None:
    together = paired_distributions(read, replicates=10).distributions[1]
    alone = paired_distributions(read[1:2], replicates=10).distributions[0]
    assert together.keys() == alone.keys()
    for key, distribution in together.items():
        np.testing.assert_array_equal(distribution.replicates, alone[key].replicates)


def test_paired_distributions__macro_is_over_the_common_labels(read: list[Predictions]) -> None:
    fewer = {key: classes for key, classes in read[1].scores.items() if key != ("linear", "encoder", "drusen")}
    paired = paired_distributions([read[0], replace(read[1], scores=fewer)], replicates=5)
    key = ("linear", "encoder", "macro")
    assert paired.notes[key] == "mean of 4 labels"
    assert paired.notes["knn", "encoder", "macro"] == "mean of 5 labels"
    for found in paired.distributions:
        labels = [found["linear", "encoder", name].value for name in ("glaucoma", "normal", "dr_grade", "camera")]
        assert found[key].value == pytest.approx(np.mean(labels))


def test_paired_distributions__one_class_only_is_undefined(read: list[Predictions]) -> None:
    key = ("linear", "encoder", "drusen")
    part = read[0].scores[key][None]
    none = replace(read[0], scores={key: {None: replace(part, truth=np.zeros(len(part.rows), bool))}})
    found = paired_distributions([none, none], replicates=5).distributions[1]
    assert np.isnan(found[key].value)
    assert "one class only" in found[key].estimate().note
    assert "no label is defined" in found["linear", "encoder", "macro"].estimate().note


def _with_ranks(read: Predictions, ranks: list[int], ids: list[str]) -> Predictions:
    kept = Ranks(ids=np.array(ids, object), patients=np.array(["p", "p", "q", "r"], object), ranks=np.array(ranks))
    return replace(read, ranks={"image_to_text": kept})


def test_paired_distributions__recall_of_kept_ranks_whatever_their_order(read: list[Predictions]) -> None:
    first = _with_ranks(read[0], [1, 6, 3, 11], ["w", "x", "y", "z"])
    other = _with_ranks(read[1], [1, 3, 6, 11], ["w", "y", "x", "z"])
    paired = paired_distributions([first, other, read[2]], replicates=50)
    for k, expected in ((1, 0.25), (5, 0.5), (10, 0.75)):
        key = ("retrieval", "image_to_text", f"recall_at_{k}")
        assert paired.distributions[0][key].value == expected
        np.testing.assert_array_equal(paired.distributions[0][key].replicates, paired.distributions[1][key].replicates)
        assert key not in paired.distributions[2]
    weights = cluster_weights(["p", "p", "q", "r"], replicates=50)
    hits = (weights * np.array([1, 0, 1, 0])).sum(axis=1) / weights.sum(axis=1)
    np.testing.assert_allclose(paired.distributions[0]["retrieval", "image_to_text", "recall_at_5"].replicates, hits)
    stranger = _with_ranks(read[1], [1, 3, 6, 11], ["w", "y", "x", "?"])
    with pytest.raises(UserError, match="retrieval/image_to_text: the queries differ"):
        paired_distributions([first, stranger], replicates=5)


def test_paired_distributions__recall_per_text_where_an_evaluation_kept_the_texts(read: list[Predictions]) -> None:
    plain = _with_ranks(read[0], [1, 6, 3, 11], ["w", "x", "y", "z"])
    ranks = _with_ranks(read[1], [1, 3, 6, 11], ["w", "y", "x", "z"]).ranks["image_to_text"]
    kept = replace(ranks, texts=np.array(["normal", "normal", "drusen", "normal"], object))
    other = replace(read[1], ranks={"image_to_text": kept})
    key = ("retrieval", "image_to_text_per_text", "recall_at_5")
    for found in paired_distributions([plain, other], replicates=50).distributions:
        assert found[key].value == pytest.approx((2 / 3 + 0) / 2)
        assert found[key].n == 2
    assert key not in paired_distributions([plain, plain], replicates=5).distributions[0]


def test_paired_distributions__protocols_and_replicates(read: list[Predictions]) -> None:
    found = paired_distributions(read, protocols=["knn"], replicates=5).distributions
    assert {key[0] for part in found for key in part} == {"knn"}
    with pytest.raises(UserError, match="replicates: 1 give no interval"):
        paired_distributions(read, replicates=1)
