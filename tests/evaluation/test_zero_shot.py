import numpy as np
import pytest
from numpy.typing import NDArray

from maskedclip.data.prompts import prompts_for, prompts_for_class
from maskedclip.evaluation.tasks import Prediction, Task
from maskedclip.evaluation.zero_shot import SCALE, calibrated_zero_shot, class_embedding, zero_shot


def _encode(texts: list[str]) -> NDArray:
    """A unit vector for each text, a pure function of its letters."""
    rows = []
    for text in texts:
        vector = np.random.Generator(np.random.Philox(sum(text.encode()))).normal(size=6)
        rows.append(vector / np.linalg.norm(vector))
    return np.array(rows)


def _binary(name: str) -> Task:
    return Task(name=name, kind="binary", classes=(0, 1), truth=np.zeros(5, dtype=np.int64))


@pytest.fixture
def images() -> NDArray:
    rows = np.random.Generator(np.random.Philox(5)).normal(size=(5, 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _mean_of(prompts: list[str]) -> NDArray:
    mean = _encode(prompts).mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_class_embedding__is_the_unit_mean_of_unit_embeddings() -> None:
    embedding = class_embedding(lambda texts: 7 * _encode(texts), ["a", "bc", "d"])
    assert embedding == pytest.approx(_mean_of(["a", "bc", "d"]), abs=1e-6)


def test_zero_shot__finding_against_normal_and_normal_against_findings(images: NDArray) -> None:
    answers = zero_shot(images, {name: _binary(name) for name in ("glaucoma", "drusen", "normal")}, _encode)
    glaucoma, drusen, normal = (images @ _mean_of(prompts_for(name)) for name in ("glaucoma", "drusen", "normal"))
    assert answers["glaucoma"].scores == pytest.approx(glaucoma - normal, abs=1e-6)
    assert answers["normal"].scores == pytest.approx(normal - (glaucoma + drusen) / 2, abs=1e-6)
    assert (answers["glaucoma"].predicted == (glaucoma > normal)).all()
    healthy = answers["normal"].predicted == 1
    assert 0 < healthy.sum() < 5
    assert (healthy == ((answers["glaucoma"].predicted == 0) & (answers["drusen"].predicted == 0))).all()


def test_zero_shot__store_without_a_normal_label_and_with_nothing_else(images: NDArray) -> None:
    alone = zero_shot(images, {"glaucoma": _binary("glaucoma")}, _encode)["glaucoma"]
    difference = images @ (_mean_of(prompts_for("glaucoma")) - _mean_of(prompts_for("normal")))
    assert alone.scores == pytest.approx(difference, abs=1e-6)
    normal = zero_shot(images, {"healthy": _binary("healthy")}, _encode)["healthy"]
    assert np.argsort(normal.scores).tolist() == np.argsort(images @ _mean_of(prompts_for("normal"))).tolist()


def test_zero_shot__classes_by_softmax(images: NDArray) -> None:
    task = Task(name="dr_grade", kind="ordinal", classes=(0, 1, 4), truth=np.zeros(5, dtype=np.int64))
    answer = zero_shot(images, {"dr_grade": task}, _encode)["dr_grade"]
    embedded = np.stack([_mean_of(prompts_for_class("dr_grade", grade)) for grade in (0, 1, 4)])
    expected = np.exp(SCALE * images @ embedded.T)
    assert answer.scores == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-5)
    assert (answer.predicted == expected.argmax(axis=1)).all()


def test_zero_shot__prompts_of_the_user_replace_ours(images: NDArray) -> None:
    prompts = {"glaucoma": ["wide cup"], "healthy": ["all well"]}
    tasks = {name: _binary(name) for name in ("glaucoma", "healthy")}
    answers: dict[str, Prediction] = zero_shot(images, tasks, _encode, prompts=prompts)
    difference = images @ (_mean_of(["wide cup"]) - _mean_of(["all well"]))
    assert answers["glaucoma"].scores == pytest.approx(difference, abs=1e-6)
    assert answers["healthy"].scores == pytest.approx(-difference, abs=1e-6)


def test_calibrated_zero_shot__test_scores_are_those_of_zero_shot_and_labels_of_test_rows_unseen() -> None:
    generator = np.random.Generator(np.random.Philox(8))
    images = generator.normal(size=(90, 6))
    splits = np.repeat(["train", "val", "test"], 30)
    towards = images @ (_mean_of(prompts_for("glaucoma")) - _mean_of(prompts_for("normal")))
    truth = (towards + 0.5 * generator.normal(size=90) > 0).astype(np.int64)
    task = Task(name="glaucoma", kind="binary", classes=(0, 1), truth=truth)
    raw, calibrated = calibrated_zero_shot(images, {"glaucoma": task}, splits, _encode)
    alone = zero_shot(images[60:], {"glaucoma": task.on(splits == "test")}, _encode)
    assert (raw["glaucoma"].scores == alone["glaucoma"].scores).all()
    spoilt = Task(name="glaucoma", kind="binary", classes=(0, 1), truth=np.where(splits == "val", truth, 1 - truth))
    again = calibrated_zero_shot(images, {"glaucoma": spoilt}, splits, _encode)[1]["glaucoma"]
    first = calibrated["glaucoma"]
    assert isinstance(first, Prediction)
    assert isinstance(again, Prediction)
    assert (first.scores == again.scores).all()
    assert (np.argsort(first.scores) == np.argsort(raw["glaucoma"].scores)).all()
    assert 0 < first.scores.min() < first.scores.max() < 1


def test_calibrated_zero_shot__without_validation_says_so(images: NDArray) -> None:
    splits = np.full(5, "test")
    raw, calibrated = calibrated_zero_shot(images, {"glaucoma": _binary("glaucoma")}, splits, _encode)
    assert isinstance(raw["glaucoma"], Prediction)
    assert calibrated == {"glaucoma": "there is no validation split"}
