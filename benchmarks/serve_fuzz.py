"""Thousands of odd requests: none may be answered with 500, none may hang, and the server must live on.

python benchmarks/serve_fuzz.py RUN --requests 5000 --index FEATURES.parquet      # minutes on two cores

Half come from schemathesis, which reads /openapi.json: values that fit each field and values that do not, every other
one with a sound picture, so that the other fields are reached.  Half are
the damaged pictures and DICOM files of benchmarks/fuzz.py, sent to the addresses that take photographs.  The last
request is a sound picture, whose answer must be the one that it had before.
"""

import argparse
import http.client
import io
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fuzz import damaged
from PIL import Image
from serve_process import Server, form, serving

SECONDS = 15.0
PHOTOGRAPHS = ("findings", "map", "similar", "embed", "preview")


class Tally:
    """Answers by address and status; faults are 500s, hangs and broken connections."""

    def __init__(self) -> None:
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.faults: list[str] = []
        self.slowest = (0.0, "")

    def add(self, what: str, address: str, status: int, seconds: float) -> None:
        self.statuses[address, status] += 1
        self.slowest = max(self.slowest, (seconds, what))
        if status >= 500:
            self.faults.append(f"{what}: {status}")
        if seconds > SECONDS:
            self.faults.append(f"{what}: {seconds:.1f} s")

    def count(self) -> int:
        return sum(self.statuses.values())


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


PICTURE = _picture()


def sound() -> tuple[bytes, str]:
    return form([("file", PICTURE, "eye.png")])


def post(server: Server, address: str, body: bytes, kind: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        connection.request("POST", address, body, {"Content-Type": kind})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def malformed(server: Server, tally: Tally, count: int, seed: int) -> None:
    """Damaged pictures and DICOM files."""
    number = done = 0
    while done < count:
        file = damaged(number, seed)
        number += 1
        if file.kind not in ("image", "dicom"):
            continue
        address = f"/api/v1/{PHOTOGRAPHS[done % len(PHOTOGRAPHS)]}"
        more = [("text", b"drusen", None)] if address.endswith("map") else []
        began, what = time.monotonic(), f"file {number - 1} to {address}"
        done += 1
        try:
            status, _ = post(server, address, *form([("file", file.data, file.name), *more]))
        except (OSError, http.client.HTTPException) as error:
            tally.faults.append(f"{what}: {error!r}")
            continue
        tally.add(what, address, status, time.monotonic() - began)


def generated(server: Server, tally: Tally, count: int, seed: int) -> None:
    """What schemathesis makes of the OpenAPI document: of each address in turn, until there are enough."""
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    pairs = [(one, mode) for one in operations for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]
    first = tally.count()
    for turn in range(1000):
        for operation, mode in list(pairs):
            left = count - (tally.count() - first)
            if left <= 0:
                return
            if not _ask(server, tally, operation, mode, min(25, left), 1000 * seed + turn):
                pairs.remove((operation, mode))


def _ask(server: Server, tally: Tally, operation: Any, mode: Any, count: int, seed: int) -> bool:
    """Requests to one address; False where there are none of this kind, as nothing of a plain GET can be wrong."""
    import hypothesis
    import hypothesis.errors

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=[*hypothesis.HealthCheck],  # type: ignore[arg-type]
    )
    @hypothesis.given(case=operation.as_strategy(mode))
    def ask(case: Any) -> None:
        began, what = time.monotonic(), f"{case.method} {case.formatted_path} {str(case.query)[:200]}"
        if tally.count() % 2 and isinstance(case.body, dict) and "file" in case.body:
            case.body["file"] = [PICTURE] if isinstance(case.body["file"], list) else PICTURE
        try:
            status = case.call(base_url=server.address, timeout=60).status_code
        except Exception as error:
            if "timed out" in str(error) or "Connection" in type(error).__name__:
                tally.faults.append(f"{what}: {error!r}")
            return  # else a request that cannot be written at all
        tally.add(what, case.operation.path, status, time.monotonic() - began)

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--part", choices=["generated", "malformed", "both"], default="both")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    tally, began = Tally(), time.monotonic()
    more = ["--index", str(args.index)] if args.index else []
    with serving(args.run, ["--max-bytes", "2M", "--max-pixels", "4M", *more]) as server:
        before = post(server, "/api/v1/embed", *sound())
        start = server.memory()
        share = args.requests // 2 if args.part == "both" else args.requests
        if args.part != "generated":
            malformed(server, tally, share, args.seed)
        if args.part != "malformed":
            generated(server, tally, share, args.seed)
        after = post(server, "/api/v1/embed", *sound())
        if before != after:
            tally.faults.append("the last sound picture is answered otherwise than the first")
        end = server.memory()
        trouble = [line for line in server.log if "Traceback" in line or "Error" in line]
    statuses = sorted({status for _, status in tally.statuses})
    print(f"| address | {' | '.join(map(str, statuses))} |\n|---|{'---|' * len(statuses)}")
    for address in sorted({address for address, _ in tally.statuses}):
        print(f"| {address} | {' | '.join(f'{tally.statuses[address, status]:,}' for status in statuses)} |")
    print(
        f"{tally.count():,} requests in {time.monotonic() - began:.0f} s; slowest {tally.slowest[0]:.2f} s "
        f"({tally.slowest[1]}); memory {start / 1e6:.0f} -> {end / 1e6:.0f} MB; {len(tally.faults)} faults"
    )
    for line in [*tally.faults[:30], *trouble[:10]]:
        print(line)
    sys.exit(1 if tally.faults or trouble else 0)


if __name__ == "__main__":
    main()
