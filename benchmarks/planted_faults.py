"""A hospital's export with planted faults: each must be in the quarantine with its reason, and nothing else.

python benchmarks/planted_faults.py --images 2000      # about two minutes on two cores; prints a table for RESULTS.md
python benchmarks/planted_faults.py --images 50000 --folder DIR      # 7 GB there

Phantoms in mixed formats, some of them in archives, 2 % of them replaced by faults and another 2 % by traps: odd files
that are sound and must be stored.  The curation runs by the command line in a process of its own, whose memory is
sampled; beside it, decode + resize + encode alone is timed on the sound files with the same cores.

What is a fault and what a trap: a picture with a wrong suffix, an animation (its first frame), a name with a newline or
with bytes that are not UTF-8 and a link to another picture are sound.  One pixel is none: it is too small.
"""

import argparse
import csv
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from planted_faults_made import SIZE, WITHOUT_OVERRIDE, can_drop, plant


def curate(folder: Path, out: Path) -> tuple[float, int]:
    """Curate by the command line; images/s, and the peak memory of all its processes in bytes."""
    drop = WITHOUT_OVERRIDE if os.geteuid() == 0 and can_drop() else []
    command = [*drop, sys.executable, "-m", "maskedclip", "curate", str(folder / "manifest.csv"), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0

    def sample() -> None:
        nonlocal peak
        while process.poll() is None:
            peak = max(peak, sum(_resident(pid) for pid in _family(process.pid)))
            time.sleep(0.1)

    sampler = threading.Thread(target=sample)
    sampler.start()
    _, told = process.communicate()
    sampler.join()
    if process.returncode:
        sys.exit(f"curate ended with exit status {process.returncode}:\n{told.decode(errors='replace')[-2000:]}")
    return json.loads((out / "curation.json").read_text())["images_per_second"], peak


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(grandchild for child in children for grandchild in _family(int(child)))]


def _resident(pid: int) -> int:
    """Memory of a process, what it shares with others counted by its share."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def decode_resize_encode(paths: list[str]) -> int:
    """What curation cannot do without: bytes to pixels to a square of 256 px to JPEG."""
    from maskedclip.data.imaging import decode, encode_jpeg

    for path in paths:
        image = Image.fromarray(decode(Path(path).read_bytes(), name=path))
        encode_jpeg(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)))
    return len(paths)


def baseline(paths: list[str]) -> tuple[float, str]:
    """Images/s of `decode_resize_encode` on all cores: by threads or by processes, whichever is faster."""
    cores = len(os.sched_getaffinity(0))
    blocks = [paths[start : start + 50] for start in range(0, len(paths), 50)]
    rates = {}
    for name, make in (
        ("threads", lambda: ThreadPoolExecutor(cores)),
        ("processes", lambda: ProcessPoolExecutor(cores, mp_context=get_context("spawn"))),
    ):
        with make() as pool:
            list(pool.map(decode_resize_encode, [block[:2] for block in blocks[: 2 * cores]]))  # libraries are loaded
            began = time.perf_counter()
            done = sum(pool.map(decode_resize_encode, blocks))
            rates[name] = done / (time.perf_counter() - began)
    best = max(rates, key=lambda name: rates[name])
    return rates[best], best


def compare(out: Path, planted: dict[str, tuple[str, str]], trapped: dict[str, str]) -> tuple[Counter[str], list[str]]:
    """How many faults of each kind were found with their reason; and everything that is not as it should be."""
    with open(out / "quarantine.csv", newline="", encoding="utf-8") as file:
        found = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    right: Counter[str] = Counter()
    wrong = []
    for address, (kind, reason) in planted.items():
        if address not in found:
            wrong.append(f"{kind}: {address!r} was stored")
        elif not re.match(reason, found[address]):
            wrong.append(f"{kind}: {address!r} {found[address]}")
        else:
            right[kind] += 1
    for address, reason in found.items():
        if address not in planted:
            wrong.append(f"{trapped.get(address, 'a sound picture')}: {address!r} {reason}")
    return right, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="empty folder for the files; kept")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        (folder / "export").mkdir(parents=True)
        began = time.perf_counter()
        planted, trapped, sound = plant(folder / "export", args.images, args.seed)
        print(f"{args.images:,} files made in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        rate, peak = curate(folder / "export", folder / "store")
        right, wrong = compare(folder / "store", planted, trapped)
        alone, how = baseline(sound[:: max(1, len(sound) // 4000)])
        for path in folder.rglob("*.jpg"):  # so that the folder can be removed by others than root
            if stat.S_ISREG(path.lstat().st_mode) and not path.lstat().st_mode & 0o777:
                path.chmod(0o600)
    kinds = Counter(kind for kind, _ in planted.values())
    print("| planted | files | in the quarantine with its reason |\n|---|---|---|")
    for kind, count in kinds.items():
        print(f"| {kind} | {count} | {right[kind]} |")
    for kind, count in Counter(trapped.values()).items():
        print(f"| trap: {kind} | {count} | none: stored |")
    figures = {
        "images": args.images,
        "faults": len(planted),
        "traps": len(trapped),
        "wrong": len(wrong),
        "images_per_second": round(rate, 1),
        "alone_per_second": round(alone, 1),
        "ratio": round(rate / alone, 3),
        "peak_megabytes": round(peak / 1e6),
    }
    print(
        f"{len(planted)} faults, {len(trapped)} traps in {args.images:,} files; {len(wrong)} wrong; "
        f"{rate:.0f} images/s, "
        f"{rate / alone:.2f} of decode + resize + encode alone ({alone:.0f} by {how}); peak {peak / 1e6:,.0f} MB"
    )
    for line in wrong[:50]:
        print(f"wrong: {line}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
