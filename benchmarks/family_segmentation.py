"""Zero-shot segmentation from proposals against masks: phantom lesions and DRIVE vessels, beside the likeness maps.

    python -m benchmarks.family_segmentation RUN --phantoms 80 [--prompts FILE.safetensors] [--tiles 4]
    python -m benchmarks.family_segmentation RUN --drive DRIVE_FOLDER --size 224 --tiles 2
    python -m benchmarks.family_segmentation RUN --regions 400 [--prompts FILE.safetensors]
    python -m benchmarks.family_segmentation RUN --adapt STORE --out FOLDER [--steps 200]

`--regions` leaves proposals out: lesions by their true masks, five kinds, named by the masked crop and by the whole
photograph.  `--adapt` goes on training the run's model on masked crops of three lesions, as augmentation beside whole
photographs with their reports, and saves the model; two lesions stay unseen.  `--oracle` takes true masks as proposals:
what naming costs.  Means over photographs, 95 % intervals by patient; AUROC of the map's pixels and Dice of the mask
inside the field.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from benchmarks.segment import LESIONS, Case, drive, eyes, interval, phantoms
from numpy.typing import NDArray
from scipy import ndimage

from maskedclip.data.store import open_store
from maskedclip.data.transforms import resize
from maskedclip.deployment.learned_prompts import read_prompts
from maskedclip.deployment.learned_prompts_fit import PromptSettings, mask_crops
from maskedclip.deployment.maps_target import label_prompts, text_directions
from maskedclip.deployment.model import Model, load
from maskedclip.deployment.proposals import mask_logits
from maskedclip.deployment.proposals_crops import fill_colour, masked_crops
from maskedclip.deployment.segment import Segmenter, Settings
from maskedclip.evaluation import metrics
from maskedclip.evaluation.dense import dice
from maskedclip.models.features import to_input
from maskedclip.models.saving import save_model


def regions(model: Model, cases: list[Case], directions: NDArray[np.float32], grow: int) -> None:
    """Accuracy of naming true lesion masks, by the masked crop and by the whole photograph."""
    fill, size = fill_colour(model.preprocessing.mean), model.preprocessing.size
    rows = []
    for case in cases:
        names = [name for name in LESIONS if name in case.masks]
        masks = np.stack([case.masks[name] for name in names])
        if grow:
            masks = np.stack([np.asarray(ndimage.binary_dilation(mask, iterations=grow), bool) for mask in masks])
        image = torch.from_numpy(case.picture.copy()).permute(2, 0, 1).contiguous()
        crops, _ = masked_crops(image, masks, fill, size)
        by_crop = (model.encode_images(crops)["projected"] @ directions.T).argmax(axis=1)
        whole = int((model.encode_image(case.picture, "projected")[0] @ directions.T).argmax())
        rows += [
            (case.patient, name, LESIONS[by_crop[place]] == name, LESIONS[whole] == name)
            for place, name in enumerate(names)
        ]
    print("| lesion | n | masked crop | whole photograph | crop less whole |\n|---|---|---|---|---|")
    for name in (*LESIONS, "all"):
        mine = [row for row in rows if name in ("all", row[1])]
        who = [row[0] for row in mine]
        crop, whole = ([float(row[place]) for row in mine] for place in (2, 3))
        gap = [one - other for one, other in zip(crop, whole, strict=True)]
        print(f"| {name} | {len(mine)} | " + " | ".join(interval(part, who) for part in (crop, whole, gap)) + " |")
    per_label = [[row[place] for row in rows if row[1] == name] for place in (2, 3) for name in LESIONS]
    balanced = [float(np.mean([np.mean(part) for part in per_label[start : start + 5]])) for start in (0, 5)]
    print(f"balanced accuracy: masked crop {balanced[0]:.3f}, whole photograph {balanced[1]:.3f}, chance 0.2")


SEEN = ("haemorrhage", "hard_exudate", "drusen")


def adapt(
    model: Model, folder: Path, out: Path, steps: int, lr: float, per_label: int, seen: tuple[str, ...] = SEEN
) -> None:
    """Train on, half of each batch crops with a sentence of their lesion, half photographs with their reports."""
    store = open_store(folder)
    rows = store.rows("train")
    settings = PromptSettings(per_label=per_label, grow=6)
    crops, truth = mask_crops(model, store, rows, seen, settings)
    written = rows[store.has_text[rows]]
    whole = torch.stack([resize(store.image(int(row)), model.preprocessing.size) for row in written[:1500]])
    texts = [str(store.text(int(row))) for row in written[:1500]]
    sentences = label_prompts(seen)[0]
    module = model.module.requires_grad_(True).eval()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01)
    random = np.random.default_rng(0)
    assert model.tokenizer is not None
    losses = []
    with torch.enable_grad():
        for _ in range(steps):
            some, others = random.integers(0, len(crops), 32), random.integers(0, len(whole), 32)
            words = [str(random.choice(sentences[truth[place]])) for place in some] + [texts[place] for place in others]
            distinct = sorted(set(words))
            ids, mask = model.tokenizer(distinct)
            image = to_input(torch.cat([crops[some], whole[others]]), model.preprocessing)
            images = module.project(module.bridge(module.encoder(image)))
            logits = 14.0 * images @ module.embed_text(ids, mask).T
            own = torch.tensor([distinct.index(word) for word in words])
            lesions = torch.tensor([truth[place] for place in some])
            alike = lesions[:, None] == torch.tensor(
                [next((k for k, group in enumerate(sentences) if word in group), -1) for word in distinct]
            )
            alike[torch.arange(32), own[:32]] = False  # other sentences of the same lesion are right as well
            logits = torch.cat([logits[:32].masked_fill(alike, -torch.inf), logits[32:]])
            loss = torch.nn.functional.cross_entropy(logits, own)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    save_model(out, module.requires_grad_(False), model.tokenizer, model.preprocessing, {})
    print(f"{len(crops)} crops, {steps} steps: loss {np.mean(losses[:10]):.3f} -> {np.mean(losses[-10:]):.3f}; {out}")


def oracle(segmenter: Segmenter, case: Case) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Scores (T, H, W) and masks with true masks, and the rest of the picture, as proposals."""
    namer = segmenter._namer
    assert namer is not None
    true = np.stack(list(case.masks.values()))
    rest = np.asarray(~true.any(axis=0), bool)
    image = torch.from_numpy(case.picture.copy()).permute(2, 0, 1).contiguous()
    found = namer.segment(image, None, mask_logits(np.concatenate([true, rest[None]])))
    floor = np.zeros_like(found.scores[0]) if found.background is None else found.background
    best = np.asarray(found.scores.argmax(axis=0))
    masks = [np.equal(best, place) & np.greater(values, floor) for place, values in enumerate(found.scores)]
    return found.scores, np.stack(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--drive", type=Path)
    parser.add_argument("--phantoms", type=int, default=0)
    parser.add_argument("--regions", type=int, default=0)
    parser.add_argument("--adapt", type=Path, metavar="STORE")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seen", default=",".join(SEEN))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--per-label", type=int, default=300)
    parser.add_argument("--seed", type=int, default=9001)
    parser.add_argument("--grow", type=int, default=0, help="px by which true masks are widened")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--size", type=int, default=None)
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--proposals", type=int, default=12)
    parser.add_argument("--oracle", action="store_true")
    args = parser.parse_args()
    model = load(args.run, device="cpu")
    if args.adapt:
        adapt(model, args.adapt, args.out, args.steps, args.lr, args.per_label, tuple(args.seen.split(",")))
        return
    learned = read_prompts(args.prompts, model) if args.prompts else None
    if args.regions:
        names = list(LESIONS)
        directions = learned.directions(model, names) if learned else text_directions(model, label_prompts(names)[0])
        print("learned prompts" if learned else "shipped sentences")
        regions(model, [case for case in phantoms(args.regions, args.seed) if case.masks], directions, args.grow)
        return
    cases = list(drive(args.drive) if args.drive else eyes(args.phantoms, args.seed))
    labels = list(dict.fromkeys(label for case in cases for label in case.masks))
    if args.drive:
        labels = ["blood vessels"]
    common = {"labels": labels, "size": args.size, "tiles": [args.tiles], "learned": learned}
    ways = {
        "likeness": Segmenter(model, Settings(method="similarity", against_normal=True, **common)),
        "regions": Segmenter(model, Settings(method="regions", **common)),
        "proposals, k-means": Segmenter(model, Settings(method="proposals", proposals=args.proposals, **common)),
        "proposals, SLIC": Segmenter(
            model, Settings(method="proposals", proposals=args.proposals, proposer="slic", **common)
        ),
    }
    rows: list[tuple[str, str, str, float, float, float]] = []
    seconds = dict.fromkeys(ways, 0.0)
    for case in cases:
        for way, segmenter in ways.items():
            began = time.perf_counter()
            found = segmenter.find(case.picture)
            seconds[way] += time.perf_counter() - began
            field = found.visible_on_photograph() if case.field is None else case.field
            for place, label in enumerate(labels):
                if label in case.masks:
                    values = np.nan_to_num(found.map_on_photograph(place), nan=-1e9)[field].astype(np.float64)
                    truth = case.masks[label][field]
                    mask = found.mask_on_photograph(place)[field]
                    rows.append(
                        (
                            way,
                            label,
                            case.patient,
                            float(metrics.auroc(truth, values)[0]),
                            dice(truth, mask),
                            float(mask.mean()),
                        )
                    )
        if args.oracle:
            namer = ways["proposals, k-means"]
            field = namer.find(case.picture).visible_on_photograph() if case.field is None else case.field
            scores, masks = oracle(namer, case)
            for place, label in enumerate(labels):
                if label in case.masks:
                    truth = case.masks[label][field]
                    auroc = float(metrics.auroc(truth, scores[place][field].astype(np.float64))[0])
                    mask = masks[place][field]
                    rows.append(("true masks", label, case.patient, auroc, dice(truth, mask), float(mask.mean())))
    print("| what | map | n | AUROC | Dice of the mask | share of the field |\n|---|---|---|---|---|---|")
    for label in labels:
        for way in dict.fromkeys(row[0] for row in rows):
            mine = [row for row in rows if row[:2] == (way, label)]
            who = [row[2] for row in mine]
            cells = [interval([float(row[place]) for row in mine], who) for place in (3, 4, 5)]
            print(f"| {label} | {way} | {len(mine)} | " + " | ".join(cells) + " |")
    print("ms a photograph: " + ", ".join(f"{way} {1000 * spent / len(cases):.0f}" for way, spent in seconds.items()))


if __name__ == "__main__":
    main()
