"""Composed retrieval on phantom pairs: the same eye with one finding added, CLIP4Cir's Combiner beside sum and parts.

    python benchmarks/family_composed.py RUN --eyes 1600 --work FOLDER [--seed 7001] [--seeds 3]

The gallery of the test eyes holds each eye as it is and once with each finding that it lacked, so a picture alone does
not say which finding is meant, and words alone do not say which eye.  Eyes of train, val and test are of different
patients.  Pictures are kept in FOLDER, 200 eyes a file.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from maskedclip.data.phantom_patient import SIDES
from maskedclip.deployment.composed_features import image_directions, text_directions
from maskedclip.deployment.composed_finetune import FinetuneSettings, finetune_encoders
from maskedclip.deployment.composed_phantoms import draw_additions
from maskedclip.deployment.composed_report import judge, table
from maskedclip.deployment.composed_training import Features, Settings, train_combiner
from maskedclip.deployment.composed_triplets import Triplets
from maskedclip.deployment.model import Model, load

PART = 200
"""Eyes of a file."""


def gathered(model: Model, first: int, seed: int, size: int, severity: int, file: Path) -> dict[str, np.ndarray]:
    """Pixels uint8 (N, 3, S, S) of 200 eyes, and of each its eye, and its caption or "" for the eye as it is."""
    if file.is_file():
        return dict(np.load(file, allow_pickle=False))
    pixels, eye_of, captions = [], [], []
    for number in range(first, first + PART):
        image, additions = draw_additions(seed, number // 2, SIDES[number % 2], size, severity=severity)
        pictures = [image, *(entry.image for entry in additions)]
        pixels += [model.preprocess(picture).numpy() for picture in pictures]
        eye_of += [number] * len(pictures)
        captions += ["", *(entry.caption for entry in additions)]
    found = {"pixels": np.stack(pixels), "eye": np.array(eye_of), "caption": np.array(captions)}
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, pixels=found["pixels"], eye=found["eye"], caption=found["caption"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--eyes", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=7001)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="Combiners")
    parser.add_argument("--finetune", type=int, default=0, metavar="STEPS", help="stage 1 before")
    parser.add_argument("--finetune-lr", type=float, default=FinetuneSettings.lr)
    parser.add_argument("--finetune-batch", type=int, default=FinetuneSettings.batch)
    parser.add_argument("--only-part", type=int, default=None, metavar="N", help="draw the Nth 200 eyes and stop")
    parser.add_argument("--batch", type=int, default=Settings.batch)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=Settings.lr)
    args = parser.parse_args()
    model = load(args.run, device="cpu")
    parts = []
    for first in range(0, args.eyes, PART):
        file = args.work / f"pixels-{model.preprocessing.size}-{args.seed}-{first}-{args.size}-{args.severity}.npz"
        if args.only_part in (None, first // PART):
            parts.append(gathered(model, first, args.seed, args.size, args.severity, file))
    if args.only_part is not None:
        return
    data = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    target = np.flatnonzero(data["caption"] != "")
    base = np.maximum.accumulate(np.where(data["caption"] == "", np.arange(len(data["eye"])), 0))
    triplets = Triplets(
        reference=base[target],
        target=target,
        captions=tuple(map(str, data["caption"][target])),
        by_labels=np.zeros(len(target), bool),
        state=np.full(len(data["eye"]), -1),
    )
    eye = data["eye"][target]
    ends = [0, round(0.6 * args.eyes) // 2 * 2, round(0.7 * args.eyes) // 2 * 2, args.eyes]
    train, val, test = (triplets.on((eye >= low) & (eye < high)) for low, high in pairwise(ends))
    patients = np.array([f"p{number // 2}" for number in data["eye"]], dtype=object)
    print(f"{len(train)} train, {len(val)} val, {len(test)} test triplets")
    pixels = torch.from_numpy(data["pixels"])
    if args.finetune:
        tuning = FinetuneSettings(steps=args.finetune, batch=args.finetune_batch, lr=args.finetune_lr)
        model, tuned = finetune_encoders(model, lambda rows: pixels[rows], train, tuning)
        print("stage 1:", json.dumps(tuned))
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    captions = sorted(set(triplets.captions))
    images = np.concatenate(
        [image_directions(model, model.encode_image(part, "bridge")) for part in pixels.split(1024)]
    )
    words = text_directions(model, captions)
    features = Features(images, words, {caption: place for place, caption in enumerate(captions)})
    lengths = [float(np.linalg.norm(part, axis=1).mean()) for part in (images, words)]
    print(f"mean length of pictures {lengths[0]:.2f}, of words {lengths[1]:.2f}")
    for seed in range(args.seeds):
        settings = Settings(seed=seed, steps=args.steps, batch=args.batch, lr=args.lr)
        head, record = train_combiner(features, train, val, settings)
        report = judge(head, features, test, patients)
        print(f"\nseed {seed}, loss {record['loss_first']:.2f} -> {record['loss_last']:.2f}, {record['steps']} steps")
        print("\n".join(table(report)))
        print("with the reference in the gallery:", json.dumps(report["with_reference"]))
        print("the reference itself is nearest:", json.dumps(report["reference_first"]))
        print("differences:", json.dumps(report["differences"]))
    same = all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    print(f"\nencoders unchanged: {same}")


if __name__ == "__main__":
    main()
