"""Kill a run again and again, at random moments, and compare its final weights with those of an undisturbed run.

python benchmarks/kill.py --kills 50      # minutes on two cores; exit status 1 when one bit differs

Every life of the run is ended by SIGKILL a random time after its first checkpoint, or before it, so checkpoints are
interrupted too.  A life that ends by itself is the last one.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

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
    first = [sys.executable, "-m", "maskedclip", "pretrain", "--config", "maskedclip", "--config", "tiny"]
    return [*first, "--data", str(store), "--out", str(out), "--resume", "true", *TINY, "--training.steps", str(steps)]


def checkpoints(run: Path) -> list[str]:
    """Names of the whole ones."""
    return sorted(path.name for path in (run / "checkpoints").glob("step-*"))


def survive(store: Path, folder: Path, *, kills: int, steps: int, seed: int) -> tuple[int, int, bool]:
    """How many lives were killed, how many of them left a half-written checkpoint, and whether all bits agree."""
    chance = random.Random(seed)
    whole, torn = folder / "whole", folder / "torn"
    subprocess.run(command(store, whole, steps), check=True, capture_output=True)
    killed = interrupted = 0
    while True:
        before = checkpoints(torn)
        life = subprocess.Popen(command(store, torn, steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        early = chance.random() < 0.15  # before the first step, or while the last life's mess is cleared
        deadline = time.monotonic() + chance.uniform(0, 6)
        while life.poll() is None and killed < kills:
            if time.monotonic() > deadline if early else checkpoints(torn) != before:
                break
            time.sleep(0.002)
        if killed < kills and life.poll() is None:
            time.sleep(0 if early else chance.uniform(0, 0.3))  # a few steps and checkpoints more or less
            life.send_signal(signal.SIGKILL)
        status = life.wait()
        if status == -signal.SIGKILL:
            killed += 1
            interrupted += bool(list((torn / "checkpoints").glob(".partial-*")))
        elif status:
            raise SystemExit(f"a life ended with status {status}")
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
