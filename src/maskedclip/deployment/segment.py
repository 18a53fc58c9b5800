"""Findings in place: from a photograph and labels to maps, masks and regions in the photograph's own pixels.

T labels, H x W pixels of a photograph, S on a side of the square that the model reads, k tiles on a side, h x w patches
of the map.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskedclip.data.imaging import Transform, standardise
from maskedclip.data.prompts import is_normal
from maskedclip.data.transforms import resize
from maskedclip.deployment.classifier import Classifier
from maskedclip.deployment.learned_prompts import LearnedPrompts
from maskedclip.deployment.maps import contribution_maps, magnified, scores_of
from maskedclip.deployment.maps_dense import dense_features
from maskedclip.deployment.maps_target import Output, Target, label_prompts, text_directions
from maskedclip.deployment.model import Model
from maskedclip.deployment.overlay import to_photograph, visible_part
from maskedclip.deployment.proposals import COUNT, Proposer, check_count, propose
from maskedclip.deployment.regions import Region, masks_of, named_regions, propose_regions, region_maps, region_scores
from maskedclip.deployment.relevance import relevance_maps
from maskedclip.deployment.zero_shot_segmentation import WEIGHT, ProposalSegmenter
from maskedclip.errors import UserError

Method = Literal["similarity", "contribution", "regions", "relevance", "rollout", "removal", "proposals"]
METHODS: tuple[str, ...] = get_args(Method)
_TILED = ("similarity", "regions", "proposals")
_CELLS = 256  # on a side: where a threshold is chosen
_BINS = 256


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to look for, and how.

    labels: names or sentences.  method: see `docs/segment.md`.  against_normal: maps are differences to a normal
    fundus.  prompts: sentences of the user's for some labels, or for `normal`.  size: pixels that the model reads.
    tiles: how many lie side by side, each read as a whole picture; several numbers are averaged.  threshold: of masks,
    in the map's units, or of regions the least margin over normal; None: Otsu's, and 0 for regions.  mixed: of
    similarity and regions, see `projected_patches`.
    """

    labels: Sequence[str]
    method: Method = "similarity"
    against_normal: bool = False
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    size: int | None = None
    tiles: Sequence[int] = (1,)
    threshold: float | None = None
    mixed: bool = False
    learned: LearnedPrompts | None = None
    proposals: int = COUNT
    proposer: Proposer = "kmeans"
    ensemble_weight: float = WEIGHT


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What was found in one photograph.

    picture: RGB (H, W, 3).  transform: from it to the model's square.  maps: (T, h, w) over the square.  scores: of the
    whole photograph (T,).  visible: bool (S, S), the part of the square that shows something.  thresholds: (T,).
    regions: with the method of that name, non-overlapping, best first; else None.  exclusive: a pixel belongs to one
    label at most, that with the highest value.  background: what a value has to beat as well, (h, w).
    """

    picture: NDArray[np.uint8]
    transform: Transform
    maps: NDArray[np.float32]
    scores: NDArray[np.float32]
    visible: NDArray[np.bool_]
    thresholds: NDArray[np.float64]
    labels: tuple[str, ...]
    regions: list[Region] | None = None
    exclusive: bool = False
    background: NDArray[np.float32] | None = None
    _seen: dict[tuple[int, int] | None, NDArray[np.bool_]] = field(default_factory=dict)
    _winners: dict[tuple[int, int] | None, NDArray[np.int16]] = field(default_factory=dict)

    def inside(self, place: int) -> NDArray[np.float32]:
        """Values of a map on the visible part, (n,)."""
        side = len(self.visible)
        return magnified(self.maps[place], side, side)[self.visible]

    def map_on_photograph(self, place: int, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """A map in the photograph's pixels (H, W), or at `size`; NaN where the model saw nothing of it."""
        values = to_photograph(self.maps[place], self.transform, size)
        values[~self.visible_on_photograph(size)] = np.nan
        return values

    def mask_on_photograph(self, place: int, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """Where a label lies, bool (H, W), or at `size`."""
        seen = self.visible_on_photograph(size)
        if self.exclusive:
            return (self._winner(size) == place) & seen
        if self.regions is None:
            return (np.nan_to_num(self.map_on_photograph(place, size), nan=-np.inf) > self.thresholds[place]) & seen
        mask = np.zeros(seen.shape, dtype=bool)
        for region in self.regions:
            if region.label == self.labels[place]:
                mask |= self.region_on_photograph(region, size)
        return mask

    def _winner(self, size: tuple[int, int] | None) -> NDArray[np.int16]:
        """The label whose value is the highest and above the floor, int16 (H, W), or at `size`; -1: none."""
        if size not in self._winners:
            best = (
                np.full(self.visible_on_photograph(size).shape, self.thresholds[0], np.float32)
                if self.background is None
                else to_photograph(self.background, self.transform, size, outside=np.inf)
            )
            winner = np.full(best.shape, -1, np.int16)
            for place, values in enumerate(self.maps):
                grown = to_photograph(values, self.transform, size, outside=-np.inf)
                higher = grown > best
                best, winner = np.where(higher, grown, best), np.where(higher, np.int16(place), winner)
            self._winners[size] = winner
        return self._winners[size]

    def region_on_photograph(self, region: Region, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """A region, bool (H, W), or at `size`."""
        share = to_photograph(region.mask.astype(np.float32), self.transform, size, outside=0)
        return (share > 0.5) & self.visible_on_photograph(size)

    def visible_on_photograph(self, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """The part of the photograph that the model saw, bool (H, W), or at `size`."""
        if size not in self._seen:
            share = to_photograph(self.visible.astype(np.float32), self.transform, size, outside=0)
            self._seen[size] = share > 0.5
        return self._seen[size]


class Segmenter:
    """Finds labels in photographs with one model and one way of looking.

    classifier: a saved head whose labels are explained; None compares with texts.
    """

    def __init__(self, model: Model, settings: Settings, classifier: Classifier | None = None) -> None:
        _check(settings, model, classifier)
        reader = model if classifier is None or settings.method == "proposals" else classifier.model
        self.model = reader if settings.size is None else reader.at_size(settings.size, "--size")
        self.settings, self.tiles = settings, sorted(set(settings.tiles))
        self.side = self.model.preprocessing.size * self.tiles[-1]
        self.mean: NDArray[np.float32] | None = None
        self._plain = self._normal = np.zeros((0, 0), np.float32)
        self._namer: ProposalSegmenter | None = None
        if classifier is not None and settings.method != "proposals":
            self.labels, self.targets = _head_targets(classifier, settings.labels)
            return
        self.labels = tuple(settings.labels) or (classifier.head.labels if classifier is not None else ())
        plain, normal, directions = self._directions()
        self.targets = [Target(output="projected", direction=direction) for direction in directions]
        if settings.method == "regions":
            self._plain, self._normal = plain, normal[None]
        if settings.method == "proposals":
            self._namer = ProposalSegmenter(
                self.model,
                self.labels,
                plain,
                None if any(map(is_normal, self.labels)) else normal,
                head=classifier,
                weight=settings.ensemble_weight,
            )

    def _directions(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Of the labels (T, E) and of a normal fundus (E,), unit length; and what maps are made with (T, E)."""
        learned = self.settings.learned
        if learned is not None:
            found = learned.directions(self.model, [*self.labels, "normal fundus"])
            plain, normal = found[:-1], found[-1]
            return plain, normal, plain - normal if self.settings.against_normal else plain
        ensembles, opposite = label_prompts(self.labels, self.settings.prompts)
        against = opposite if self.settings.against_normal else ()
        directions = text_directions(self.model, ensembles, against)
        if self.settings.method not in ("regions", "proposals"):
            return directions, np.zeros(0, np.float32), directions
        return text_directions(self.model, ensembles), text_directions(self.model, [opposite])[0], directions

    def compare_with(self, pictures: Iterable[NDArray[np.uint8]], *, prepared: bool = False) -> int:
        """Subtract the mean map of these photographs from all maps from now on; returns how many they are.

        What a map shows in every photograph, such as the rim of the field, cancels.  Only places are compared, so the
        photographs should be framed alike, as fundus photographs are after the crop.
        """
        if self._namer is not None:
            raise UserError("--reference: proposals share a photograph out among labels; leave it out")
        self.mean, total, count = None, np.zeros(()), 0
        for picture in pictures:
            total = total + self.find(picture, prepared=prepared).maps.astype(np.float64)
            count += 1
        if count:
            self.mean = (total / count).astype(np.float32)
        return count

    def find(self, picture: NDArray[np.uint8], *, prepared: bool = False) -> Found:
        """Look at one photograph, RGB (H, W, 3); `prepared`: it comes from a store and is cropped already."""
        square, detailed, transform, visible = self._square(picture, prepared=prepared)
        image = square[None]
        small = resize(square, self.model.preprocessing.size)[None]
        background = None
        if self._namer is not None:
            maps, background = self._named(self._namer, square, detailed, visible)
            regions = None
        else:
            maps, regions = self._maps(image, small, visible)
        if self.mean is not None:
            maps = maps - self.mean
        scores = scores_of(self.model, small, self.targets)[0]
        found = Found(
            picture=picture,
            transform=transform,
            maps=maps,
            scores=scores,
            visible=visible,
            thresholds=np.zeros(len(self.labels)),
            labels=self.labels,
            regions=regions,
            exclusive=self._namer is not None,
            background=background if self.settings.threshold is None else None,
        )
        found.thresholds[:] = [self._threshold(found, place) for place in range(len(self.labels))]
        return found

    def _square(
        self, picture: NDArray[np.uint8], *, prepared: bool
    ) -> tuple[Tensor, Tensor, Transform, NDArray[np.bool_]]:
        """The square that the model reads (3, k S, k S), the same as sharp as it is stored (3, R, R), the way there,
        and what of it shows something (256, 256).
        """
        settings = self.model.preprocessing
        crop = "none" if prepared else settings.crop
        standard = standardise(picture, size=max(settings.stored_size, self.side), crop=crop)
        tensor = torch.from_numpy(standard.image.copy()).permute(2, 0, 1).contiguous()
        cells = resize(tensor, _CELLS).permute(1, 2, 0).numpy()
        visible = visible_part(cells, standard.transform, fundus=settings.crop == "fundus")
        return resize(tensor, self.side), tensor, standard.transform, visible

    def _maps(
        self, image: Tensor, small: Tensor, visible: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], list[Region] | None]:
        method = self.settings.method
        directions = np.stack([target.direction for target in self.targets])
        if method == "contribution":
            return contribution_maps(self.model, small, self.targets)[0], None
        if method in ("relevance", "rollout", "removal"):
            way = "gradient" if method == "relevance" else method
            return relevance_maps(self.model, small, self.targets, method=way)[0], None
        dense = dense_features(self.model, image, self.tiles, mixed=self.settings.mixed)
        embeddings = dense.embeddings[0]
        if method == "similarity":
            return np.ascontiguousarray(np.einsum("hwe,te->thw", embeddings, directions)), None
        partitions = propose_regions(dense.tokens[0])
        masks = [mask for partition in partitions for mask in masks_of(partition)]
        scores = region_scores(masks, embeddings, self._plain)
        background = region_scores(masks, embeddings, self._normal)[:, 0]
        rows, columns = embeddings.shape[:2]
        seen = magnified(visible.astype(np.float32), rows, columns) > 0.5
        least = self.settings.threshold or 0.0
        regions = named_regions(masks, scores, background, self.labels, least=least, visible=seen)
        return region_maps(partitions, embeddings, directions), regions

    def _named(
        self, namer: ProposalSegmenter, image: Tensor, detailed: Tensor, visible: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Maps (T, h, w) and the background's (h, w) from proposals."""
        dense = dense_features(self.model, image[None], self.tiles)
        rows, columns = dense.tokens.shape[1:3]
        seen = magnified(visible.astype(np.float32), rows, columns) > 0.5
        settings = self.settings
        logits = propose(dense.tokens[0], settings.proposals, proposer=settings.proposer, inside=seen)
        found = namer.segment(detailed, dense, logits)
        return found.scores, found.background

    def _threshold(self, found: Found, place: int) -> float:
        if self.settings.threshold is not None or found.regions is not None or found.exclusive:
            return self.settings.threshold or 0.0
        return otsu(found.inside(place))


def otsu(values: NDArray) -> float:
    """The threshold that parts values (n,) into two groups of the least variance within, weighted by their sizes.

    Otsu, "A threshold selection method from gray-level histograms" (1979), on 256 bins.  It parts whatever it gets:
    that there are two groups it cannot tell.  Without spread, the value itself, above which there is nothing.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        return high
    counts, edges = np.histogram(values, bins=_BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = len(values) - below
    sums = np.cumsum(counts * centres)
    gap = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = np.where((below > 0) & (above > 0), below * above * gap**2, -1.0)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))  # an empty stretch: its middle
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)


def _head_targets(classifier: Classifier, labels: Sequence[str]) -> tuple[tuple[str, ...], list[Target]]:
    head = classifier.head
    unknown = [label for label in labels if label not in head.labels]
    if unknown:
        raise UserError(f"--labels: {unknown[0]!r} is none of the head's labels ({', '.join(head.labels)})")
    if head.branch is not None:
        raise UserError("--head: a head that learnt from texts is no single direction, so its maps would be wrong")
    chosen = tuple(labels) or head.labels
    output: Output = head.output  # type: ignore[assignment]
    return chosen, [
        Target(
            output=output,
            direction=head.weight[head.labels.index(label)].astype(np.float32),
            unit=head.unit,
            norm=head.norm,
        )
        for label in chosen
    ]


def _check(settings: Settings, model: Model, classifier: Classifier | None) -> None:
    """Raises UserError where settings do not go together."""
    if settings.method not in METHODS:
        raise UserError(f"--method: {settings.method!r} is none of {', '.join(METHODS)}")
    if not settings.tiles or min(settings.tiles) < 1 or max(settings.tiles) > 16:
        raise UserError("--tiles: give whole numbers from 1 to 16, e.g. 2 or 1,2")
    if max(settings.tiles) > 1 and settings.method not in _TILED:
        raise UserError(f"--tiles: {settings.method} is of the photograph as a whole; use --size for a finer map")
    if settings.learned is not None and (settings.prompts or settings.method not in ("similarity", *_TILED)):
        raise UserError(
            "--prompts: learned vectors go with --method similarity, regions or proposals, without sentences"
        )
    if settings.method == "proposals":
        check_count(settings.proposals)
        if settings.against_normal:
            raise UserError("--against-normal: proposals are compared with a normal fundus already; leave it out")
        if not model.has_text:
            raise UserError("this model was trained without texts (recipe mae) and cannot name proposals")
        if len(set(settings.labels)) < len(settings.labels):
            raise UserError("--labels: one of them is named twice")
        if classifier is not None:
            return
    if classifier is None:
        if not settings.labels:
            raise UserError("--labels: name at least one, e.g. drusen,haemorrhage")
        if len(set(settings.labels)) < len(settings.labels):
            raise UserError("--labels: one of them is named twice")
        if not model.has_text:
            raise UserError("this model was trained without texts (recipe mae); explain a trained head with --head")
        return
    if settings.method in _TILED:
        raise UserError(
            f"--head: a head has no text to compare patches with; use `maskedclip explain`, or --method removal, not "
            f"{settings.method}"
        )
    if settings.against_normal:
        raise UserError("--against-normal: a head is not compared with texts; leave it out")
