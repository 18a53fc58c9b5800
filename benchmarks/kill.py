"""Kill a run again and again, at random moments, and compare its final weights with those of an undisturbed run.

python benchmarks/kill.py --kills 50      # minutes on two cores; exit status 1 when one bit differs

Every life of the run is ended by SIGKILL a random time after its first checkpoint, or before it, so checkpoints are
interrupted too.  A life that ends by itself is the last one.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

from maskedclip.cli import main as run_command

# Lives are forked from a process that has imported all: dozens of starts of PyTorch would take most of the time.
CONTEXT = multiprocessing.get_context("forkserver")
SERVED = ["maskedclip.training.pretrain", "maskedclip.evaluation.report", "transformers.models.bert.modeling_bert"]
TINY = [
    *("--data.size", "32", "--data.batch_paired", "6", "--data.batch_unpaired", "4", "--data.workers", "0"),
    *("--data.text_fraction", "0.5", "--data.context_length", "16"),
    *("--model.image_encoder_options", '{"patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}'),
    *("--model.embed_dim", "16", "--model.small_text_width", "32", "--model.small_text_depth", "1"),
    *("--model.image_decoder_width", "24", "--model.image_decoder_heads", "2"),
    *("--model.feature_decoder_width", "24", "--model.feature_decoder_heads", "2"),
    *("--training.checkpoint_every", "2", "--training.log_every", "5", "--training.validate_every", "0"),
    *("--training.tensorboard", "false", "--objective.mkd_teacher", "ema", "--training.ema_decay", "0.9"),
]


def command(store: Path, out: Path, steps: int) -> list[str]:
    """The command of every life."""
    first = ["pretrain", "--config", "maskedclip", "--config", "tiny"]
    return [*first, "--data", str(store), "--out", str(out), "--resume", "true", *TINY, "--training.steps", str(steps)]


def live(arguments: list[str]) -> None:
    """One life: the command, silently."""
    silent = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(silent, descriptor)
    sys.argv = ["maskedclip", *arguments]
    run_command()


def checkpoints(run: Path) -> list[str]:
    """Names of the whole ones."""
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


def survive(store: Path, folder: Path, *, kills: int, steps: int, seed: int) -> tuple[int, int, bool]:
    """How many lives were killed, how many of them left a half-written checkpoint, and whether all bits agree."""
    chance = random.Random(seed)
    CONTEXT.set_forkserver_preload(SERVED)
    whole, torn = folder / "whole", folder / "torn"
    undisturbed = CONTEXT.Process(target=live, args=(command(store, whole, steps),))
    undisturbed.start()
    undisturbed.join()
    if undisturbed.exitcode:
        raise SystemExit(f"the undisturbed run ended with status {undisturbed.exitcode}")
    killed = interrupted = 0
    while True:
        before = checkpoints(torn)
        life = CONTEXT.Process(target=live, args=(command(store, torn, steps),))
        life.start()
        early = chance.random() < 0.15  # before the first step, or while the last life's mess is cleared
        deadline = time.monotonic() + chance.uniform(0, 1)
        while life.is_alive() and killed < kills:
            if time.monotonic() > deadline if early else checkpoints(torn) != before:
                break
            time.sleep(0.002)
        if killed < kills and life.is_alive():
            time.sleep(0 if early else chance.uniform(0, 0.3))  # a few steps and checkpoints more or less
            life.kill()
        life.join()
        if life.exitcode == -signal.SIGKILL:
            killed += 1
            interrupted += bool(list((torn / "checkpoints").glob(".partial-*")))
        elif life.exitcode:
            raise SystemExit(f"a life ended with status {life.exitcode}")
        else:
            break
    states = [
        load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "state.safetensors") for run in (whole, torn)
    ]
    models = [load_file(run / "model" / "weights.safetensors") for run in (whole, torn)]
    same = all(
        a.keys() == b.keys() and all(bool((value == b[name]).all()) for name, value in a.items())
        for a, b in (states, models)
    )
    return killed, interrupted, same


def main() -> None:
    """Draw phantoms, train, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        store = args.store
        if store is None:
            from maskedclip.data.curate import curate
            from maskedclip.data.phantom import write_phantoms

            write_phantoms(folder / "phantoms", images=48, seed=0, size=64)
            store = folder / "store"
            curate(folder / "phantoms" / "manifest.csv", store, size=64)
        killed, interrupted, same = survive(store, folder, kills=args.kills, steps=args.steps, seed=args.seed)
    verdict = "equal bit for bit" if same else "DIFFERENT"
    print(f"{killed} kills, {interrupted} of them in the middle of a checkpoint; final state and model: {verdict}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
