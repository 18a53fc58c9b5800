"""Steps -> batches of uint8 images and token ids.  An item is a whole step, so workers cannot change what it holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskedclip import randomness
from maskedclip.data import transforms, transforms_volume
from maskedclip.data.label_columns import column_names, label_columns
from maskedclip.data.loose_texts import LooseTexts
from maskedclip.data.pairs import RetrievedTexts, retrieved_fields
from maskedclip.data.sampler import Pools, StepSampler
from maskedclip.data.sentences import choose_sentences
from maskedclip.data.store import Store
from maskedclip.data.text import normalise_text
from maskedclip.data.tokens import distinct_tokens
from maskedclip.data.workers import worker_options
from maskedclip.errors import UserError
from maskedclip.models.text import TextTokenizer
from maskedclip.recipe import Recipe

_TRIES = 100  # neighbours of a damaged image, before the store is given up
_LOOSE_PLACE = 1 << 40  # above any row of a store: a text without image has keys that no image has


@dataclass
class HostBatch:
    """One rank's samples of a step, paired images first.

    step: from 0.  rows: of the store, int64 (B,).  image: uint8 (B, 3, S, S), or volumes, float16 (B, C, S, S, S).
    keys: int64 (B,).  num_paired: B_p.
    colour: factors of the colour jitter, (B, 3); None without jitter.
    text_ids, text_mask: the distinct texts, int64 (U, T), U at most B_p (some rows may be padding), T the longest's
    tokens; text_index: which of them belongs to each paired image, int64 (B_p,); text_key: int64 (B_p,), equal where
    the normalised texts are equal; None where the recipe reads no texts.
    document, labels, loose_*, retrieved_*, modality: as in `objectives.base.Batch`; None where none is asked for.
    substituted: samples that could not be decoded; the next row of the same pool is there in their place, with all that
    belongs to it.
    """

    step: int
    rows: Tensor
    image: Tensor
    keys: Tensor
    num_paired: int
    colour: Tensor | None = None
    text_ids: Tensor | None = None
    text_mask: Tensor | None = None
    text_index: Tensor | None = None
    text_key: Tensor | None = None
    document: Tensor | None = None
    labels: Tensor | None = None
    loose_ids: Tensor | None = None
    loose_mask: Tensor | None = None
    retrieved_ids: Tensor | None = None
    retrieved_mask: Tensor | None = None
    retrieved_index: Tensor | None = None
    retrieved_score: Tensor | None = None
    modality: Tensor | None = None
    substituted: int = 0

    def pin_memory(self) -> "HostBatch":
        """Pin all tensors, for asynchronous copies to a device."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.pin_memory())
        return self


