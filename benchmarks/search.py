"""Search of a million vectors: exact by matrix product, and by an index; its speed, its recall, its memory.

    python benchmarks/search.py --out DIR [--features FILE.parquet --output encoder] [--rows 1000000] [--width 512]
        [--dtype float32] [--queries 16] [--rounds 20] [--skip-index]

The vectors resemble real ones.  With --features: real rows x of the file, turned into `width` dimensions by a random
rotation; each new row is x + t (y - x) + noise, y one of the ten nearest rows of x, t uniform in [0, 1], the noise as
long as the way to the nearest row times --noise and spread over all dimensions.  Without: a mixture of 2,000 Gaussians
whose variances fall off as those of real features do.  Queries are drawn in the same way and are not among the rows.
DIR keeps rows and index, so that a second call only measures.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskedclip.deployment.search import open_index
from maskedclip.deployment.search_exact import exact_top
from maskedclip.deployment.search_vectors import read_vectors

_CHUNK = 65_536
_QUERIES = 512


def mixture(count: int, width: int, random: np.random.Generator, base: np.random.Generator):
    """Chunks of rows of 2,000 Gaussians around a common mean."""
    spectrum = (1 + np.arange(width)) ** -0.8
    rotation = np.linalg.qr(base.normal(size=(width, width)))[0]
    centres = base.normal(size=(2000, width)) * spectrum
    mean = base.normal(size=width)
    mean *= 1.5 * np.linalg.norm(spectrum) / np.linalg.norm(mean)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        rows = centres[random.integers(0, 2000, size)] + 0.6 * random.normal(size=(size, width)) * spectrum
        yield unit((rows + mean) @ rotation)


def resembling(real: np.ndarray, count: int, width: int, noise: float, random: np.random.Generator):
    """Chunks of rows between real rows and their neighbours, with noise."""
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(width, width)))[0][: real.shape[1]]
    near = [rows[1:] for rows, _ in exact_top(real, real, 11)]
    neighbours = np.stack(near)
    gaps = np.linalg.norm(real - real[neighbours[:, 0]], axis=1)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        first = random.integers(0, len(real), size)
        second = neighbours[first, random.integers(0, 10, size)]
        share = random.uniform(size=(size, 1))
        rows = (real[first] + share * (real[second] - real[first])) @ rotation
        spread = noise * gaps[first][:, None] / np.sqrt(width)
        yield unit(rows + spread * random.normal(size=(size, width)))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write(path: Path, args: argparse.Namespace, real: np.ndarray | None) -> None:
    kind = pa.float32() if args.dtype == "float32" else pa.float16()
    vector = pa.list_(kind, args.width)
    schema = pa.schema({"id": pa.string(), "age": pa.int32(), "label.glaucoma": pa.float32(), "projected": vector})
    random = np.random.default_rng(0)
    if real is None:
        chunks = mixture(args.rows, args.width, random, np.random.default_rng(1))
    else:
        chunks = resembling(real, args.rows, args.width, args.noise, random)
    partial = path.with_suffix(".partial")
    with pq.ParquetWriter(partial, schema.with_metadata({"maskedclip.model": "benchmark"}), compression="none") as out:
        done = 0
        for chunk in chunks:
            flat = pa.array(chunk.astype(args.dtype).ravel(), kind)
            columns = [
                pa.array([f"row-{done + row}" for row in range(len(chunk))]),
                pa.array(random.integers(20, 90, len(chunk)), pa.int32()),
                pa.array((random.uniform(size=len(chunk)) < 0.3).astype(np.float32)),
                pa.FixedSizeListArray.from_arrays(flat, args.width),
            ]
            out.write_table(pa.Table.from_arrays(columns, schema=schema))
            done += len(chunk)
    partial.rename(path)


def timed(work, rounds: int) -> tuple[float, float, float]:
    """Median, least and most seconds."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken)), min(taken), max(taken)


def peak() -> float:
    """GiB of this process so far, file pages that it has mapped and touched included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def shown(name: str, seconds: tuple[float, float, float], note: str = "") -> None:
    median, least, most = (1000 * value for value in seconds)
    print(f"{name}: median {median:.1f} ms, {least:.1f} to {most:.1f}{note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", type=Path, default=None)
    parser.add_argument("--output", default="encoder")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--skip-index", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "vectors.parquet"
    real = None if args.features is None else read_vectors(args.features, args.output).values
    if not path.is_file():
        began = time.perf_counter()
        write(path, args, real)
        print(f"{args.rows:,} x {args.width} {args.dtype} written in {time.perf_counter() - began:.0f} s")
    random = np.random.default_rng(2)
    if real is None:
        asked = next(mixture(_QUERIES, args.width, random, np.random.default_rng(1)))
    else:
        asked = next(resembling(real, _QUERIES, args.width, args.noise, random))
    batch = asked[: args.queries]
    print(f"{os.cpu_count()} processors; {path}, {path.stat().st_size / 2**30:.2f} GiB")

    began = time.perf_counter()
    exact = open_index(path, kind="exact")
    print(f"open, exact: {time.perf_counter() - began:.1f} s; {len(exact):,} x {exact.width}")
    exact.search(batch)
    shown(f"exact, {len(batch)} queries", timed(lambda: exact.search(batch), args.rounds))
    shown("exact, 1 query", timed(lambda: exact.search(batch[:1]), args.rounds))
    for where in ("label.glaucoma = 1", "label.glaucoma = 1 and age > 85"):
        rows = exact.rows(where)
        share = f", of {0 if rows is None else len(rows):,} rows"
        shown(f"exact, {len(batch)} queries, {where}{share}", timed(lambda w=where: exact.search(batch, 10, w), 5))
    print(f"memory: {peak():.2f} GiB at most")
    if args.skip_index:
        return

    began = time.perf_counter()
    index = open_index(path, kind="approximate")
    assert index.graph is not None
    facts = {"recall": index.graph.recall, "effort": index.graph.effort, "built in s": index.graph.build_seconds}
    size = path.with_name("vectors.projected.usearch").stat().st_size / 2**30
    print(f"open, index: {time.perf_counter() - began:.1f} s; {size:.2f} GiB; {json.dumps(facts)}")
    index.search(asked)
    shown(f"index, {len(batch)} queries", timed(lambda: index.search(batch), args.rounds))
    shown("index, 1 query", timed(lambda: index.search(batch[:1]), args.rounds))
    for where in (None, "label.glaucoma = 1", "label.glaucoma = 1 and age > 85"):
        truth = exact.search(asked, 10, where)
        found = index.search(asked, 10, where)
        shares = [
            len({hit.row for hit in near} & {hit.row for hit in true}) / len(true)
            for near, true in zip(found, truth, strict=True)
        ]
        name = f"index, {len(batch)} queries" + (f", {where}" if where else "")
        shown(name, timed(lambda w=where: index.search(batch, 10, w), 5), f"; recall@10 {np.mean(shares):.4f}")
    scores = np.array([[hit.score for hit in hits] for hits in exact.search(asked)])
    print(f"these vectors: cosine of the 1st hit {scores[:, 0].mean():.4f}, of the 10th {scores[:, 9].mean():.4f}")
    print(f"memory: {peak():.2f} GiB at most")


if __name__ == "__main__":
    main()
