"""Where a model looks, against masks: vessels of DRIVE, and lesions of phantoms that it has never seen.

    python benchmarks/segment.py RUN --drive DRIVE_FOLDER [--size 224] [--tiles 1,2]
    python benchmarks/segment.py RUN --phantoms 200 --seed 9001 [--methods similarity,contribution,...]

Nothing is fitted.  For each method, mean over photographs, 95 % interval by patient:
AUROC of the map's pixels inside the field; Dice at Otsu's threshold; best Dice, at the share of the field that suits
all these photographs best, an oracle; pointing, how often the highest pixel lies in the mask, widened by half a patch;
and its chance, the share of the field that the widened mask covers.  `darkness` and `brightness` of the green channel
are what a program without a model has.  Deletion: change of the score when a quarter of the patches goes, the most
relevant ones, the least relevant ones, or random ones.
"""

import argparse
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from maskedclip.data.imaging import decode, decode_mask
from maskedclip.data.phantom import draw_phantom
from maskedclip.deployment.maps import scores_of
from maskedclip.deployment.model import Model, load
from maskedclip.deployment.relevance import visible_scores
from maskedclip.deployment.segment import METHODS, Found, Segmenter, Settings, otsu
from maskedclip.evaluation import metrics
from maskedclip.evaluation.dense import dice
from maskedclip.evaluation.dense_table import image_mean
from maskedclip.evaluation.statistics import cluster_weights

QUANTILES = np.linspace(0.5, 0.995, 45)
FIGURES = ("auroc", "dice_otsu", "best_dice", "pointing", "chance")
LESIONS = ("haemorrhage", "hard_exudate", "cotton_wool_spot", "drusen", "laser_scar")
VESSELS = ("blood vessels", "retinal vessels")  # the same mask in other words
LEAST = 12  # px of a mask that counts
REPLICATES = 1000


@dataclass(frozen=True, eq=False)
class Case:
    """A photograph with what is known of it.  field: None where the model's own view of it is taken."""

    name: str
    patient: str
    picture: NDArray[np.uint8]
    masks: dict[str, NDArray[np.bool_]]
    field: NDArray[np.bool_] | None = None


def drive(folder: Path) -> Iterator[Case]:
    for row in csv.DictReader((folder / "manifest.csv").open()):
        vessel, field = (decode_mask((folder / row[f"mask.{name}"]).read_bytes()) > 0 for name in ("vessel", "field"))
        picture = decode((folder / row["image"]).read_bytes())
        yield Case(row["image"], row["patient"], picture, dict.fromkeys(VESSELS, vessel), field)