class StepDataset(Dataset[HostBatch]):
    """Item k is what one rank sees at step k: a pure function of (seed, k, sample)."""

    def __init__(
        self, store: Store, pools: Pools, recipe: Recipe, tokenizer: TextTokenizer | None, rank: int = 0, world: int = 1
    ) -> None:
        self.store, self.recipe, self.tokenizer = store, recipe, tokenizer
        self.rank, self.world = rank, world
        self.sampler, self.pools, self.loose = StepSampler(pools, recipe), pools, pools.loose
        columns = column_names(store, recipe.data.labels)
        self.patients = None
        if recipe.data.images_per_document > 1:
            self.patients = store.patient_codes(np.arange(len(store)))[0]
        self.labels = torch.from_numpy(label_columns(store, columns)) if columns else None
        pairs = recipe.data.pairs
        self.retrieved = None if pairs is None else RetrievedTexts.read(Path(pairs), store)

    def __len__(self) -> int:
        return self.recipe.training.steps

    def __getitem__(self, step: int) -> HostBatch:
        """Read, decode and augment the samples of a step."""
        wanted = self.sampler.rows(step, self.rank, self.world)
        decoded = [
            [self._decode(row, pool) for row in rows.tolist()]
            for rows, pool in zip(wanted, (self.pools.paired, self.pools.unpaired), strict=True)
        ]
        paired, unpaired = (np.asarray([row for row, _ in found], np.int64) for found in decoded)
        rows = np.concatenate([paired, unpaired])
        keys = randomness.sample_keys(self.recipe.seed, step, rows)
        data = self.recipe.data
        image, colour = self._augment([image for found in decoded for _, image in found], keys, len(paired))
        modality, names = self.store.modalities
        batch = HostBatch(
            step=step,
            rows=torch.from_numpy(rows),
            image=image,
            keys=torch.from_numpy(keys),
            num_paired=len(paired),
            colour=torch.from_numpy(colour) if data.colour_jitter else None,
            modality=torch.from_numpy(modality[rows]) if len(names) > 1 else None,
            substituted=int((rows != np.concatenate(wanted)).sum()),
        )
        if self.tokenizer is not None and len(paired):
            texts = [
                choose_sentences(self.store.text(row) or "", data.sentences, key)
                for row, key in zip(paired.tolist(), keys.tolist(), strict=False)
            ]
            self._add_texts(batch, texts, self.tokenizer)
            if self.patients is not None:
                batch.document = torch.from_numpy(documents(self.patients[paired], data.images_per_document))
        if self.tokenizer is not None and self.loose is not None:
            places = self.sampler.texts(step, self.rank, self.world)
            own_keys = randomness.sample_keys(self.recipe.seed, step, places + _LOOSE_PLACE)
            self._add_loose(batch, self.loose, places, own_keys, self.tokenizer)
        if self.labels is not None:
            batch.labels = self.labels[batch.rows]
        if self.retrieved is not None and self.tokenizer is not None:
            found = retrieved_fields(self.retrieved, rows, keys, len(paired), self.tokenizer, data.sentences)
            vars(batch).update(found)
        return batch

    def _augment(self, images: list[Tensor], keys: np.ndarray, paired: int) -> tuple[Tensor, np.ndarray]:
        """Cut and mirror: uint8 (B, 3, S, S) with factors of its colours (B, 3), or float16 (B, C, S, S, S)."""
        data = self.recipe.data
        if self.store.kind == "volumes":
            shapes = np.asarray([image.shape[1:] for image in images])
            placement = transforms_volume.draw_placement(keys, shapes, data.size, flip=data.horizontal_flip)
            return transforms_volume.crop_and_mirror(images, placement, data.size), np.ones((len(images), 3))
        augmentation = transforms.draw_augmentation(
            keys,
            np.asarray([image.shape[1] for image in images]),
            np.asarray([image.shape[2] for image in images]),
            np.asarray([data.crop_scale_paired] * paired + [data.crop_scale_unpaired] * (len(images) - paired)),
            flip=data.horizontal_flip,
            jitter=data.colour_jitter,
        )
        return transforms.crop_and_mirror(images, augmentation, data.size), augmentation.colour

    def _add_loose(
        self, batch: HostBatch, loose: LooseTexts, places: np.ndarray, keys: np.ndarray, tokenizer: TextTokenizer
    ) -> None:
        """Tokenise texts without images, tokens in eights."""
        texts = [
            choose_sentences(loose.texts[place], self.recipe.data.sentences, key)
            for place, key in zip(places.tolist(), keys.tolist(), strict=True)
        ]
        ids, mask = tokenizer(texts)
        tokens = min(tokenizer.length, -(-int(mask.sum(dim=1).max()) // 8) * 8)
        batch.loose_ids, batch.loose_mask = ids[:, :tokens], mask[:, :tokens]

    @staticmethod
    def _add_texts(batch: HostBatch, texts: list[str], tokenizer: TextTokenizer) -> None:
        """Tokenise each distinct text once."""
        batch.text_ids, batch.text_mask, batch.text_index = distinct_tokens(texts, tokenizer)
        batch.text_key = torch.tensor([randomness.text_key(normalise_text(text)) for text in texts])

    def _decode(self, row: int, pool: np.ndarray) -> tuple[int, Tensor]:
        """Decode a row, or the next decodable one of its pool: which, and its pixels (P16, P25).

        Another pool's row, or one of another split, would be a false pair or a leak.

        Args:
            row: wanted.
            pool: rows that may be in its place, ascending, int64.
        """
        place = int(np.searchsorted(pool, row))
        tries = min(_TRIES, len(pool))
        for substitute in np.take(pool, range(place, place + tries), mode="wrap").tolist():
            try:
                return substitute, self.store.image(substitute)
            except RuntimeError:
                continue
        raise UserError(
            f"--data: {tries} images from row {row} on cannot be decoded; the store is damaged, curate it again"
        )


def documents(patients: np.ndarray, images: int) -> np.ndarray:
    """Number of the document of each paired image, int64 (b,), from the numbers of their patients (b,).

    Of each `images` places, from the first on, those that follow each other and are one patient's make a document: a
    rank's share, a multiple of `images`, cuts none.
    """
    begins = np.ones(len(patients), bool)
    begins[1:] = patients[1:] != patients[:-1]
    begins[::images] = True
    return np.cumsum(begins) - 1


def step_loader(dataset: StepDataset, start: int, stop: int) -> Iterator[HostBatch]:
    """Batches of steps start .. stop - 1 in order, prefetched by the recipe's workers."""
    workers = min(dataset.recipe.data.workers, max(stop - start, 1))
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(start, stop),
        pin_memory=torch.cuda.is_available(),
        **worker_options(workers),
    )
    try:
        yield from loader
    except UserError as error:  # a worker's error arrives with its traceback in the message
        raise UserError(str(error).strip().splitlines()[-1].removeprefix("maskedclip.errors.UserError: ")) from None
