"""Step -> rows, a pure function of (seed, step): without replacement, resumable at any step at no cost.

The rows of a pool are shuffled anew for each pass; pass after pass they form one endless line, and step k takes
places [k B, (k+1) B) of it.  A rank takes its slice of the step's rows, so ranks see one global batch.
"""

from dataclasses import dataclass, replace

import numpy as np

from maskedclip import randomness
from maskedclip.data.loose_texts import LooseTexts, read_loose_texts
from maskedclip.data.store import Store
from maskedclip.errors import UserError
from maskedclip.recipe import Recipe

_PAIRED, _UNPAIRED, _LOOSE = 1, 2, 3


class EndlessShuffle:
    """The endless line of a pool's rows."""

    def __init__(self, rows: np.ndarray, seed: int, stream: int) -> None:
        self.rows = np.asarray(rows, np.int64)
        self.seed, self.stream = seed, stream
        self.length = len(rows)
        self._cached: tuple[int, np.ndarray] | None = None

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            words = np.random.SeedSequence([self.seed, self.stream, epoch])
            shuffled = self._draw(np.random.Generator(np.random.Philox(words)))
            self._cached = (epoch, shuffled)
        return self._cached[1]

    def _draw(self, random: np.random.Generator) -> np.ndarray:
        """The rows of one pass, int64 (length,)."""
        return random.permutation(self.rows)

    def take(self, start: int, count: int) -> np.ndarray:
        """Rows at places [start, start + count), int64 (count,)."""
        taken, n = [], self.length
        while count > 0:
            epoch, place = divmod(start, n)
            piece = self._shuffled(epoch)[place : place + count]
            taken.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(taken) if taken else np.empty(0, np.int64)


