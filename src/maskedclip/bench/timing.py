"""Clocks: medians of alternating runs, since machines are noisy."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def seconds(act: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def medians(acts: Sequence[Callable[[], object]], device: torch.device, *, rounds: int, warm: int = 1) -> list[float]:
    """Median seconds of several calls that take turns, so that a slow minute of the machine hits all alike."""
    for act in acts:
        for _ in range(warm):
            act()
    taken = [[seconds(act, device) for act in acts] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product as a transformer has them, (4096, 1024) x (1024, 4096)."""
    a, b = torch.randn(4096, 1024, device=device).to(dtype), torch.randn(1024, 4096, device=device).to(dtype)
    (taken,) = medians([lambda: a @ b], device, rounds=9, warm=3)
    return 2 * 4096 * 1024 * 4096 / taken


PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10": 125e12, "V100": 125e12}
"""Dense bf16 (V100: fp16) operations a second with tensor cores, from the vendor's data sheets, by part of the name."""


def peak_rate(device: torch.device) -> float | None:
    """The device's peak, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), None)
