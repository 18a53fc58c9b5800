"""metrics.jsonl always, TensorBoard beside it, and the sums between two lines."""

import json
import time

import torch
from lightning_fabric import Fabric
from torch import Tensor

from maskedclip.training.rundir import RunDirectory

_STARVED = 0.2


class Window:
    """Sums over the steps since the last logged line; tensors stay on the device until then."""

    def __init__(self) -> None:
        self.began, self.waited, self.lr = time.monotonic(), 0.0, 0.0
        self.images = 0
        self.count: Tensor | None = None
        self.sums: dict[str, Tensor] = {}

    @property
    def seconds(self) -> float:
        """Since the window began."""
        return time.monotonic() - self.began

    def pause(self, seconds: float) -> None:
        """Take off time in which there were no steps: validation, checkpoints."""
        self.began += seconds

    def add(self, values: dict[str, Tensor], images: int, good: Tensor) -> None:
        """Count a step.

        Args:
            values: scalars.
            images: of this rank.
            good: 1.0 when the step counts, 0.0 when it was skipped, ().
        """
        self.images += images
        self.count = good if self.count is None else self.count + good
        for name, value in values.items():
            kept = torch.where(good > 0, value.float(), 0.0)
            self.sums[name] = self.sums[name] + kept if name in self.sums else kept

    def means(self, fabric: Fabric) -> dict[str, float]:
        """Means over the good steps and over the ranks; empty when there was none."""
        if self.count is None:
            return {}
        names = list(self.sums)
        stacked = torch.stack([*(self.sums[name] for name in names), self.count])
        reduced = fabric.all_reduce(stacked, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        *sums, count = reduced.tolist()
        return {name: value / count for name, value in zip(names, sums, strict=True)} if count else {}


class Log:
    """metrics.jsonl always, TensorBoard where the recipe wants it."""

    def __init__(self, run: RunDirectory, tensorboard: bool, step: int) -> None:
        self.file = run.metrics.open("a")
        self.writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=step or None)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Log numbers at a step (of the steps done, from 0)."""
        self.file.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
        self.file.flush()
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{kind}/{name}", value, step)

    def flush(self) -> None:
        """Everything so far is on disk."""
        self.file.flush()
        if self.writer is not None:
            self.writer.flush()


def waiting_verdict(share: float, workers: int) -> str | None:
    """What to do about a share of the time that was spent waiting for data; None when it is small."""
    if share < _STARVED:
        return None
    mend = f"raise data.workers above {workers}" if workers else "give data.workers 1 or more"
    return f"loader-bound: {share:.0%} of the time was spent waiting for data; {mend}, or data.decoded_cache on"
