"""Dense probe: can a linear map from patch tokens to pixels tell where something is (vessels, lesions, the disc)?

Protocol, [ours], after the linear segmentation probe of DINOv2 (arXiv 2304.07193, section 7.4): the encoder is frozen
and reads the whole stored picture; one linear map takes each patch token (D) to the P x P pixels under the patch,
fitted as L2 logistic regression.  DINOv2 predicts one value a patch and magnifies it, which cannot draw a vessel of
three pixels under a patch of fourteen.  C and the threshold of Dice are chosen on validation images, or where none of
them has the thing on a quarter of the training patients; the test images are only ever predicted.  Where a row has
`mask.field`, only pixels inside it count, for learning and for scoring.

Every figure is the mean over the test images that have the thing of that image's AUROC, AUPRC or Dice, with a
patient-clustered interval.  Of the images without it, where whatever is marked is wrong, the marked share is told.

B images, L patches, P pixels on a patch's side, S pixels on a picture's side, D width, R replicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch.nn import functional

from maskedclip.console import bar
from maskedclip.data.images import decoded_image
from maskedclip.data.masks import FIELD, mask_names, read_masks
from maskedclip.data.store import Store
from maskedclip.data.transforms import resize
from maskedclip.evaluation import metrics
from maskedclip.evaluation.dense_head import DenseHead, Pixels, fit_heads
from maskedclip.evaluation.dense_sheet import Shown
from maskedclip.evaluation.dense_table import DENSE_SCHEMA, METRICS, image_mean
from maskedclip.evaluation.feature_cache import CachedFeatures
from maskedclip.evaluation.scoring import macro_estimate
from maskedclip.evaluation.selection import patient_folds
from maskedclip.evaluation.statistics import Distribution, undefined
from maskedclip.models.resizing import check_size, fitting_size

GRID = tuple(float(10.0**power) for power in range(-6, 0))
THRESHOLDS = np.linspace(0.02, 0.98, 49)
_BATCH = 4
_FOLDS = 4
_SHOWN = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseResult:
    """section: of results.json.  table: every test image's figures in DENSE_SCHEMA.  shown: the first test images."""

    section: dict[str, Any]
    table: pa.Table
    shown: Sequence[Shown]


def dense_probe(model: Any, store: Store, weights: NDArray, *, size: int | None = None, seed: int = 0) -> DenseResult:
    """Fit and score every mask of the store.

    Args:
        model: a `Model` of `maskedclip.load` or `open_model`, with patch features; within `CachedFeatures` its tokens
            are computed once for all masks.
        store: with `mask.*` columns and splits.
        weights: of the bootstrap over the store's test rows (R, m).
        size: pixels that the encoder reads; None: as many whole patches as the stored picture holds.
        seed: of the patches that are learnt from, and of the held-out patients.

    Raises:
        UserError: a size that is no multiple of the patch.
    """
    names = mask_names(store)
    patch = model.module.encoder.patch_size
    side = fitting_size(store.crop["size"], patch) if size is None else size
    check_size(side, patch, "--dense-size")
    sized = model.at_size(side, "--dense-size")
    section: dict[str, Any] = {}
    rows_of_table: list[dict[str, Any]] = []
    shown: list[Shown] = []
    distributions: dict[str, dict[str, dict[str, Distribution | None]]] = {}
    for name in names:
        pixels, obstacle = _pixels(store, name, side, seed)
        answers = {} if obstacle else _answers(model, sized, store, name, pixels, seed)
        for feature in answers or _spaces(model):
            part = section.setdefault(feature, {"macro": {}, "per_label": {}, "chosen": {}, "size": side})
            parts = distributions.setdefault(feature, {metric: {} for metric in METRICS})
            if obstacle:
                part["per_label"][name] = {metric: undefined(0, obstacle).to_json() for metric in METRICS}
                continue
            head, scored, pictures = answers[feature]
            part["chosen"][name] = {"C": head.c, "threshold": head.threshold}
            wrongly = [entry["marked"] for entry in scored if not np.isnan(entry["marked"])]
            if wrongly:
                part.setdefault("without", {})[name] = {
                    "images": len(wrongly),
                    "images_marked": int(np.count_nonzero(wrongly)),
                    "share_marked": float(np.mean(wrongly)),
                }
            part["per_label"][name] = {}
            for metric in METRICS:
                found = _distribution([entry[metric] for entry in scored], pixels.test, store, weights)
                parts[metric][name] = found
                part["per_label"][name][metric] = found.estimate().to_json()
            rows_of_table += [
                _table_row(store, row, name, feature, entry) for row, entry in zip(pixels.test, scored, strict=True)
            ]
            shown += pictures
    for feature, part in section.items():
        n = max((entry["auroc"]["n"] for entry in part["per_label"].values()), default=0)
        part["macro"] = {metric: macro_estimate(distributions[feature][metric], n).to_json() for metric in METRICS}
    return DenseResult(section=section, table=pa.Table.from_pylist(rows_of_table, schema=DENSE_SCHEMA), shown=shown)


