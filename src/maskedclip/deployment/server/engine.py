"""From uploads to answers: decoded in a few threads, read by the models in one, within one deadline.

A photograph has a place in the queue from the end of its upload to its answer; its threads keep the place if the
client goes away earlier.
"""

import asyncio
import base64
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.data.imaging import Transform
from maskedclip.data.prompts import NORMAL, prompts_for
from maskedclip.deployment.maps import similarity_maps
from maskedclip.deployment.model import Model
from maskedclip.deployment.search import Hit, SearchIndex, compose
from maskedclip.deployment.search_filter import FilterError, parse_filter
from maskedclip.deployment.server import photographs
from maskedclip.deployment.server.errors import Refusal, unavailable, without_paths
from maskedclip.deployment.server.photographs import Header
from maskedclip.deployment.server.queue import Places, Queue, Work, late
from maskedclip.deployment.server.served import Served
from maskedclip.deployment.server.settings import Settings
from maskedclip.errors import UserError
from maskedclip.models.saving import Preprocessing

T = TypeVar("T")
_DECODERS = min(4, os.cpu_count() or 1)
_INFLATED = 8  # times the size of a file: what a DICOM file that is deflated as a whole may unpack to


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One file as it came."""

    name: str
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Ready:
    """One photograph for one model: its input uint8 (3, S, S), the way there, and what was done."""

    name: str
    header: Header
    size: tuple[int, int]
    transform: Transform
    pixels: Tensor
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case of the index with its thumbnail, JPEG."""

    hit: Hit
    thumbnail: bytes | None