def phantoms(count: int, seed: int) -> Iterator[Case]:
    for number in range(count):
        drawn = draw_phantom(seed, number // 2, "left" if number % 2 == 0 else "right", 256)
        masks = {name: drawn.masks[name] for name in LESIONS if name in drawn.masks}
        yield Case(f"{number}", f"p{number // 2}", drawn.image, {n: m for n, m in masks.items() if m.sum() >= LEAST})


def eyes(count: int, seed: int) -> Iterator[Case]:
    """The phantoms that have a lesion."""
    yield from (case for case in phantoms(count, seed) if case.masks)


def figures(
    values: NDArray, truth: NDArray[np.bool_], field: NDArray[np.bool_], wide: NDArray[np.bool_]
) -> dict[str, float | list]:
    """Of one map (H, W) inside the field; `wide`: the mask as it is for pointing."""
    counted = field & np.isfinite(values)
    inside, scores = truth[counted], values[counted].astype(np.float64)
    peaks = scores == scores.max()
    hits = np.cumsum(inside[np.argsort(-scores, kind="stable")])
    taken = np.maximum(1, np.rint((1 - QUANTILES) * len(scores)).astype(np.int64))
    return {
        "auroc": float(metrics.auroc(inside, scores)[0]),
        "dice_otsu": dice(inside, scores > otsu(scores)),
        "curve": (2 * hits[taken - 1] / (taken + inside.sum())).tolist(),
        "pointing": float(wide[counted][peaks].mean()),
        "chance": float(wide[counted].mean()),
    }


def baselines(found: Found) -> dict[str, NDArray]:
    green = ndimage.gaussian_filter(found.picture[..., 1].astype(np.float32), 1.5)
    ground = ndimage.gaussian_filter(green, 12)
    return {"darkness of green": ground - green, "brightness of green": green - ground}


def summary(rows: list[dict], label: str, method: str) -> dict:
    """Means with intervals over the photographs of one label and method."""
    mine = [row for row in rows if row["label"] == label and row["method"] == method]
    patients = np.array([row["patient"] for row in mine], dtype=object)
    weights = cluster_weights(patients, replicates=REPLICATES)
    best = int(np.mean([row["curve"] for row in mine], axis=0).argmax())
    result: dict = {"label": label, "method": method, "n": len(mine), "patients": len(set(patients))}
    for name in FIGURES:
        values = [row["curve"][best] if name == "best_dice" else row[name] for row in mine]
        result[name] = image_mean(np.asarray(values, np.float64), patients, weights).estimate().to_json()
    result["share_of_field"] = 1 - float(QUANTILES[best])
    return result


def told(entry: dict) -> str:
    parts = []
    for name in FIGURES[:-1]:
        figure = entry[name]
        parts.append(f"{figure['value']:.3f} ({figure['low']:.3f}-{figure['high']:.3f})")
    return f"| {entry['label']} | {entry['method']} | {entry['n']} | " + " | ".join(
        [*parts, f"{entry['chance']['value']:.3f}"]
    )


def deletion(
    model: Model, segmenters: dict[str, Segmenter], cases: list[tuple[Case, str]], share: float = 0.25
) -> list[dict]:
    """Change of the score of a label that is there, by what is removed."""
    random = np.random.default_rng(0)
    rows: list[dict] = []
    for case, label in cases:
        for method, segmenter in segmenters.items():
            if segmenter.side != model.preprocessing.size or label not in segmenter.labels:
                continue
            place = segmenter.labels.index(label)
            target = segmenter.targets[place]
            values = segmenter.find(case.picture).maps[place].ravel()
            image = model.preprocess(case.picture)[None]
            count = round(share * len(values))

            def score(gone: NDArray, image: torch.Tensor = image, size: int = len(values), target=target) -> float:
                keep = torch.from_numpy(np.setdiff1d(np.arange(size), gone))[None]
                return float(visible_scores(model, image, [target], keep)[0, 0])

            order = values.argsort(kind="stable")
            whole = float(scores_of(model, image, [target])[0, 0])
            draws = [score(random.permutation(len(values))[:count]) for _ in range(5)]
            rows.append(
                {
                    "method": method,
                    "patient": case.patient,
                    "most": score(order[-count:]) - whole,
                    "least": score(order[:count]) - whole,
                    "random": float(np.mean(draws)) - whole,
                }
            )
    return rows


def interval(values: list[float], patients: list[str]) -> str:
    patients_ = np.array(patients, dtype=object)
    weights = cluster_weights(patients_, replicates=REPLICATES).astype(np.float64)
    table = np.asarray(values)
    means = weights @ table / weights.sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{table.mean():+.4f} ({low:+.4f} to {high:+.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--drive", type=Path)
    parser.add_argument("--phantoms", type=int, default=0)
    parser.add_argument("--seed", type=int, default=9001)
    parser.add_argument("--plain", action="store_true", help="also without subtracting the likeness to normal")
    parser.add_argument("--reference", type=int, default=0, metavar="N", help="phantoms whose mean map is subtracted")
    parser.add_argument("--methods", default=",".join(["mixed", *METHODS]))
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--tiles", default="1")
    parser.add_argument("--deletion", type=int, default=0, metavar="N", help="photographs of the deletion test")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    began = time.perf_counter()
    model = load(args.run)
    cases: list[Case] = list(drive(args.drive) if args.drive else eyes(args.phantoms, args.seed))
    labels = list(dict.fromkeys(label for case in cases for label in case.masks))
    tiles = [int(part) for part in args.tiles.split(",")]
    segmenters: dict[str, Segmenter] = {}
    reference = [case.picture for case in phantoms(args.reference, args.seed + 1)] if args.phantoms else []
    for method in args.methods.split(","):
        used = tiles if method in ("similarity", "regions", "mixed") else [1]
        for against in (False, True) if args.plain and method != "rollout" else (method != "rollout",):
            chosen = Settings(
                labels=labels,
                method="similarity" if method == "mixed" else method,
                against_normal=against,
                size=args.size,
                tiles=used,
                mixed=method == "mixed",
            )
            name = ("similarity, mixed" if method == "mixed" else method) + (", less normal" if against else "")
            segmenters[name] = Segmenter(model, chosen)
            if reference:
                segmenters[name + ", less mean"] = Segmenter(model, chosen)
                segmenters[name + ", less mean"].compare_with(reference)
    rows: list[dict] = []
    seconds = dict.fromkeys(segmenters, 0.0)
    for number, case in enumerate(cases):
        first, widened = True, {}
        for method, segmenter in segmenters.items():
            start = time.perf_counter()
            found = segmenter.find(case.picture)
            seconds[method] += time.perf_counter() - start
            field = found.visible_on_photograph() if case.field is None else case.field
            side = max(found.transform.box[2] - found.transform.box[0], found.transform.box[3] - found.transform.box[1])
            reach = side / found.maps.shape[1] / 2
            for label, truth in case.masks.items():
                if (label, reach) not in widened:
                    widened[label, reach] = np.asarray(ndimage.distance_transform_edt(~truth)) <= reach
                wide = widened[label, reach]
                values = found.map_on_photograph(segmenter.labels.index(label))
                common = {"patient": case.patient, "label": label}
                rows.append({**common, "method": method, **figures(values, truth, field, wide)})
                if first:
                    for name, plain in baselines(found).items():
                        rows.append({**common, "method": name, **figures(plain, truth, field, wide)})
            first = False
        if number % 20 == 19:
            print(f"{number + 1} of {len(cases)}, {time.perf_counter() - began:.0f} s", flush=True)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    results = [summary(rows, label, method) for label in labels for method in methods]
    print("\n| what | map | n | AUROC | Dice at Otsu | best Dice | pointing | its chance |")
    print("|---" * 8 + "|")
    for entry in results:
        print(told(entry) + " |")
    print(
        "\nms a photograph: " + ", ".join(f"{name} {1000 * spent / len(cases):.0f}" for name, spent in seconds.items())
    )
    removed: list[dict] = []
    if args.deletion:
        pairs = [(case, label) for case in cases for label in case.masks]
        removed = deletion(segmenters[next(iter(segmenters))].model, segmenters, pairs[: args.deletion])
        print(f"\ndeletion of a quarter of the patches, {len(pairs[: args.deletion])} pairs of photograph and finding")
        print("| map | most relevant | least relevant | random | most less least |\n|---|---|---|---|---|")
        for method in dict.fromkeys(row["method"] for row in removed):
            mine = [row for row in removed if row["method"] == method]
            who = [row["patient"] for row in mine]
            cells = [interval([row[name] for row in mine], who) for name in ("most", "least", "random")]
            cells.append(interval([row["most"] - row["least"] for row in mine], who))
            print(f"| {method} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps({"results": results, "deletion": removed}, indent=1))


if __name__ == "__main__":
    main()