def dice(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|) of two sets of pixels; NaN where both are empty."""
    total = int(truth.sum()) + int(predicted.sum())
    return 2 * int((truth & predicted).sum()) / total if total else float("nan")


def _spaces(model: Any) -> tuple[str, ...]:
    return ("encoder", "bridge") if model.has_text else ("encoder",)


def _table_row(store: Store, row: int, label: str, feature: str, scored: Mapping[str, float]) -> dict[str, Any]:
    figures = {name: None if np.isnan(scored[name]) else scored[name] for name in METRICS}
    return {
        "id": store.ids[row],
        "patient": store.patients[row] or None,
        "label": label,
        "feature": feature,
        **figures,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Rows of one mask by use, and of each row its truth and its field, bool (S, S)."""

    train: NDArray[np.int64]
    choosing: NDArray[np.int64]
    test: NDArray[np.int64]
    refit: bool
    truth: Mapping[int, NDArray[np.bool_]]
    field: Mapping[int, NDArray[np.bool_]]

    def pixels(self, row: int) -> Pixels:
        return Pixels(truth=self.truth[row], counted=self.field[row])


def _pixels(store: Store, name: str, side: int, seed: int) -> tuple[_Rows, str]:
    """The rows of a mask, and why they do not do, '' where they do."""
    used = np.flatnonzero(np.isin(store.splits, ("train", "val", "test")))
    masks, fields = read_masks(store, used, name), read_masks(store, used, FIELD)
    truth = {int(row): _at(mask, side) for row, mask in zip(used, masks, strict=True) if mask is not None}
    field = {
        int(row): np.ones((side, side), bool) if mask is None else _at(mask, side)
        for row, mask in zip(used, fields, strict=True)
        if int(row) in truth
    }
    known = np.array(sorted(truth), dtype=np.int64)
    train, val, test = (known[store.splits[known] == split] for split in ("train", "val", "test"))

    def tells(row: int) -> bool:
        return 0 < int((truth[row] & field[row]).sum()) < int(field[row].sum())

    refit = not any(tells(int(row)) for row in val)
    if refit:
        folds = patient_folds(store.patients[train], folds=_FOLDS, seed=seed)
        telling = np.array([tells(int(row)) for row in train], dtype=bool)
        fits = [fold for fold in range(_FOLDS) if telling[folds == fold].any() and telling[folds != fold].any()]
        val = train[folds == fits[0]] if fits else train[:0]
    found = _Rows(train=train, choosing=val, test=test, refit=refit, truth=truth, field=field)
    if not len(test):
        return found, "no test image has this mask"
    learnt = np.setdiff1d(train, val)
    few = "too few training patients have this mask to learn and to choose"
    if not len(learnt):
        return found, few
    counts = np.array([[(truth[int(r)] & field[int(r)]).sum(), field[int(r)].sum()] for r in learnt]).sum(axis=0)
    if counts[0] in (0, counts[1]):
        return found, "the training masks have one class only"
    return found, "" if len(val) else few


