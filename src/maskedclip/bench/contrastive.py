"""Memory and time of the contrastive loss: ours in blocks against the whole matrix, each in a process of its own."""

import json
import os
import subprocess
import sys
from typing import Any

_SCRIPT = """
import json, resource, sys, time
import torch
from torch.nn import functional
from maskedclip.objectives.contrastive import clip_loss

kind, batch, width, device = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), torch.device(sys.argv[4])
generator = torch.Generator().manual_seed(0)
image, text = (
    functional.normalize(torch.randn(batch, width, generator=generator), dim=-1).to(device).requires_grad_()
    for _ in range(2)
)
scale = torch.tensor(14.3, device=device, requires_grad=True)
keys = torch.arange(batch, device=device)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def high_water():  # of this process alone: getrusage's figure begins with that of the process that started it
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

def naive():
    to_text, to_image = scale * image @ text.T, scale * text @ image.T
    return (functional.cross_entropy(to_text, keys) + functional.cross_entropy(to_image, keys)) / 2

def chunked():
    return clip_loss(image, text, keys, scale)

# the threads' own memory, and the library's first call, belong to neither
small = torch.randn(256, width, requires_grad=True)
functional.cross_entropy(small @ small.T, torch.arange(256)).backward()
before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident()
began = time.perf_counter()
loss = {"naive": naive, "chunked": chunked}[kind]()
loss.backward()
if device.type == "cuda":
    torch.cuda.synchronize(device)
taken = time.perf_counter() - began
peak = (
    torch.cuda.max_memory_allocated(device)
    if device.type == "cuda"
    else high_water()
)
norms = [float(value.grad.double().norm()) for value in (image, text, scale)]
print(json.dumps({"bytes": peak - before, "seconds": taken, "loss": float(loss), "norms": norms}))
"""


def measure_contrastive(
    batch: int, width: int = 512, *, device: str = "cpu", rounds: int = 3, naive: bool = True
) -> dict[str, Any]:
    """Extra peak memory and time of loss and gradient.

    Args:
        batch: pairs.
        width: of the shared space.
        device: cpu or cuda.
        rounds: alternating pairs of runs; medians are told.
        naive: whether to run the whole matrix too, 4 batch^2 bytes a copy.
    """
    kinds = ("naive", "chunked") if naive else ("chunked",)
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            runs[kind].append(_run(kind, batch, width, device))
    found: dict[str, Any] = {"batch": batch, "width": width}
    for kind, results in runs.items():
        found[f"{kind}_bytes"] = _median([result["bytes"] for result in results])
        found[f"{kind}_seconds"] = _median([result["seconds"] for result in results])
    if naive:
        pairs = zip(runs["chunked"], runs["naive"], strict=True)
        found["time_ratio"] = _median([mine["seconds"] / theirs["seconds"] for mine, theirs in pairs])
        found["memory_ratio"] = found["chunked_bytes"] / found["naive_bytes"]
        mine, theirs = runs["chunked"][0], runs["naive"][0]
        found["relative_difference"] = max(
            abs(a - b) / max(abs(b), 1e-30)
            for a, b in zip([mine["loss"], *mine["norms"]], [theirs["loss"], *theirs["norms"]], strict=True)
        )
    return found


def _run(kind: str, batch: int, width: int, device: str) -> dict[str, Any]:
    command = [sys.executable, "-c", _SCRIPT, kind, str(batch), str(width), device]
    # glibc gives freed memory back at once, so that the peak is the loss's own
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"bytes": float("nan"), "seconds": float("nan"), "loss": float("nan"), "norms": [float("nan")] * 3} | {
            "error": lines[-1] if lines else f"status {done.returncode}"
        }
    return json.loads(done.stdout)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
