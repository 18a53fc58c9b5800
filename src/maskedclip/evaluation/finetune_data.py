"""Batches for fine-tuning: what a step sees is a pure function of (seed, step).  B images, S pixels on a side."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskedclip import randomness
from maskedclip.data import transforms
from maskedclip.data.store import Store
from maskedclip.data.workers import worker_options
from maskedclip.errors import UserError
from maskedclip.evaluation.finetune_settings import FineTuneSettings


@dataclass(frozen=True)
class TrainingBatch:
    """What a step learns from.

    places: of the images among the training rows, int64 (B,).  image: uint8 (B, 3, S, S).  colour: factors of the
    colour jitter, (B, 3); None without jitter.
    """

    places: Tensor
    image: Tensor
    colour: Tensor | None


class TrainingSteps(Dataset[TrainingBatch]):
    """Item k is what step k learns from.

    Each pass takes the rows in a new order, whole batches only; with `shares` (m,) a pass draws m rows with
    replacement by these chances.
    """

    def __init__(
        self,
        store: Store,
        rows: NDArray[np.int64],
        shares: NDArray[np.float64] | None,
        settings: FineTuneSettings,
        size: int,
        seed: int,
    ) -> None:
        self.store, self.rows, self.shares = store, rows, shares
        self.settings, self.size, self.seed = settings, size, seed
        self.batch = min(settings.batch, len(rows))
        self.steps_per_epoch = len(rows) // self.batch
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self.steps_per_epoch * self.settings.epochs

    def places(self, step: int) -> NDArray[np.int64]:
        """Which training rows a step sees, (B,)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            random, count = randomness.generator(self.seed, epoch), len(self.rows)
            drawn = random.permutation(count) if self.shares is None else random.choice(count, count, p=self.shares)
            self._order = (epoch, drawn)
        return self._order[1][place * self.batch : (place + 1) * self.batch]

    def __getitem__(self, step: int) -> TrainingBatch:
        """Read and augment the images of a step."""
        places = self.places(step)
        rows = self.rows[places]
        # A row drawn twice in a step is augmented in two ways.
        samples = rows + len(self.store) * _earlier(rows)
        images = [self._image(row) for row in rows.tolist()]
        augmentation = transforms.draw_augmentation(
            randomness.sample_keys(self.seed, step, samples),
            np.asarray([image.shape[1] for image in images]),
            np.asarray([image.shape[2] for image in images]),
            np.asarray([self.settings.crop_scale] * len(images)),
            flip=self.settings.horizontal_flip,
            jitter=self.settings.colour_jitter,
        )
        return TrainingBatch(
            places=torch.from_numpy(places),
            image=transforms.crop_and_mirror(images, augmentation, self.size),
            colour=torch.from_numpy(augmentation.colour) if self.settings.colour_jitter else None,
        )

    def _image(self, row: int) -> Tensor:
        try:
            return self.store.image(row)
        except RuntimeError:
            raise UserError(
                f"store: the image of row {row} cannot be decoded; the store is damaged, curate it again"
            ) from None


def _earlier(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each row occurs before its place: (B,) -> (B,)."""
    return np.asarray([int((rows[:place] == row).sum()) for place, row in enumerate(rows)], np.int64)


def training_batches(steps: TrainingSteps) -> Iterator[TrainingBatch]:
    """All steps in order, prefetched by the settings' workers."""
    options = worker_options(steps.settings.workers)
    loader = DataLoader(steps, batch_size=None, sampler=range(len(steps)), **options)
    try:
        yield from loader
    except UserError as error:  # a worker's error arrives with its traceback in the message
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("maskedclip.errors.UserError: ")) from None


def patient_subset(store: Store, rows: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.bool_]:
    """At most `limit` of the rows, whole patients in a seeded order: bool (n,).  Smaller subsets lie in larger ones."""
    codes, names = store.patient_codes(rows)
    rank = np.empty(len(names), np.int64)
    rank[randomness.order(names, seed)] = np.arange(len(names))
    images = np.cumsum(np.bincount(rank[codes], minlength=len(names)))
    return images[rank[codes]] <= limit
