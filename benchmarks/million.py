"""How long a sampler over a million rows takes to start, and how much memory it holds.

python benchmarks/million.py
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.data.sampler import StepSampler, make_pools
from maskedclip.data.store import open_store
from maskedclip.recipe import load_recipe

ROWS, SHARDS = 1_000_000, 10


def write_metadata(folder: Path) -> None:
    """A store without pictures: ids, patients, a report for every fifth row."""
    for shard in range(SHARDS):
        rows = np.arange(shard * ROWS // SHARDS, (shard + 1) * ROWS // SHARDS)
        columns = {
            "id": [f"{row:016x}" for row in rows],
            "image": pa.array([{"bytes": b"", "path": ""}] * len(rows)),
            "text": [f"report {row % 5000} of the eye" if row % 5 == 0 else None for row in rows],
            "patient": [f"p{row // 2}" for row in rows],
            "split": ["train" if row % 10 else "val" for row in rows],
        }
        pq.write_table(pa.table(columns), folder / f"shard-{shard:05d}.parquet")
    facts = {"fingerprint": "f" * 64, "settings": {"size": 256, "crop": "none"}}
    (folder / "curation.json").write_text(json.dumps(facts))


def resident() -> float:
    """Megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def main() -> None:
    """Measure in a process that has done nothing else."""
    if len(sys.argv) == 1:
        with tempfile.TemporaryDirectory() as folder:
            write_metadata(Path(folder))
            subprocess.run([sys.executable, __file__, folder], check=True)
        return
    recipe = load_recipe(["maskedclip", "vitb16"], ["--data.text_fraction", "0.25"])
    before, began = resident(), time.perf_counter()
    store = open_store(sys.argv[1])
    sampler = StepSampler(make_pools(store, recipe), recipe)
    sampler.rows(0)
    started = time.perf_counter()
    sampler.rows(10**6)
    jumped = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before
    took = f"{started - began:.2f} s, at most {peak:.0f} MB"
    print(f"{ROWS:,} rows: starts in {took}; step 10^6 in {jumped - started:.2f} s")


if __name__ == "__main__":
    main()