class Engine:
    """Models, index and threads of one server.

    Args:
        served: at least one model.
        index, indexed: what can be searched, and the model whose features it holds.
        shown: columns of the index that callers see and may filter by.
        settings: limits.
    """

    def __init__(
        self,
        served: Sequence[Served],
        settings: Settings,
        *,
        index: SearchIndex | None = None,
        indexed: Served | None = None,
        shown: Sequence[str] = (),
        watch: Callable[[str, int], None] = lambda kind, size: None,
    ) -> None:
        self.served = {one.name: one for one in served}
        self.index, self.indexed, self.settings = index, indexed, settings
        self.shown = [name for name in shown if index is not None and name in index.columns]
        if index is not None:
            index.pictures()  # opened here, before threads ask at once
        self.secrets = [str(one.folder.resolve()) for one in served]
        if index is not None:
            self.secrets += [str(index.path.resolve()), *([str(index.source)] if index.source else [])]
        kinds: dict[str, Work] = {"search": self._search}
        for one in served:
            kinds |= _work_of(one)
        self.queue = Queue(kinds, batch=settings.batch, places=settings.queue, watch=watch)
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="maskedclip-decode")

    def close(self) -> None:
        """End the threads."""
        self.queue.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def model(self, name: str | None) -> Served:
        """A model by name; the first, if none is given.

        Raises:
            Refusal: 404, there is none of this name.
        """
        if not name:
            return next(iter(self.served.values()))
        if name not in self.served:
            raise Refusal(404, "unknown_model", f"there is no such model; there are {', '.join(self.served)}")
        return self.served[name]

    async def findings(self, one: Served, uploads: Sequence[Upload]) -> tuple[list[Ready], list[list[Any]]]:
        """Answers of a model's classifier for each photograph.

        Raises:
            Refusal: the model has none; or as for every photograph.
        """
        classifier = one.classifier
        if classifier is None:
            raise unavailable("this model was trained without texts, and no head was given: it has no findings")
        own = classifier.model is not one.model
        kind = f"{'head' if own else 'features'}:{one.name}"
        ready, features = await self._read(classifier.model, kind, uploads)
        return ready, [classifier.answers({name: value[None] for name, value in row.items()})[0] for row in features]

    async def features(self, one: Served, uploads: Sequence[Upload]) -> tuple[list[Ready], list[dict[str, NDArray]]]:
        """All outputs of a model for each photograph, float32 (D,) or (E,)."""
        return await self._read(one.model, f"features:{one.name}", uploads)

    async def map(self, one: Served, upload: Upload, text: str, *, contrast: bool) -> tuple[Ready, NDArray[np.float32]]:
        """Cosines of a photograph's patches with a text (h, w); with contrast, less those with a normal fundus."""
        self._needs_texts(one)
        deadline = self._deadline()
        with self.queue.admit(1) as places:
            (ready,) = await self._ready([upload], one.model.preprocessing, places, deadline)
            kind = f"map:{one.name}" if contrast else f"plain_map:{one.name}"
            (found,) = await self._ask(kind, [(ready.pixels, text)], deadline)
        return ready, found

    async def preview(self, upload: Upload) -> bytes:
        """A photograph as PNG, at most 1,024 px on its longer side."""
        with self.queue.admit(1) as places:
            return await self._thread(lambda: photographs.preview(self._decode(upload)), places, self._deadline())

    async def similar(
        self, upload: Upload | None, text: str | None, *, weight: float, where: str | None, top: int
    ) -> list[Case]:
        """Cases of the index that are nearest to a photograph, a text, or both."""
        if self.index is None or self.indexed is None:
            raise unavailable("this server was started without --index: there are no cases to search")
        self._check_filter(where)
        one, deadline = self.indexed, self._deadline()
        if text is not None:
            self._needs_texts(one)
        with self.queue.admit(1) as places:
            image = words = None
            if upload is not None:
                ready = await self._ready([upload], one.model.preprocessing, places, deadline)
                (features,) = await self._ask(f"features:{one.name}", [ready[0].pixels], deadline)
                image = features[self.index.output]
            if text is not None:
                (words,) = await self._ask(f"texts:{one.name}", [text], deadline)
            query = self._users(lambda: compose(image, words, weight))
            (hits,) = await self._ask("search", [(query, top, where)], deadline)
            found = [self._thread(lambda hit=hit: self._thumbnail(hit), places, deadline) for hit in hits]
            thumbnails = await asyncio.gather(*found)
        return [Case(hit=hit, thumbnail=picture) for hit, picture in zip(hits, thumbnails, strict=True)]

    async def _read(
        self, model: Model, kind: str, uploads: Sequence[Upload]
    ) -> tuple[list[Ready], list[dict[str, NDArray]]]:
        deadline = self._deadline()
        with self.queue.admit(len(uploads)) as places:
            ready = await self._ready(uploads, model.preprocessing, places, deadline)
            return ready, await self._ask(kind, [one.pixels for one in ready], deadline)

    async def _ready(
        self, uploads: Sequence[Upload], preprocessing: Preprocessing, places: Places, deadline: float
    ) -> list[Ready]:
        work = [
            self._thread(lambda upload=upload: self._prepare(upload, preprocessing), places, deadline)
            for upload in uploads
        ]
        return list(await asyncio.gather(*work))

    def _decode(self, upload: Upload) -> photographs.Photograph:
        return photographs.decode(
            upload.data,
            upload.name,
            max_pixels=self.settings.max_pixels,
            max_inflated=self.most_inflated(upload.data),
        )

    def most_inflated(self, data: bytes) -> int:
        """Bytes that an upload may unpack to, where it is compressed as a whole."""
        return min(max(_INFLATED * len(data), self.settings.max_bytes), 1 << 30)

    def _prepare(self, upload: Upload, preprocessing: Preprocessing) -> Ready:
        photograph = self._decode(upload)
        pixels, transform, notes = photographs.prepare(photograph, preprocessing)
        return Ready(
            name=upload.name,
            header=photograph.header,
            size=photograph.size,
            transform=transform,
            pixels=pixels,
            notes=notes,
        )

    def _thumbnail(self, hit: Hit) -> bytes | None:
        assert self.index is not None
        try:
            return self.index.pictures().thumbnail(hit.row)
        except (UserError, OSError):
            return None

    def _search(self, items: Sequence[Any]) -> list[list[Hit]]:
        assert self.index is not None
        groups: dict[str | None, list[int]] = {}
        for place, (_, _, where) in enumerate(items):
            groups.setdefault(where, []).append(place)
        found: list[list[Hit]] = [[] for _ in items]
        for where, members in groups.items():
            top = max(items[place][1] for place in members)
            hits = self.index.search(np.stack([items[place][0] for place in members]), top, where)
            for place, listed in zip(members, hits, strict=True):
                found[place] = listed[: items[place][1]]
        return found

    async def _thread(self, work: Callable[[], T], places: Places, deadline: float) -> T:
        """Work in one of the decoding threads; the places stay taken until it has really ended."""
        future = places.hold(self._decoders.submit(work))
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            future.cancel()
            raise late() from None

    async def _ask(self, kind: str, items: Sequence[Any], deadline: float) -> list[Any]:
        try:
            return await self.queue.ask(kind, items, deadline)
        except UserError as error:
            raise self._refused(error) from None

    def _users(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except UserError as error:
            raise self._refused(error) from None

    def _refused(self, error: UserError) -> Refusal:
        return Refusal(422, "unusable", without_paths(str(error), self.secrets))

    def _check_filter(self, where: str | None) -> None:
        """A filter may only ask for columns that are shown: else its answers would tell of the others."""
        if where is None:
            return
        try:
            parse_filter(where, self.shown)
        except FilterError as error:
            message = str(error).replace("--where: ", "filter: ").replace("; see docs/search.md", "")
            raise Refusal(422, "filter", message) from None

    def _needs_texts(self, one: Served) -> None:
        if not one.model.has_text:
            raise unavailable("this model was trained without texts and reads none")

    def _deadline(self) -> float:
        return time.monotonic() + self.settings.timeout


def _work_of(one: Served) -> dict[str, Work]:
    """What can be asked of one model; all run in the one thread of the queue."""

    def features(model: Model) -> Work:
        def run(images: Sequence[Tensor]) -> list[Mapping[str, NDArray]]:
            found = model.encode_images(torch.stack(list(images)))
            return [{name: values[place] for name, values in found.items()} for place in range(len(images))]

        return run

    def maps(against: list[str]) -> Work:
        def run(items: Sequence[tuple[Tensor, str]]) -> list[NDArray[np.float32]]:
            texts = list(dict.fromkeys(text for _, text in items))
            sentences = [_sentences(one, text) for text in texts]
            images = torch.stack([image for image, _ in items])
            found = similarity_maps(one.model, images, sentences, against=against)
            return [found[place, texts.index(text)] for place, (_, text) in enumerate(items)]

        return run

    def texts(items: Sequence[str]) -> list[NDArray]:
        return list(one.model.encode_text(list(items)))

    kinds: dict[str, Work] = {f"features:{one.name}": features(one.model)}
    if one.classifier is not None:
        kinds[f"head:{one.name}"] = features(one.classifier.model)
    if one.model.has_text:
        kinds[f"texts:{one.name}"] = texts
        kinds[f"map:{one.name}"], kinds[f"plain_map:{one.name}"] = maps(prompts_for(NORMAL)), maps([])
    return kinds


def _sentences(one: Served, text: str) -> str | list[str]:
    """A label stands for its sentences, anything else for itself."""
    return prompts_for(text) if one.classifier is not None and text in one.classifier.labels else text


def base64_text(data: bytes) -> str:
    """Bytes for JSON."""
    return base64.b64encode(data).decode()
