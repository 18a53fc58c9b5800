"""Zero-shot classifiers, calibrated, abstaining, saved: the numbers of `evaluate`, and of plain float64 arithmetic."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax

from maskedclip.data.prompts import prompts_for
from maskedclip.data.store import Store
from maskedclip.deployment.classifier import Answer, Classifier, read_classifier, zero_shot_classifier
from maskedclip.deployment.classifier_calibration import calibrate
from maskedclip.deployment.model import Model
from maskedclip.errors import UserError
from maskedclip.evaluation.calibration import calibration_error
from maskedclip.evaluation.evaluate import evaluate
from maskedclip.evaluation.tasks import Prediction, read_tasks
from maskedclip.evaluation.zero_shot import calibrated_zero_shot
from tests.deployment.classifier_case import labelled_store, linear_map, open_labelled, told


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_labelled(labelled_store(tmp_path_factory.mktemp("classifier") / "store"))


@pytest.fixture(scope="module")
def model(trained_model: Model, store: Store) -> Model:
    return told(trained_model, store)


@pytest.fixture(scope="module")
def features(model: Model, store: Store) -> dict[str, NDArray]:
    return model.features(store, np.arange(len(store)))


def _table(answers: list[list[Answer]], labels: tuple[str, ...], what: str) -> NDArray[np.float64]:
    rows = [{answer.label: getattr(answer, what) for answer in row} for row in answers]
    return np.array([[row[label] for label in labels] for row in rows])


def test_zero_shot__exclusive_is_the_softmax_of_model_classify(trained_model: Model, store: Store) -> None:
    labels = ["red lesion", "drusen", "normal fundus"]
    classifier = zero_shot_classifier(trained_model, labels, prompts={"drusen": ["a yellow dot", "dots"]})
    photographs = [bytes(store.image_bytes(row)) for row in range(6)]
    answers = classifier.classify(photographs)
    expected = trained_model.classify(photographs, labels, prompts={"drusen": ["a yellow dot", "dots"]})
    for row, wanted in zip(answers, expected, strict=True):
        assert {answer.label: answer.probability for answer in row} == pytest.approx(wanted, abs=1e-6)
        assert sum(answer.probability or 0 for answer in row) == pytest.approx(1)
        shares = [answer.probability or 0 for answer in row]
        assert shares == sorted(shares, reverse=True)
        assert [answer.found for answer in row] == [True, False, False]
    assert not classifier.calibrated
    assert (classifier.kind, classifier.output) == ("exclusive", "projected")


def test_zero_shot__findings_have_the_scores_of_evaluate(model: Model, store: Store, tmp_path: Path) -> None:
    evaluate(model, store, tmp_path / "evaluation", protocols=["zero_shot"], replicates=2)
    table = pq.read_table(tmp_path / "evaluation" / "predictions.parquet").to_pandas()
    classifier = zero_shot_classifier(model, ["red", "green"], kind="independent")
    test = np.flatnonzero(store.splits == "test")
    answers = classifier.answers(model.features(store, test))
    scores = _table(answers, classifier.labels, "score")
    for place, label in enumerate(classifier.labels):
        expected = table[table.label == label].set_index("id").score
        assert scores[:, place] == pytest.approx(
            expected[[store.ids[row] for row in test]].to_numpy(), abs=5e-7
        )  # evaluation in float32
    assert np.array_equal(_table(answers, classifier.labels, "found"), scores > 0)
    scale = float(model.module.scale.detach())
    assert _table(answers, classifier.labels, "probability") == pytest.approx(expit(scale * scores), abs=1e-12)


def test_zero_shot__normal_among_findings(model: Model, features: dict[str, NDArray]) -> None:
    classifier = zero_shot_classifier(model, ["red", "green", "normal"], kind="independent")
    unit = features["projected"].astype(np.float64)
    means = [model.encode_text(prompts_for(name)).astype(np.float64).mean(axis=0) for name in classifier.labels]
    red, green, normal = (unit @ (mean / np.linalg.norm(mean)) for mean in means)
    scores = classifier.scores(features)
    expected = np.stack([red - normal, green - normal, normal - (red + green) / 2], axis=1)
    assert scores == pytest.approx(expected, abs=1e-6)
    found = classifier.head.found(scores)
    assert np.array_equal(found[:, 2], ~found[:, :2].any(axis=1))
    assert 0 < found[:, 2].sum() < len(found)


def test_zero_shot__says_what_is_missing(model: Model, store: Store) -> None:
    for labels, kind, words in (
        (["red"], "exclusive", "at least two"),
        (["red", "red", "green"], "exclusive", "twice"),
        ([], "independent", "at least one"),
        (["normal"], "independent", "at least one finding"),
    ):
        with pytest.raises(UserError, match=words):
            zero_shot_classifier(model, labels, kind=kind)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs validation rows"):
        zero_shot_classifier(model, ["red", "green"], abstain=0.2)
    with pytest.raises(UserError, match=r"outside \[0, 1\)"):
        zero_shot_classifier(model, ["red", "green"], calibration=store, kind="independent", abstain=1.0)
    with pytest.raises(UserError, match="'projected' is missing; there are encoder"):
        zero_shot_classifier(model, ["red", "green"]).answers({"encoder": np.zeros((1, 48))})
    with pytest.raises(UserError, match="do not fit"):
        zero_shot_classifier(model, ["red", "green"]).answers({"projected": np.zeros((1, 3))})


def test_calibration__findings_equal_those_of_evaluate(model: Model, store: Store) -> None:
    classifier = zero_shot_classifier(model, ["red", "green"], kind="independent", calibration=store)
    assert classifier.calibrated
    tasks = {name: task for name, task in read_tasks(store.labels)[0].items() if task.kind == "binary"}
    every = model.features(store, np.arange(len(store)))
    _, expected = calibrated_zero_shot(every["projected"], tasks, store.splits, model.encode_text)
    test = model.features(store, np.flatnonzero(store.splits == "test"))
    given = classifier.probabilities(test)
    for place, label in enumerate(classifier.labels):
        prediction = expected[label]
        assert isinstance(prediction, Prediction)
        assert given[:, place] == pytest.approx(prediction.scores, abs=1e-3)  # of scores that differ by 1e-7


def test_calibration__exclusive_labels_by_temperature(model: Model, store: Store) -> None:
    classifier = zero_shot_classifier(model, ["red", "green", "normal"], calibration=store)
    assert classifier.calibrated
    found = classifier.head.about["calibration"]
    val = store.splits == "val"
    red, green = (store.labels[name][val] == 1 for name in ("red", "green"))
    single = ~(red & green)  # rows with both are no one label's
    assert found["rows"] == single.sum()
    assert found["left_out"] == (~single).sum()
    assert found["labels"]["red / green / normal"]["of_each"] == [16, 16, 16]
    seen = model.features(store, np.flatnonzero(val))
    before = zero_shot_classifier(model, ["red", "green", "normal"])
    assert np.array_equal(classifier.scores(seen), before.scores(seen))
    # At the optimum of the offsets, the mean probability of a label is its share.
    assert classifier.probabilities(seen)[single].mean(axis=0) == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_calibrate__slope_and_offsets_of_least_loss_and_error_on_unseen_patients() -> None:
    random = np.random.default_rng(3)
    truth = random.choice(3, 400, p=[0.7, 0.2, 0.1])
    scores = random.normal(size=(400, 3)) + 1.5 * (truth[:, None] == np.arange(3))
    head = calibrate(
        linear_map("exclusive", 3, scale=8.0),
        scores,
        truth,
        np.array([f"p{row // 2}" for row in range(400)], object),
        strict=True,
        recut=True,
        where="store",
    )

    def loss(slope: float, first: float, second: float) -> float:
        logits = slope * scores + np.array([first, second, 0.0])
        return -float(log_softmax(logits, axis=1)[np.arange(400), truth].mean())

    slope, offsets = head.slopes[0], head.intercepts - head.intercepts[2]
    assert np.ptp(head.slopes) == 0
    best = minimize(lambda x: loss(*x), [1.0, 0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12})
    assert [slope, *offsets[:2]] == pytest.approx(best.x.tolist(), abs=1e-3)
    given = head.probabilities(scores)
    assert given.mean(axis=0) == pytest.approx(np.bincount(truth) / 400, abs=1e-5)
    entry = head.about["calibration"]["labels"]["l0 / l1 / l2"]
    assert entry["error_before"] == pytest.approx(calibration_error(truth, softmax(8 * scores, axis=1))[0])
    assert entry["error_after"] < 0.06 < 0.1 < entry["error_before"]


def test_calibrate__one_temperature_where_a_label_is_rare() -> None:
    random = np.random.default_rng(5)
    truth = np.where(np.arange(200) < 4, 2, random.integers(0, 2, 200))
    scores = random.normal(size=(200, 3)) + (truth[:, None] == np.arange(3))
    patients = np.array([str(row) for row in range(200)], object)
    before = linear_map("exclusive", 3, scale=8.0)
    head = calibrate(before, scores, truth, patients, strict=True, recut=True, where="store")
    grid = np.exp(np.linspace(-5, 5, 4001))
    losses = [-log_softmax(8 * scores / t, axis=1)[np.arange(200), truth].mean() for t in grid]
    assert head.slopes == pytest.approx(np.full(3, 8 / grid[int(np.argmin(losses))]), rel=0.01)
    assert (head.intercepts == 0).all()
    assert head.about["calibration"]["labels"]["l0 / l1 / l2"]["note"].startswith("l2: 4 validation rows")
    with pytest.raises(UserError, match="no validation row has just one of the labels"):
        calibrate(before, scores[:0], truth[:0], patients[:0], strict=True, recut=True, where="store")


def test_calibrate__a_head_keeps_what_cannot_be_calibrated_and_says_why() -> None:
    random = np.random.default_rng(4)
    rare = (np.arange(100) < 3).astype(np.int64)
    truth = np.stack([random.integers(0, 2, 100), rare, random.integers(0, 2, 100)], axis=1)
    truth[:4, 2] = -1
    scores = random.normal(size=(100, 3)) + truth
    before = linear_map("independent", 3)
    patients = np.array([str(row) for row in range(100)], object)
    head = calibrate(before, scores, truth, patients, strict=False, recut=False, where="store")
    assert head.calibrated.tolist() == [True, False, True]
    assert (head.slopes[1], head.intercepts[1]) == (1, 0)
    assert np.array_equal(head.cuts, before.cuts)
    labels = head.about["calibration"]["labels"]
    assert labels["l1"]["note"] == "3 of 100 validation rows have it; calibration needs 5 with and without"
    assert labels["l2"]["n"] == 96
    assert "error_after" not in labels["l1"]


def test_calibration__found_where_the_probability_exceeds_the_share(
    model: Model, store: Store, features: dict[str, NDArray]
) -> None:
    classifier = zero_shot_classifier(model, ["red", "green"], kind="independent", calibration=store)
    share = [store.labels[name][store.splits == "val"].mean() for name in ("red", "green")]
    found = _table(classifier.answers(features), classifier.labels, "found")
    assert np.array_equal(found, classifier.probabilities(features) > np.array(share))


def test_calibration__a_line_where_it_cannot_be(model: Model, store: Store, trained_store: Path) -> None:
    with pytest.raises(UserError, match="no column of 0 and 1 for 'glaucoma'; it has red, green"):
        zero_shot_classifier(model, ["red", "glaucoma"], kind="independent", calibration=store)
    with pytest.raises(UserError, match=r"red: 0 of 8 validation rows have it; .*leave them out of --labels"):
        zero_shot_classifier(model, ["red", "green"], kind="independent", calibration=open_labelled(trained_store))


def test_calibration__a_score_that_misleads_is_refused(model: Model, store: Store) -> None:
    swapped = {"red": ["green"], "green": ["red"]}
    with pytest.raises(UserError, match="not a likelier finding"):
        zero_shot_classifier(model, ["red", "green"], kind="independent", prompts=swapped, calibration=store)


@pytest.mark.parametrize(
    ("kind", "labels"), [("exclusive", ["red", "green", "normal"]), ("independent", ["red", "green"])]
)
def test_abstention__leaves_the_least_certain_share_of_validation_rows(
    model: Model, store: Store, kind: str, labels: list[str]
) -> None:
    classifier = zero_shot_classifier(model, labels, kind=kind, calibration=store, abstain=0.25)  # type: ignore[arg-type]
    val = np.flatnonzero(store.splits == "val")
    if kind == "exclusive":
        val = val[(store.labels["red"][val] + store.labels["green"][val]) < 2]
    seen = model.features(store, val)
    certain = _table(classifier.answers(seen), classifier.labels, "certain").astype(bool)
    table = classifier.head.abstention
    assert table is not None
    for column in range(certain.shape[1]):
        place = 0 if kind == "exclusive" else column
        coverage = certain[:, column].mean()
        assert coverage == pytest.approx(table.coverages[place, 25])
        assert 0.75 <= coverage < 0.85
    if kind == "exclusive":
        shares = classifier.probabilities(seen).max(axis=1)
        assert shares[certain[:, 0]].min() > shares[~certain[:, 0]].max()
        truth = np.where(store.labels["red"][val] == 1, 0, np.where(store.labels["green"][val] == 1, 1, 2))
        right = classifier.probabilities(seen).argmax(axis=1) == truth
        assert table.accuracies[0, 25] == pytest.approx(right[certain[:, 0]].mean())
    else:
        found, truth = classifier.head.found(classifier.scores(seen))[:, 0], store.labels["red"][val] == 1
        rates = [(found == truth)[certain[:, 0] & (truth == side)].mean() for side in (True, False)]
        assert table.accuracies[0, 25] == pytest.approx(np.mean(rates))
    everything = classifier.abstaining(0.0)
    assert _table(everything.answers(seen), classifier.labels, "certain").all()


def test_saved__gives_the_same_answers(
    model: Model, store: Store, features: dict[str, NDArray], tmp_path: Path
) -> None:
    made: list[Classifier] = [
        zero_shot_classifier(model, ["red", "green"], kind="independent", calibration=store, abstain=0.2),
        zero_shot_classifier(model, ["red", "green", "normal"], kind="independent"),
        zero_shot_classifier(model, ["red", "green", "normal"], calibration=store),
    ]
    for number, classifier in enumerate(made):
        classifier.save(tmp_path / str(number))
        again = read_classifier(tmp_path / str(number), model)
        assert again.answers(features) == classifier.answers(features)
        assert again.head.about == classifier.head.about
        assert not list((tmp_path / str(number)).glob("*.p*kl*"))
