"""Kill a curation at random moments until it is whole, and compare its store with an undisturbed one, file by file.

python benchmarks/kill_curate.py [--kills 20] [--images 3000] [--engine local]
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from maskedclip.data.phantom import write_phantoms


def command(manifest: Path, out: Path, engine: str) -> list[str]:
    code = "import sys; from maskedclip.cli import main; main()"
    return [sys.executable, "-c", code, "curate", str(manifest), "--out", str(out), "--engine", engine]


def content(store: Path) -> dict[str, str]:
    """Every file but curation.json, which tells the seconds."""
    files = (path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "curation.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random = np.random.Generator(np.random.Philox(args.seed))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        manifest = write_phantoms(folder / "phantoms", images=args.images, seed=0, size=256)
        undisturbed = folder / "a" / "store"
        undisturbed.parent.mkdir()
        began = time.monotonic()
        subprocess.run(command(manifest, undisturbed, args.engine), check=True, stdout=subprocess.DEVNULL)
        whole = time.monotonic() - began
        print(f"undisturbed: {whole:.1f} s")
        kills, shards, rounds = 0, [], 0
        while kills < args.kills:
            rounds += 1
            out = folder / f"b{rounds}" / "store"
            out.parent.mkdir()
            while True:
                running = subprocess.Popen(
                    command(manifest, out, args.engine),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                moment = float(random.uniform(0.2, whole)) if kills < args.kills else 3600.0
                try:
                    running.wait(moment)
                except subprocess.TimeoutExpired:
                    os.killpg(running.pid, signal.SIGKILL)
                    running.wait()
                    kills += 1
                    left = out.with_name("store.partial")
                    shards.append(len(list(left.glob("shard-*.parquet"))) if left.exists() else 0)
                    continue
                break
            same = content(out) == content(undisturbed)
            print(
                f"after {kills} kills ({shards} whole shards at each): {'equal' if same else 'DIFFERENT'}", flush=True
            )
            if not same:
                sys.exit(1)


if __name__ == "__main__":
    main()
