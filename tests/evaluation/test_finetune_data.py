"""What a step of fine-tuning sees is a pure function of (seed, step)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskedclip.data.store import Store, open_store
from maskedclip.errors import UserError
from maskedclip.evaluation.finetune_data import TrainingSteps, patient_subset, training_batches
from tests.evaluation.finetune_case import settings
from tests.stores import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(make_store(tmp_path_factory.mktemp("finetune") / "store"))


def _steps(store: Store, seed: int = 0, shares: np.ndarray | None = None, **changes: Any) -> TrainingSteps:
    return TrainingSteps(store, np.arange(10, 37), shares, settings(**changes), 32, seed)


def test_training_steps__each_pass_takes_whole_batches_of_all_rows(store: Store) -> None:
    steps = _steps(store, epochs=3)
    assert (steps.steps_per_epoch, len(steps)) == (3, 9)
    passes = [np.concatenate([steps.places(step) for step in range(start, start + 3)]) for start in (0, 3, 6)]
    for places in passes:
        assert len(np.unique(places)) == 24  # 3 of the 27 wait for the next pass
        assert places.max() < 27
    assert not np.array_equal(passes[0], passes[1])


def test_training_steps__are_a_pure_function_of_seed_and_step(store: Store) -> None:
    steps, again = _steps(store), _steps(store)
    later, earlier = again[5], again[0]  # in another order
    for batch, expected in ((steps[0], earlier), (steps[5], later)):
        assert torch.equal(batch.image, expected.image)
        assert torch.equal(batch.places, expected.places)
        assert batch.colour is not None
        assert expected.colour is not None
        assert torch.equal(batch.colour, expected.colour)
    assert not torch.equal(steps[0].places, _steps(store, seed=1)[0].places)


def test_training_steps__draw_by_share_and_augment_repeats_apart(store: Store) -> None:
    shares = np.zeros(27)
    shares[[3, 5]] = 0.75, 0.25
    steps = _steps(store, shares=shares, epochs=40)
    drawn = np.concatenate([steps.places(step) for step in range(len(steps))])
    assert set(drawn.tolist()) == {3, 5}
    assert (drawn == 3).mean() == pytest.approx(0.75, abs=0.05)
    batch = steps[0]
    same = batch.image[batch.places == 3]
    assert len(same) > 1
    assert not torch.equal(same[0], same[1])


def test_training_batches__workers_change_nothing_and_a_damaged_image_is_named(store: Store) -> None:
    alone, helped = (list(training_batches(_steps(store, epochs=1, workers=count))) for count in (0, 1))
    assert len(alone) == len(helped) == 3
    for mine, theirs in zip(alone, helped, strict=True):
        assert torch.equal(mine.image, theirs.image)

    class Damaged(Store):
        def image(self, row: int) -> torch.Tensor:
            raise RuntimeError("no image")

    with pytest.raises(UserError, match=r"the image of row \d+ cannot be decoded"):
        list(training_batches(_steps(Damaged(store.folders))))


def test_patient_subset__whole_patients_nested(store: Store) -> None:
    rows = np.arange(4, 40)
    smaller, larger = (patient_subset(store, rows, limit, 0) for limit in (9, 20))
    assert (smaller.sum(), larger.sum()) == (8, 20)
    assert (larger | ~smaller).all()
    patients = store.patients[rows]
    assert not set(patients[larger]) & set(patients[~larger])
    assert not np.array_equal(larger, patient_subset(store, rows, 20, 1))


def test_patient_subset__rows_without_patient_stand_alone(tmp_path: Path) -> None:
    class Nobody(Store):
        def patient_codes(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.arange(len(rows)), np.asarray([f"row {row}" for row in rows], object)

    alone = Nobody([make_store(tmp_path / "store")])
    assert patient_subset(alone, np.arange(20), 7, 0).sum() == 7
