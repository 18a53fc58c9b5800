"""Checkpoints: one folder a step, complete or absent, verified by checksums, without pickle.

`state.safetensors` holds tensors under names, or `shard-#####.safetensors` one rank's part of each; `state.json` the
step, the counters and the checksums.  A folder gets its name only when all of it is on disk.  Any number of ranks
reads what any other number wrote: shards of a tensor are its rows in the order of the ranks.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from maskedclip.errors import UserError
from maskedclip.ranks import everybody, rank_and_world, wait_for_all
from maskedclip.training.weights import whole

_TENSORS, _STATE = "state.safetensors", "state.json"


@dataclass
class Progress:
    """Where a run stands.

    step: of the next step.  seconds: trained so far.  bad_steps, substituted: counted so far.  best, best_step: the
    best value of `training.best_metric` and its step.  stale: validations since then.
    """

    step: int = 0
    seconds: float = 0.0
    bad_steps: int = 0
    substituted: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0


def save_checkpoint(
    folder: Path, tensors: Mapping[str, Tensor], progress: Progress, *, sharded: bool = False, name: str = "step"
) -> Path:
    """Write `folder/NAME-########` and return it; atomic even when killed in the middle.  All ranks must call.

    Args:
        folder: of all checkpoints.
        tensors: whole or sharded (DTensor).
        progress: where the run stands.
        sharded: each rank writes its own part, instead of the first rank all of it.
        name: of the kind of checkpoint.

    Raises:
        UserError: no space on the disk; nothing that was there is lost.
    """
    target = folder / f"{name}-{progress.step:08d}"
    partial = folder / f".partial-{name}-{progress.step:08d}"
    rank, _ = rank_and_world()
    mine = _own_part(tensors, rank) if sharded else {key: whole(value) for key, value in tensors.items()}
    file = f"shard-{rank:05d}.safetensors" if sharded else _TENSORS
    writes = sharded or rank == 0

    def begin() -> None:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def write() -> None:
        if writes:
            save_file(mine, partial / file)
            _flush(partial / file)

    failed = _fault(begin)
    wait_for_all()
    failed = failed or _fault(write)
    sums = everybody((file, _sha256(partial / file) if failed is None and writes else None, failed))
    failed = next((error for _, _, error in sums if error is not None), None)

    def name_it() -> None:
        checks = {name: value for name, value, _ in sums if value is not None}
        state = {"progress": asdict(progress), "sha256": checks}
        (partial / _STATE).write_text(json.dumps(state, indent=2) + "\n")
        _flush(partial / _STATE)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _flush(folder)

    if rank == 0 and failed is None:
        failed = _fault(name_it)
    failed = everybody(failed)[0]
    if failed is not None:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            f"{target}: the checkpoint cannot be written ({failed}); free some space and go on with --resume true"
        )
    return target


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Progress]:
    """Whole tensors and progress of one checkpoint.

    Raises:
        UserError: a part is missing, or its checksum differs.
    """
    try:
        state = json.loads((path / _STATE).read_text())
        files = sorted(state["sha256"])
        for file in files:
            if Path(file).name != file:
                raise ValueError("it names a file elsewhere")
            if _sha256(path / file) != state["sha256"][file]:
                raise ValueError("its checksum differs")
        parts = [load_file(path / file) for file in files]
        names = dict.fromkeys(name for part in parts for name in part)
        tensors = {name: _join([part[name] for part in parts if name in part]) for name in names}
        return tensors, Progress(**state["progress"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path.name} is damaged ({line})") from None


def read_newest(folder: Path) -> tuple[tuple[dict[str, Tensor], Progress] | None, list[str]]:
    """The newest whole checkpoint below a folder (None when there is none), and a line for each damaged one."""
    complaints = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path), complaints
        except UserError as error:
            complaints.append(f"{error}; the one before it is used")
    return None, complaints


def list_checkpoints(folder: Path, name: str = "step") -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob(f"{name}-*"))


def prune_checkpoints(folder: Path, keep: int, name: str = "step") -> None:
    """Delete all but the newest ones, and what a killed run left half-written."""
    for path in list_checkpoints(folder, name)[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".partial-*"):
        shutil.rmtree(path, ignore_errors=True)


def keep_best(folder: Path, progress: Progress) -> None:
    """Delete all checkpoints of best steps but that which a run knows of."""
    for path in list_checkpoints(folder, "best"):
        if progress.best is None or path != _best(folder, progress):
            shutil.rmtree(path, ignore_errors=True)


def restore_best(folder: Path, progress: Progress) -> str | None:
    """Keep the best checkpoint that a resumed run knows of: later ones are of steps that are done anew.

    All ranks must call.  Where it is gone, the run forgets it; returns a line that says so.
    """
    gone = progress.best is not None and not _best(folder, progress).is_dir()
    wait_for_all()  # all have looked before one deletes
    if rank_and_world()[0] == 0:
        keep_best(folder, progress)
    if not gone:
        return None
    line = f"the best checkpoint (of step {progress.best_step}) is gone; the next validation is the best so far"
    progress.best, progress.best_step, progress.stale = None, 0, 0
    return line


def _best(folder: Path, progress: Progress) -> Path:
    return folder / f"best-{progress.best_step:08d}"


def _own_part(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """This rank's rows of sharded tensors, and on the first rank the others."""
    mine = {}
    for name, value in tensors.items():
        if isinstance(value, DTensor):
            mine[name] = value.to_local().detach().cpu().contiguous()
        elif rank == 0:
            mine[name] = value.detach().cpu().contiguous()
    return mine


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fault(act: Callable[[], None]) -> str | None:
    """What went wrong on the disk, if anything."""
    try:
        act()
    except (OSError, SafetensorError) as error:
        return str(error)
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Make sure that a crash of the machine does not undo what was written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
