"""Image-text objectives of docs/family on phantoms: python -m benchmarks.family_image_text {clusters,lcl,discs,...}

`clusters`: what the regularisers of `xclip` do to clusters, on discs with a spot (tests) and on phantom eyes.  `lcl`:
what the contrast at soi is for, on discs with a spot and twelve captions.  `discs`: each image-text objective there.
`retrieve`: each recipe at `tiny` for the same steps on a store of phantoms, then image-to-text retrieval on its
validation split.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tests.objectives.image_text.steps import recipe_with
from tests.objectives.image_text.test_lcl import CAUSAL, train_on_discs, trained
from tests.objectives.image_text.test_xclip import cluster_figures
from tests.objectives.image_text.test_xclip import discs as discs_with_captions
from torch import Tensor

from maskedclip.data.phantom import draw_phantom
from maskedclip.data.store import open_store
from maskedclip.deployment.model import load
from maskedclip.evaluation.retrieval import chance_recall, distinct, image_to_text_ranks
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain

RECIPES = ("clip", "siglip", "nclip_style", "xclip_style", "lcl")


def clusters(arguments: argparse.Namespace) -> None:
    """The table of FAMILY.md's system G: 1,400 pairs to train on, 397 or so held out."""
    sources = {"discs": discs_with_captions(1797, seed=0), "phantoms": _phantoms(arguments.eyes)}
    print("|pairs|l_s, l_m|seed|H(mean p) / log K|clusters|agreement|seconds|\n" + "|-" * 7 + "|")
    for name, pairs in sources.items():
        for sharp, smooth in ((0, 0), (0.5, 0), (0, 1), (0.2, 1), (0.5, 1), (1, 1), (0.5, 2)):
            for seed in range(arguments.seeds):
                began = time.perf_counter()
                even, used, agreement = cluster_figures(pairs, sharp, smooth, seed=seed, steps=arguments.steps)
                took = time.perf_counter() - began
                print(f"|{name}|{sharp}, {smooth}|{seed}|{even:.2f}|{used}|{agreement:.2f}|{took:.1f}|", flush=True)


def _phantoms(eyes: int) -> tuple[Tensor, Tensor]:
    """Phantom eyes of 16 px, standardised, and their reports as bags of words."""
    drawn = [draw_phantom(5, patient, "left", size=32) for patient in range(eyes)]
    images = torch.from_numpy(np.stack([eye.image for eye in drawn])).float().permute(0, 3, 1, 2)
    images = torch.nn.functional.avg_pool2d(images, 2).flatten(1)
    reports = [{word.strip(".,:;").lower() for word in eye.text.split()} for eye in drawn]
    words = sorted(set().union(*reports))
    bags = torch.tensor([[float(word in report) for word in words] for report in reports])
    return (images - images.mean(dim=0)) / (images.std(dim=0) + 0.3), bags


def lcl(arguments: argparse.Namespace) -> None:
    """Right captions at first rank of 120 new discs (chance 1/12), and nats a token where the image comes first."""
    print("|contrast|steps|seed|right at rank 1|nats, true image|nats, zeroed image|seconds|\n" + "|-" * 7 + "|")
    for contrast in (0.0, 0.1, 1.0):
        for seed in range(arguments.seeds):
            began = time.perf_counter()
            right, true, zeroed = trained(contrast, arguments.steps, seed)
            took = time.perf_counter() - began
            print(f"|{contrast}|{arguments.steps}|{seed}|{right:.2f}|{true:.3f}|{zeroed:.3f}|{took:.0f}|", flush=True)


def discs(arguments: argparse.Namespace) -> None:
    """Right captions at first rank of 120 new discs (chance 1/12), by the cosine that zero-shot and search compare."""
    small = {"clusters": 16, "hidden": 64, "running_mean": 0.9}
    cells = {
        "clip": ("xclip", {"weight": 0.0}, 1.0, []),
        "siglip": ("siglip", {}, 0.0, []),
        "siglip, bias -3": ("siglip", {"bias": -3.0}, 0.0, []),
        "xclip, separate heads": ("xclip", {**small, "heads": "separate"}, 1.0, []),
        "nclip, separate heads": ("xclip", {**small, "heads": "separate"}, 0.0, []),
        "nclip, shared head": ("xclip", {**small, "heads": "shared"}, 0.0, []),
        "lcl": ("lcl", {}, 0.0, CAUSAL),
    }
    print("|objective|steps|seed|right at rank 1|seconds|\n" + "|-" * 5 + "|")
    for name, (term, options, clip_weight, more) in cells.items():
        for seed in range(arguments.seeds):
            given = ["--model.projection_norm", "batch", "--seed", str(seed), *more]
            began = time.perf_counter()
            recipe = recipe_with(term, options, *given, clip_weight=clip_weight)
            right = train_on_discs(recipe, arguments.steps)[2]
            print(f"|{name}|{arguments.steps}|{seed}|{right:.2f}|{time.perf_counter() - began:.0f}|", flush=True)


def retrieve(arguments: argparse.Namespace) -> None:
    """Train each recipe, and rank the distinct reports of the validation split for each of its images."""
    store = open_store(arguments.data)
    rows = store.rows("val")
    texts, own = distinct([store.text(row) or "" for row in rows.tolist()])
    print(
        f"{len(rows)} images, {len(texts)} distinct reports; chance of rank 10 or better "
        f"{chance_recall(np.ones(len(rows)), len(texts), 10):.3f}"
    )
    print("|recipe|steps|seed|recall at 1|at 10|median rank|seconds of training|\n" + "|-" * 7 + "|")
    for name in arguments.recipes:
        for seed in range(arguments.seeds):
            options = [
                *("--seed", str(seed), "--training.steps", str(arguments.steps), "--training.validate_every", "0"),
                *("--training.checkpoint_every", str(arguments.steps), "--training.tensorboard", "false"),
                *("--data.workers", "0"),
            ]
            with tempfile.TemporaryDirectory() as scratch:
                began = time.perf_counter()
                pretrain(load_recipe([name, "tiny"], options), arguments.data, Path(scratch) / "run")
                took = time.perf_counter() - began
                model = load(Path(scratch) / "run")
                images, words = model.features(store, rows)["projected"], model.encode_text(texts)
            ranks = image_to_text_ranks(images, words, own)
            one, ten, median = (ranks <= 1).mean(), (ranks <= 10).mean(), np.median(ranks)
            print(f"|{name}|{arguments.steps}|{seed}|{one:.3f}|{ten:.3f}|{median:.0f}|{took:.0f}|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for work, steps in ((clusters, 400), (lcl, 240), (discs, 240), (retrieve, 600)):
        command = commands.add_parser(work.__name__)
        command.add_argument("--steps", type=int, default=steps)
        command.add_argument("--seeds", type=int, default=2 if work is not retrieve else 1)
        command.set_defaults(work=work)
        if work is clusters:
            command.add_argument("--eyes", type=int, default=1797)
        if work is retrieve:
            command.add_argument("--data", type=Path, required=True)
            command.add_argument("--recipes", nargs="+", default=RECIPES)
    arguments = parser.parse_args()
    arguments.work(arguments)


if __name__ == "__main__":
    main()
