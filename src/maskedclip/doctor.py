"""What this machine has, what is slow and what is missing, for a user and for an issue report."""

import os
import platform
import shutil
import sys
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

_CORE = (
    "maskedclip",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "lightning-fabric",
    "pyarrow",
    "daft",
    "scikit-learn",
)
_EXTRAS = {
    "medical": ("pydicom", "DICOM files"),
    "export": ("onnxruntime", "ONNX export"),
    "serve": ("fastapi", "serving"),
    "tracking": ("mlflow", "MLflow logs"),
}


def examine() -> dict[str, Any]:
    """Versions, devices, a short measurement, and advice in whole sentences."""
    import torch

    threads, cores = (
        torch.get_num_threads(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    rates = {
        precision: round(_matrix_rate(kind), 1)
        for precision, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    devices = [
        {
            "name": torch.cuda.get_device_name(index),
            "memory_gib": round(torch.cuda.get_device_properties(index).total_memory / 2**30, 1),
            "bf16": torch.cuda.is_bf16_supported(),
        }
        for index in range(torch.cuda.device_count())
    ]
    missing = {name: what for name, (module, what) in _EXTRAS.items() if util.find_spec(module) is None}
    findings: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: metadata.version(name) for name in _CORE},
        "cores": cores,
        "threads": threads,
        "gpus": devices,
        "matrix_gflops_on_processor": rates,
        "free_disk_gib": round(free, 1),
        "missing_extras": missing,
    }
    return findings | {"advice": _advice(findings)}


def _matrix_rate(dtype: Any) -> float:
    """Billions of operations a second of a 1024 x 1024 product on the processor."""
    import torch

    a = torch.randn(1024, 1024).to(dtype)
    torch.mm(a, a)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best / 1e9


def _advice(found: dict[str, Any]) -> list[str]:
    advice = []
    rates = found["matrix_gflops_on_processor"]
    if not found["gpus"]:
        advice.append("no GPU: use --config tiny, or vits14_dinov2 at 112 px for hours rather than days")
        if rates["bfloat16"] < rates["float32"]:
            advice.append("bfloat16 is slower than float32 on this processor: --training.precision 32-true")
    if any(not device["bf16"] for device in found["gpus"]):
        advice.append("a GPU without bfloat16: --training.precision 32-true")
    if found["threads"] < (found["cores"] or 1):
        advice.append(f"{found['threads']} threads on {found['cores']} cores: is OMP_NUM_THREADS set?")
    if found["free_disk_gib"] < 5:
        advice.append(f"{found['free_disk_gib']} GiB free here: checkpoints and stores need room")
    for name, what in found["missing_extras"].items():
        advice.append(f"{what}: pip install 'maskedclip[{name}]'")
    return advice


def findings_as_text(found: dict[str, Any]) -> str:
    """The findings as lines for a terminal."""
    lines = [f"python {found['python']} on {found['platform']}"]
    lines += [f"{name} {version}" for name, version in found["versions"].items()]
    lines += [f"{found['cores']} cores, {found['threads']} threads; {found['free_disk_gib']} GiB free here"]
    lines += [f"{device['name']}, {device['memory_gib']} GiB" for device in found["gpus"]] or ["no GPU"]
    rates = found["matrix_gflops_on_processor"]
    lines += [f"processor: {rates['float32']:.0f} GFLOP/s in float32, {rates['bfloat16']:.0f} in bfloat16"]
    lines += [f"- {line}" for line in found["advice"]]
    lines += ["next: maskedclip demo --out demo"]
    return "\n".join(lines)