def _at(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """A mask at another size, the nearest pixel taken, so that nothing thin is lost to a mean: (side, side)."""
    if mask.shape == (side, side):
        return mask
    table = torch.from_numpy(mask[None, None].astype(np.float32))
    return functional.interpolate(table, (side, side), mode="nearest-exact")[0, 0].numpy() > 0.5


def _tokens(
    model: Any, sized: Any, store: Store, rows: NDArray[np.int64], side: int
) -> Mapping[str, NDArray[np.float32]]:
    """Patch tokens of rows by space, (B, L, D)."""

    def compute(rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        parts: list[dict[str, NDArray]] = []
        with bar("patch features", len(rows)) as shown:
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                images = torch.stack([resize(decoded_image(store, int(row)), side) for row in batch])
                parts.append(sized.patch_features(images))
                shown.advance(len(batch))
        return {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}

    return model.patch_tokens(side, rows, compute) if isinstance(model, CachedFeatures) else compute(rows)


def _answers(
    model: Any, sized: Any, store: Store, label: str, rows: _Rows, seed: int
) -> dict[str, tuple[DenseHead, list[dict[str, float]], list[Shown]]]:
    """By feature: the head, the figures of each test image, and some of them to look at."""
    side, patch = rows.truth[int(rows.test[0])].shape[0], model.module.encoder.patch_size
    every = np.unique(np.concatenate([rows.train, rows.choosing, rows.test]))
    place = {int(row): number for number, row in enumerate(every)}
    found = {}
    for feature, tokens in _tokens(model, sized, store, every, side).items():

        def taken(of: NDArray[np.int64], tokens: NDArray = tokens) -> tuple[NDArray, list[Pixels]]:
            return tokens[[place[int(row)] for row in of]], [rows.pixels(int(row)) for row in of]

        learnt = np.setdiff1d(rows.train, rows.choosing)
        heads = fit_heads(*taken(learnt), patch, GRID, seed=seed)
        head = _chosen(heads, *taken(rows.choosing))
        if rows.refit:
            again = fit_heads(*taken(rows.train), patch, [head.c], seed=seed)[0]
            head = again.at(head.threshold)
        scored, shown = [], []
        for number, row in enumerate(rows.test):
            probability = head.probabilities(tokens[place[int(row)]])
            pixels = rows.pixels(int(row))
            scored.append(_figures(pixels, probability, head.threshold))
            if number < _SHOWN:
                image = resize(decoded_image(store, int(row)), side)
                shown.append(
                    Shown(
                        label=label,
                        feature=feature,
                        image=rearrange(image.numpy(), "c h w -> h w c"),
                        truth=pixels.truth,
                        probability=probability.astype(np.float32),
                        field=pixels.counted,
                        threshold=head.threshold,
                    )
                )
        found[feature] = (head, scored, shown)
    return found


def _chosen(heads: Sequence[DenseHead], tokens: NDArray, pixels: Sequence[Pixels]) -> DenseHead:
    """The head of the best mean AUPRC on the images to choose by, with its best threshold for Dice."""
    best, quality = heads[0], -np.inf
    for head in heads:
        areas = [
            metrics.average_precision(part.truth[part.counted], head.probabilities(table)[part.counted])[0]
            for table, part in zip(tokens, pixels, strict=True)
        ]
        mean = float(np.nanmean(areas)) if np.isfinite(areas).any() else -np.inf
        if mean > quality:
            best, quality = head, mean
    curves = np.array(
        [
            [dice(part.truth[part.counted], scores[part.counted] > threshold) for threshold in THRESHOLDS]
            for part, scores in ((part, best.probabilities(table)) for table, part in zip(tokens, pixels, strict=True))
        ]
    )
    totals = np.nansum(curves, axis=0)
    return best.at(float(THRESHOLDS[int(np.argmax(totals))]))


def _figures(pixels: Pixels, probability: NDArray, threshold: float) -> dict[str, float]:
    truth, scores = pixels.truth[pixels.counted], probability[pixels.counted]
    both = 0 < int(truth.sum()) < len(truth)
    return {
        "auroc": float(metrics.auroc(truth, scores)[0]) if both else float("nan"),
        "auprc": float(metrics.average_precision(truth, scores)[0]) if both else float("nan"),
        "dice": dice(truth, scores > threshold) if truth.any() else float("nan"),
        "marked": float((scores > threshold).mean()) if not truth.any() else float("nan"),
    }


def _distribution(values: Sequence[float], rows: NDArray[np.int64], store: Store, weights: NDArray) -> Distribution:
    order = {int(row): place for place, row in enumerate(np.flatnonzero(store.splits == "test"))}
    columns = [order[int(row)] for row in rows]
    return image_mean(np.asarray(values), store.patients[rows], weights[:, columns])
