"""Many clients at once: what a server answers, how soon, and whether its memory stays flat.

python benchmarks/serve_load.py RUN --photographs FOLDER --index FEATURES.parquet     # about 90 s on both cores

First one client alone: the median of its times is the single-request time t1.  Then `--clients` clients, each sending
its next request when it has its answer.  One worker serves all of them, so the fair share of the queue is one in
`clients`: a request waits while every other client's request is answered once.  The limit on the 95th percentile is
3 x t1 x clients.  Memory is flat when the median of the last quarter is at most 5 % above that of the second (the
first fills caches).  Exit status 1 where a limit is broken, or anything but 200 and 429 is answered.
"""

import argparse
import http.client
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from serve_process import Server, form, machine_seconds, serving

SUFFIXES = {".jpg", ".jpeg", ".png", ".dcm"}
TEXTS = ("haemorrhages", "large optic cup", "drusen in the macula", "normal fundus")


def requests_of(photographs: list[bytes], mixed: bool, seed: int) -> list[tuple[str, str, bytes, str]]:
    """Method, address, body and content type of 256 requests: findings, or 5 : 2 : 2 : 1 with maps, cases, searches."""
    chosen = random.Random(seed)
    made = []
    for place in range(256):
        data = photographs[place % len(photographs)]
        kind = chosen.choices(("findings", "map", "similar", "search"), (5, 2, 2, 1))[0] if mixed else "findings"
        if kind == "search":
            made.append(("GET", f"/api/v1/search?text={TEXTS[place % 4].replace(' ', '+')}", b"", ""))
            continue
        more = [("text", TEXTS[place % 4].encode(), None)] if kind == "map" else []
        made.append(("POST", f"/api/v1/{kind}", *form([("file", data, "eye.jpg"), *more])))
    return made


class Client(threading.Thread):
    """One client on one connection.  times: seconds of each 200.  statuses: of all."""

    def __init__(self, server: Server, requests: list[tuple[str, str, bytes, str]], first: int, until: float) -> None:
        super().__init__(daemon=True)
        self.server, self.requests, self.place, self.until = server, requests, first, until
        self.times: list[float] = []
        self.statuses: Counter[str] = Counter()

    def run(self) -> None:
        """Ask until the time is over."""
        connection = http.client.HTTPConnection(self.server.host, self.server.port, timeout=120)
        while time.monotonic() < self.until:
            method, address, body, kind = self.requests[self.place % len(self.requests)]
            self.place += 1
            began = time.monotonic()
            try:
                connection.request(method, address, body or None, {"Content-Type": kind} if kind else {})
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                connection.close()
                continue
            self.statuses[str(response.status)] += 1
            if response.status == 200:
                self.times.append(time.monotonic() - began)
            elif response.status == 429:
                time.sleep(float(response.headers["Retry-After"]) / 10)


def load(
    server: Server, requests: list[tuple[str, str, bytes, str]], clients: int, seconds: float
) -> tuple[np.ndarray, Counter[str], float, float]:
    """Times of all answers, statuses, and when it began and ended."""
    began = time.monotonic()
    running = [Client(server, requests, 37 * place, began + seconds) for place in range(clients)]
    for client in running:
        client.start()
    for client in running:
        client.join()
    statuses: Counter[str] = sum((client.statuses for client in running), Counter())
    return np.array([value for client in running for value in client.times]), statuses, began, time.monotonic()


def measured(
    server: Server, name: str, requests: list[tuple[str, str, bytes, str]], clients: int, seconds: float
) -> bool:
    """One load and its figures; whether all limits held."""
    alone, _, _, _ = load(server, requests, 1, 10)
    single = float(np.median(alone))
    start, own, clients_own, (used, stolen) = server.memory(), server.seconds(), time.process_time(), machine_seconds()
    times, statuses, began, ended = load(server, requests, clients, seconds)
    own, clients_own = server.seconds() - own, time.process_time() - clients_own
    used, stolen = (after - before for after, before in zip(machine_seconds(), (used, stolen), strict=True))
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    limit = 3 * single * clients
    quarter = (ended - began) / 4
    early = server.median_memory(began + quarter, began + 2 * quarter)
    late = server.median_memory(ended - quarter, ended)
    peak = max(value for at, value in server.rss if at >= began)
    answered = sum(statuses.values())
    good = set(statuses) <= {"200", "429"} and p95 <= limit and late <= 1.05 * early
    print(
        f"{name}: {clients} clients, {ended - began:.0f} s: {answered:,} answers ({dict(statuses)}), "
        f"{len(times) / (ended - began):.1f} answers/s (one client alone {1 / single:.1f})\n"
        f"  t1 {1000 * single:.0f} ms (n {len(alone)}); with all: median {1000 * p50:.0f}, p95 {1000 * p95:.0f}, "
        f"p99 {1000 * p99:.0f}, max {1000 * times.max():.0f} ms; limit 3 x t1 x {clients} = {1000 * limit:.0f} ms; "
        f"p95 / (t1 x {clients}) = {p95 / (single * clients):.2f}\n"
        f"  memory: start {start / 1e6:.0f}, second quarter {early / 1e6:.0f}, last quarter {late / 1e6:.0f}, end "
        f"{server.memory() / 1e6:.0f}, peak {peak / 1e6:.0f} MB\n"
        f"  cores in use: server {own / (ended - began):.2f}, clients {clients_own / (ended - began):.2f}, others "
        f"{(used - own - clients_own) / (ended - began):.2f}, taken by the host {stolen / (ended - began):.2f}\n"
        f"  {'held' if good else 'BROKEN'}",
        flush=True,
    )
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--photographs", type=Path, required=True, help="folder")
    parser.add_argument("--index", type=Path, help="adds a load that is mixed of findings, maps, cases and searches")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=64)
    args = parser.parse_args()
    files = sorted(path for path in args.photographs.rglob("*") if path.suffix.lower() in SUFFIXES)[:64]
    photographs = [path.read_bytes() for path in files]
    print(f"{len(photographs)} photographs, {np.mean([len(data) for data in photographs]) / 1e3:.0f} kB on average")
    more = ["--index", str(args.index)] if args.index else []
    with serving(args.run, [*more, "--queue", str(args.queue)]) as server:
        warm = requests_of(photographs, False, 0)
        load(server, warm, 1, 3)
        held = measured(server, "findings", warm, args.clients, args.seconds)
        if args.index:
            mixed = requests_of(photographs, True, 1)
            load(server, mixed, 2, 3)
            held &= measured(server, "mixed", mixed, args.clients, args.seconds)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