class DocumentShuffle(EndlessShuffle):
    """The endless line of a pool's rows in documents: each `images` places, from the first on, hold one patient's rows.

    What a patient has beyond a multiple of `images` fills further places together with that of others.  A pass is
    rounded up to whole documents by rows of its own that come twice.
    """

    def __init__(self, rows: np.ndarray, seed: int, stream: int, patients: np.ndarray, images: int) -> None:
        """patients: a number of each row's patient, int64 (n,)."""
        super().__init__(rows, seed, stream)
        self.patients, self.images = patients, images
        self.length = -(-len(rows) // images) * images

    def _draw(self, random: np.random.Generator) -> np.ndarray:
        order, place = random.permutation(len(self.rows)), random.permutation(int(self.patients.max()) + 1)
        order = order[np.argsort(place[self.patients[order]], kind="stable")]  # patient by patient
        begins = np.flatnonzero(np.diff(self.patients[order], prepend=-1))
        counts = np.diff(begins, append=len(order))
        within = np.arange(len(order)) - np.repeat(begins, counts)
        whole = within < np.repeat(counts // self.images * self.images, counts)
        filled = np.resize(np.concatenate([order[whole], order[~whole]]), self.length)  # begins again where it ends
        filled = filled.reshape(-1, self.images)
        return self.rows[filled[random.permutation(len(filled))].ravel()]


@dataclass(frozen=True)
class Pools:
    """Rows that a recipe trains on.

    paired, unpaired: row numbers, ascending, int64.  patients_with_text: kept, and in all.
    loose: texts without images.
    patients: a number of each paired row's patient, int64; None where the recipe reads no documents.
    """

    paired: np.ndarray
    unpaired: np.ndarray
    patients_with_text: tuple[int, int]
    loose: LooseTexts | None = None
    patients: np.ndarray | None = None

    def summary(self) -> str:
        """One line for a person."""
        kept, known = self.patients_with_text
        paired = f"{len(self.paired):,} paired images ({kept:,} of {known:,} patients)" if known else "no texts read"
        return f"{paired}, {len(self.unpaired):,} unpaired images"


def make_pools(store: Store, recipe: Recipe) -> Pools:
    """Split the training rows into paired and unpaired images, and read the texts without images.

    The text of `data.text_fraction` of the patients is kept: patients are ordered by a seeded hash, so a smaller
    share is contained in a larger one.  A row without a patient is its own patient.

    Raises:
        UserError: a pool that the recipe draws from is empty, or data.texts cannot be read.
    """
    check_kind(store, recipe)
    pools = replace(_image_pools(store, recipe), loose=loose_texts(recipe))
    if recipe.data.images_per_document > 1:
        return replace(pools, patients=store.patient_codes(pools.paired)[0])
    return pools


def check_kind(store: Store, recipe: Recipe) -> None:
    """Refuse a recipe of pictures on volumes, and the reverse.

    Raises:
        UserError: names the mend.
    """
    encoder, size = recipe.model.image_encoder, recipe.data.size
    if recipe.model.reads_volumes and store.kind != "volumes":
        raise UserError(
            f"--data: holds pictures, but model.image_encoder {encoder} reads volumes; make a store with "
            "`maskedclip curate-volumes`, or leave the volume recipe out"
        )
    if store.kind == "volumes" and not recipe.model.reads_volumes:
        raise UserError(
            f"--data: holds volumes, but model.image_encoder {encoder} reads pictures of {size} px; "
            "add --config volume_tiny, or make pictures with `maskedclip slices`"
        )
    if store.kind == "volumes" and recipe.data.colour_jitter:
        raise UserError("data.colour_jitter: volumes have no colours; give 0")


def loose_texts(recipe: Recipe) -> LooseTexts | None:
    """The texts without images that a recipe reads, where it reads any.

    Raises:
        UserError: they cannot be read.
    """
    data = recipe.data
    return None if data.texts is None else read_loose_texts(data.texts, data.texts_columns)


def _image_pools(store: Store, recipe: Recipe) -> Pools:
    rows = store.rows("train")
    if len(rows) == 0:
        raise UserError(
            "--data: the store has no training rows; put `train` or nothing into the manifest's column split"
        )
    if recipe.data.pool == "all":
        return Pools(np.empty(0, np.int64), rows, (0, 0))
    has_text = store.has_text[rows]
    if not has_text.any():
        raise UserError(
            "--data: no training row has a text, so there are no paired images; fill the manifest's column text, "
            "or train on images alone with --config mae"
        )
    with_text = rows[has_text]
    codes, names = store.patient_codes(with_text)
    count = max(1, round(recipe.data.text_fraction * len(names)))
    kept = np.zeros(len(names), bool)
    by_name = np.argsort(names, kind="stable")  # the order of equal hashes must not depend on that of the rows
    kept[by_name[randomness.order(names[by_name], recipe.seed)[:count]]] = True
    paired = has_text.copy()
    paired[has_text] = kept[codes]
    pools = Pools(rows[paired], rows[~paired], (count, len(names)))
    if recipe.data.pool == "paired":
        return Pools(pools.paired, np.empty(0, np.int64), pools.patients_with_text)
    if recipe.data.batch_unpaired > 0 and len(pools.unpaired) == 0:
        raise UserError(
            "--data: every training row has a text, so there are no unpaired images; add rows without text, keep the "
            "texts of a share of the patients with --data.text_fraction 0.25, or train with --config maskedclip_paired"
        )
    return pools


class StepSampler:
    """The rows of a step: paired images first, then unpaired ones; and its texts without images.

    Of a recipe that reads documents, paired rows of a patient follow each other.
    """

    def __init__(self, pools: Pools, recipe: Recipe) -> None:
        self.batch_paired, self.batch_unpaired = recipe.batch_sizes
        self._paired = EndlessShuffle(pools.paired, recipe.seed, _PAIRED)
        if pools.patients is not None:
            images = recipe.data.images_per_document
            self._paired = DocumentShuffle(pools.paired, recipe.seed, _PAIRED, pools.patients, images)
        self._unpaired = EndlessShuffle(pools.unpaired, recipe.seed, _UNPAIRED)
        self.batch_texts = recipe.data.batch_texts
        self._loose = EndlessShuffle(np.arange(len(pools.loose.texts) if pools.loose else 0), recipe.seed, _LOOSE)

    def rows(self, step: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Paired and unpaired rows that one of `world` ranks takes at a step, int64 (B_p / world,), (B_u / world,)."""
        slices = []
        for line, batch in ((self._paired, self.batch_paired), (self._unpaired, self.batch_unpaired)):
            share = batch // world
            slices.append(line.take(step * batch + rank * share, share))
        return slices[0], slices[1]

    def texts(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Places of the texts without images that one of `world` ranks takes at a step, int64 (N / world,)."""
        share = self.batch_texts // world
        return self._loose.take(step * self.batch_texts + rank * share, share)


def check_ranks(recipe: Recipe, world: int) -> None:
    """Refuse a batch that the ranks cannot share evenly.

    Raises:
        UserError: names the field and the nearest batch sizes that fit.
    """
    parts = recipe.training.micro_batches
    shares = world * parts
    images = recipe.data.images_per_document
    if images > 1 and recipe.batch_sizes[0] % (world * images):
        raise UserError(
            f"data.batch_paired: {recipe.batch_sizes[0]} does not divide over {world} ranks of documents of {images} "
            f"images (data.images_per_document); give a multiple of {world * images}"
        )
    sizes = (*recipe.batch_sizes, recipe.data.batch_texts)
    for name, batch in zip(("batch_paired", "batch_unpaired", "batch_texts"), sizes, strict=True):
        if batch % shares:
            lower, upper = batch // shares * shares, (batch // shares + 1) * shares
            over = f"{world} ranks" + (f" x {parts} training.micro_batches" if parts > 1 else "")
            raise UserError(f"data.{name}: {batch} does not divide over {over}; give {lower or upper} or {upper}")
