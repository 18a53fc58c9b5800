"""Targets of docs/family measured on phantoms: python -m benchmarks.family_targets {consistency,weights} ...

`consistency`: how far both decoders of `ge2ae_style` disagree on held-out eyes, and their errors, without and with the
consistency loss.  `weights`: what auxiliary weights of `maskclip_style` do to zero-shot classification of discs with
spots (tests/stores.py), where four sentences say what is to be seen; `--weights 0` is the image-text loss alone.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tests.objectives.targets.test_frequency import _objective, _train
from tests.stores import SENTENCES, TINY, make_store

from maskedclip.data.phantom import draw_phantom
from maskedclip.data.store import open_store
from maskedclip.models.features import to_input
from maskedclip.models.saving import read_model
from maskedclip.recipe import load_recipe
from maskedclip.training.pretrain import pretrain
from maskedclip.training.rundir import RunDirectory


def consistency(arguments: argparse.Namespace) -> None:
    """Train on 64 phantom eyes of 32 px, report on 32 others."""
    eyes = [(patient, side) for patient in range(48) for side in ("left", "right")]
    images = [draw_phantom(3, patient, side, size=32).image for patient, side in eyes]  # type: ignore[arg-type]
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    print("|seed|steps|consistency|disagreement|pixel decoder's error|frequency decoder's error|\n|-|-|-|-|-|-|")
    for seed in arguments.seeds:
        for weight, mode in ((0.0, "alternate"), (0.5, "alternate"), (0.5, "symmetric")):
            told = _train(_objective(seed, consistency_weight=weight, consistency=mode), stack, arguments.steps)
            named = mode if weight else "none"
            figures = [told[f"frequency_{name}"] for name in ("disagreement", "pixels", "error")]
            cells = "|".join(f"{value:.4f}" for value in figures)
            print(f"|{seed}|{arguments.steps}|{named}|{cells}|", flush=True)


def weights(arguments: argparse.Namespace) -> None:
    """Train each weight and seed on the same discs with spots, and ask which of four sentences each test disc fits."""
    print("|weight|seed|accuracy|clip|codeword|mlm|cosine|information|seconds|\n" + "|-" * 9 + "|")
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            store = make_store(Path(scratch) / "store", rows=arguments.rows, seed=seed)
            for weight in arguments.weights:
                print(_cell(Path(scratch), store, weight, seed, arguments.steps), flush=True)


def _cell(scratch: Path, store: Path, weight: float, seed: int, steps: int) -> str:
    recipe = load_recipe(
        ["maskclip_style", "tiny"],
        [
            *(*TINY, "--seed", str(seed), "--training.steps", str(steps), "--training.checkpoint_every", str(steps)),
            *("--data.batch_paired", "16", "--data.batch_unpaired", "8", "--training.lr", "0.02"),
            *("--data.text_fraction", "0.25"),
            *("--objective.ema_decay", "0.99", "--objective.ema_decay_end", "null"),
            *("--training.log_every", str(steps)),
        ],
    )
    terms = {name: options | {"weight": weight} for name, options in recipe.objective.terms.items()}
    run = scratch / f"{weight}"
    began = time.perf_counter()
    pretrain(recipe.replace(objective={"terms": terms}), store, run)
    seconds = time.perf_counter() - began
    saved, opened = read_model(run / "model"), open_store(store)
    rows = np.concatenate([opened.rows("val"), opened.rows("test")])  # half of the kinds each
    texts = opened.table.column("text").to_pylist()
    kinds = torch.tensor([SENTENCES.index(texts[row]) for row in rows.tolist()])
    model = saved.model.eval()
    assert saved.tokenizer is not None
    with torch.inference_mode():
        image = to_input(torch.stack([opened.image(row) for row in rows.tolist()]), saved.preprocessing)
        scores = model.project(model.bridge(model.encoder(image))) @ model.embed_text(*saved.tokenizer(SENTENCES)).T
    told = RunDirectory(run).read_metrics()[-1]
    names = ("clip", "codeword", "mlm", "codeword_cosine", "codeword_information")
    figures = "|".join(f"{told[name]:.3f}" if name in told else "-" for name in names)
    accuracy = (scores.argmax(dim=1) == kinds).float().mean().item()
    return f"|{weight:g}|{seed}|{accuracy:.3f}|{figures}|{seconds:.0f}|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    first = verbs.add_parser("consistency")
    first.add_argument("--steps", type=int, default=600)
    first.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    first.set_defaults(act=consistency)
    second = verbs.add_parser("weights")
    second.add_argument("--steps", type=int, default=200)
    second.add_argument("--rows", type=int, default=480)
    second.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    second.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.05, 1.0])
    second.set_defaults(act=weights)
    arguments = parser.parse_args()
    print(json.dumps({name: value for name, value in vars(arguments).items() if name != "act"}))
    arguments.act(arguments)


if __name__ == "__main__":
    main()
