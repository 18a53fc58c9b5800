"""Two ranks with one thread each against one rank with two threads: the same losses, and what the second rank costs.

python benchmarks/ranks.py --data STORE      # some minutes on two cores; prints lines for RESULTS.md
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMMON = [
    *("--config", "maskedclip", "--config", "tiny", "--training.accelerator", "cpu", "--training.log_every", "1"),
    *("--training.validate_every", "0", "--training.checkpoint_every", "1000", "--training.tensorboard", "false"),
    *("--data.workers", "0", "--data.text_fraction", "0.75"),
]


def train(store: Path, out: Path, *, ranks: int, options: list[str]) -> list[dict]:
    """Lines of metrics.jsonl, one a step."""
    alone = [sys.executable, "-m", "maskedclip"]
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    first = alone if ranks == 1 else [*several, "maskedclip"]
    command = [*first, "pretrain", "--data", str(store), "--out", str(out), *COMMON, *options]
    command += ["--training.devices", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": str(2 // ranks)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def rate(lines: list[dict]) -> float:
    """Median images a second after the first five steps."""
    return statistics.median(line["images_per_second"] for line in lines[5:])


def main() -> None:
    """Losses first, in float32; then times, in bfloat16, in alternation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3, help="of the times; 0 compares losses only")
    parser.add_argument("--lr", default="5.3e-3", help="rounding grows with it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, steps = Path(folder), ["--training.steps", str(args.steps)]
        exact = [*steps, "--training.precision", "32-true", "--training.lr", args.lr]
        one = train(args.data, place / "one", ranks=1, options=exact)
        for strategy in ("ddp", "fsdp"):
            two = train(args.data, place / strategy, ranks=2, options=[*exact, "--training.strategy", strategy])
            names = [name for name in one[0] if name.endswith("loss") or name in ("clip", "mim", "mkd")]
            worst = max(
                abs(a[name] - b[name]) / abs(a[name])
                for a, b in zip(one, two, strict=True)
                for name in names
                if a[name]
            )
            print(
                f"{strategy}: {len(one)} steps, {', '.join(names)}: largest relative difference {worst:.1e}", flush=True
            )
        for strategy in ("ddp", "fsdp") if args.rounds else ():
            ratios = []
            for k in range(args.rounds):
                alone = rate(train(args.data, place / f"{strategy}-1-{k}", ranks=1, options=steps))
                options = [*steps, "--training.strategy", strategy]
                ratios.append(alone / rate(train(args.data, place / f"{strategy}-2-{k}", ranks=2, options=options)))
            listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(
                f"{strategy}: time of two ranks / one rank: median {statistics.median(ratios):.2f} ({listed})",
                flush=True,
            )


if __name__ == "__main__":
    main()
